"""Where the cells of a run go: places for workers, and what is on each of them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from harness.cells import Cell, Machine, Options, Setup
from harness.processes import Message, WorkerProcess
from harness.records import utc_now

GPU_PACK = 4
"""Cells side by side in one process of a GPU, unless the user says otherwise."""


@dataclass(frozen=True)
class Place:
    """Where one process of workers at a time may be."""

    name: str
    """As a run shows it; no two of a run are the same."""
    device: str
    """What torch calls it there."""
    threads: int


class Worker(Protocol):
    """The parent's end of a worker, which has one cell at a time; `processes.WorkerProcess` says
    what each part is."""

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

    @property
    def pack(self) -> int:
        """Cells side by side on a place, where their tasks can."""
        ...

    def places(self, *, timed: bool) -> list[Place]:
        """One a process; with `timed`, each as if it were the only one."""
        ...

    def start(self, place: Place, setup: Setup) -> Sequence[Worker]:
        """Start a process there: its workers, `setup.pack` of them. Those of one that cannot start
        have ended before they are ready."""
        ...


class ThisMachine:
    """Worker processes of this machine."""

    def __init__(self, options: Options) -> None:
        self._options = options

    @property
    def pack(self) -> int:
        return self._options.pack or (1 if self._options.machine.devices == ("cpu",) else GPU_PACK)

    def places(self, *, timed: bool) -> list[Place]:
        return places(self._options.machine, self._options.jobs, timed=timed)

    def start(self, place: Place, setup: Setup) -> Sequence[Worker]:
        return WorkerProcess.side_by_side(setup)


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


class Workers:
    """Hands out the workers of a grid one by one: a process starts with all of its own."""

    def __init__(self, fleet: Fleet, grid: str, options: Options) -> None:
        self._fleet, self._grid, self._options = fleet, grid, options
        self._run_started = utc_now()
        self._spare: dict[Place, list[Worker]] = {}

    def start(self, place: Place, pack: int) -> Worker:
        """One there that has had no cell, of a process that lives; of a new one if need be."""
        spare: Sequence[Worker]
        spare = [worker for worker in self._spare.get(place, ()) if not worker.has_ended()]
        worker, *self._spare[place] = spare or self._fleet.start(place, self._setup(place, pack))
        return worker

    def _setup(self, place: Place, pack: int) -> Setup:
        return Setup(
            grid=self._grid,
            device=place.device,
            threads=place.threads,
            pack=pack,
            run_started=self._run_started,
            options=self._options,
        )

    def close(self) -> None:
        """Let go of those that nobody has taken."""
        for worker in [worker for workers in self._spare.values() for worker in workers]:
            worker.retire()
        self._spare.clear()


@dataclass
class Slot:
    """Room for one cell on a place, its worker, and the cell that is there now."""

    name: str
    place: Place
    worker: Worker | None = None
    env: dict[str, Any] | None = None
    """What the worker said when it was ready."""
    served: bool = False
    """Whether the worker had a cell before: one that dies before it begins may have died of it."""
    cell: Cell | None = None
    given_at: float = 0.0
    started: str | None = None
    """When the worker got hold of the cell, in UTC; None: it has not yet."""
    overdue_at: float | None = None
    timed_out: bool = False

    def give(self, cell: Cell, worker: Worker) -> None:
        self.served = worker is self.worker
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

    def kill(self) -> None:
        """End the worker, and with it those of its process."""
        if self.worker:
            self.worker.kill()

    def retire(self) -> None:
        """Let the worker go; the next cell gets a new one."""
        if self.worker:
            self.worker.retire()
        self.worker = self.env = None


def slots(places: Sequence[Place], pack: int) -> list[Slot]:
    """`pack` on each place. The places take turns, so that few cells are spread over all."""
    return [
        Slot(place.name if pack == 1 else f"{place.name}/{number}", place)
        for number in range(pack)
        for place in places
    ]


def in_order(cells: Iterable[Cell], slots: Sequence[Slot], failed: set[str]) -> list[Cell]:
    """Longest first, so that no long one is begun when the other slots run dry; on one slot, as
    the grid has them.

    Those whose key is in `failed` come last: a run that stops when its time is up would else come
    to the same failures again, and never past them.
    """
    if len(slots) > 1:
        cells = sorted(cells, key=lambda cell: cell.cost, reverse=True)
    return sorted(cells, key=lambda cell: cell.key in failed)
