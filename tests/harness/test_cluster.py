"""A run through Ray: the driver alone keeps what counts, and a seat that is lost costs its cell.

The seats are in this process, behind a stand-in; `test_cluster_on_ray.py` starts Ray itself.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import cluster, processes
from harness.cells import Options
from harness.records import Records, utc_now
from harness.runner import Summary, run_grid
from tests.harness.ray_stand_in import StandIn
from tests.harness.toy_runs import TOYS, Run, rows


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> StandIn:
    stand_in = StandIn(2)
    monkeypatch.setitem(sys.modules, "ray", stand_in)
    monkeypatch.syspath_prepend(TOYS.parent)
    # A seat takes Ray's main module out of the workers' way; here that is pytest.
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    nodes = tmp_path / "nodes"
    nodes.mkdir()
    monkeypatch.chdir(nodes)
    processes.start_server()
    return stand_in


@pytest.fixture
def run(ray: StandIn, tmp_path: Path) -> Run:
    """Run a toy grid on the stand-in's two seats; keywords are fields of Options."""
    assert sys.modules["ray"] is ray

    def run(grid: str, **options: Any) -> Summary:
        with cluster.connect("auto", "cpu", [TOYS.parent], None) as fleet:
            plan = processes.make_plan([f"{TOYS}:{grid}"], None, fleet.machine)
            given = Options(machine=plan.machine, results=tmp_path / "results")
            return run_grid(plan.grids[grid], replace(given, **options), fleet)

    return run


def test_every_end_is_a_row_of_the_drivers(run: Run, ray: StandIn, tmp_path: Path) -> None:
    summary = run("every_end")
    assert summary.statuses == {"error": 4, "oom": 2, "unsupported": 1, "wrong": 1, "ok": 1}
    done = rows(tmp_path / "results", "every_end")
    assert len(done) == 9
    errors = {str(row.task["ends"]): row.error or "" for row in done}
    assert "SIGKILL" in errors["killed"]
    assert errors["exits"] == "the worker exited with code 3"
    assert {row.env["commit"] for row in done} == {done[0].env["commit"]}
    again = run("every_end")
    assert (again.settled_before, again.statuses["ok"]) == (1, 0)
    assert ray.asked == {"num_cpus": 1, "max_restarts": 0}
    assert {"harness", "hgrn2", "mixers", "tasks", "toy_grids.py"} <= set(ray.init_with["code"])


def test_a_checkpoint_goes_to_the_driver_and_on_to_the_next_seat(run: Run, tmp_path: Path) -> None:
    checkpoints = tmp_path / "results" / "long" / "checkpoints"
    while len(list(checkpoints.glob("*.pt"))) < 2:
        summary = run("long", deadline=time.monotonic() + 1.5)
        assert (summary.stopped_by, summary.left) == ("budget", 2)
    reached = [int(path.read_text()) for path in checkpoints.glob("*.pt")]
    assert all(0 < steps < 3000 for steps in reached)
    for path in checkpoints.glob("*.pt"):
        path.write_text("2990")
    assert run("long").statuses == {"ok": 2}
    done = rows(tmp_path / "results", "long")
    assert [row.metrics["resumed_at"] for row in done] == [2990, 2990]
    assert not list(checkpoints.glob("*.pt"))


def test_fresh_sends_no_checkpoint(run: Run, tmp_path: Path) -> None:
    checkpoints = tmp_path / "results" / "long" / "checkpoints"
    while len(list(checkpoints.glob("*.pt"))) < 2:
        run("long", deadline=time.monotonic() + 1.5)
    for path in checkpoints.glob("*.pt"):
        path.write_text("2500")
    # File times come from a coarser clock.
    time.sleep(0.05)
    run("long", deadline=time.monotonic() + 1.5, fresh_since=utc_now())
    assert all(int(path.read_text()) < 2500 for path in checkpoints.glob("*.pt"))


def test_a_cell_that_another_run_holds_waits_and_its_record_settles_it(
    run: Run, tmp_path: Path
) -> None:
    assert run("fine").statuses == {"ok": 6}
    records = Records(tmp_path / "results" / "fine")
    row, *_ = records.rows()
    kept = records.path.read_bytes()
    records.path.write_bytes(b"")
    with records.claim(row.key, row.device) as mine:
        assert mine
        summary = run("fine", deadline=time.monotonic() + 4)
    assert (summary.statuses, summary.left) == ({"ok": 5}, 1)
    records.path.write_bytes(kept)
    assert run("fine").settled_before == 6


def test_a_lost_seat_costs_its_cell_and_is_left_out(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wait = StandIn.wait

    def lose_a_seat(self: StandIn, results: list[Any], **given: Any) -> Any:
        seat = self.actors[0].seat
        if seat.__dict__["_cell"] and seat.__dict__["_cell"].task.get("steps") == 90:
            self.kill(self.actors[0])
        return wait(self, results, **given)

    monkeypatch.setattr(StandIn, "wait", lose_a_seat)
    summary = run("growing")
    lost = [row for row in rows(tmp_path / "results", "growing") if "seat" in (row.error or "")]
    assert [row.error for row in lost] == ["its seat was lost (RayError)"]
    assert (summary.statuses, summary.left) == ({"ok": 8, "error": 2}, 0)
    assert "is left out" in capsys.readouterr().out
    monkeypatch.setattr(StandIn, "wait", wait)
    assert run("growing").statuses == {"ok": 1, "error": 1}


def test_a_timed_cell_has_one_seat_or_is_refused_on_cores(run: Run) -> None:
    with pytest.raises(ValueError, match="a timed cell needs a machine to itself"):
        run("mixed")


@pytest.mark.skipif(torch.cuda.is_available(), reason="looks for a GPU where there is none")
def test_each_gpu_of_the_cluster_gets_a_seat_of_one_gpu(
    ray: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    ray.resource = "GPU"
    with (
        pytest.raises(ValueError, match="no seat of the cluster got ready"),
        cluster.connect("auto", None, [], None),
    ):
        pass
    assert (len(ray.actors), ray.asked) == (2, {"num_gpus": 1, "num_cpus": 0, "max_restarts": 0})
    assert capsys.readouterr().err.count("a seat is left out: --device 'cuda': torch") == 2


@pytest.mark.parametrize("device", ["cuda:0", "gpu"])
def test_a_single_gpu_cannot_be_chosen(ray: StandIn, device: str) -> None:
    del ray
    with (
        pytest.raises(ValueError, match="with --ray use cuda or cpu"),
        cluster.connect("auto", device, [], None),
    ):
        pass


def test_without_ray_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(ValueError, match=r"pip install -e '\.\[ray\]'"),
        cluster.connect("auto", None, [], None),
    ):
        pass


def test_nodes_are_told_where_the_data_are(ray: StandIn, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MIXERBENCH_DATA", "/somewhere/data")
    with cluster.connect("auto", "cpu", [], None):
        assert ray.env_vars == {"MIXERBENCH_DATA": "/somewhere/data"}
