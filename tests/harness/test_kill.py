"""Runs that are killed, interrupted or side by side: every cell ends with one ok record."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

TOYS = Path(__file__).parent / "toy_grids.py"
ROOT = TOYS.parent.parent.parent
MANY = 40
STARTUP_S = 3.0

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start `mixerbench run` of a toy grid as the leader of a process group of its own."""
    started: list[subprocess.Popen[str]] = []

    def start(grid: str, *options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "harness.cli", "run", f"{TOYS}:{grid}"]
        process = subprocess.Popen(
            [*command, "--device", "cpu", "--results", str(tmp_path), "--jobs", "2", *options],
            cwd=ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        # Also where the parent is dead: a worker that should have been is the test's to end.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdout
        process.stdout.close()


def wait_for(process: subprocess.Popen[str], *lines: str) -> str:
    """Read what the run prints until one of `lines` is in it; which."""
    assert process.stdout
    for said in process.stdout:
        for line in lines:
            if line in said:
                return line
    raise AssertionError(f"the run ended without {lines}")


def ok_per_cell(results: Path, grid: str) -> Counter[str]:
    """Ok records per key; every line must parse."""
    lines = (results / grid / "records.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert {record["status"] for record in records} == {"ok"}
    return Counter(record["key"] for record in records)


def members(group: int) -> list[int]:
    """The processes of a group that still live."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, pgrp, *_ = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(pgrp) == group and state != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("grid", "options"), [("many", ()), ("many_turns", ("--pack", "3"))], ids=["alone", "packed"]
)
def test_killed_at_any_moment_a_run_loses_nothing_and_repeats_nothing(
    start: Start, tmp_path: Path, grid: str, options: tuple[str, ...]
) -> None:
    rng = random.Random(2404_07904)
    for kill in range(16):
        process = start(grid, *options)
        if kill % 2:
            # Half of these wait until a cell has its record, however slow the machine, for either
            # kind of kill. A fast one may be done before the last.
            line = "[1/" if kill % 8 in (1, 7) else "cells to run"
            if wait_for(process, line, "ok from before") == "ok from before":
                break
            time.sleep(rng.uniform(0, 1))
        else:
            time.sleep(rng.uniform(0, STARTUP_S))
        # In turn the whole group, and the parent alone, whose workers must notice.
        if kill % 4 < 2:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.communicate()
    last = start(grid, *options)
    out, _ = last.communicate(timeout=120)
    assert last.returncode == 0, out
    # Some were done before the last run, so the kills did come in the midst of cells.
    assert re.search(r"\d+ ok from before", out), out
    per_cell = ok_per_cell(tmp_path, grid)
    assert len(per_cell) == MANY
    assert set(per_cell.values()) == {1}
    assert not list((tmp_path / grid / "checkpoints").glob("*.pt"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_worker_outlives_a_parent_that_was_killed(start: Start, tmp_path: Path) -> None:
    # In a cell that says nothing and asks nothing.
    process = start("hanging", "--where", 'ends == "hangs"')
    wait_for(process, "cells to run")
    until = time.monotonic() + 20
    while len(list((tmp_path / "hanging" / ".claims").glob("*-*.lock"))) < 1:
        assert time.monotonic() < until
        time.sleep(0.05)
    time.sleep(0.5)
    assert len(members(process.pid)) >= 3
    process.kill()
    process.wait()
    until = time.monotonic() + 10
    while members(process.pid):
        assert time.monotonic() < until, members(process.pid)
        time.sleep(0.05)


def test_two_runs_side_by_side_share_the_cells(start: Start, tmp_path: Path) -> None:
    first, second = start("many"), start("many")
    told = []
    for process in (first, second):
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0, out
        told.append(out)
    per_cell = ok_per_cell(tmp_path, "many")
    assert len(per_cell) == MANY
    assert set(per_cell.values()) == {1}


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"]
)
def test_an_interrupt_saves_the_cells_and_names_the_command(
    start: Start, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    process = start("long")
    wait_for(process, "cells to run")
    checkpoints = tmp_path / "long" / "checkpoints"
    until = time.monotonic() + 20
    while len(list(checkpoints.glob("*.pt"))) < 2:
        assert time.monotonic() < until
        time.sleep(0.05)
    # As a terminal does: to every process of the group.
    os.killpg(process.pid, number)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == status, out
    assert "2 cells left; to go on: mixerbench run" in out
    assert "Traceback" not in out
    assert not (tmp_path / "long" / "records.jsonl").read_text()
    for path in checkpoints.glob("*.pt"):
        path.write_text("2995")
    again = start("long")
    out, _ = again.communicate(timeout=60)
    assert again.returncode == 0, out
    assert set(ok_per_cell(tmp_path, "long").values()) == {1}
    lines = (tmp_path / "long" / "records.jsonl").read_text().splitlines()
    assert [json.loads(line)["metrics"]["resumed_at"] for line in lines] == [2995, 2995]


def test_a_second_interrupt_stops_at_once(start: Start) -> None:
    process = start("hanging", "--where", 'ends == "hangs"')
    wait_for(process, "cells to run")
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    wait_for(process, "stopping (SIGINT)")
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert time.monotonic() - began < 5
    assert process.returncode == 130
