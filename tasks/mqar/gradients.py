"""Whether a training's gradients are right, before an accuracy of it counts.

Each parameter of the mixers is compared, and all of them as one: a gate's gradient may be a
thousandth of a value's. The bar is `tasks.check`'s: an error against fp64 of at most twice the
reference's in the same precision, plus TOLERANCE. How large the reference's is can be chance. A
norm divides by a head's output, which at a first token is a single product; where it nearly
vanishes its rounding is most of a row's error, and may be ten times that at parameters which differ
by less than a rounding. So rows that miss a bar together are looked at one by one, each in the
batch of all, with bars from the reference's largest errors over ROUNDINGS such starts.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from tasks.backbone import LanguageModel
from tasks.base import Metrics, Wrong
from tasks.check import of, relative_error
from tasks.mqar.recall import Recall, query_hidden
from tasks.recipe import autocast, matmul_precision
from tasks.seeds import seeded

if TYPE_CHECKING:
    from tasks.mqar.task import MQAR

ROWS = 8
ROUNDINGS = 64
TOLERANCE = 2**-8
"""Of a gradient's relative error: some peers' kernels multiply in TF32 whatever torch is told."""
TELLS = 0.5
"""A bar for all parameters tells something below it: without any gradient an error is 1, without a
recurrence's somewhat less."""
ALL = "all parameters"
NUDGE = {"fp32": 2**-23, "tf32": 2**-12, "bf16_autocast": 2**-9}
"""How far off, of its size, a parameter of another start may be: half of what rounding it to the
precision may change, and in fp32 twice, since it is an fp32 number."""


class Compared(NamedTuple):
    """The relative error that takes most of its bar, of which parameter, and whether the bar for
    all tells something."""

    name: str
    error: float
    allowed: float
    tells: bool

    @property
    def share(self) -> float:
        """Of the bar; infinite where error or bar is no number."""
        share = self.error / self.allowed if self.allowed else float("inf")
        return share if share < float("inf") and self.allowed < float("inf") else float("inf")

    def __str__(self) -> str:
        return f"{self.error:.1e} ({self.allowed:.1e}, {self.name})"


def check_gradients(task: MQAR, device: torch.device) -> Metrics:
    """The error of the mixers' parameters' gradients over ROWS rows without dropout that takes most
    of its bar, and the bar; how many rows were looked at alone, and of how many the bar for all
    tells nothing. Raises Wrong, with every row's worst, where rows pass neither together nor one by
    one, or where over half of them tell nothing."""
    mixer = task.mixer.model_copy(update={"impl": "reference"})
    reference = task.model_copy(update={"mixer": mixer, "fused_loss": False})
    exact = Start(reference, device, torch.float64)
    same, mine = (Start(each, device, torch.float32) for each in (reference, task))

    def compared(rows: slice, roundings: int) -> Compared:
        truth = exact.gradients(rows)
        errors = relative_errors(mine.gradients(rows), truth)
        bars = dict.fromkeys(errors, 0.0)
        for rounding in range(roundings):
            found = relative_errors(same.gradients(rows, rounding), truth)
            bars = {name: max(bars[name], 2 * e + TOLERANCE) for name, e in found.items()}
            if all(error <= bars[name] for name, error in errors.items()):
                break
        tells = bars[ALL] < TELLS
        each = [Compared(name, error, bars[name], tells) for name, error in errors.items()]
        return max(each, key=lambda one: one.share)

    worst, rows = compared(slice(ROWS), 1), list[Compared]()
    if worst.share > 1 or not worst.tells:
        together = worst
        for i in range(ROWS):
            # Once one is wrong the others are for the message.
            right = all(row.share <= 1 for row in rows)
            rows.append(compared(slice(i, i + 1), ROUNDINGS if right else 1))
        worst = max(rows, key=lambda row: row.share)
        if worst.share > 1 or 2 * sum(not row.tells for row in rows) > ROWS:
            raise Wrong(
                f"the gradient in {task.training.precision} {of(task.mixer)} is off by {together} "
                f"against fp64, in brackets what is allowed; row by row, with up to {ROUNDINGS} "
                f"roundings to the first wrong one, {', '.join(map(str, rows))}"
            )
    return {
        "gradient_error": worst.error,
        "gradient_allowed": worst.allowed,
        "gradient_rows_alone": len(rows),
        "gradient_rows_untold": sum(not row.tells for row in rows),
    }


def relative_errors(x: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    """Of each gradient, and of all in one. Of a matrix what nine tenths of its rows are within: a
    projection to queries, keys and values has all of them in one."""
    found = {name: relative_error_of_rows(x[name], truth) for name, truth in exact.items()}
    whole, truth = (torch.cat([g.flatten() for g in each.values()]) for each in (x, exact))
    return found | {ALL: relative_error(whole, truth)}


def relative_error_of_rows(x: Tensor, exact: Tensor) -> float:
    if exact.ndim < 2:
        return relative_error(x, exact)
    scale = exact.double().flatten(1).norm(dim=1)
    off = (x.double() - exact.double()).flatten(1).norm(dim=1)
    return float((off / torch.where(scale > 0, scale, 1.0)).quantile(0.9))


class Start:
    """A task's model before its training, in `dtype`, and its first ROWS rows."""

    def __init__(self, task: MQAR, device: torch.device, dtype: torch.dtype) -> None:
        few = task.train[0].model_copy(update={"examples": ROWS})
        self.task, self.device = task, device
        self.problem = Recall(task.model_copy(update={"train": (few,), "test": (few,)}), device)
        self.model = task.model(device).to(dtype).eval()
        self.precision = "fp32" if dtype == torch.float64 else task.training.precision

    def gradients(self, rows: slice, rounding: int = 0) -> dict[str, Tensor]:
        """Of the loss over these rows of the ROWS, run as one batch, by the mixers' parameters; in
        fp64 without autocast. A `rounding` other than 0 names a start off by NUDGE."""
        model = self.nudged(rounding) if rounding else self.model
        batch = self.problem.train[0]
        with autocast(self.precision, self.device), matmul_precision(self.precision):
            hidden = query_hidden(model, batch)[rows].flatten(0, 1)
            targets = batch.targets[rows].flatten()
            loss = self.problem.head_loss(hidden, model.head.weight, targets)
        parameters = {name: p for name, p in model.named_parameters() if ".mixer." in name}
        found = torch.autograd.grad(loss, list(parameters.values()))
        return dict(zip(parameters, found, strict=True))

    @torch.no_grad()
    def nudged(self, rounding: int) -> LanguageModel:
        """The model with every parameter off by up to NUDGE of its size, evenly."""
        model = copy.deepcopy(self.model)
        generator = seeded(self.device, self.task.seed, "rounding", rounding)
        for p in model.parameters():
            share = torch.rand(p.shape, generator=generator, device=p.device)
            p.mul_(1 + NUDGE[self.precision] * (2 * share - 1))
        return model
