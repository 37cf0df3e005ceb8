"""The arena's report: every incomparable row is marked, averages name their convention."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from harness.figures import draw
from harness.frames import tidy
from harness.lra_published import averages, recipe_words
from harness.plot import Plot
from harness.records import Record
from tests.harness.synthetic import record

ARENAS = ("listops", "text", "retrieval", "image", "pathfinder32")


def task(mixer: str, arena: str, seed: int, **fields: Any) -> dict[str, Any]:
    """A task of the shape that LRA's dump has; `scan` is the mixer's, others are the data's."""
    scan = {"scan": fields.pop("scan")} if "scan" in fields else {}
    impl = {"attention": "sdpa", "mamba": "mamba_ssm"}.get(mixer, "triton")
    recipe = fields.pop("recipe", "lra-hgrn2-paper")
    data = {
        "arena": arena,
        "convention": "s4",
        "source": "official",
        "examples": None,
        "seed": 0,
        "difficulty": "hard",
        "validation": "test",
        "colour": False,
        "augment": False,
    }
    return {
        "name": "lra",
        "mixer": {"name": mixer, "impl": impl} | scan,
        "recipe": recipe,
        "data": data | fields,
        "directions": "flip_sum" if mixer == "mamba" else "both",
        "pool": "mean",
        "pair": "nli" if arena == "retrieval" else None,
        "backbone": {"d_model": 64, "n_layers": 5},
        "training": {"lr": 5e-4, "batch": 128, "precision": "bf16_autocast", "report": "last"},
        "seed": seed,
    }


def measured(accuracy: float, arena: str, source: str) -> dict[str, Any]:
    chance = 0.1 if arena in ("listops", "image") else 0.5
    by_operator = {f"accuracy_{name}": accuracy for name in ("min", "max", "med", "sm")}
    return {
        "accuracy": accuracy,
        "val_accuracy": accuracy,
        "test_accuracy_best_val": accuracy + 0.01,
        "diverged": 0.0,
        "pack": 1,
        "recipe_changes": "",
        "accuracy_by_epoch": [chance, (chance + accuracy) / 2, accuracy],
        "loss_by_epoch": [2.0, 1.5, 1.0 - accuracy],
        "chance": chance,
        "provenance": "official" if source == "official" else "generated (version 1, seed 0)",
        "train_s": 100.0,
        "tokens_per_s": 1e6,
        "sequences_per_s": 1e3,
        "parameters": 150_000,
        "parameters_mixers": 80_000,
    } | (by_operator if arena == "listops" else {})


def cell(mixer: str, arena: str, accuracy: float, seed: int = 0, **fields: Any) -> Record:
    made = task(mixer, arena, seed, **fields)
    return record(made, measured(accuracy, arena, made["data"]["source"]))


def records() -> list[Record]:
    return [
        *(cell("hgrn2", "listops", accuracy, seed) for seed, accuracy in enumerate((0.3, 0.6))),
        *(cell("hgrn2", arena, 0.9) for arena in ARENAS[1:3]),
        cell("hgrn2", "image", 0.89, scan="2d_parallel", colour=True, augment=True),
        cell("hgrn2", "image", 0.80),
        *(cell("hgrn2", "pathfinder32", 0.9, scan=scan) for scan in ("1d", "2d_parallel")),
        cell("mamba", "listops", 0.4),
        cell("attention", "listops", 0.38, recipe="small", source="generated"),
        record(task("gla", "listops", 0), status="oom", error="CUDA out of memory"),
    ]


@pytest.fixture(scope="module")
def plots() -> dict[str, Plot]:
    return draw(tidy(records()))


def row(plots: dict[str, Plot], **place: Any) -> pd.Series:
    table = plots["next_to_published"].table
    for name, value in place.items():
        table = table[table[name] == value]
    assert len(table) == 1
    return table.iloc[0]


def test_the_figures_are_there(plots):
    assert set(plots) == {
        *("accuracy_by_epoch", "loss_by_epoch", "next_to_published", "accuracy_by_operator")
    }
    caption = plots["accuracy_by_epoch"].caption
    assert "17.0, 36.5, 51.3, 69.5 %" in caption
    assert "Mamba: a causal layer run both ways and summed." in caption
    texts = [text.get_text() for ax in plots["accuracy_by_epoch"].figure.axes for text in ax.texts]
    assert "two levels 69.5 %" in texts
    assert "chance 50.0 %" in texts


def test_losses_are_averaged_and_a_guess_is_drawn(plots):
    table = plots["loss_by_epoch"].table
    line = table[(table["mixer"] == "hgrn2") & (table["arena"] == "listops")]
    assert line["loss_mean"].to_list() == pytest.approx([2.0, 1.5, 0.55])
    texts = [text.get_text() for ax in plots["loss_by_epoch"].figure.axes for text in ax.texts]
    assert {"a guess 2.303", "a guess 0.693"} < set(texts)


def test_what_goes_with_the_task_alone_parts_no_line():
    mixed = [
        cell("hgrn2", "listops", 0.5, source="generated"),
        cell("hgrn2", "pathfinder32", 0.8, source="generated", version=2),
        cell("hgrn2", "text", 0.9),
    ]
    drawn = draw(tidy(mixed))["next_to_published"].table
    assert drawn["series"].to_list() == ["HGRN2"] * 3
    old = cell("hgrn2", "pathfinder32", 0.7, source="generated")
    drawn = draw(tidy([*mixed, old]))["next_to_published"].table
    assert set(drawn["series"]) == {"HGRN2, version 1", "HGRN2, version 2"}


def test_runs_at_chance_look_flat():
    at_chance = [cell("hgrn2", "path_x", 0.5 + seed / 1000, seed) for seed in range(2)]
    low, high = draw(tidy(at_chance))["accuracy_by_epoch"].figure.axes[0].get_ylim()
    assert low < 0.46
    assert high > 0.54


def test_seeds_are_averaged_and_those_that_learned_counted(plots):
    line = row(plots, mixer="hgrn2", arena="listops")
    assert (line["seeds"], line["accuracy_percent"], line["learned"]) == (2, 45.0, 0.5)
    assert line["at_best_val"] == pytest.approx(46.0)
    assert line["difference"] == pytest.approx(45.0 - 60.52)
    assert (line["ours_is"], line["published_is"], line["alike"]) == ("", "", True)


def test_every_incomparable_row_is_marked(plots):
    as_run = row(plots, mixer="hgrn2", arena="image", accuracy_percent=89.0)
    assert as_run["ours_is"] == as_run["published_is"] == "2-D parallel, colour, augmented"
    assert as_run["alike"]
    gray = row(plots, mixer="hgrn2", arena="image", accuracy_percent=80.0)
    assert (gray["ours_is"], gray["alike"]) == ("", False)
    mamba = row(plots, mixer="mamba", arena="listops")
    assert mamba["ours_is"] == "lra-hgrn2-paper recipe, flipped and summed"
    assert mamba["published_is"] == "layer alone, by Alonso et al."
    generated = row(plots, mixer="attention", arena="listops")
    assert generated["ours_is"] == "small recipe, generated data"
    readable = plots["next_to_published"].summary
    unlike = readable[readable["difference"].str.endswith("†")]
    assert len(unlike) == int((~plots["next_to_published"].table["alike"]).sum()) == 6
    assert set(readable["ours is"]) >= {"plain", "small recipe, generated data"}


def test_a_scan_over_the_image_is_a_line_of_its_own(plots):
    table = plots["next_to_published"].table
    lines = table[(table["mixer"] == "hgrn2") & (table["arena"] == "pathfinder32")]
    assert sorted(lines["ours_is"]) == ["", "2-D parallel"]
    assert lines["series"].nunique() == 2


def test_what_failed_is_told(plots):
    assert "oom" in set(plots["accuracy_by_operator"].summary["GLA"])


def test_averages_name_their_convention():
    means = pd.DataFrame(
        {
            "series": "Transformer",
            "arena": ARENAS,
            "accuracy_percent": [38.37, 61.95, 80.69, 40.57, 65.26],
            "ours_is": "",
        }
    )
    assert averages(means) == (
        "Average accuracy (%): Transformer 47.81 with Path-X at 0 (HGRN2's table), 56.14 at chance "
        "(S4's), 57.37 without it (the arena's)."
    )
    assert averages(means[1:]) == ""


@pytest.mark.parametrize(("path_x", "words"), [(80.0, "66.67 over six"), (50.0, "S4's")])
def test_averages_tell_what_was_averaged(path_x, words):
    means = pd.DataFrame(
        {
            "series": "HGRN2",
            "arena": [*ARENAS, "path_x"],
            "accuracy_percent": [64.0] * 5 + [path_x],
            "ours_is": ["", "", "", "colour, augmented", "colour", "2-D series"],
        }
    )
    told = averages(means)
    assert words in told
    marks = "colour, augmented" + ", 2-D series" * (path_x > 55)
    assert told.endswith(f"({marks}).")


@pytest.mark.parametrize(
    ("fields", "measures", "mark"),
    [
        ({"scan": "2d_series"}, {}, "2-D series"),
        ({"validation": "held_out"}, {}, "a tenth held out"),
        ({}, {"recipe_changes": "lr + batch"}, "changed in lr + batch"),
    ],
)
def test_what_changes_a_number_is_marked(fields, measures, mark):
    made = cell("hgrn2", "text", 0.9, **fields)
    made = record(made.task, made.metrics | measures)
    assert row(draw(tidy([made])), arena="text")["ours_is"] == mark


def test_a_seed_that_diverged_stays_in_the_mean():
    short = cell("hgrn2", "listops", 0.1, seed=1)
    lost = {"accuracy_by_epoch": [0.1], "diverged": 1.0}
    short = record(short.task, short.metrics | lost)
    plot = draw(tidy([cell("hgrn2", "listops", 0.7), short]))["accuracy_by_epoch"]
    last = plot.table[plot.table["epoch"] == 3].iloc[0]
    assert (last["accuracy_mean"], last["seeds"]) == (pytest.approx(0.4), 2)
    assert "1 of 2 runs diverged." in plot.caption


def test_a_steps_time_has_its_figure():
    made = task("hgrn2", "path_x", 0) | {"name": "lra_step", "trial": 0, "seq_len": 16_384}
    cells = [
        record(made | {"trial": trial}, {"step_ms": 10.0 + trial, "tokens_per_s": 1e6})
        for trial in range(3)
    ]
    plots = draw(tidy(cells))
    assert list(plots) == ["training_step"]
    assert plots["training_step"].table["step_ms"].tolist() == [11.0]
    assert "processes (3 a row)" in plots["training_step"].caption
    for ax in plots["training_step"].figure.axes:
        written = [tick.get_text() for tick in ax.get_xticklabels()]
        assert written
        assert not any("$" in text for text in written)


def test_a_caption_says_who_changes_what_in_the_recipe():
    cells = pd.DataFrame(
        {
            "mixer": ["hgrn2", "hgrn2", "mamba", "gla"],
            "recipe": "lra-hgrn2-paper",
            "recipe_changes": ["", "lr", "norm", None],
        }
    )
    said = "Recipe lra-hgrn2-paper; changed in lr: some of HGRN2; changed in norm: Mamba."
    assert recipe_words(cells) == said
    assert recipe_words(cells.drop(columns="recipe_changes")) == "Recipe lra-hgrn2-paper."
    assert recipe_words(cells.drop(columns="recipe")) == ""


def test_what_is_published_lies_behind_the_points_of_runs():
    figure = draw(tidy(records()))["next_to_published"].figure
    for ax in figure.axes:
        grey = {line.get_zorder() for line in ax.lines if line.get_marker() in ("x", "|")}
        runs = {line.get_zorder() for line in ax.lines if line.get_marker() not in ("x", "|")}
        assert grey
        assert max(grey) < min(runs)
