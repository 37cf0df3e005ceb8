"""A run through Ray: the driver alone keeps what counts, and a seat that is lost costs its cell.

The first tests run the seats in this process, behind a stand-in for the few functions of Ray that
are used. Those marked `cluster` start Ray itself: `tox run -e cluster`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from harness import cluster, processes
from harness.cells import Options
from harness.records import Record, Records, utc_now
from harness.runner import Summary, run_grid

TOYS = Path(__file__).parent / "toy_grids.py"
ROOT = TOYS.parent.parent.parent


def rows(results: Path, grid: str) -> list[Record]:
    return Records(results / grid).rows()


class RayError(Exception):
    pass


class StandIn(ModuleType):
    """Ray with `count` cores: an actor is an object of this process, a result is there at once."""

    def __init__(self, count: int) -> None:
        super().__init__("ray")
        self.count, self.actors, self.asked = count, [], {}
        self.resource = "CPU"
        self.exceptions = SimpleNamespace(RayError=RayError)
        self.env_vars: dict[str, str] = {}
        self.init_with: dict[str, Any] = {}

    def init(self, address: str, **options: Any) -> None:
        code = Path(options["runtime_env"]["working_dir"])
        self.env_vars = options["runtime_env"]["env_vars"]
        self.init_with = {"address": address, "code": sorted(p.name for p in code.iterdir())}

    def shutdown(self) -> None:
        for actor in self.actors:
            self.kill(actor)

    def cluster_resources(self) -> dict[str, float]:
        return {self.resource: float(self.count)}

    available_resources = cluster_resources

    def remote(self, kind: type) -> Any:
        ray = self

        class Made:
            def options(self, **given: Any) -> Made:
                ray.asked = given
                return self

            def remote(self) -> Actor:
                ray.actors.append(Actor(kind()))
                return ray.actors[-1]

        return Made()

    def wait(self, results: list[Any], **_: Any) -> tuple[list[Any], list[Any]]:
        return results, []

    def get(self, result: Any) -> Any:
        if isinstance(result.value, RayError):
            raise result.value
        return result.value

    def kill(self, actor: Actor) -> None:
        if not actor.dead:
            actor.seat.kill()
        actor.dead = True


class Result:
    def __init__(self, value: Any) -> None:
        self.value = value


class Actor:
    def __init__(self, seat: Any) -> None:
        self.seat, self.dead = seat, False

    def __getattr__(self, name: str) -> Any:
        actor = self

        class Call:
            def remote(self, *arguments: Any) -> Result:
                if actor.dead:
                    return Result(RayError("the actor at 192.0.2.7 is dead"))
                return Result(getattr(actor.seat, name)(*arguments))

        return Call()


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


Run = Callable[..., Summary]


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
        pytest.raises(ValueError, match=r"pip install 'mixerbench\[ray\]'"),
        cluster.connect("auto", None, [], None),
    ):
        pass


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """Ray itself: two nodes of two cores on this machine, beside a head that takes no cells."""
    pytest.importorskip("ray", reason="needs Ray: pip install 'mixerbench[ray]'")
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        nodes.add_node(num_cpus=2)
    yield nodes
    nodes.shutdown()


Start = Callable[..., "subprocess.Popen[str]"]


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


def wait_for(process: subprocess.Popen[str], line: str, times: int = 1) -> None:
    assert process.stdout
    said = []
    for one in process.stdout:
        said.append(one)
        times -= line in one
        if not times:
            return
    raise AssertionError(f"the run ended without {line!r}: {''.join(said)}")


def finish(process: subprocess.Popen[str], status: int = 0) -> str:
    out, _ = process.communicate(timeout=120)
    assert process.returncode == status, out
    return out


def ok_per_cell(results: Path, grid: str) -> Counter[str]:
    """Ok records per key; every line must parse."""
    return Counter(row.key for row in rows(results, grid) if row.status == "ok")


@pytest.mark.cluster
def test_on_ray_every_end_is_a_row_and_nothing_is_measured_twice(
    start: Start, tmp_path: Path
) -> None:
    out = finish(start("every_end"), status=1)
    assert "4 error, 1 ok, 2 oom, 1 unsupported, 1 wrong" in out
    errors = {str(row.task["ends"]): row.error or "" for row in rows(tmp_path, "every_end")}
    assert errors["raises"].startswith("KeyError: 'no such thing'\n  toy_grids.py:")
    assert "SIGKILL" in errors["killed"]
    assert "1 ok from before" in finish(start("every_end"), status=1)


@pytest.mark.cluster
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


@pytest.mark.cluster
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


@pytest.mark.cluster
def test_a_seat_and_a_node_that_are_lost_on_ray_cost_the_cells_on_them(
    start: Start, nodes: Any, tmp_path: Path
) -> None:
    lost = nodes.add_node(num_cpus=1)
    process = start("many")
    wait_for(process, "] ok", 5)
    seats = [p for p in psutil.process_iter(["name"]) if "ray::Seat" in str(p.info["name"])]
    assert len(seats) == 5
    seats[0].send_signal(signal.SIGKILL)
    wait_for(process, "its seat was lost")
    nodes.remove_node(lost, allow_graceful=False)
    out = finish(process, status=1)
    failed = [row for row in rows(tmp_path, "many") if row.status != "ok"]
    assert 1 <= len(failed) <= 2
    assert all("its seat was lost" in (row.error or "") for row in failed)
    assert "is left out" in out
    assert f"{40 - len(failed)} ok from before" in finish(start("many"))
    assert set(ok_per_cell(tmp_path, "many").values()) == {1}
    assert len(ok_per_cell(tmp_path, "many")) == 40


@pytest.mark.cluster
def test_an_address_without_ray_and_a_cluster_without_gpus_are_one_clear_line(
    start: Start, nodes: Any
) -> None:
    process = start("fine", "--ray", "127.0.0.1:1")
    assert "mixerbench: --ray '127.0.0.1:1': Connection refused" in finish(process, status=2)
    process = start("fine", "--device", "cuda")
    assert "the cluster has no free GPU (0 in all)" in finish(process, status=2)
    del nodes


def test_nodes_are_told_where_the_data_are(ray: StandIn, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MIXERBENCH_DATA", "/somewhere/data")
    with cluster.connect("auto", "cpu", [], None):
        assert ray.env_vars == {"MIXERBENCH_DATA": "/somewhere/data"}
