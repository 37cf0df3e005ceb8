"""The arena's grids: what is in them, and the smoke grid from its data to its report."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harness import grids_lra
from harness.records import Records
from harness.report import write_report
from tasks.base import Context
from tasks.lra import recipes
from tasks.lra.data import Data
from tests.harness.synthetic import CPU as CPU_NAME
from tests.harness.synthetic import record, write

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def _data(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("MIXERBENCH_DATA", str(tmp_path / "data"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_listops_has_three_seeds_of_hgrn2_and_one_of_the_others():
    cells = grids_lra.lra_listops(GPU)
    seeds = {name: [c.seed for c in cells if c.mixer.name == name] for name in ("hgrn2", "gla")}
    assert seeds == {"hgrn2": [0, 1, 2, 0, 1, 2, 0, 0], "gla": [0]}
    ways = [c.directions for c in cells if c.mixer.name == "hgrn2"]
    assert ways == [*3 * ["both"], *3 * ["apart_sum"], "both", "apart_sum"]
    assert [c.training.lr for c in cells[-3:-1]] == 2 * [2e-3]
    assert {recipes.changes(c) for c in cells[-3:-1]} == {"lr", "directions + lr"}
    assert (cells[-1].mixer.name, cells[-1].backbone.norm) == ("mamba", "rms")
    assert recipes.changes(cells[-1]) == "sort_pool + norm"
    assert {cell.mixer.name for cell in cells[:5]} == {
        *("hgrn2", "hgrn1", "gla", "mamba", "attention")
    }
    sizes = {(c.backbone.n_layers, c.backbone.d_model, c.training.engine) for c in cells}
    assert sizes == {(5, 64, "graph")}
    assert [cell.buckets for cell in cells] == [*(len(cells) - 1) * [1], 4]
    assert {cell.mixer.expand_ratio for cell in cells if cell.mixer.name == "hgrn2"} == {4}


def test_the_whole_arena_by_the_published_recipes():
    cells = grids_lra.lra(GPU)
    by_recipe = {
        recipe: [c for c in cells if c.recipe == recipe]
        for recipe in ("lra-hgrn2-paper", "lra-hgrn1-paper")
    }
    assert {recipes.changes(cell) for cell in cells} == {""}
    tasks = ["listops", "text", "retrieval", "image", "pathfinder32", "path_x"]
    for seed in range(3):
        of_hgrn2 = [c for c in cells if c.mixer.name == "hgrn2" and c.seed == seed]
        assert [c.data.arena for c in of_hgrn2] == [*tasks, "image"]
        assert [c.mixer.scan for c in of_hgrn2] == [
            *(3 * ["1d"] + 2 * ["2d_parallel"]),
            *("2d_series", "2d_parallel"),
        ]
        assert [c.data.colour for c in of_hgrn2] == [*6 * [False], True]
    alone = by_recipe["lra-hgrn1-paper"]
    twice = [*tasks[:4], "image", *tasks[4:]]
    assert [(c.data.arena, c.mixer.name) for c in alone] == [(task, "hgrn1") for task in twice]
    assert [place for place, c in enumerate(alone) if c.data.augment] == [4]
    assert {c.mixer.scan for c in alone if c.data.arena in tasks[3:]} == {"2d_parallel"}
    others = [c for c in by_recipe["lra-hgrn2-paper"] if c.mixer.name != "hgrn2"]
    assert len(others) == 6 * 4
    # What the grids of single tasks have trained is of this grid, too.
    keys = {cell.key for cell in cells}
    assert len(keys & {cell.key for cell in grids_lra.lra_listops(GPU)}) == 7
    assert {cell.key for cell in grids_lra.lra_pathfinder_paper(GPU)} <= keys


def test_the_arena_at_s4s_shape():
    cells = grids_lra.lra_s4_shape(GPU)
    assert len(cells) == 6 * 5
    assert {(c.backbone.n_layers, c.backbone.d_model) for c in cells} == {(6, 256), (6, 512)}
    assert {recipes.changes(cell) for cell in cells} == {""}
    sources = {c.data.arena: c.data.source for c in cells}
    assert sources == {
        **dict.fromkeys(("text", "retrieval", "image"), "official"),
        **dict.fromkeys(("listops", "pathfinder32", "path_x"), "generated"),
    }


def test_data_are_the_official_ones_where_they_are(tmp_path):
    assert grids_lra.arena_data("listops").source == "generated"
    folder = tmp_path / "data" / "lra_release" / "listops-1000"
    folder.mkdir(parents=True)
    (folder / "basic_train.tsv").touch()
    assert grids_lra.arena_data("listops") == Data(arena="listops")


def test_pathfinder_scans_in_one_and_two_dimensions():
    cells = grids_lra.lra_pathfinder(GPU)
    found = {(cell.mixer.name, getattr(cell.mixer, "scan", None)) for cell in cells}
    assert found == {
        *(("hgrn2", scan) for scan in ("1d", "2d_parallel")),
        *(("hgrn1", scan) for scan in ("1d", "2d_parallel")),
        ("attention", None),
    }


def test_pathfinder_also_with_positions_and_all_at_a_gentler_rate():
    cells = grids_lra.lra_pathfinder(GPU)
    placed, gentler = (
        [cell for cell in cells if recipes.changes(cell) == change]
        for change in ("positions", "lr")
    )
    assert [(c.mixer.name, c.mixer.scan, c.seed) for c in placed] == [
        *(("hgrn2", "1d", 0), ("hgrn1", "1d", 0)),
    ]
    assert {cell.training.lr for cell in gentler} == {5e-4}
    others = [cell for cell in cells if cell not in [*placed, *gentler]]
    assert {recipes.changes(cell) for cell in others} == {""}
    assert [(c.mixer, c.seed) for c in gentler] == [(c.mixer, c.seed) for c in others]
    assert len({cell.key for cell in cells}) == len(cells) == 32


def test_pathfinder_by_the_published_recipe_is_over_the_image():
    cells = grids_lra.lra_pathfinder_paper(GPU)
    assert [(c.mixer.name, c.mixer.scan, c.training.epochs) for c in cells] == [
        *(("hgrn2", "2d_parallel", 100), ("hgrn1", "2d_parallel", 100)),
    ]
    assert {recipes.changes(cell) for cell in cells} == {""}


def test_path_x_begins_as_published():
    cells = grids_lra.lra_pathx(GPU)
    assert [(cell.mixer.name, cell.mixer.scan) for cell in cells] == [
        *(("hgrn2", "1d"), ("hgrn1", "1d")),
        *(("hgrn2", "2d_series"), ("hgrn1", "2d_series")),
    ]
    for cell in cells:
        assert recipes.changes(cell) == "epochs"
        assert (cell.training.epochs, cell.training.warmup_steps) == (5, 150_000)
        assert cell.data.examples == (160_000, 20_000, 20_000)


@pytest.mark.parametrize(
    ("grid", "scan", "width", "batch"),
    [
        (grids_lra.lra_pathx_step, "2d_series", 32, 16),
        (grids_lra.lra_pathfinder_step, "2d_parallel", 128, 128),
    ],
)
def test_steps_are_timed_over_the_image_and_with_the_published_kernels_too(
    grid, scan, width, batch
):
    cells = grid(GPU)
    peers = ("gla", "mamba")
    found = {(c.mixer.name, c.mixer.impl, c.directions) for c in cells if c.mixer.name in peers}
    assert found == {
        *(("gla", "triton", "both"), ("gla", "fla", "both")),
        *(("mamba", "triton", "both"), ("mamba", "mamba_ssm", "flip_sum")),
    }
    assert {c.mixer.name for c in cells} == {"hgrn2", "hgrn1", "attention", *peers}
    assert {c.mixer.scan for c in cells if c.mixer.name == "hgrn2"} == {"1d", scan}
    assert {(c.backbone.n_layers, c.backbone.d_model, c.training.batch) for c in cells} == {
        (6, width, batch)
    }


def test_the_smoke_grid_goes_from_data_to_report(tmp_path, monkeypatch):
    for name, arena, examples in (
        ("SMOKE_LISTOPS", "listops", (16, 4, 4)),
        ("SMOKE_PATHFINDER", "pathfinder32", (40, 5, 5)),
    ):
        small = {"arena": arena, "source": "generated", "examples": examples}
        monkeypatch.setattr(grids_lra, name, Data.model_validate(small))
    made = []
    for cell in grids_lra.lra_smoke(CPU):
        short = cell.training.model_copy(update={"epochs": 1, "warmup_steps": 1})
        task = cell.model_copy(update={"training": short})
        metrics = task.run(Context(CPU))
        made.append(record(task.model_dump(mode="json"), metrics, device=CPU_NAME))
    write(tmp_path, "lra_smoke", made)
    assert len(Records(tmp_path / "lra_smoke").rows()) == 10
    report = write_report("lra_smoke", tmp_path).read_text()
    for words in ("HGRN2", "Attention", "generated (listops version 1, seed 0)", "†", "smoke"):
        assert words in report
    assert (tmp_path / "lra_smoke" / "accuracy_by_operator.csv").exists()
