"""What tells the lines of a figure apart: settings and marks; and what shares none: devices."""

from __future__ import annotations

import pandas as pd

from harness.figures_speed import memory
from harness.frames import tidy
from harness.series import marks, pages, with_series
from harness.style import MARKS, mark
from tests.harness.synthetic import CPU, GPU, record
from tests.harness.synthetic_kernels import memory_records, speed_task, timing
from tests.harness.synthetic_recall import AXES, mqar_task


def hgrn2(expand: int, **changed) -> dict:
    task = mqar_task("hgrn2", "triton", cell=(64, 4), d_model=64, lr=1e-3, seed=0)
    return task | {"mixer": task["mixer"] | {"expand": expand}} | changed


def test_cells_that_differ_in_a_setting_are_never_one_line():
    made = [record(hgrn2(expand), {"accuracy": 0.5}) for expand in (16, 64)]
    table = with_series(tidy(made), AXES)
    assert list(table["series"]) == ["HGRN2, expand 16", "HGRN2, expand 64"]
    looks = list(marks(table).values())
    assert looks[0].fill != looks[1].fill


def test_two_gpus_are_one_line_where_their_kind_alone_tells_apart():
    h100 = "NVIDIA H100"
    cells = ((16, 1e-3, GPU), (64, 1e-3, h100), (16, 1e-4, h100))
    made = [record(hgrn2(e, training={"lr": lr}), {}, device=gpu) for e, lr, gpu in cells]
    assert with_series(tidy(made), AXES)["series"].nunique() == 3
    by_kind = with_series(tidy(made), AXES, devices="device_type")
    assert set(by_kind["series"]) == {"HGRN2, expand 16", "HGRN2, expand 64"}
    made.append(record(hgrn2(16, training={"lr": 1e-3}), {}, device=CPU))
    assert with_series(tidy(made), AXES, devices="device_type")["series"].nunique() == 3


def test_a_setting_that_goes_with_an_axis_makes_no_line_of_its_own():
    made = [
        record(hgrn2(expand, seq_len=seq_len), {"accuracy": 0.5})
        for expand, seq_len in ((16, 64), (64, 128))
    ]
    assert set(with_series(tidy(made), AXES)["series"]) == {"HGRN2"}


def test_a_lone_hybrid_does_not_read_as_the_plain_mixer():
    plain, hybrid = hgrn2(64, protocol="hgrn2-paper"), hgrn2(64, protocol="short conv first")
    gla = hybrid | {"mixer": hybrid["mixer"] | {"name": "gla"}}
    made = [record(task, {"accuracy": 0.5}) for task in (plain, hybrid, gla)]
    table = with_series(tidy(made), AXES, told=["protocol"])
    hybrids = {"HGRN2, short conv first", "GLA, short conv first"}
    assert set(table["series"]) == {"HGRN2, hgrn2-paper", *hybrids}
    one_each = with_series(tidy([made[0], made[2]]), AXES, told=["protocol"])
    assert set(one_each["series"]) == {"HGRN2, hgrn2-paper", "GLA, short conv first"}
    alone = with_series(tidy(made[-1:]), AXES, told=["protocol"])
    assert set(alone["series"]) == {"GLA"}, "where all runs share it, the caption tells it"


def test_two_implementations_of_a_mixer_are_two_lines():
    made = [
        record(speed_task("hgrn2", impl), timing([1.0] * 5, [1.0] * 5))
        for impl in ("triton", "reference")
    ]
    table = with_series(tidy(made), ["seq_len", "trial"])
    assert set(table["series"]) == {"HGRN2 (triton)", "HGRN2 (reference)"}
    assert len({str(look.dash) for look in marks(table).values()}) == 2


def drawn(table: pd.DataFrame) -> list[tuple[str, str]]:
    return list(table[["mixer", "impl"]].itertuples(index=False, name=None))


def test_a_mixer_has_the_same_mark_in_every_grid(recall_plots, speed_plots):
    for plots in (recall_plots, speed_plots):
        for plot in plots.values():
            for look in marks(plot.table.assign(status="ok")).values():
                assert look in {mark(mixer, impl) for mixer, impl in drawn(plot.table)}
    markers = [marker for _, _, marker in MARKS.values()]
    colours = [colour for _, colour, _ in MARKS.values()]
    assert len(set(markers)) == len(set(colours)) == len(MARKS)
    assert mark("rwkv", "fla") == mark("rwkv", "fla")


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
