"""Whether a training's gradients are right, before an accuracy of it counts.

The bar is `tasks.check`'s: an error against fp64 of at most twice the reference's in the same
precision, plus TOLERANCE. An error of 1 is that of no gradient at all, so a bar that is not below 1
tells nothing: rows are looked at one by one then, each in the batch of all. A norm divides by a
head's output, and where that nearly vanishes at a token, the token's rounding in bf16 may be most
of all rows' error, by chance far more in one implementation than in another. So FORGIVEN of the
rows may miss their bars, by no more than MOST times.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from tasks.base import Metrics, Wrong
from tasks.check import bar, of, relative_error
from tasks.mqar.recall import Recall, query_hidden
from tasks.recipe import autocast, matmul_precision

if TYPE_CHECKING:
    from tasks.mqar.task import MQAR

ROWS = 8
FORGIVEN = 2
MOST = 8.0
TOLERANCE = 2**-8
"""Of a gradient's relative error: some peers' kernels multiply in TF32 whatever torch is told."""


class Compared(NamedTuple):
    """A relative error of gradients, and the bar."""

    error: float
    allowed: float

    def passes(self) -> bool:
        return self.error <= self.allowed < 1

    def may_be_rounding(self) -> bool:
        """Whether it passes or misses by little enough; what is not finite does not."""
        return self.error <= MOST * self.allowed < float("inf")


def check_gradients(task: MQAR, device: torch.device) -> Metrics:
    """The error and the bar of the mixers' parameters' gradients over ROWS rows without dropout,
    and how many rows missed theirs alone, 0 where all pass together. Raises Wrong, with every row's
    error and bar, where too many do, and where a bar for all that is below 1 is missed.
    """
    mixer = task.mixer.model_copy(update={"impl": "reference"})
    reference = task.model_copy(update={"mixer": mixer, "fused_loss": False})

    def compared(rows: slice) -> Compared:
        exact = gradients(reference, device, torch.float64, rows)
        same, mine = (gradients(each, device, torch.float32, rows) for each in (reference, task))
        return Compared(relative_error(mine, exact), bar(same, exact, TOLERANCE))

    together, wrong = compared(slice(ROWS)), 0
    if not together.passes():
        rows = [compared(slice(i, i + 1)) for i in range(ROWS)]
        wrong = sum(not row.passes() for row in rows)
        rounding = wrong <= FORGIVEN and all(row.may_be_rounding() for row in rows)
        if together.allowed < 1 or not rounding:
            alone = ", ".join(f"{row.error:.1e} ({row.allowed:.1e})" for row in rows)
            raise Wrong(
                f"the gradient in {task.training.precision} {of(task.mixer)} is off by "
                f"{together.error:.2e} against fp64; at most {together.allowed:.2e}, and less than "
                f"1, is allowed; row by row {alone}"
            )
    return {
        "gradient_error": together.error,
        "gradient_allowed": together.allowed,
        "gradient_rows_wrong": wrong,
    }


def gradients(task: MQAR, device: torch.device, dtype: torch.dtype, rows: slice) -> Tensor:
    """Of the loss over these of ROWS rows, run as one batch, by the mixers' parameters, in a row;
    in fp64 without autocast."""
    model = task.model(device).to(dtype).eval()
    few = task.train[0].model_copy(update={"examples": ROWS})
    problem = Recall(task.model_copy(update={"train": (few,), "test": (few,)}), device)
    batch = problem.train[0]
    precision = "fp32" if dtype == torch.float64 else task.training.precision
    with autocast(precision, device), matmul_precision(precision):
        hidden = query_hidden(model, batch)[rows].flatten(0, 1)
        loss = problem.head_loss(hidden, model.head.weight, batch.targets[rows].flatten())
    parameters = [p for name, p in model.named_parameters() if ".mixer." in name]
    return torch.cat([x.flatten() for x in torch.autograd.grad(loss, parameters)])
