"""Runs beside each other: cells that another holds and timed cells of another are waited for."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock, Timeout

from harness import exclusive
from harness.claims import ANY_DEVICE
from harness.progress import Display
from harness.records import Record, Records, utc_now
from harness.runner import GRACE_S
from tests.harness.toy_runs import Run, rows


def test_runs_of_other_devices_share_cells_where_their_records_count(
    run: Run, tmp_path: Path
) -> None:
    run("fine")
    held, *_ = rows(tmp_path, "fine")
    with Records(tmp_path / "fine").claim(held.key, ANY_DEVICE):
        stopped = time.monotonic() + 8
        summary = run("fine", fresh_since=utc_now(), any_device=True, deadline=stopped)
    assert (summary.statuses, summary.left) == ({"ok": 5}, 1)


def test_a_cell_that_another_process_holds_is_waited_for(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("fine")
    held, *_ = done = rows(tmp_path, "fine")
    path = tmp_path / "fine" / "records.jsonl"
    line_of_held = path.read_bytes().splitlines(keepends=True)[0]
    path.write_bytes(b"")
    other = Records(tmp_path / "fine")
    taken, let_go = threading.Event(), threading.Event()

    def another_run() -> None:
        with other.claim(held.key, held.device) as mine:
            assert mine
            taken.set()
            let_go.wait(30)
            other.append(Record.model_validate_json(line_of_held))

    holder = threading.Thread(target=another_run)
    holder.start()
    assert taken.wait(10)
    # Held until the run has said that it waits and asked for the cell once more.
    waits: list[str] = []
    note = Display.note

    def noted(display: Display, line: str) -> None:
        note(display, line)
        if "waiting for cells" in line:
            waits.append(line)
            threading.Timer(1.5, let_go.set).start()

    monkeypatch.setattr(Display, "note", noted)
    summary = run("fine")
    assert let_go.is_set()
    holder.join()
    assert len(waits) == 1
    assert summary.statuses == {"ok": 6}
    assert sorted(row.key for row in rows(tmp_path, "fine")) == sorted(row.key for row in done)


@pytest.fixture
def timed_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FileLock:
    """The lock that another run's timed cell would hold, in a temporary folder of its own."""
    lock = FileLock(tmp_path / "device.lock", thread_local=False)
    monkeypatch.setattr(exclusive, "lock_file", lambda _: Path(lock.lock_file))
    return lock


def test_a_timed_cell_waits_for_another_runs(timed_elsewhere: FileLock) -> None:
    timed_elsewhere.acquire()
    said: list[str] = []
    threading.Timer(1.0, timed_elsewhere.release).start()
    began = time.monotonic()
    with exclusive.device_alone(torch.device("cpu"), said.append, lambda: False) as alone:
        assert alone
        assert time.monotonic() - began > 0.9
        with pytest.raises(Timeout):
            timed_elsewhere.acquire(timeout=0)
    assert set(said) == {"waits for another run's timed cell"}
    timed_elsewhere.acquire(timeout=0)


def test_a_stop_ends_the_wait_for_another_runs_timed_cell(timed_elsewhere: FileLock) -> None:
    timed_elsewhere.acquire()
    with exclusive.device_alone(torch.device("cpu"), print, lambda: True) as alone:
        assert not alone


def test_only_timed_cells_wait_and_the_budget_ends_it(run: Run, tmp_path: Path) -> None:
    began = time.monotonic()
    with FileLock(exclusive.lock_file(torch.device("cpu"))):
        summary = run("mixed", deadline=began + 6)
    assert time.monotonic() - began < 6 + GRACE_S / 2
    assert (summary.statuses, summary.left, summary.stopped_by) == ({"ok": 3}, 3, "budget")
    assert {row.task["name"] for row in rows(tmp_path, "mixed")} == {"toy"}
