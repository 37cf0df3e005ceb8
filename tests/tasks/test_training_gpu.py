"""The training loop on a GPU: a graphed run is the eager one, a resumed or packed one too."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch

from mixers import GLA, HGRN1, HGRN2, Attention, Mamba
from tasks.base import Context, Metrics, Paused
from tasks.mqar import recall
from tasks.mqar import task as mqar
from tasks.mqar.task import MQAR, Segment
from tasks.recipe import Training
from tests.tasks.test_training import StopAfter, tiny

GPU = torch.device("cuda")
pytestmark = pytest.mark.gpu
# Sums by atomic additions differ from run to run; a few epochs of them stay far below this.
NOISE = {"rel": 2e-3, "abs": 2e-3}
TWO_QUERIES = 2 / 128


def graphed(mixer: Any = None, **training: Any) -> MQAR:
    task = tiny(**{"engine": "graph", "epochs": 5} | training)
    return task if mixer is None else task.model_copy(update={"mixer": mixer})


def expect_same(one: Metrics, other: Metrics) -> None:
    assert one["loss_by_epoch"] == pytest.approx(other["loss_by_epoch"], **NOISE)
    assert one["accuracy_by_epoch"] == pytest.approx(other["accuracy_by_epoch"], abs=TWO_QUERIES)
    assert one["steps"] == other["steps"]


@pytest.mark.parametrize("order", ["fixed", "shuffled"])
@pytest.mark.parametrize("precision", ["fp32", "bf16_autocast"])
def test_a_graphed_run_equals_an_eager_one(order, precision):
    fields = {"order": order, "precision": precision, "schedule": "cosine_step"}
    eager = graphed(engine="eager", **fields).run(Context(GPU))
    expect_same(graphed(**fields).run(Context(GPU)), eager)
    other = graphed(engine="eager", lr=3e-2, **fields).run(Context(GPU))
    assert other["loss_by_epoch"] != pytest.approx(eager["loss_by_epoch"], **NOISE)


@pytest.mark.parametrize(
    "mixer",
    [
        HGRN2(impl="triton", expand_ratio=16),
        HGRN2(impl="triton", expand_ratio=16, lower_bound="cumsum"),
        HGRN2(impl="fla", expand_ratio=16),
        HGRN1(impl="triton"),
        GLA(n_heads=2),
        GLA(n_heads=1, expand_k=1.0, impl="fla"),
        GLA(n_heads=1, expand_k=1.0, impl="triton"),
        Mamba(),
        Mamba(impl="mamba_ssm"),
        Attention(impl="reference", dropout=0.1),
        Attention(impl="products", dropout=0.1),
        Attention(impl="triton", dropout=0.1),
    ],
    ids=lambda mixer: f"{mixer.name}-{mixer.impl}",
)
@pytest.mark.usefixtures("little_tuning")
def test_every_mixer_trains_from_a_graph(mixer):
    if mixer.unsupported(GPU, torch.float32):
        pytest.skip("not here")
    eager = graphed(mixer, engine="eager", clip_norm=None, lr=1e-3).run(Context(GPU))
    expect_same(graphed(mixer, clip_norm=None, lr=1e-3).run(Context(GPU)), eager)


@pytest.mark.parametrize("compiled", [False, True])
def test_steps_replayed_together_equal_steps_alone(compiled):
    """23 steps an epoch: two graphs of eight, and seven alone, the last one smaller."""
    rows = (Segment(seq_len=16, kv_pairs=2, examples=23 * 32 - 5),)
    fields = {"schedule": "cosine_step", "early_stop": None, "compiled": compiled}
    together = graphed(steps_together=8, **fields).model_copy(update={"train": rows})
    alone = graphed(**fields | {"engine": "eager"}).model_copy(update={"train": rows})
    one, other = together.run(Context(GPU)), alone.run(Context(GPU))
    expect_same(one, other)
    assert one["steps"] == 5 * 23


def test_a_compiled_run_equals_an_eager_one():
    eager = graphed(engine="eager").run(Context(GPU))
    expect_same(graphed(compiled=True).run(Context(GPU)), eager)


@pytest.mark.parametrize("precision", ["fp32", "bf16_autocast"])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_run_with_the_fused_loss_equals_one_without(compiled, precision):
    fields = {"compiled": compiled, "precision": precision}
    apart = graphed(**fields)
    expect_same(
        apart.model_copy(update={"fused_loss": True}).run(Context(GPU)), apart.run(Context(GPU))
    )


@pytest.mark.parametrize("stops", [[1], [9, 9], [20]])
def test_a_graphed_run_goes_on_where_it_stopped(tmp_path: Path, stops):
    whole = graphed().run(Context(GPU))
    checkpoint = tmp_path / "cell.pt"
    for polls in stops:
        with pytest.raises(Paused):
            graphed().run(Context(GPU, checkpoint, should_stop=StopAfter(polls)))
    expect_same(graphed().run(Context(GPU, checkpoint)), whole)


@pytest.mark.parametrize("engine", ["graph", "eager"])
def test_a_pack_gives_what_each_gives_alone(engine):
    rates = (3e-4, 3e-3, 1e-2, 1e30)
    tasks = [graphed(lr=lr, engine=engine, clip_norm=None) for lr in rates]
    alone = [task.run(Context(GPU)) for task in tasks]
    running: dict[int, Generator[None, None, Metrics]] = {
        place: task.turns(Context(GPU, pack=4)) for place, task in enumerate(tasks)
    }
    packed: dict[int, Metrics] = {}
    while running:
        for place, steps in list(running.items()):
            try:
                next(steps)
            except StopIteration as end:
                packed[place] = end.value
                del running[place]
    for place, metrics in packed.items():
        if rates[place] < 1:
            expect_same(metrics, alone[place])
    assert packed[3]["diverged"] == 1
    assert packed[3]["epochs_run"] < 5


@pytest.mark.filterwarnings("ignore:.*ynchronization debug mode")
@pytest.mark.parametrize("engine", ["graph", "eager"])
def test_the_host_never_waits_inside_an_epoch(engine, monkeypatch):
    class Watched(recall.Recall):
        watched = 0

        def start_epoch(self, epoch: int) -> list[tuple[int, int, int]]:
            shapes = super().start_epoch(epoch)
            self.epoch, self.steps = epoch, len(shapes)
            return shapes

        def batch(self, step: int) -> recall.Rows:
            # From the third epoch on every shape is captured; after the last step the host may.
            watch = self.epoch >= 3 and step < self.steps - 1
            torch.cuda.set_sync_debug_mode("error" if watch else "default")
            Watched.watched += watch
            return super().batch(step)

    monkeypatch.setattr(mqar, "Recall", Watched)
    try:
        graphed(engine=engine).run(Context(GPU))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    # Two epochs of six steps.
    assert Watched.watched == 2 * 5


def test_a_graphed_step_is_faster():
    task = graphed(epochs=4, early_stop=None).model_copy(
        update={"train": (Segment(seq_len=64, kv_pairs=4, examples=20_000),), "vocab_size": 512}
    )
    eager = task.model_copy(update={"training": Training(lr=1e-3, epochs=4, batch=256)})
    graph = task.model_copy(
        update={"training": Training(lr=1e-3, epochs=4, batch=256, engine="graph")}
    )
    times = [float(cell.run(Context(GPU))["step_ms"]) for cell in (eager, graph)]  # pyright: ignore
    assert times[1] < times[0]
