"""Places for cells, what is on each of them, and the processes that places share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from harness.cells import Cell, Options, Setup
from harness.processes import WorkerProcess

GPU_PACK = 4
"""Cells side by side in one process of a GPU, unless the user says otherwise."""


@dataclass
class Slot:
    """A place for one cell, and what is on it now."""

    name: str
    device: str
    threads: int
    worker: WorkerProcess | None = None
    env: dict[str, Any] | None = None
    cell: Cell | None = None
    given_at: float = 0.0
    started: str | None = None
    """When the worker got hold of the cell, in UTC; None: it has not yet."""
    overdue_at: float | None = None
    timed_out: bool = False

    def retire(self) -> None:
        """Let the worker go; the next cell gets a new one."""
        if self.worker:
            self.worker.retire()
        self.worker = self.env = None


def pack_size(options: Options) -> int:
    """How many cells share a process, where they can."""
    cpu = options.machine.devices == ("cpu",)
    return options.pack or (1 if cpu else GPU_PACK)


def slots(options: Options, *, timed: bool, pack: int) -> list[Slot]:
    """`jobs` processes a device, each with `pack` places; one of one, where cells are timed. The
    devices take turns, so that few cells are spread over all."""
    machine = options.machine
    jobs = options.jobs or (machine.cores if machine.devices == ("cpu",) else 1)
    jobs, pack = (1, 1) if timed else (jobs, pack)
    threads = max(1, machine.cores // (jobs * len(machine.devices)))
    count = jobs * pack
    return [
        Slot(device if count == 1 else f"{device}/{place}", device, threads)
        for place in range(count)
        for device in machine.devices
    ]


class Workers:
    """Starts workers: `pack` ends at a time of one process, handed out one by one."""

    def __init__(self, pack: int) -> None:
        self._pack = pack
        self._spare: dict[str, list[WorkerProcess]] = {}

    def start(self, setup: Setup) -> WorkerProcess:
        """An end that nobody has, of a process on that device that lives."""
        spare = [end for end in self._spare.get(setup.device, []) if not end.has_ended()]
        spare = spare or WorkerProcess.side_by_side(setup, self._pack)
        self._spare[setup.device] = spare[1:]
        return spare[0]

    def close(self) -> None:
        """Let go of the ends that nobody has taken."""
        for end in [end for ends in self._spare.values() for end in ends]:
            end.retire()
        self._spare.clear()
