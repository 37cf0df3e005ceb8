"""A run that is stopped: cells are saved, and the next run goes on with them or starts afresh."""

from __future__ import annotations

import time
from pathlib import Path

from harness.records import utc_now
from harness.runner import GRACE_S
from tests.harness.toy_runs import Run, rows


def test_the_budget_pauses_a_cell_and_the_next_run_goes_on(run: Run, tmp_path: Path) -> None:
    def reached() -> list[int]:
        return [int(path.read_text()) for path in (tmp_path / "long" / "checkpoints").glob("*.pt")]

    before: list[int] = []
    for _ in range(20):
        before = reached()
        began = time.monotonic()
        summary = run("long", deadline=began + 1)
        assert time.monotonic() - began < GRACE_S
        assert (summary.stopped_by, summary.left) == ("budget", 2)
        assert rows(tmp_path, "long") == []
        if len(before) == 2:
            break
    assert sum(reached()) > sum(before)
    for path in (tmp_path / "long" / "checkpoints").glob("*.pt"):
        path.write_text("2990")
    assert run("long").statuses == {"ok": 2}
    assert [row.metrics["resumed_at"] for row in rows(tmp_path, "long")] == [2990, 2990]
    assert not list((tmp_path / "long" / "checkpoints").glob("*.pt"))


def test_fresh_forgets_the_checkpoint(run: Run, tmp_path: Path) -> None:
    checkpoints = tmp_path / "long" / "checkpoints"
    while len(list(checkpoints.glob("*.pt"))) < 2:
        run("long", deadline=time.monotonic() + 1)
    for path in checkpoints.glob("*.pt"):
        path.write_text("2500")
    # File times come from a coarser clock.
    time.sleep(0.05)
    since = utc_now()
    run("long", deadline=time.monotonic() + 1, fresh_since=since)
    assert all(int(path.read_text()) < 2500 for path in checkpoints.glob("*.pt"))
    # The run that goes on with a fresh one keeps what that one has saved.
    for path in checkpoints.glob("*.pt"):
        path.write_text("2990")
    assert run("long", fresh_since=since).statuses == {"ok": 2}
    assert [row.metrics["resumed_at"] for row in rows(tmp_path, "long")] == [2990, 2990]


def test_a_spent_budget_starts_nothing(run: Run, tmp_path: Path) -> None:
    summary = run("fine", deadline=time.monotonic() - 1)
    assert (summary.left, summary.stopped_by) == (6, "budget")
    assert rows(tmp_path, "fine") == []
