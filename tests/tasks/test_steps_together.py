"""Several steps launched at once, and what is compiled: the same training, launched otherwise."""

from __future__ import annotations

import pytest
import torch

from tasks.base import Context, Paused
from tasks.graphs import COMPILER, compiled
from tasks.mqar.recall import Recall
from tasks.mqar.task import Segment
from tasks.problem import runs
from tasks.training import Trainer
from tests.tasks.test_training import CPU, StopAfter, tiny, without_times


def test_runs_of_equal_shapes():
    assert runs([]) == []
    assert runs([(2, 3), (2, 3), (1, 3), (2, 3)]) == [2, 1, 1, 1]
    assert runs(["a", "a", "a"]) == [3, 2, 1]


@pytest.mark.parametrize("order", ["fixed", "shuffled"])
@pytest.mark.parametrize("schedule", ["cosine_epoch", "cosine_step"])
def test_steps_launched_together_are_the_same_steps(monkeypatch, tmp_path, order, schedule):
    """Five a launch where so many batches are alike, on from a checkpoint of steps alone too."""
    fields = {"schedule": schedule, "order": order, "warmup_steps": 3, "rates_lr": 1e-3}
    rows = (Segment(seq_len=16, kv_pairs=2, examples=32 * 12 - 7),)
    one, five = (
        tiny(steps_together=count, **fields).model_copy(update={"train": rows}) for count in (1, 5)
    )
    alone, launched = one.run(Context(CPU)), []
    update = Trainer._update

    def counted(trainer: Trainer, rates: torch.Tensor, *batches: torch.Tensor) -> torch.Tensor:
        launched.append(len(rates))
        return update(trainer, rates, *batches)

    monkeypatch.setattr(Trainer, "_update", counted)
    assert without_times(five.run(Context(CPU))) == without_times(alone)
    assert sum(launched) == 3 * 12
    assert set(launched) == {1, 5}
    if order == "fixed":
        assert launched == [5, 5, 1, 1] * 3
    checkpoint = tmp_path / "cell.pt"
    for task, polls in ((one, 4), (five, 3), (one, 2)):
        with pytest.raises(Paused):
            task.run(Context(CPU, checkpoint, should_stop=StopAfter(polls)))
    assert without_times(five.run(Context(CPU, checkpoint))) == without_times(alone)


@pytest.mark.parametrize("order", ["fixed", "shuffled"])
def test_shapes_of_an_epoch_are_equal_where_tensors_are(order):
    segments = [(16, 2, 96), (16, 4, 80), (24, 4, 64)]
    train = tuple(Segment(seq_len=t, kv_pairs=kv, examples=n) for t, kv, n in segments)
    problem = Recall(tiny(order=order).model_copy(update={"train": train}), CPU)
    told = problem.start_epoch(0)
    found = [tuple(x.shape for x in problem.batch(step)) for step in range(len(told))]
    assert [a == b for a in told for b in told] == [a == b for a in found for b in found]


def test_a_process_compiles_for_more_cells_than_a_compiler_allows_by_itself():
    def double(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    function = compiled(double, backend="eager")
    for width in range(1, 12):
        assert torch.equal(function(torch.ones(width)), torch.full((width,), 2.0))


def test_the_compiler_refuses_what_it_does_not_know_of_its_settings(monkeypatch):
    compiled(torch.sin)
    monkeypatch.setitem(COMPILER, "no_such_setting", True)
    with pytest.raises(RuntimeError, match="no_such_setting"):
        compiled(torch.sin)
