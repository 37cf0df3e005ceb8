"""Cells side by side in one process: each gives what it gives alone, and costs no other."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.harness.toy_runs import Run, rows


def test_cells_side_by_side_share_a_process_and_their_places_are_filled_again(
    run: Run, tmp_path: Path
) -> None:
    assert run("turns", pack=3, jobs=1).statuses == {"ok": 7}
    done = rows(tmp_path, "turns")
    assert len({str(row.metrics["pid"]) for row in done}) == 1
    assert {row.metrics["pack"] for row in done} == {3.0}
    # The first place that was free had its next cell before the others were done.
    assert min(row.started for row in done[3:]) < done[2].ended
    assert max(row.started for row in done[:3]) < min(row.ended for row in done[:3])
    assert not list((tmp_path / "turns" / "checkpoints").glob("*.pt"))


def test_on_a_cpu_each_cell_has_its_process_unless_asked(run: Run, tmp_path: Path) -> None:
    assert run("turns").statuses == {"ok": 7}
    assert {row.metrics["pack"] for row in rows(tmp_path, "turns")} == {1.0}


def test_what_fails_beside_others_is_tried_alone_and_costs_itself(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = run("turns_that_end", pack=3, jobs=1)
    assert summary.statuses == {"ok": 3, "error": 1, "oom": 1, "unsupported": 1}
    told = capsys.readouterr().out
    assert told.count("later, alone: KeyError") == 1
    assert told.count("later, alone: OutOfMemoryError") == 1
    done = rows(tmp_path, "turns_that_end")
    assert len(done) == 6
    assert [row.status for row in done[-2:]] == ["error", "oom"]
    assert [row.metrics["resumed_at"] for row in done if row.status == "ok"] == [0, 0, 0]


def test_a_process_that_dies_costs_none_of_its_cells_but_the_one_that_killed_it(
    run: Run, tmp_path: Path
) -> None:
    summary = run("turns_killed", pack=4, jobs=1)
    assert summary.statuses == {"ok": 3, "error": 1}
    by_status = {row.status: row for row in rows(tmp_path, "turns_killed")}
    assert "SIGKILL" in str(by_status["error"].error)
    # They went on, each in a process of its own, where they had been.
    for row in rows(tmp_path, "turns_killed"):
        if row.status == "ok":
            assert 10 <= row.metrics["resumed_at"] <= 20
            assert row.metrics["pack"] == 1


def test_a_time_out_beside_others_is_settled_alone(run: Run, tmp_path: Path) -> None:
    summary = run("turns_hanging", pack=3, jobs=1, timeout_s=1.5)
    assert summary.statuses == {"ok": 2, "timeout": 1}
    assert len(rows(tmp_path, "turns_hanging")) == 3


def test_what_shares_a_process_with_an_overdue_cell_goes_on_in_a_pack(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = run("turns_overdue", pack=2, jobs=1, timeout_s=2.0)
    assert (summary.statuses, summary.left) == ({"ok": 2, "timeout": 1}, 0)
    overdue, before, beside = sorted(
        rows(tmp_path, "turns_overdue"), key=lambda row: int(row.task["seed"])
    )
    assert (overdue.status, before.metrics["resumed_at"]) == ("timeout", 0)
    # In another process, and where it had been.
    assert (beside.status, beside.metrics["pack"]) == ("ok", 2)
    assert 10 <= float(str(beside.metrics["resumed_at"])) <= 20
    assert beside.metrics["pid"] != before.metrics["pid"]
    told = capsys.readouterr().out
    assert (told.count("later, alone"), told.count("later, alone: overdue")) == (1, 1)


def test_the_budget_pauses_every_cell_of_a_process(run: Run, tmp_path: Path) -> None:
    checkpoints = tmp_path / "many_turns" / "checkpoints"
    for _ in range(20):
        summary = run("many_turns", pack=4, jobs=1, deadline=time.monotonic() + 1.0)
        assert summary.stopped_by == "budget"
        if len(list(checkpoints.glob("*.pt"))) == 4:
            break
    assert len(list(checkpoints.glob("*.pt"))) == 4
    left = summary.left
    assert run("many_turns", pack=4, jobs=1).statuses == {"ok": left}
    resumed = [row.metrics["resumed_at"] for row in rows(tmp_path, "many_turns")]
    assert sum(at > 0 for at in resumed) >= 4


def test_trainings_side_by_side_give_what_each_gives_alone(run: Run, tmp_path: Path) -> None:
    times = {"train_s", "step_ms", "pack"}

    def results(folder: Path) -> dict[str, str]:
        return {
            row.key: repr({k: v for k, v in row.metrics.items() if k not in times})
            for row in rows(folder, "recall")
        }

    alone, packed = tmp_path / "alone", tmp_path / "packed"
    assert run("recall", jobs=1, results=alone).statuses == {"ok": 5}
    assert run("recall", jobs=1, pack=3, results=packed).statuses == {"ok": 5}
    assert results(packed) == results(alone)
    by_rate = {row.task["training"]["lr"]: row.metrics for row in rows(packed, "recall")}
    assert by_rate[1e30]["diverged"] == 1
    assert (by_rate[1e-2]["epochs_run"], by_rate[1e-3]["epochs_run"]) == (1, 4)


@pytest.mark.gpu
def test_a_cell_that_breaks_the_gpu_costs_none_beside_it(run: Run, tmp_path: Path) -> None:
    summary = run("on_gpu_in_turns", device="cuda:0", pack=4)
    assert summary.statuses == {"ok": 8, "oom": 1, "error": 1}
    by_end = {row.task["ends"]: row.status for row in rows(tmp_path, "on_gpu_in_turns")}
    assert by_end == {"ok": "ok", "oom": "oom", "assert": "error"}
