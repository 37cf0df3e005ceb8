"""What a model is trained on, as the training loop sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from tasks.graphs import Function


@runtime_checkable
class Problem(Protocol):
    """What is learned. `loss` and `score` see the model in the right mode and precision; they may
    be replayed from a graph, so they read no tensor on the host and draw nothing but dropout."""

    def start_epoch(self, epoch: int) -> Sequence[object]:
        """Prepare the epoch's order; return its batches' shapes, equal where tensors' are."""
        ...

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """The epoch's batch number `step`, on the device."""
        ...

    def loss(self, model: nn.Module, *batch: Tensor) -> Tensor:
        """The scalar loss of a batch."""
        ...

    def score(self, model: nn.Module, *batch: Tensor) -> Tensor:
        """What an evaluation needs of a batch of held-out data."""
        ...

    def evaluate(self, score: Function) -> dict[str, Tensor]:
        """Metrics on held-out data, scalars on the device; `accuracy` among them. `score` takes a
        batch; what it returns is good until its next call."""
        ...


def runs(shapes: Sequence[object]) -> list[int]:
    """For each, how many equal ones in a row begin with it."""
    lengths: list[int] = []
    after: object = None
    for shape in reversed(shapes):
        lengths.append(lengths[-1] + 1 if lengths and shape == after else 1)
        after = shape
    return lengths[::-1]
