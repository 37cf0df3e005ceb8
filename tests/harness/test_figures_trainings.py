"""How many trainings a GPU makes an hour: by all the time that they took, each device apart."""

from __future__ import annotations

import pandas as pd
import pytest

from harness.figures import draw
from harness.frames import tidy
from harness.plot import Plot
from tests.harness.synthetic_recall import mqar_records


def trained(table: pd.DataFrame) -> dict[str, Plot]:
    plots = draw(table)
    return {name: plot for name, plot in plots.items() if name.startswith("trainings_an_hour")}


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """Trainings alone: 100 s each, at a learning rate of 1e-3 300 s."""
    table = tidy(mqar_records(cells=((64, 4), (512, 64))))
    ok = table["status"] == "ok"
    seconds = table["train_s"].mask(ok & (table["lr"] == 1e-3), 300.0)
    return table.assign(train_s=seconds, pack=pd.Series(1.0, table.index).where(ok))


def test_an_hour_holds_as_many_as_all_their_time_says(table):
    (plot,) = trained(table).values()
    # 100 + 300 + 100 s for three, where the mean of 36, 12 and 36 an hour is 28.
    assert plot.table["trainings_an_hour"].to_numpy() == pytest.approx(21.6)
    assert plot.table["trainings_an_hour_min"].to_numpy() == pytest.approx(12)
    assert plot.table["trainings_an_hour_max"].to_numpy() == pytest.approx(36)
    assert set(plot.table["trainings"]) == {6}
    assert "HGRN2: 24 in 1.11 GPU-hours, 21.6 an hour." in plot.caption


def test_what_ran_out_of_memory_is_told(table):
    (plot,) = trained(table).values()
    failed = plot.summary.query("seq_len == 512 and d_model == 128")
    assert list(failed["Attention"]) == ["oom"]
    assert "×: out of memory." in plot.caption
    # At the bottom, as of a rate.
    axes = next(ax for ax in plot.figure.axes if "512" in ax.get_title())
    (cross,) = (line for line in axes.lines if line.get_marker() == "x")
    low, high = axes.get_ylim()
    assert low < cross.get_ydata()[0] < (low * high) ** 0.5


def test_devices_are_apart(table):
    wide = table["d_model"] == 128
    two = table.assign(device=table["device"].mask(wide, "NVIDIA H100 80GB HBM3"))
    lines = pd.concat([plot.table for plot in trained(two).values()])
    assert (lines.groupby("series")["d_model"].nunique() == 1).all()
    assert lines["series"].nunique() == 2 * table["mixer"].nunique()


def test_precisions_are_panels_and_no_lines(table):
    other = table.assign(precision=table["precision"].mask(table["seq_len"] == 64, "tf32"))
    (plot,) = trained(other).values()
    assert plot.table["series"].nunique() == table["mixer"].nunique()


def test_what_shared_a_process_is_apart_and_has_its_share_of_the_time(table):
    ours, wide = table["mixer"] == "hgrn2", table["d_model"] == 128
    beside = table.assign(pack=table["pack"].mask(ours & wide, 2.0))
    (plot,) = trained(beside).values()
    lines = plot.table.groupby("series")["trainings_an_hour"].mean()
    assert lines["HGRN2, in packs"] == pytest.approx(2 * lines["HGRN2, alone"])
    widths = plot.table.groupby("series")["d_model"].unique()
    assert set(widths["HGRN2, in packs"]) == {128}
    assert 128 not in widths["HGRN2, alone"]
    assert "HGRN2, in packs: 12 in" in plot.caption
    (plot,) = trained(table.assign(pack=table["pack"] * 3)).values()
    assert plot.table["trainings_an_hour"].to_numpy() == pytest.approx(3 * 21.6)


def test_trainings_on_a_cpu_have_none_nor_records_without_packs(table):
    assert not trained(table.assign(device_type="cpu"))
    assert not trained(table.drop(columns="pack"))
