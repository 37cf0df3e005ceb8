"""Fixtures that the harness's tests share."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import processes
from harness.cells import Options, Plan
from harness.figures_recall import mqar
from harness.figures_speed import speed
from harness.frames import tidy
from harness.plot import Plot
from harness.runner import Summary, run_grid
from tests.harness.synthetic_kernels import speed_records
from tests.harness.synthetic_recall import mqar_records
from tests.harness.toy_runs import TOYS, Run


@pytest.fixture(scope="session")
def recall_plots() -> dict[str, Plot]:
    return mqar(tidy(mqar_records(cells=((64, 4), (512, 64)))))


@pytest.fixture(scope="session")
def speed_plots() -> dict[str, Plot]:
    levels = (("op", "fwd"), ("training_step", "step"))
    return speed(tidy(speed_records(levels=levels)))


@pytest.fixture(scope="session")
def planned() -> dict[str, Plan]:
    """Plans by the grid's name, since each is made in a process of its own."""
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
        given = Options(machine=machine, results=tmp_path)
        return run_grid(planned[grid].grids[grid], replace(given, **options))

    return run
