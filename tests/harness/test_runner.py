"""A run: every way to end is a row, nothing is measured twice, and it stops when it is told to."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock, Timeout

from harness import exclusive, processes
from harness.cells import Options as RunOptions
from harness.cells import Plan
from harness.records import Record, Records, utc_now
from harness.runner import GRACE_S, Summary, run_grid

TOYS = Path(__file__).parent / "toy_grids.py"
ROOT = TOYS.parent.parent.parent

Run = Callable[..., Summary]


@pytest.fixture(scope="module")
def planned() -> dict[str, Plan]:
    return {}


@pytest.fixture
def run(tmp_path: Path, planned: dict[str, Plan], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a toy grid with two cores; keywords are fields of Options."""
    monkeypatch.syspath_prepend(TOYS.parent)
    # Else every worker would import pytest, as its main module.
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    processes.start_server()

    def run(grid: str, device: str = "cpu", **options: Any) -> Summary:
        if grid not in planned:
            planned[grid] = processes.make_plan([f"{TOYS}:{grid}"], device)
        machine = replace(planned[grid].machine, cores=2)
        given = RunOptions(machine=machine, results=tmp_path)
        return run_grid(planned[grid].grids[grid], replace(given, **options))

    return run


def rows(results: Path, grid: str) -> list[Record]:
    return Records(results / grid).rows()


def test_every_end_is_a_row_and_costs_its_own_cell(run: Run, tmp_path: Path) -> None:
    summary = run("every_end")
    by_end = {row.task["ends"]: row for row in rows(tmp_path, "every_end")}
    assert {end: row.status for end, row in by_end.items()} == {
        "raises": "error",
        "killed": "error",
        "exits": "error",
        "oom": "oom",
        "cpu_oom": "oom",
        "unsupported": "unsupported",
        "wrong": "wrong",
        "bad_metrics": "error",
        "ok": "ok",
    }
    assert summary.statuses == {"error": 4, "oom": 2, "unsupported": 1, "wrong": 1, "ok": 1}
    assert (summary.left, summary.stopped_by) == (0, None)
    assert len(summary.failures) == 5

    errors = {end: row.error or "" for end, row in by_end.items()}
    assert errors["raises"].startswith("KeyError: 'no such thing'\n  tests/harness/toy_grids.py:")
    assert "in run: raise KeyError" in errors["raises"]
    assert "SIGKILL" in errors["killed"]
    assert errors["exits"] == "the worker exited with code 3"
    assert errors["unsupported"] == "needs a GPU: use --device cuda"
    assert errors["wrong"] == "differs from the reference by 0.5"
    assert errors["bad_metrics"].startswith("TypeError: metric 'accuracy' is {'mean': 0.5}: it has")
    assert str(Path.cwd()) not in "".join(errors.values())
    # A worker that died has told its environment: the row that stands for it has it too.
    assert len({frozenset(row.env.items()) for row in by_end.values()}) == 1
    assert by_end["ok"].env["threads"] == 1


def test_a_second_run_measures_only_what_is_not_ok(run: Run, tmp_path: Path) -> None:
    run("every_end")
    first = rows(tmp_path, "every_end")
    summary = run("every_end")
    assert (summary.settled_before, summary.statuses["ok"]) == (1, 0)
    again = rows(tmp_path, "every_end")[len(first) :]
    assert {row.task["ends"] for row in again} == {row.task["ends"] for row in first} - {"ok"}


def test_nothing_is_measured_twice_unless_fresh(run: Run, tmp_path: Path) -> None:
    assert run("fine").statuses == {"ok": 6}
    before = (tmp_path / "fine" / "records.jsonl").read_bytes()
    summary = run("fine")
    assert (summary.settled_before, summary.statuses.total(), summary.left) == (6, 0, 0)
    assert (tmp_path / "fine" / "records.jsonl").read_bytes() == before
    since = utc_now()
    assert run("fine", fresh_since=since).statuses == {"ok": 6}
    assert len(rows(tmp_path, "fine")) == 12
    again = run("fine", fresh_since=since)
    assert (again.settled_before, again.statuses.total()) == (6, 0)


def test_a_torn_last_line_is_measured_again(run: Run, tmp_path: Path) -> None:
    run("fine")
    path = tmp_path / "fine" / "records.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    summary = run("fine")
    assert (summary.settled_before, summary.statuses) == (5, {"ok": 1})
    assert len({row.key for row in rows(tmp_path, "fine")}) == 6


def test_a_record_of_another_device_settles_nothing(run: Run, tmp_path: Path) -> None:
    run("fine")
    path = tmp_path / "fine" / "records.jsonl"
    (name,) = {row.device for row in rows(tmp_path, "fine")}
    path.write_text(path.read_text().replace(name, "NVIDIA H200"))
    assert run("fine").statuses == {"ok": 6}


def test_a_time_out_costs_its_own_cell(run: Run, tmp_path: Path) -> None:
    began = time.monotonic()
    summary = run("hanging", timeout_s=1.0, jobs=1)
    assert time.monotonic() - began < 20
    assert [row.status for row in rows(tmp_path, "hanging")] == ["ok", "timeout", "ok"]
    assert summary.statuses == {"ok": 2, "timeout": 1}
    assert rows(tmp_path, "hanging")[1].error == "not done after --timeout 1.0s"


def test_timed_cells_run_last_alone_and_each_in_a_fresh_process(run: Run, tmp_path: Path) -> None:
    assert run("mixed").statuses == {"ok": 6}
    done = rows(tmp_path, "mixed")
    assert [row.task["name"] for row in done] == ["toy"] * 3 + ["timed"] * 3
    timed = done[3:]
    assert len({str(row.metrics["pid"]) for row in timed}) == 3
    assert all(row.metrics["threads"] == 2 for row in timed)
    for earlier, later in zip([done[2], *timed], timed, strict=False):
        assert earlier.ended <= later.started
    assert len({str(row.metrics["pid"]) for row in done[:3]}) <= 2


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


def test_a_cell_that_another_process_holds_is_waited_for(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
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
    threading.Timer(2.5, let_go.set).start()
    began = time.monotonic()
    summary = run("fine")
    holder.join()
    assert capsys.readouterr().out.count("waiting for cells") == 1
    assert time.monotonic() - began > 2
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


def test_records_that_cannot_be_written_stop_the_run_before_it_starts(
    run: Run, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"cannot read .*records\.jsonl: Not a directory"):
        run("fine", results=TOYS)
    unwritable = tmp_path / "unwritable"
    (unwritable / "fine").mkdir(parents=True)
    (unwritable / "fine" / ".claims").write_text("no folder")
    with pytest.raises(ValueError, match=r"cannot write .*records\.jsonl: .*--results"):
        run("fine", results=unwritable)


# Cells side by side in one process.


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


RUN_AND_LOOK = """
import sys
from harness.cli import main

try:
    main()
finally:
    print("torch is", "there" if "torch" in sys.modules else "not there")
"""


def test_the_parent_never_imports_torch(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RUN_AND_LOOK, "run", f"{TOYS}:fine", "--results", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "6 ok" in done.stdout
    assert "torch is not there" in done.stdout


@pytest.mark.gpu
def test_on_every_gpu_a_cell_that_breaks_its_process_costs_itself(
    run: Run, tmp_path: Path, planned: dict[str, Plan]
) -> None:
    summary = run("on_gpu", device="cuda")
    by_status = defaultdict(list)
    for row in rows(tmp_path, "on_gpu"):
        by_status[row.status].append(row.task["ends"])
    assert by_status == {"ok": ["ok"] * 8, "oom": ["oom"], "error": ["assert"]}
    assert len(summary.failures) == 1
    gpus = planned["on_gpu"].machine.devices
    for row in rows(tmp_path, "on_gpu"):
        assert row.env["device_type"] == "cuda"
        assert row.env["driver"]
        assert row.env["sm_clock_mhz"] > 0
        assert row.env["memory_clock_mhz"] > 0
        assert isinstance(row.env["throttle_bits"], int)
    assert {f"cuda:{row.env['device_index']}" for row in rows(tmp_path, "on_gpu")} == set(gpus)
    assert run("on_gpu", device="cuda").settled_before == 8


@pytest.mark.gpu
def test_a_cell_that_breaks_the_gpu_costs_none_beside_it(run: Run, tmp_path: Path) -> None:
    summary = run("on_gpu_in_turns", device="cuda:0", pack=4)
    assert summary.statuses == {"ok": 8, "oom": 1, "error": 1}
    by_end = {row.task["ends"]: row.status for row in rows(tmp_path, "on_gpu_in_turns")}
    assert by_end == {"ok": "ok", "oom": "oom", "assert": "error"}
