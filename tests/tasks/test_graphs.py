"""Replaying: each call runs once, on its own inputs, with a graph for each shape. The graph of a
CPU is a stand-in that calls again what it captured; tests/tasks/test_training_gpu.py has real ones.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tasks.base import Context, to_the_end
from tasks.graphs import WARM_UP_CALLS, Graphs, Replayed
from tests.tasks.test_training import CPU, tiny, without_times


class StandIn(Graphs):
    """Captures without running, as a stream does; a replay writes into the tensor captured."""

    def __init__(self) -> None:
        self.captured = self.replayed = 0

    def capture(self, call: Callable[[], Tensor]) -> tuple[Any, Tensor]:
        self.captured += 1
        output = torch.full((), torch.nan)

        def replay() -> None:
            self.replayed += 1
            output.data = call().data

        return SimpleNamespace(replay=replay), output


def test_each_call_runs_once_on_its_own_inputs_by_a_graph_for_each_shape():
    graphs, total = StandIn(), torch.zeros(())

    def add(x: Tensor, weight: Tensor) -> Tensor:
        total.add_((x * weight).sum())
        return total * 1

    replayed: Any = Replayed(add, graphs)
    expected = 0.0
    for n in range(1, 12):
        # Every third call has another shape.
        x = torch.full((3 if n % 3 else 2,), float(n))
        weight = torch.ones_like(x)
        expected += float(x.sum())
        assert float(replayed(x, weight)) == pytest.approx(expected)
        x.zero_()
    assert graphs.captured == 2
    assert graphs.replayed == 11 - 2 * WARM_UP_CALLS


@pytest.mark.parametrize("order", ["fixed", "shuffled"])
def test_a_run_through_replays_is_the_plain_run_bit_for_bit(order):
    task, graphs = tiny(order=order, epochs=5, schedule="cosine_step"), StandIn()
    plain = task.run(Context(CPU))
    trainer = task.trainer(Context(CPU))
    trainer.update = Replayed(trainer.update, graphs)
    trainer.score = Replayed(trainer.score, graphs)
    replayed = to_the_end(trainer.steps())
    assert without_times(replayed).items() <= without_times(plain).items()
    # Batches of 32 at two lengths and one of 16; one shape in the evaluation.
    assert graphs.captured == 4
