"""How many trainings a GPU makes an hour, by all the time that they took, alone and together."""

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
    assert set(plot.table["trainings"]) == {6}
    assert "HGRN2: 24 in 1.11 GPU-hours, 21.6 an hour." in plot.caption


def test_what_ran_out_of_memory_is_told(table):
    (plot,) = trained(table).values()
    failed = plot.summary.query("seq_len == 512 and d_model == 128")
    assert list(failed["Attention"]) == ["oom"]
    assert "×: out of memory." in plot.caption


def test_what_ran_side_by_side_has_a_figure_of_its_own(table):
    beside = table.assign(pack=table["pack"].mask(table["mixer"] == "hgrn2", 3.0))
    plots = trained(beside)
    assert set(plots) == {"trainings_an_hour", "trainings_an_hour_packed"}
    packed = plots["trainings_an_hour_packed"]
    assert set(packed.table["mixer"]) == {"hgrn2"}
    assert packed.table["trainings_an_hour"].to_numpy() == pytest.approx(3 * 21.6)
    assert "3 side by side in one process" in packed.caption
    assert "hgrn2" not in set(plots["trainings_an_hour"].table["mixer"])


def test_trainings_on_a_cpu_have_none(table):
    assert not trained(table.assign(device_type="cpu"))
