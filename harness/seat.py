"""What holds a GPU of a Ray cluster during a run: an actor that runs this suite's workers there.

It has one cell at a time, in a folder of its own, and hands what becomes of it to the driver: nodes
share no files, and nothing that counts stays on them.
"""

from __future__ import annotations

import shutil
import socket
import sys
import tempfile
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from pathlib import Path

from harness import processes
from harness.cells import Cell, Machine, Setup
from harness.processes import Message, WorkerProcess
from harness.records import Record, Records

LISTEN_S = 0.1
"""How long an answer waits for something to tell; a stop waits as long."""


@dataclass(frozen=True)
class Said:
    """What has happened on a seat since it was asked last."""

    messages: list[Message]
    ended: str | None = None
    """How the worker ended; None: it lives."""
    over: bool = False
    """The cell is off the seat."""
    record: Record | None = None
    """Of a cell that is over."""
    checkpoint: bytes | None = None
    """Where it has changed."""


class Seat:
    """Made by Ray on a node. Its methods mirror `processes.WorkerProcess`."""

    def __init__(self) -> None:
        # Else every worker would import Ray's main module, as its own.
        vars(sys.modules["__main__"]).pop("__file__", None)
        # In the session's folder, which Ray takes away.
        self._folder = Path(tempfile.mkdtemp(dir=Path.cwd()))
        self._worker: WorkerProcess | None = None
        self._cell: Cell | None = None
        self._device_name = ""
        self._checkpoint_ns = 0
        processes.start_server()

    def look(self, device: str) -> tuple[str, Machine] | str:
        """The name of the node, and the node as seen from here; or why it cannot be used."""
        try:
            machine = processes.find_machine(device)
        except ValueError as error:
            return str(error)
        self._device_name = machine.device_name
        return socket.gethostname(), machine

    def begin(self, setup: Setup) -> Said:
        """Start a worker."""
        # The driver has settled what --fresh leaves out.
        here = replace(setup.options, results=self._folder, fresh_since=None)
        (self._worker,) = WorkerProcess.side_by_side(replace(setup, options=here))
        return self.said()

    def give(self, cell: Cell, checkpoint: bytes | None) -> Said:
        """Hand the worker a cell, and what an earlier run had saved of it."""
        shutil.rmtree(self._folder)
        self._cell, path = cell, self._checkpoint(cell)
        path.parent.mkdir(parents=True)
        if checkpoint is not None:
            path.write_bytes(checkpoint)
        self._new_checkpoint()
        if self._worker:
            self._worker.give(cell)
        return self.said()

    def said(self) -> Said:
        """Wait a moment for news."""
        if self._worker is None:
            return Said([], ended="the worker was let go")
        wait(self._worker.signs, LISTEN_S)
        # Asked first: what the worker said before it ended is then all there to be read.
        ended = self._worker.has_ended()
        messages = list(self._worker.messages())
        how = self._worker.how_it_ended() if ended else None
        if self._cell is None:
            return Said(messages, how)
        checkpoint = self._new_checkpoint()
        if not ended and not any(kind in ("finished", "paused") for kind, *_ in messages):
            return Said(messages, how, checkpoint=checkpoint)
        rows = Records(self._folder / self._cell.grid).rows()
        self._cell = None
        return Said(messages, how, True, rows[-1] if rows else None, checkpoint)

    def stop(self) -> None:
        if self._worker:
            self._worker.stop()

    def retire(self) -> None:
        if self._worker:
            self._worker.retire()
        self._worker = None

    def kill(self) -> None:
        if self._worker:
            self._worker.kill()

    def _checkpoint(self, cell: Cell) -> Path:
        return Records(self._folder / cell.grid).checkpoint(cell.key, self._device_name)

    def _new_checkpoint(self) -> bytes | None:
        """What the cell has saved since the last look."""
        assert self._cell
        path = self._checkpoint(self._cell)
        try:
            changed_ns = path.stat().st_mtime_ns
            if changed_ns == self._checkpoint_ns:
                return None
            saved = path.read_bytes()
        except FileNotFoundError:
            return None
        self._checkpoint_ns = changed_ns
        return saved
