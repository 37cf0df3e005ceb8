"""Figures show the right numbers, and captions say how these were measured and chosen."""

from __future__ import annotations

import pandas as pd
import pytest

from harness.crossover import crossovers
from harness.curves import Cost, medians
from harness.figures import draw
from harness.figures_recall import mqar
from harness.frames import tidy
from harness.recall_frames import over_seeds, selected
from harness.series import with_series
from tests.harness.synthetic import record
from tests.harness.synthetic_kernels import decode_records, memory_records, speed_task, timing
from tests.harness.synthetic_recall import AXES, mqar_task, recall


def test_accuracy_is_the_maximum_over_learning_rates_of_each_seed(recall_plots):
    table = recall_plots["accuracy_over_width"].table
    row = table.query("mixer == 'gla' and seq_len == 512 and d_model == 128").iloc[0]
    best = [
        max(recall("gla", (512, 64), 128, lr, seed) for lr in (1e-4, 1e-3, 1e-2)) for seed in (0, 1)
    ]
    assert row["accuracy_mean"] == pytest.approx(sum(best) / 2)
    assert (row["accuracy_min"], row["accuracy_max"]) == (min(best), max(best))
    assert (row["seeds"], row["lrs"]) == (2, 3)


def test_selection_leaves_failed_rates_out_and_counts_them():
    task = mqar_task("gla", "fla", cell=(64, 4), d_model=64, lr=1e-4, seed=0)
    better = task | {"training": task["training"] | {"lr": 1e-3}}
    failed = task | {"training": task["training"] | {"lr": 1e-2}}
    metrics = {"accuracy": 0.2, "state_bytes": 1}
    made = [
        record(task, metrics),
        record(better, metrics | {"accuracy": 0.6}),
        record(failed, status="oom", error="full"),
    ]
    chosen = selected(with_series(tidy(made), AXES))
    assert list(chosen[["accuracy", "lr", "lrs"]].iloc[0]) == [0.6, 1e-3, 2]
    averaged = [r.model_copy(update={"task": r.task | {"over_lr": "mean"}}) for r in made]
    chosen = selected(with_series(tidy(averaged), AXES))
    assert chosen["accuracy"][0] == pytest.approx(0.4)
    assert chosen["lr"].isna().all()


def test_the_fraction_that_learned_stands_next_to_the_mean():
    made = [
        record(
            mqar_task("gla", "fla", cell=(64, 4), d_model=64, lr=1e-3, seed=seed),
            {"accuracy": accuracy, "state_bytes": 1},
        )
        for seed, accuracy in enumerate((0.1, 0.95, 0.99, 1.0))
    ]
    chosen = selected(with_series(tidy(made), AXES))
    assert over_seeds(chosen, ["d_model"])["fraction_above_0.9"][0] == 0.75


def test_a_point_is_the_median_over_trials():
    made = [
        record(speed_task("gla", "fla", trial=trial), timing([ms] * 5, [ms] * 5))
        for trial, ms in enumerate((3.0, 1.0, 1.5))
    ]
    cost = Cost(["level", "mode"], "seq_len", "", "time_ms", "")
    row = medians(with_series(tidy(made), ["level", "mode", "seq_len", "trial"]), cost).iloc[0]
    assert (row["time_ms"], row["time_ms_min"], row["time_ms_max"]) == (1.5, 1.0, 3.0)
    assert row["trials"] == 3


def test_roofline_is_the_longer_floor_over_the_time(speed_plots):
    table = speed_plots["roofline"].table
    # The bytes take 0.18 ms, the FLOPs 0.11 ms.
    share = 18 / table["time_ms"]
    assert table["roofline_percent"].to_numpy() == pytest.approx(share.to_numpy())


def test_several_test_segments_make_a_map_and_have_no_chance_line():
    made = []
    for mixer, impl in (("gla", "fla"), ("attention", "sdpa")):
        for seed in (0, 1):
            task = mqar_task(mixer, impl, cell=(256, 64), d_model=64, lr=1e-3, seed=seed)
            scores = {
                "accuracy_64_4": 0.9,
                "accuracy_64_8": 0.6 + 0.2 * seed,
                "accuracy_256_8": 0.3,
            }
            made.append(record(task, {"accuracy": 0.6, "state_bytes": 1024} | scores))
    plots = mqar(tidy(made))
    assert {"accuracy_over_width", "accuracy_over_state", "accuracy_map"} == set(plots)
    drawn = plots["accuracy_map"]
    summary = drawn.summary.set_index(["seq_len", "kv_pairs"])
    assert summary["GLA"].to_dict() == {(64, 4): "0.900", (64, 8): "0.700", (256, 8): "0.300"}
    (panel,) = drawn.figure.axes
    assert [text.get_text() for text in panel.get_xticklabels()] == ["64\n4", "64\n8", "256\n8"]
    assert [text.get_text() for text in panel.get_yticklabels()] == ["GLA", "Attention"]
    assert [text.get_text() for text in panel.texts] == ["0.90", "0.70", "0.30"] * 2
    assert plots["accuracy_over_width"].figure.axes[0].get_title() == "3 test segments"
    assert "chance" not in plots["accuracy_over_width"].caption


def test_a_map_has_a_panel_for_each_width_and_tells_of_missing_rates_and_failures():
    made = []
    for d_model, cell, lr, accuracy in (
        (64, (64, 4), 1e-3, 0.2),
        (64, (64, 4), 1e-2, 0.4),
        (64, (256, 8), 1e-2, 0.3),
        (128, (256, 8), 1e-3, None),
        (128, (64, 4), 1e-3, 0.8),
        (128, (64, 4), 1e-2, 0.7),
    ):
        task = mqar_task("gla", "fla", cell=cell, d_model=d_model, lr=lr, seed=0)
        metrics = None if accuracy is None else {"accuracy": accuracy, "state_bytes": 1024}
        made.append(
            record(
                task, metrics, status="ok" if metrics else "oom", error=None if metrics else "full"
            )
        )
    drawn = mqar(tidy(made))["accuracy_map"]
    narrow, wide = drawn.figure.axes
    assert [axes.get_title() for axes in (narrow, wide)] == ["Width 64", "Width 128"]
    assert [text.get_text() for text in narrow.texts] == ["0.40", "0.30°"]
    assert [text.get_text() for text in wide.texts] == ["0.80"]
    assert "°: of fewer learning rates" in drawn.caption
    told = drawn.summary.set_index(["seq_len", "kv_pairs", "d_model"])["GLA"]
    assert told[256, 8, 128] == "oom"


def test_a_mean_over_rates_is_of_every_segment_too():
    made = []
    for lr, scores in ((1e-3, (0.9, 0.5)), (1e-2, (0.5, 0.1))):
        task = mqar_task("gla", "fla", cell=(256, 64), d_model=64, lr=lr, seed=0)
        task["over_lr"] = "mean"
        segments = dict(zip(("accuracy_64_4", "accuracy_64_8"), scores, strict=True))
        mean = sum(scores) / 2
        made.append(record(task, {"accuracy": mean, "state_bytes": 1024} | segments))
    (panel,) = mqar(tidy(made))["accuracy_map"].figure.axes
    assert [text.get_text() for text in panel.texts] == ["0.70", "0.30"]


# Captions.


def test_captions_say_how_it_was_measured_and_chosen(recall_plots, speed_plots):
    caption = recall_plots["accuracy_over_width"].caption
    for said in (
        "the max over learning rates 0.0001, 0.001, 0.01",
        "seeds 0 and 1",
        "last epoch",
        "chance, 1 / pairs",
        "fp32",
        "NVIDIA H200",
        "HGRN2 triton",
    ):
        assert said in caption
    caption = speed_plots["latency"].caption
    for said in (
        "median of 3 processes",
        "21 repetitions",
        "A/A null",
        "×: out of memory",
        "32,768 tokens a call: batch 64 to 1",
        "bf16",
        "Operator, forward: HGRN2 from about 3,",
    ):
        assert said in caption


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        ([1.0, 1.0, 1.0], "from about 1,400"),
        ([0.1, 0.1, 0.1], "at every length"),
        ([9.0, 9.0, 9.0], "at no length"),
        ([0.25, 4.0, 9.0], "up to about 1,400"),
        ([0.1, 3.0, 1.0], "at 1k, 4k"),
    ],
)
def test_crossover_with_attention(ours, said):
    rows = {"x": [1024, 2048, 4096] * 2, "y": [*ours, 0.5, 2.0, 4.0]}
    rows["mixer"] = rows["series"] = ["gla"] * 3 + ["attention"] * 3
    table = pd.DataFrame(rows)
    attention = table[table["mixer"] == "attention"]
    assert crossovers(table, attention, "x", "y") == {"gla": said}


# The look-up.


def test_a_grids_figures_are_those_of_its_task():
    table = tidy(decode_records(contexts=(256, 4096)))
    assert set(draw(table)) == {"decode_latency", "decode_state"}


def test_a_grid_of_two_tasks_has_the_figures_of_both():
    made = [
        *decode_records(contexts=(256,)),
        *memory_records(lengths=(512,)),
    ]
    plots = draw(tidy(made))
    assert set(plots) == {"decode_latency", "decode_state", "peak_memory"}
    assert "512.0" not in plots["peak_memory"].summary.to_string()
