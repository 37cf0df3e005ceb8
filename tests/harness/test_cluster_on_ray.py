"""A run through Ray itself, on nodes that this machine plays: `tox run -e cluster`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.harness.toy_runs import ROOT, TOYS, rows

pytestmark = pytest.mark.cluster

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """Ray itself: two nodes of two cores on this machine, beside a head that takes no cells."""
    pytest.importorskip("ray", reason="needs Ray: pip install -e '.[ray]'")
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        nodes.add_node(num_cpus=2)
    yield nodes
    nodes.shutdown()


@pytest.fixture
def start(nodes: Any, tmp_path: Path) -> Iterator[Start]:
    """Start `mixerbench run --ray` of a toy grid."""
    started: list[subprocess.Popen[str]] = []

    def start(grid: str, *options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "harness.cli", "run", f"{TOYS}:{grid}"]
        where = ["--ray", nodes.address, "--device", "cpu", "--results", str(tmp_path)]
        process = subprocess.Popen(
            [*command, *where, *options],
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
        process.kill()
        process.wait()
        assert process.stdout
        process.stdout.close()


def wait_for(process: subprocess.Popen[str], line: str, times: int = 1) -> str:
    """What it said up to then."""
    assert process.stdout
    said = []
    for one in process.stdout:
        said.append(one)
        times -= line in one
        if not times:
            return "".join(said)
    raise AssertionError(f"the run ended without {line!r}: {''.join(said)}")


def finish(process: subprocess.Popen[str], status: int = 0) -> str:
    out, _ = process.communicate(timeout=120)
    assert process.returncode == status, out
    return out


def ok_per_cell(results: Path, grid: str) -> Counter[str]:
    """Ok records per key; every line must parse."""
    return Counter(row.key for row in rows(results, grid) if row.status == "ok")


def test_on_ray_every_end_is_a_row_and_nothing_is_measured_twice(
    start: Start, tmp_path: Path
) -> None:
    out = finish(start("every_end"), status=1)
    assert "4 error, 1 ok, 2 oom, 1 unsupported, 1 wrong" in out
    errors = {str(row.task["ends"]): row.error or "" for row in rows(tmp_path, "every_end")}
    assert errors["raises"].startswith("KeyError: 'no such thing'\n  toy_tasks.py:")
    assert "SIGKILL" in errors["killed"]
    assert "1 ok from before" in finish(start("every_end"), status=1)


def test_on_ray_the_budget_stops_every_seat_and_the_next_run_goes_on(
    start: Start, tmp_path: Path
) -> None:
    checkpoints = tmp_path / "long" / "checkpoints"
    while len(list(checkpoints.glob("*.pt"))) < 2:
        assert "2 cells left" in finish(start("long", "--budget", "15s"))
    assert all(0 < int(path.read_text()) < 3000 for path in checkpoints.glob("*.pt"))
    for path in checkpoints.glob("*.pt"):
        path.write_text("2990")
    finish(start("long"))
    assert [row.metrics["resumed_at"] for row in rows(tmp_path, "long")] == [2990, 2990]


def test_a_driver_that_is_killed_on_ray_costs_the_cells_in_flight(
    start: Start, tmp_path: Path
) -> None:
    for done in (3, 7, 2):
        process = start("many")
        wait_for(process, "] ok", done)
        process.kill()
        process.communicate()
        # What they had saved is there.
        assert list((tmp_path / "many" / "checkpoints").glob("*.pt"))
    out = finish(start("many"))
    assert any(float(str(row.metrics["resumed_at"])) > 0 for row in rows(tmp_path, "many"))
    assert "ok from before" in out
    per_cell = ok_per_cell(tmp_path, "many")
    assert len(per_cell) == 40
    assert set(per_cell.values()) == {1}


def test_a_seat_and_a_node_that_are_lost_on_ray_cost_the_cells_on_them(
    start: Start, nodes: Any, tmp_path: Path
) -> None:
    lost = nodes.add_node(num_cpus=1)
    process = start("many")
    wait_for(process, "] ok", 5)
    seats = [p for p in psutil.process_iter(["name"]) if "ray::Seat" in str(p.info["name"])]
    # The added node may be the last to have its own.
    assert len(seats) in (4, 5)
    seats[0].send_signal(signal.SIGKILL)
    said = wait_for(process, "its seat was lost")
    nodes.remove_node(lost, allow_graceful=False)
    out, _ = process.communicate(timeout=120)
    failed = [row for row in rows(tmp_path, "many") if row.status != "ok"]
    # A seat may be lost before it is given one, which costs none.
    assert len(failed) <= 2
    assert process.returncode == bool(failed), out
    assert all("its seat was lost" in (row.error or "") for row in failed)
    assert len(failed) + (said + out).count("is left out") >= 2
    assert f"{40 - len(failed)} ok from before" in finish(start("many"))
    assert set(ok_per_cell(tmp_path, "many").values()) == {1}
    assert len(ok_per_cell(tmp_path, "many")) == 40


def test_an_address_without_ray_and_a_cluster_without_gpus_are_one_clear_line(
    start: Start, nodes: Any
) -> None:
    process = start("fine", "--ray", "127.0.0.1:1")
    assert "mixerbench: --ray '127.0.0.1:1': Connection refused" in finish(process, status=2)
    process = start("fine", "--device", "cuda")
    assert "the cluster has no free GPU (0 in all)" in finish(process, status=2)
    del nodes
