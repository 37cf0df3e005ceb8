"""What passes between the parent, the planner and the workers: plain data, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent
"""The folder of this suite's packages."""
PACKAGES = ("hgrn2", "mixers", "tasks", "harness")
CARRIED = ("MIXERBENCH_DATA",)
"""Environment variables that other machines get as they are set here."""


@dataclass(frozen=True)
class Cell:
    """One task of a grid. Only a worker unpickles `payload`, the task itself."""

    key: str
    grid: str
    task: dict[str, Any]
    payload: bytes
    timed: bool
    any_device: bool
    packs: bool
    cost: float
    """`Task.cost`: orders the cells."""


@dataclass(frozen=True)
class Machine:
    """Where a run takes place."""

    devices: tuple[str, ...]
    device_name: str
    """Of every one of them."""
    cores: int
    checkout: dict[str, Any]
    """Commit and dirty flag, of when the code was loaded."""

    @property
    def device_type(self) -> str:
        """`cpu` or `cuda`."""
        return self.devices[0].partition(":")[0]


@dataclass(frozen=True)
class Plan:
    """What the grids that were named would measure."""

    machine: Machine
    grids: dict[str, list[Cell]]


@dataclass(frozen=True)
class Options:
    """How to run, besides what to run."""

    machine: Machine
    results: Path
    jobs: int | None = None
    """Processes at once: on the CPU (default: one a core), or on each GPU (default: one)."""
    pack: int | None = None
    """Cells side by side in each process, where their tasks can (default: one on the CPU, a few on
    a GPU)."""
    timeout_s: float | None = None
    """Of one cell."""
    deadline: float | None = None
    """`time.monotonic()` at which to stop."""
    fresh_since: str | None = None
    """UTC, as `records.utc_now` writes it: no record or checkpoint from before counts."""
    any_device: bool = False
    """Whether another device's record settles a cell: of the same kind, a GPU for a GPU."""


@dataclass(frozen=True)
class Setup:
    """What a worker is told when it starts."""

    grid: str
    device: str
    threads: int
    pack: int
    """Cells that it measures side by side."""
    run_started: str
    options: Options


def user_folder(spec: str) -> Path | None:
    """The folder of the file in `my_grids.py:my_grid`; None for a grid that is named."""
    path = spec.partition(":")[0]
    return Path(path).resolve().parent if path.endswith(".py") else None


def grid_name(spec: str) -> str:
    """Of the cells and records of a named grid, or of `my_grids.py:my_grid`."""
    return spec.rpartition(":")[2]
