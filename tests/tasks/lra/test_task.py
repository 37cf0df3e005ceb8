"""The arena as a task: whole runs, resumed ones, and cells that cannot be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mixers import HGRN2
from tasks.base import Context, Metrics, Paused
from tasks.lra import recipes
from tasks.lra.data import Data
from tasks.lra.listops import SYMBOLS, root_operators
from tests.tasks.lra.tiny_cells import CPU, LISTOPS, MIXERS, PATHFINDER, tiny
from tests.tasks.test_training import StopAfter, without_times

pytestmark = pytest.mark.usefixtures("_generated")


@pytest.mark.parametrize(("data", "buckets"), [(LISTOPS, None), (LISTOPS, 4), (PATHFINDER, None)])
def test_shapes_of_an_epoch_are_equal_where_tensors_are(data, buckets):
    task = tiny(data=data, buckets=buckets)
    problem = task.trainer(Context(CPU)).problem
    told = problem.start_epoch(0)
    found = [tuple(x.shape for x in problem.batch(step)) for step in range(len(told))]
    assert len(told) > 2
    assert [a == b for a in told for b in told] == [a == b for a in found for b in found]


def test_a_run_generates_its_data_and_tells_all(root: Path):
    metrics = tiny().run(Context(CPU))
    assert metrics["provenance"] == "generated (listops version 1, seed 0)"
    assert (metrics["train_examples"], metrics["test_examples"]) == (24, 8)
    assert metrics["validation_set"] == "basic_val.tsv"
    assert metrics["recipe_changes"] == "d_model + glu_width + n_layers + batch"
    assert recipes.changes(recipes.smoke(MIXERS[1], LISTOPS)) == ""
    val, test = metrics["val_accuracy_by_epoch"], metrics["accuracy_by_epoch"]
    assert isinstance(val, list)
    assert isinstance(test, list)
    assert len(val) == len(test) == 2
    best = val.index(max(val))
    assert metrics["best_epoch"] == best + 1
    assert metrics["test_accuracy_best_val"] == test[best]
    assert metrics["accuracy"] == metrics["test_accuracy_last"] == test[-1]
    assert metrics["val_accuracy"] == metrics["val_accuracy_last"] == val[-1]
    dataset = LISTOPS.load(Context(CPU))
    tokens = len(dataset.train.inputs.ids)
    assert metrics["tokens_per_s"] * metrics["train_s"] == pytest.approx(2 * tokens)
    assert metrics["sequences_per_s"] * metrics["train_s"] == pytest.approx(2 * 24)
    shares = root_operators(dataset.test, "s4")
    there = {name: int(rows.sum()) for name, rows in shares.items() if rows.any()}
    right = sum(metrics[f"accuracy_{name}"] * count for name, count in there.items())
    assert right / 8 == pytest.approx(metrics["accuracy"])
    made = list((root / "generated").glob("listops-*/listops-1000/manifest.json"))
    assert len(made) == 1
    assert (metrics["train_cut"], metrics["test_cut"]) == (0, 0)


def test_what_is_cut_is_said_and_recorded(monkeypatch):
    whole = LISTOPS.load(Context(CPU))
    cut = replace(whole.test, inputs=replace(whole.test.inputs, cut=3))
    monkeypatch.setattr(Data, "load", lambda *_: replace(whole, test=cut))
    heard: list[str] = []
    metrics = tiny().run(Context(CPU, progress=heard.append))
    assert (metrics["train_cut"], metrics["test_cut"]) == (0, 3)
    said = "0 sequences of training and 3 of the test are longer than 2048 and lose their end"
    assert said in heard


def test_every_root_is_known():
    test = LISTOPS.load(Context(CPU)).test
    known = root_operators(test, "s4")
    assert torch.stack(list(known.values())).sum(0).tolist() == [1] * 8
    first = int(test.inputs.ids[0]) - 3
    assert known[SYMBOLS[first][1:].lower()][0]


def plain(metrics: Metrics) -> Metrics:
    speeds = ("tokens_per_s", "sequences_per_s")
    return {k: v for k, v in without_times(metrics).items() if k not in speeds}


@pytest.mark.parametrize("stops", [[1], [3, 2]])
@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, stops, norm):
    task = tiny()
    task = task.model_copy(update={"backbone": task.backbone.model_copy(update={"norm": norm})})
    whole = plain(task.run(Context(CPU)))
    checkpoint = tmp_path / "cell.pt"
    for polls in stops:
        with pytest.raises(Paused):
            task.run(Context(CPU, checkpoint, should_stop=StopAfter(polls)))
    assert plain(task.run(Context(CPU, checkpoint))) == whole


@pytest.mark.parametrize("mixer", MIXERS, ids=lambda mixer: mixer.name)
def test_every_mixer_trains_on_images(mixer):
    metrics = tiny(mixer, PATHFINDER, training={"epochs": 1}).run(Context(CPU))
    assert metrics["steps"] == 8
    assert 0.3 < metrics["loss_by_epoch"][0] < 1.2


@pytest.mark.parametrize("scan", ["2d_parallel", "2d_series"])
def test_images_are_scanned_in_two_dimensions(scan):
    mixer = MIXERS[0].model_copy(update={"scan": scan})
    assert tiny(mixer, PATHFINDER, training={"epochs": 1}).run(Context(CPU))["steps"] == 8


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"pair": "nli"}, "pair = 'nli' does not fit arena = 'listops'"),
        ({"pool": "cls", "directions": "causal"}, "reads out the first token"),
        (
            {"mixer": HGRN2(expand_ratio=4, scan="2d_series")},
            "scan = '2d_series' takes whole images",
        ),
        ({"mixer": HGRN2(expand_ratio=16)}, "expand_ratio = 16 does not divide d_model = 8"),
        ({"data": Data(arena="listops", source="random")}, "use LRAStep"),
    ],
)
def test_cells_that_cannot_be_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        tiny(**fields)
