"""The figures of MQAR's training step: ours next to zoology's, each way to train on its own."""

from __future__ import annotations

import pytest

from harness.figures import draw
from harness.figures_step import THEIRS
from harness.frames import tidy
from harness.plot import Plot
from tests.harness.synthetic_recall import step_records


@pytest.fixture(scope="module")
def plots() -> dict[str, Plot]:
    return draw(tidy(step_records()))


def test_each_way_to_train_has_its_figures(plots):
    names = {
        f"{cost}_graph_{k}" for cost in ("step_time", "runs_an_hour", "peak_memory") for k in (1, 7)
    }
    assert set(plots) == names


def test_zoologys_steps_stand_next_to_ours(plots):
    table = plots["step_time_graph_1"].table
    theirs = table[table["impl"] == THEIRS]
    assert set(theirs["precision"]) == {"fp32"}
    row = theirs.query("mixer == 'attention' and seq_len == 256 and d_model == 64").iloc[0]
    assert row["step_ms_per_model"] == 21.1
    ours = table.query("mixer == 'attention' and impl == 'sdpa' and precision == 'fp32'")
    assert len(ours) == 4
    # 13.2 / 2, 20.6 / 5, 21.1 / 2, 38.7 / 5
    assert "4.12 to 10.6 times less time than zoology's" in plots["step_time_graph_1"].caption
    assert "4 shapes" in plots["step_time_graph_1"].caption


def test_what_failed_is_told(plots):
    summary = plots["step_time_graph_7"].summary
    failed = summary.query("d_model == 256 and precision == 'bf16_autocast'")
    assert set(failed["Attention (sdpa)"]) == {"oom"}


def test_a_trainings_hour_counts_theirs_too(plots):
    table = plots["runs_an_hour_graph_1"].table
    row = table.query(f"impl == '{THEIRS}' and mixer == 'based' and d_model == 64").iloc[0]
    assert row["runs_per_hour"] == pytest.approx(3600 / 241)


def test_steps_launched_together_are_a_way_of_their_own():
    table = tidy(step_records())
    together = table["pack"] == 1
    mixed = table.assign(steps_together=together.map({True: 8, False: 1}))
    plots = draw(mixed)
    assert {"step_time_graph_1_8_steps", "step_time_graph_7"} <= set(plots)
    assert "step_time_graph_1" not in plots
    assert "8 steps launched at once" in plots["step_time_graph_1_8_steps"].caption


def test_the_fused_loss_is_a_way_of_its_own():
    table = tidy(step_records())
    plots = draw(table.assign(fused_loss=table["pack"] == 1))
    assert {"step_time_graph_1_fused_loss", "step_time_graph_7"} <= set(plots)
    assert "head and cross-entropy fused" in plots["step_time_graph_1_fused_loss"].caption
    assert "fused" not in plots["step_time_graph_7"].caption
