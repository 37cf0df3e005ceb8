"""Whether a training's gradients are right, before an accuracy of it counts.

Each mixer parameter is compared in parts, and all as one vector: a gate's gradient may be a
thousandth of a value's, and one projection makes queries, keys and values of all heads. The bar is
`tasks.check`'s: an error against fp64 of at most twice the reference's in the same precision, plus
TOLERANCE. How large the reference's is can be chance. A norm divides by a head's output, which at a
first token is a single product; where that nearly vanishes, its rounding is most of a row's error,
and ten times as much or as little if every parameter is off by less than a rounding (NUDGE). So
rows that miss a bar together are looked at one by one, each in the batch of all, with bars from the
reference's largest errors over ROUNDINGS starts nudged so.
"""

from __future__ import annotations

import copy
from math import inf, isnan
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from tasks.backbone import LanguageModel
from tasks.base import Metrics, Wrong
from tasks.check import bar, of, relative_error
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
"""From this bar for all parameters on a row is no evidence: without a recurrence's gradients, but
with the output's projection's, an error is 0.7 to 1."""
PARTS = 4
"""For every d_model of a parameter's rows. A head's queries are no fewer in our grids."""
ALL = "all parameters"
NUDGE = {"fp32": 2**-23, "tf32": 2**-12, "bf16_autocast": 2**-9}
"""How far off, of its size, a parameter of another start may be: half of what rounding it to the
precision may change, and in fp32 twice, since it is an fp32 number."""


class Compared(NamedTuple):
    """Of all parts of parameters the one whose relative error takes most of its bar. `tells`: the
    bar for all parameters is below TELLS."""

    part: str
    error: float
    allowed: float
    tells: bool

    @property
    def share(self) -> float:
        """Of the bar; infinite where error or bar is no number."""
        share = self.error / self.allowed if 0 < self.allowed < inf else inf
        return inf if isnan(share) else share

    def __str__(self) -> str:
        return f"{self.error:.1e} ({self.allowed:.1e}, {self.part})"


def check_gradients(task: MQAR, device: torch.device) -> Metrics:
    """Of the mixers' parameters' gradients over ROWS rows without dropout the error that takes most
    of its bar, and that bar; how many rows were looked at alone, and how many of these are no
    evidence. Raises Wrong, with every row's worst part, where rows pass neither together nor one by
    one, or where over half of them are no evidence."""
    mixer = task.mixer.model_copy(update={"impl": "reference"})
    reference = task.model_copy(update={"mixer": mixer, "fused_loss": False})
    exact = Start(reference, device, torch.float64)
    same, mine = (Start(each, device, torch.float32) for each in (reference, task))

    def compared(rows: slice, roundings: int) -> Compared:
        truth = exact.gradients(rows)
        length = max(1, task.backbone.d_model // PARTS)
        errors = relative_errors(mine.gradients(rows), truth, length)
        bars = dict.fromkeys(errors, 0.0)
        for rounding in range(roundings):
            found = relative_errors(same.gradients(rows, rounding), truth, length)
            # A reference that is no number at one start is no bar.
            bars = {
                part: max(bars[part], inf if isnan(error) else bar(error, TOLERANCE))
                for part, error in found.items()
            }
            if all(error <= bars[part] for part, error in errors.items()):
                break
        tells = bars[ALL] < TELLS
        each = [Compared(part, error, bars[part], tells) for part, error in errors.items()]
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


def relative_errors(
    x: dict[str, Tensor], exact: dict[str, Tensor], length: int
) -> dict[str, float]:
    """Of parts of `length` rows of each gradient, and of all gradients as one vector."""
    found: dict[str, float] = {}
    for name, truth in exact.items():
        parts = zip(x[name].split(length), truth.split(length), strict=True)
        for i, (mine, part) in enumerate(parts):
            found[f"{name}[{i * length}:]"] = relative_error_of_part(mine, part, truth)
    whole, truth = (torch.cat([g.flatten() for g in each.values()]) for each in (x, exact))
    return found | {ALL: relative_error(whole, truth)}


def relative_error_of_part(x: Tensor, exact: Tensor, whole: Tensor) -> float:
    """|x - exact| / |exact|. A part that is nothing, as the gradient of attention's key bias is,
    counts in units of the `whole` parameter's."""
    unit = whole.double().norm()
    if exact.double().norm() > 1e-6 * unit or unit == 0:
        return relative_error(x, exact)
    return float((x.double() - exact).norm() / unit)


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
