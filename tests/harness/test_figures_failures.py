"""Cells that failed, and zeros on a log axis, are told in the figure and in its table."""

from __future__ import annotations

from harness import style
from harness.figures import draw
from harness.figures_recall import mqar
from harness.figures_speed import memory
from harness.frames import tidy
from harness.records import Record
from harness.series import not_drawn, with_series
from tests.harness.figure_texts import texts
from tests.harness.synthetic import record
from tests.harness.synthetic_kernels import memory_records, speed_task
from tests.harness.synthetic_recall import AXES, mqar_records, mqar_task


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


def test_a_point_of_fewer_learning_rates_is_hollow_and_no_line_joins_it():
    made = mqar_records(cells=((64, 4),), widths=(64, 128, 256))
    missing = [{"mixer": "mamba", "d_model": d_model, "lr": 1e-3} for d_model in (128, 256)]

    def there(row: Record) -> bool:
        task = row.task
        found = {"mixer": task["mixer"]["name"], "d_model": task["backbone"]["d_model"]}
        return found | {"lr": task["training"]["lr"]} not in missing

    for records, hollow in ((made, []), ([row for row in made if there(row)], [128, 256])):
        plot = mqar(tidy(records))["accuracy_over_width"]
        lines = [x for x in plot.figure.axes[0].lines if x.get_label().startswith("_child")]
        drawn = [x for x in lines if x.get_marker() == style.mark("mamba", "").marker]
        joined, apart = (
            [x for x in drawn if x.get_fillstyle() == fill and x.get_markersize() > 3]
            for fill in ("full", "none")
        )
        assert [list(x.get_xdata()) for x in apart] == [hollow] * bool(hollow)
        assert all(x.get_linestyle() == "None" for x in apart)
        assert set(joined[0].get_xdata()) == {64, 128, 256} - set(hollow)
        assert ("Hollow" in plot.caption) == bool(hollow)


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
