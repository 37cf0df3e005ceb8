"""Where the cells of a run go: places for workers, and what is on each of them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from harness.cells import Cell, Machine, Options, Setup
from harness.processes import Message, WorkerProcess


@dataclass(frozen=True)
class Place:
    """Where one worker at a time may be."""

    name: str
    """As a run shows it; no two of a run are the same."""
    device: str
    """What torch calls it there."""
    threads: int


class Worker(Protocol):
    """The parent's end of a worker; `processes.WorkerProcess` says what each part is."""

    @property
    def signs(self) -> list[Any]: ...
    def give(self, cell: Cell) -> None: ...
    def stop(self) -> None: ...
    def messages(self) -> Iterator[Message]: ...
    def has_ended(self) -> bool: ...
    def how_it_ended(self) -> str: ...
    def retire(self) -> None: ...
    def kill(self) -> None: ...


class Fleet(Protocol):
    """The machine or machines of a run."""

    def places(self, *, timed: bool) -> list[Place]:
        """One a worker; with `timed`, each as if it were the only one."""
        ...

    def start(self, place: Place, setup: Setup) -> Worker:
        """A worker there; one that cannot start has ended before it is ready."""
        ...


class ThisMachine:
    """Worker processes of this machine."""

    def __init__(self, options: Options) -> None:
        self._options = options

    def places(self, *, timed: bool) -> list[Place]:
        return places(self._options.machine, self._options.jobs, timed=timed)

    def start(self, place: Place, setup: Setup) -> Worker:
        return WorkerProcess(setup)


def places(machine: Machine, jobs: int | None, *, timed: bool) -> list[Place]:
    """Every GPU once, or `jobs` times; on the CPU one a core, or `jobs`. They share the cores.

    With `timed`, one a device, each with all the cores.
    """
    jobs = jobs or (machine.cores if machine.devices == ("cpu",) else 1)
    if timed:
        return [Place(device, device, machine.cores) for device in machine.devices]
    threads = max(1, machine.cores // (jobs * len(machine.devices)))
    return [
        Place(device if jobs == 1 else f"{device}/{job}", device, threads)
        for job in range(jobs)
        for device in machine.devices
    ]


def in_order(cells: Iterable[Cell], places: Sequence[Place]) -> list[Cell]:
    """Longest first, so that no long one is begun when the other places run dry; on one place, as
    the grid has them."""
    if len(places) == 1:
        return list(cells)
    return sorted(cells, key=lambda cell: cell.cost, reverse=True)


@dataclass
class Slot:
    """A place, its worker, and the cell that is on it now."""

    place: Place
    worker: Worker | None = None
    env: dict[str, Any] | None = None
    """What the worker said when it was ready."""
    cell: Cell | None = None
    given_at: float = 0.0
    started: str | None = None
    """When the worker got hold of the cell, in UTC; None: it has not yet."""
    overdue_at: float | None = None
    timed_out: bool = False

    @property
    def name(self) -> str:
        return self.place.name

    def give(self, cell: Cell, worker: Worker) -> None:
        self.worker, self.cell, self.given_at = worker, cell, time.monotonic()
        worker.give(cell)

    def begin(self, started: str, timeout_s: float | None) -> None:
        self.started = started
        if timeout_s is not None:
            self.overdue_at = time.monotonic() + timeout_s

    def clear(self) -> None:
        """The cell is off the place; the worker stays."""
        self.cell, self.started, self.overdue_at = None, None, None
        self.timed_out = False

    def retire(self) -> None:
        """Let the worker go; the next cell gets a new one."""
        if self.worker:
            self.worker.retire()
        self.worker = self.env = None
