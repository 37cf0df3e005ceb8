"""Several devices: every one has its worker, the longest cells go first, timed ones are alone."""

from __future__ import annotations

import sys
import time
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import plan, processes
from harness.cells import Cell, Machine, Options, Plan
from harness.grids_recall import mqar_fig3
from harness.placement import Place, in_order, places, slots
from harness.runner import GRACE_S, Summary, run_grid
from tasks.mqar.task import MQAR
from tests.harness.toy_runs import TOYS, Run, rows

FOUR = Machine(("cuda:0", "cuda:1", "cuda:2", "cuda:3"), "NVIDIA H100", 64, {})


def cell(key: str, cost: float) -> Cell:
    return Cell(key, "toy", {}, b"", timed=False, any_device=False, packs=False, cost=cost)


def test_every_gpu_has_one_worker_and_its_share_of_the_cores() -> None:
    assert places(FOUR, None, timed=False) == [
        Place(f"cuda:{n}", f"cuda:{n}", 16) for n in range(4)
    ]


def test_jobs_are_on_each_gpu_and_every_gpu_comes_before_any_has_two() -> None:
    placed = places(FOUR, 2, timed=False)
    assert [place.device for place in placed] == [*FOUR.devices, *FOUR.devices]
    assert len({place.name for place in placed}) == 8
    assert {place.threads for place in placed} == {8}


def test_a_cpu_has_one_worker_a_core_or_as_many_as_jobs() -> None:
    cpu = Machine(("cpu",), "A CPU", 6, {})
    assert [place.threads for place in places(cpu, None, timed=False)] == [1] * 6
    assert [place.threads for place in places(cpu, 2, timed=False)] == [3, 3]
    assert [place.threads for place in places(cpu, 9, timed=False)] == [1] * 9


def test_a_timed_cell_has_all_the_cores() -> None:
    assert places(FOUR, 2, timed=True)[0] == Place("cuda:0", "cuda:0", 64)


def test_the_longest_go_first_and_equals_stay_in_the_grids_order() -> None:
    cells = [cell("a", 1), cell("b", 5), cell("c", 1), cell("d", 9), cell("e", 5)]
    two = places(FOUR, None, timed=False)[:2]
    for several in (slots(two, 1), slots(two[:1], 3)):
        assert [one.key for one in in_order(cells, several, set())] == ["d", "b", "e", "a", "c"]
        tried = in_order(cells, several, {"d", "c"})
        assert [one.key for one in tried] == ["b", "e", "a", "d", "c"]
    assert in_order(cells, slots(two[:1], 1), set()) == cells
    assert [one.key for one in in_order(cells, slots(two[:1], 1), {"b"})] == list("acdeb")


def test_every_place_has_a_cell_before_any_has_two() -> None:
    two = places(FOUR, None, timed=False)[:2]
    names = ["cuda:0/0", "cuda:1/0", "cuda:0/1", "cuda:1/1"]
    assert [slot.name for slot in slots(two, 2)] == names
    assert [slot.place for slot in slots(two, 2)] == [*two, *two]


def test_the_longest_recall_cells_are_the_longest_and_widest() -> None:
    built = plan.build("mqar_fig3", mqar_fig3, torch.device("cpu"))
    by_cost = sorted(built, key=lambda one: one.cost)
    ends = [
        (one.task["seq_len"], one.task["backbone"]["d_model"]) for one in (by_cost[0], by_cost[-1])
    ]
    assert ends == [(64, 64), (512, 512)]
    assert all(isinstance(task, MQAR) and task.cost > 0 for task in mqar_fig3(torch.device("cpu")))


@pytest.fixture
def run(tmp_path: Path, planned: dict[str, Plan], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a toy grid over devices that all are this CPU; torch takes any number for it."""
    monkeypatch.syspath_prepend(TOYS.parent)
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    processes.start_server()

    def run(grid: str, *devices: str, **options: Any) -> Summary:
        if grid not in planned:
            planned[grid] = processes.make_plan([f"{TOYS}:{grid}"], "cpu")
        machine = replace(planned[grid].machine, devices=devices, cores=len(devices))
        given = Options(machine=machine, results=tmp_path)
        return run_grid(planned[grid].grids[grid], replace(given, **options))

    return run


def test_cells_spread_over_devices_longest_first_and_a_failure_costs_itself(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[str] = []
    give = processes.WorkerProcess.give

    def noted(worker: processes.WorkerProcess, cell: Cell) -> None:
        given.append(cell.key)
        give(worker, cell)

    monkeypatch.setattr(processes.WorkerProcess, "give", noted)
    summary = run("growing", "cpu:0", "cpu:1", "cpu:2")
    assert (summary.statuses, summary.left) == ({"ok": 9, "error": 1}, 0)
    done = [row for row in rows(tmp_path, "growing") if row.status == "ok"]
    assert {str(row.metrics["place"]) for row in done} == {"cpu:0", "cpu:1", "cpu:2"}
    # As they were handed out: when a worker comes to begin is the host's matter.
    steps = {row.key: int(row.task["steps"]) for row in done}
    assert [steps[key] for key in given if key in steps] == [90, 80, 70, 60, 50, 40, 30, 20, 10]
    assert {row.env["threads"] for row in done} == {1}
    assert run("growing", "cpu:0", "cpu:1", "cpu:2").settled_before == 9


def test_every_way_to_end_on_several_devices_costs_its_own_cell(run: Run, tmp_path: Path) -> None:
    summary = run("every_end", "cpu:0", "cpu:1", "cpu:2")
    assert summary.statuses == {"error": 4, "oom": 2, "unsupported": 1, "wrong": 1, "ok": 1}
    assert len(rows(tmp_path, "every_end")) == 9


def test_timed_cells_are_one_at_a_time_on_the_first_device(run: Run, tmp_path: Path) -> None:
    assert run("mixed", "cpu:0", "cpu:1", "cpu:2").statuses == {"ok": 6}
    timed = [row for row in rows(tmp_path, "mixed") if row.task["name"] == "timed"]
    assert [row.task["seed"] for row in timed] == [0, 1, 2]
    assert all(earlier.ended <= later.started for earlier, later in pairwise(timed))
    assert [row.metrics["threads"] for row in timed] == [3, 3, 3]


def test_the_budget_stops_every_device_and_the_next_run_goes_on_inside_the_cells(
    run: Run, tmp_path: Path
) -> None:
    checkpoints = tmp_path / "long" / "checkpoints"
    while len(list(checkpoints.glob("*.pt"))) < 2:
        began = time.monotonic()
        summary = run("long", "cpu:0", "cpu:1", deadline=began + 1)
        assert time.monotonic() - began < GRACE_S
        assert (summary.stopped_by, summary.left) == ("budget", 2)
    for path in checkpoints.glob("*.pt"):
        path.write_text("2990")
    assert run("long", "cpu:0", "cpu:1").statuses == {"ok": 2}
    done = rows(tmp_path, "long")
    assert [row.metrics["resumed_at"] for row in done] == [2990, 2990]
    assert {str(row.metrics["place"]) for row in done} == {"cpu:0", "cpu:1"}


def test_a_device_on_which_no_worker_starts_is_left_out(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = run("growing", "cpu:0", "cuda:99", "cpu:1")
    assert (summary.statuses, summary.left) == ({"ok": 9, "error": 1}, 0)
    assert "cuda:99 is left out: the worker exited with code 1" in capsys.readouterr().out
    assert Counter(row.key for row in rows(tmp_path, "growing")).most_common(1)[0][1] == 1


def test_each_device_has_its_own_pack_and_the_longest_cells_first(run: Run, tmp_path: Path) -> None:
    assert run("turns", "cpu:0", "cpu:1", pack=3).statuses == {"ok": 7}
    done = sorted(rows(tmp_path, "turns"), key=lambda row: row.started)
    processes = {(row.metrics["place"], row.metrics["pid"]) for row in done}
    assert {place for place, _ in processes} == {"cpu:0", "cpu:1"}
    assert len(processes) == 2
    assert Counter(str(row.metrics["place"]) for row in done[:6]) == {"cpu:0": 3, "cpu:1": 3}
    assert done[-1].task["length"] == 12
    assert {row.metrics["pack"] for row in done} == {3}


def test_a_pack_that_dies_leaves_that_of_another_device_alone(run: Run, tmp_path: Path) -> None:
    summary = run("turns_killed", "cpu:0", "cpu:1", pack=2)
    assert summary.statuses == {"ok": 3, "error": 1}
    (lost,) = (row for row in rows(tmp_path, "turns_killed") if row.status == "error")
    assert "SIGKILL" in (lost.error or "")
    done = [row.metrics for row in rows(tmp_path, "turns_killed") if row.status == "ok"]
    there = [one for one in done if one["pack"] == 2]
    assert [(one["place"], one["resumed_at"]) for one in there] == [("cpu:0", 0), ("cpu:0", 0)]
    assert there[0]["pid"] == there[1]["pid"]
    # What shared the process that died went on alone, where it had been.
    (again,) = (one for one in done if one["pack"] == 1)
    assert 10 <= float(str(again["resumed_at"])) <= 20


def test_a_device_on_which_no_pack_starts_is_left_out_for_good(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = run("turns_that_end", "cuda:99", "cpu:0", pack=2)
    assert summary.statuses == {"ok": 3, "error": 1, "oom": 1, "unsupported": 1}
    told = capsys.readouterr().out
    # Both of its slots, and not once more for what is tried alone.
    assert told.count("is left out") == 2
    assert told.count("later, alone") == 2


def test_no_device_on_which_a_worker_starts_ends_the_run(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="before it was ready"):
        run("growing", "cuda:98", "cuda:99")
    assert rows(tmp_path, "growing") == []


@pytest.mark.parametrize("wanted", ["cpu,cpu", "cuda:0,cuda:0", "cuda,cuda:1", "cuda:0,", "gpu"])
def test_a_list_of_devices_that_is_none_is_refused(wanted: str) -> None:
    with pytest.raises(ValueError, match=r"use cpu, cuda \(every GPU\) or different GPUs"):
        plan.find_devices(wanted)


def test_a_list_of_devices_and_every_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {0: "NVIDIA H100", 1: "NVIDIA H100", 2: "NVIDIA A100"}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(names))
    monkeypatch.setattr(plan, "device_name", lambda device: names[device.index])
    assert list(map(str, plan.find_devices("cuda:1,cuda:0"))) == ["cuda:1", "cuda:0"]
    with pytest.raises(ValueError, match=r"these GPUs differ \(.*cuda:2 is NVIDIA A100\)"):
        plan.find_devices(None)
    with pytest.raises(ValueError, match="the GPUs here are cuda:0 to cuda:2"):
        plan.find_devices("cuda:0,cuda:3")
    names.pop(2)
    assert list(map(str, plan.find_devices(None))) == ["cuda:0", "cuda:1"]
