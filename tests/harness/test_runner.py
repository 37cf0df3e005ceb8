"""A run: every way to end is a row, and nothing is measured twice."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest

from harness.cells import Plan
from harness.records import utc_now
from tests.harness.toy_runs import ROOT, TOYS, Run, rows


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
    assert errors["raises"].startswith("KeyError: 'no such thing'\n  tests/harness/toy_tasks.py:")
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


def test_a_worker_that_dies_between_cells_costs_none(run: Run, tmp_path: Path) -> None:
    assert run("outlived", jobs=1).statuses == {"ok": 4}
    assert [row.status for row in rows(tmp_path, "outlived")] == ["ok"] * 4


def test_a_second_run_measures_only_what_is_not_ok(run: Run, tmp_path: Path) -> None:
    run("every_end")
    first = rows(tmp_path, "every_end")
    summary = run("every_end")
    assert (summary.settled_before, summary.statuses["ok"]) == (1, 0)
    again = rows(tmp_path, "every_end")[len(first) :]
    assert {row.task["ends"] for row in again} == {row.task["ends"] for row in first} - {"ok"}


def test_what_failed_before_comes_last(run: Run, tmp_path: Path) -> None:
    grid = "every_end"
    run(grid, jobs=1)
    first = rows(tmp_path, grid)
    kept = [row for row in first if row.task["ends"] not in ("ok", "bad_metrics")]
    file = tmp_path / grid / "records.jsonl"
    file.write_bytes(b"".join(row.line() for row in kept))
    run(grid, jobs=1)
    again = [row.task["ends"] for row in rows(tmp_path, grid)[len(kept) :]]
    assert set(again[:2]) == {"ok", "bad_metrics"}
    assert len(again) == 9
    before = len(rows(tmp_path, grid))
    run(grid, jobs=1, fresh_since="9999-01-01T00:00:00.000Z")
    fresh = [row.task["ends"] for row in rows(tmp_path, grid)[before:]]
    assert fresh == [row.task["ends"] for row in first]


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
    assert run("fine", any_device=True).settled_before == 6
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
