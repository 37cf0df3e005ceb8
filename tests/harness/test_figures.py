"""Figures show the right numbers in a fixed style; nothing is dropped, nothing overlaps."""

from __future__ import annotations

from itertools import combinations, pairwise

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from harness.crossover import crossovers
from harness.curves import Cost, medians
from harness.figures import draw
from harness.figures_decode import decode
from harness.figures_recall import mqar, over_seeds, selected
from harness.figures_speed import memory, speed
from harness.frames import tidy
from harness.plot import Plot
from harness.series import marks, not_drawn, pages, with_series
from harness.sheet import save, spread
from harness.style import MARKS, length, mark, number, significant
from tests.harness.synthetic import (
    CPU,
    GPU,
    decode_records,
    memory_records,
    mqar_records,
    mqar_task,
    recall,
    record,
    speed_records,
    speed_task,
    timing,
)

AXES = ["seq_len", "kv_pairs", "d_model", "lr", "seed"]


@pytest.fixture(scope="module")
def recall_plots() -> dict[str, Plot]:
    return mqar(tidy(mqar_records(cells=((64, 4), (512, 64)))))


@pytest.fixture(scope="module")
def speed_plots() -> dict[str, Plot]:
    levels = (("op", "fwd"), ("training_step", "step"))
    return speed(tidy(speed_records(levels=levels)))


def texts(figure: Figure) -> str:
    """All that is written in a figure, outside its axes too."""
    inside = [text.get_text() for ax in figure.axes for text in ax.texts]
    return "\n".join([*inside, *(text.get_text() for text in figure.texts)])


# The numbers.


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
    assert {"accuracy_over_width", "accuracy_over_state", "accuracy_map_d64"} == set(plots)
    summary = plots["accuracy_map_d64"].summary.set_index(["seq_len", "kv_pairs"])
    assert summary["GLA"].to_dict() == {(64, 4): "0.900", (64, 8): "0.700", (256, 8): "0.300"}
    assert plots["accuracy_over_width"].figure.axes[0].get_title() == "3 test segments"
    assert "chance" not in plots["accuracy_over_width"].caption


# What tells lines apart.


def hgrn2(expand: int, **changed) -> dict:
    task = mqar_task("hgrn2", "triton", cell=(64, 4), d_model=64, lr=1e-3, seed=0)
    return task | {"mixer": task["mixer"] | {"expand": expand}} | changed


def test_cells_that_differ_in_a_setting_are_never_one_line():
    made = [record(hgrn2(expand), {"accuracy": 0.5}) for expand in (16, 64)]
    table = with_series(tidy(made), AXES)
    assert list(table["series"]) == ["HGRN2, expand 16", "HGRN2, expand 64"]
    looks = list(marks(table).values())
    assert looks[0].fill != looks[1].fill


def test_a_setting_that_goes_with_an_axis_makes_no_line_of_its_own():
    made = [
        record(hgrn2(expand, seq_len=seq_len), {"accuracy": 0.5})
        for expand, seq_len in ((16, 64), (64, 128))
    ]
    assert set(with_series(tidy(made), AXES)["series"]) == {"HGRN2"}


def test_two_implementations_of_a_mixer_are_two_lines():
    made = [
        record(speed_task("hgrn2", impl), timing([1.0] * 5, [1.0] * 5))
        for impl in ("triton", "reference")
    ]
    table = with_series(tidy(made), ["seq_len", "trial"])
    assert set(table["series"]) == {"HGRN2 (triton)", "HGRN2 (reference)"}
    assert len({str(look.dash) for look in marks(table).values()}) == 2


def test_a_mixer_has_the_same_mark_in_every_grid(recall_plots, speed_plots):
    for plots in (recall_plots, speed_plots):
        for plot in plots.values():
            for look in marks(plot.table.assign(status="ok")).values():
                assert look in {mark(mixer, impl) for mixer, impl in drawn(plot.table)}
    markers = [marker for _, _, marker in MARKS.values()]
    colours = [colour for _, colour, _ in MARKS.values()]
    assert len(set(markers)) == len(set(colours)) == len(MARKS)
    assert mark("rwkv", "fla") == mark("rwkv", "fla")


def drawn(table: pd.DataFrame) -> list[tuple[str, str]]:
    return list(table[["mixer", "impl"]].itertuples(index=False, name=None))


def test_at_most_eight_series_share_a_figure():
    made = [record(hgrn2(expand), {"accuracy": 0.5}) for expand in range(1, 11)]
    parts = list(pages(with_series(tidy(made), AXES)))
    assert [(suffix, part["series"].nunique()) for suffix, part in parts] == [("", 5), ("_2", 5)]


def test_cpu_and_gpu_never_share_a_figure():
    made = [
        one.model_copy(update={"env": one.env | {"device": device, "device_type": kind}})
        for device, kind in ((GPU, "cuda"), (CPU, "cpu"))
        for one in memory_records(lengths=(512,))
    ]
    plots = memory(tidy(made))
    assert set(plots) == {"peak_memory_cpu", "peak_memory_cuda"}
    assert CPU in plots["peak_memory_cpu"].caption
    assert CPU not in plots["peak_memory_cuda"].caption


# Failed cells.


def test_failed_cells_stand_under_the_figure_and_in_its_table(recall_plots, speed_plots):
    plot = recall_plots["accuracy_over_width"]
    assert "Attention oom in 6 cells" in texts(plot.figure).replace("\n", " ")
    row = plot.summary.query("seq_len == 512 and d_model == 128").iloc[0]
    assert row["Attention"] == "oom"
    latency = speed_plots["latency"]
    assert "Mamba unsupported in 12 cells" in texts(latency.figure).replace("\n", " ")
    assert set(latency.summary.query("level == 'op'")["Mamba"]) == {"unsupported"}


def test_a_number_that_failed_cells_have_no_part_in_carries_a_star():
    table = mqar(tidy(mqar_records(cells=((256, 16),))))["accuracy_over_width"].summary
    assert table["HGRN1"].str.endswith(" *").all()
    assert not table["HGRN2"].str.endswith(" *").any()


def test_not_drawn_is_empty_when_all_went_well():
    table = tidy(mqar_records(cells=((64, 4),)))
    assert not_drawn(with_series(table, AXES), AXES) == ""


def test_out_of_memory_is_a_cross_at_the_length_where_it_happened():
    figure = memory(tidy(memory_records()))["peak_memory"].figure
    crosses = [
        float(line.get_xdata()[0]) for line in figure.axes[1].lines if line.get_marker() == "x"
    ]
    assert sorted(crosses) == [8192, 32_768, 32_768]


def test_a_zero_is_in_the_table_and_not_on_the_log_axis():
    made = [
        record(
            speed_task("gla", "fla", seq_len=seq_len, name="memory"),
            {"peak_mib": peak, "reserved_mib": 9.0},
        )
        for seq_len, peak in ((512, 0.0), (2048, 5.0))
    ]
    plot = memory(tidy(made))["peak_memory"]
    assert list(plot.summary["GLA"]) == ["0", "5"]
    assert "1 points at 0 are not drawn" in plot.caption
    assert list(plot.figure.axes[0].lines[0].get_xdata()) == [2048]


def test_a_grid_in_which_nothing_went_well_has_no_figures():
    task = mqar_task("gla", "fla", cell=(64, 4), d_model=64, lr=1e-3, seed=0)
    table = tidy([record(task, status="unsupported", error="no GPU")])
    assert draw(table) == {}


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


# The look.


def overlaps(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of texts that cover each other, or one text and the edge that cuts it."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    found, boxes = [], []
    shown = list(figure.texts)
    for ax in figure.axes:
        shown += [*ax.texts, ax.title, ax.xaxis.label, ax.yaxis.label]
        shown += [*ax.get_xticklabels(), *ax.get_yticklabels()]
    for text in shown:
        if text.get_text() and text.get_visible():
            box = text.get_window_extent(renderer)
            if box.x0 < -1 or box.x1 > figure.bbox.x1 + 1 or box.y0 < -1:
                found.append((text.get_text(), "the edge"))
            # Boxes hold the room of a line's ascenders and descenders, mostly empty.
            boxes.append((text.get_text(), box.padded(-2)))
    for (one, a), (other, b) in combinations(boxes, 2):
        if a.overlaps(b):
            found.append((one, other))
    return found


@pytest.mark.parametrize("kind", ["recall", "speed", "decode", "map"])
def test_no_text_covers_another(kind, recall_plots, speed_plots):
    plots = {
        "recall": lambda: recall_plots,
        "speed": lambda: speed_plots,
        "decode": lambda: decode(tidy(decode_records(contexts=(256, 4096)))),
        "map": lambda: mqar(
            tidy(mqar_records(cells=((64, 4), (64, 8), (128, 8), (128, 4)), lrs=(1e-3,)))
        ),
    }[kind]()
    assert plots
    for name, plot in plots.items():
        assert not overlaps(plot.figure), name


@given(st.lists(st.floats(-0.5, 1.5), min_size=1, max_size=8))
def test_labels_are_spread_apart_in_their_order(wanted):
    placed = spread(wanted, 0.1)
    assert all(-1e-9 <= y <= 1 + 1e-9 for y in placed)
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    heights = [placed[i] for i in order]
    assert all(b - a > 0.1 - 1e-9 for a, b in pairwise(heights))


def test_labels_that_have_room_stay_where_their_lines_end():
    assert spread([0.9, 0.2, 0.5], 0.1) == [0.9, 0.2, 0.5]


@pytest.mark.parametrize(
    ("value", "said"), [(256, "256"), (1024, "1k"), (16_384, "16k"), (2**20, "1M"), (1500, "1.5k")]
)
def test_lengths_read_plainly(value, said):
    assert length(value) == said


def test_numbers_read_plainly():
    assert [number(x) for x in (0.05, 2, 1500, 3e6, 2e9)] == ["0.05", "2", "1.5k", "3M", "2G"]
    assert [significant(x) for x in (0.123456, 7.0, 36_154_321.7, True, None, float("nan"))] == [
        "0.1235",
        "7",
        "36150000",
        "True",
        "–",
        "–",
    ]


def test_the_same_records_give_the_same_svg(tmp_path):
    table = tidy(mqar_records(cells=((64, 4),), lrs=(1e-3,)))
    for copy in ("one", "two"):
        save(mqar(table)["accuracy_over_width"].figure, tmp_path / copy)
    one, two = ((tmp_path / f"{copy}.svg").read_bytes() for copy in ("one", "two"))
    assert one == two
    assert b"<dc:date>" not in one
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


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
