"""Whether a training's gradients are right, before an accuracy of it counts.

The bar is `tasks.check`'s: an error against fp64 of at most twice the reference's in the same
precision, plus TOLERANCE. How large the reference's is may be chance. A norm divides by a head's
output, at a first token one product of query and key times the value; where that nearly vanishes,
its rounding is most of a row's error, another by ten times for parameters less than a rounding
away. So rows that miss the bar together are looked at one by one, each in the batch of all, with a
bar from the reference's largest error over ROUNDINGS such starts. An error of 1 is that of no
gradient at all, and a bar that is not below 1 tells nothing: half of the rows need one that does.
"""

from __future__ import annotations

import copy
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
NUDGE = {"fp32": 2**-23, "tf32": 2**-12, "bf16_autocast": 2**-9}
"""How far off, of its size, a parameter of another start may be: half of what rounding it to the
precision may change, and in fp32 twice, since it is an fp32 number."""


class Compared(NamedTuple):
    """A relative error of gradients, and the bar."""

    error: float
    allowed: float

    @property
    def passes(self) -> bool:
        return self.error <= self.allowed < float("inf")

    @property
    def tells(self) -> bool:
        return self.allowed < 1


def check_gradients(task: MQAR, device: torch.device) -> Metrics:
    """The error and the bar of the mixers' parameters' gradients over ROWS rows without dropout,
    and how many rows' own bars tell nothing, 0 where all pass together. Raises Wrong, with every
    row's error and bar, where rows pass neither together nor one by one."""
    mixer = task.mixer.model_copy(update={"impl": "reference"})
    reference = task.model_copy(update={"mixer": mixer, "fused_loss": False})
    exact = Start(reference, device, torch.float64)
    same, mine = (Start(each, device, torch.float32) for each in (reference, task))

    def compared(rows: slice, roundings: int) -> Compared:
        truth = exact.gradients(rows)
        error, allowed = relative_error(mine.gradients(rows), truth), 0.0
        for rounding in range(roundings):
            allowed = max(allowed, bar(same.gradients(rows, rounding), truth, TOLERANCE))
            if error <= allowed:
                break
        return Compared(error, allowed)

    together, untold = compared(slice(ROWS), 1), 0
    if not (together.passes and together.tells):
        rows: list[Compared] = []
        for i in range(ROWS):
            # Once one is wrong the others are for the message.
            right = all(row.passes for row in rows)
            rows.append(compared(slice(i, i + 1), ROUNDINGS if right else 1))
        untold = sum(not row.tells for row in rows)
        if 2 * untold > ROWS or not all(row.passes for row in rows):
            alone = ", ".join(f"{row.error:.1e} ({row.allowed:.1e})" for row in rows)
            raise Wrong(
                f"the gradient in {task.training.precision} {of(task.mixer)} is off by "
                f"{together.error:.2e} against fp64; at most {together.allowed:.2e}, and less than "
                f"1, is allowed; row by row, with up to {ROUNDINGS} roundings to the first wrong "
                f"one, {alone}"
            )
    return {
        "gradient_error": together.error,
        "gradient_allowed": together.allowed,
        "gradient_rows_untold": untold,
    }


class Start:
    """A task's model before its training, in `dtype`, and its first ROWS rows."""

    def __init__(self, task: MQAR, device: torch.device, dtype: torch.dtype) -> None:
        few = task.train[0].model_copy(update={"examples": ROWS})
        self.task, self.device = task, device
        self.problem = Recall(task.model_copy(update={"train": (few,), "test": (few,)}), device)
        self.model = task.model(device).to(dtype).eval()
        self.precision = "fp32" if dtype == torch.float64 else task.training.precision

    def gradients(self, rows: slice, rounding: int = 0) -> Tensor:
        """Of the loss over these rows of the ROWS, run as one batch, by the mixers' parameters, in
        a row; in fp64 without autocast. A `rounding` other than 0 names a start off by NUDGE."""
        model = self.nudged(rounding) if rounding else self.model
        batch = self.problem.train[0]
        with autocast(self.precision, self.device), matmul_precision(self.precision):
            hidden = query_hidden(model, batch)[rows].flatten(0, 1)
            targets = batch.targets[rows].flatten()
            loss = self.problem.head_loss(hidden, model.head.weight, targets)
        parameters = [p for name, p in model.named_parameters() if ".mixer." in name]
        return torch.cat([x.flatten() for x in torch.autograd.grad(loss, parameters)])

    @torch.no_grad()
    def nudged(self, rounding: int) -> LanguageModel:
        """The model with every parameter off by up to NUDGE of its size, evenly."""
        model = copy.deepcopy(self.model)
        generator = seeded(self.device, self.task.seed, "rounding", rounding)
        for p in model.parameters():
            share = torch.rand(p.shape, generator=generator, device=p.device)
            p.mul_(1 + NUDGE[self.precision] * (2 * share - 1))
        return model
