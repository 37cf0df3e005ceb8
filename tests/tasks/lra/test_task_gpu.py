"""The arena on a GPU: a step from a graph is the eager one, for every mixer and width."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harness.grids_lra import lra_mixers, on
from mixers import HGRN2, Mixer
from tasks.base import Context, Metrics, Paused
from tasks.lra import recipes
from tasks.lra.data import Data
from tasks.lra.task import LRA
from tests.tasks.test_training import StopAfter

GPU = torch.device("cuda")
pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("little_tuning")]
LISTOPS = Data(arena="listops", source="generated", examples=(200, 40, 40))
PATHFINDER = Data(
    arena="pathfinder32", source="generated", examples=(160, 20, 20), difficulty="easy"
)
NOISE = {"rel": 5e-3, "abs": 5e-3}


@pytest.fixture(scope="module", autouse=True)
def _data(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIXERBENCH_DATA", str(tmp_path_factory.mktemp("data")))
        yield


def pair(mixer: Mixer, data: Data) -> tuple[LRA, LRA]:
    """HGRN2's ListOps recipe, or our small one, shortened: compiled, from a graph; and eager."""
    listops = data.arena == "listops"
    task = (recipes.hgrn2_paper if listops else recipes.small)(mixer, data)
    short = {"epochs": 4, "batch": 16, "lr": 1e-3, "warmup_steps": 4, "schedule_steps": None}
    training = task.training.model_copy(update=short | {"precision": "fp32"})
    graphed = on(GPU, task.model_copy(update={"training": training}))
    eager = graphed.training.model_copy(update={"engine": "eager", "compiled": False})
    return graphed, graphed.model_copy(update={"training": eager})


def expect_same(one: Metrics, other: Metrics) -> None:
    assert one["loss_by_epoch"] == pytest.approx(other["loss_by_epoch"], **NOISE)
    assert one["steps"] == other["steps"]


@pytest.mark.parametrize("data", [LISTOPS, PATHFINDER], ids=lambda data: data.arena)
@pytest.mark.parametrize("place", range(5), ids=("hgrn2", "hgrn1", "gla", "mamba", "attention"))
def test_a_recipes_steps_from_a_graph_equal_eager_ones(data, place):
    settings = recipes.HGRN2_PAPER if data.arena == "listops" else recipes.SMALL
    mixer = lra_mixers(GPU, settings[data.arena])[place]
    if mixer.unsupported(GPU, torch.float32):
        pytest.skip("not here")
    graphed, eager = pair(mixer, data)
    assert (graphed.training.engine, graphed.buckets) == (
        "graph",
        1 if data.arena == "listops" else None,
    )
    expect_same(graphed.run(Context(GPU)), eager.run(Context(GPU)))


@pytest.mark.parametrize("scan", ["2d_parallel", "2d_series"])
def test_a_scan_over_images_is_the_reference_one(scan):
    mixer = HGRN2(expand_ratio=2, lower_bound="exclusive", scan=scan, impl="triton")
    ours, _ = pair(mixer, PATHFINDER)
    _, theirs = pair(mixer.model_copy(update={"impl": "reference"}), PATHFINDER)
    expect_same(ours.run(Context(GPU)), theirs.run(Context(GPU)))


def test_a_run_goes_on_where_it_stopped(tmp_path: Path):
    setting = recipes.HGRN2_PAPER["listops"]
    graphed, _ = pair(lra_mixers(GPU, setting)[0], LISTOPS)
    whole, checkpoint = graphed.run(Context(GPU)), tmp_path / "cell.pt"
    for polls in (5, 20):
        with pytest.raises(Paused):
            graphed.run(Context(GPU, checkpoint, should_stop=StopAfter(polls)))
    expect_same(graphed.run(Context(GPU, checkpoint)), whole)
