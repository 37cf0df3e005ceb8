"""A worker's end of a connection to the process that runs the grid."""

from __future__ import annotations

import os
import queue
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

from harness.cells import Cell

PROGRESS_EVERY_S = 0.5


class Parent:
    """A connection to the parent: a thread listens, so that a stop or its death is noticed in the
    middle of a cell. `cells` is where it puts what it is given; `all` the process has."""

    def __init__(
        self,
        connection: Connection,
        cells: queue.SimpleQueue[tuple[Parent, Cell]],
        all: list[Parent],
    ) -> None:
        self._connection, self._cells, self._all = connection, cells, all
        self.closed = False
        self._lock = threading.Lock()
        self._last_progress = 0.0
        self.stop = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                message = self._connection.recv()
            except (EOFError, OSError):
                self.closed = True
                if all(parent.closed for parent in self._all):
                    # At once, whatever the main thread does: an orphan must not go on measuring.
                    os._exit(0)
                return
            if isinstance(message, Cell):
                self._cells.put((self, message))
            else:
                self.stop.set()

    def say(self, *message: Any) -> None:
        try:
            with self._lock:
                self._connection.send(message)
        except OSError:
            os._exit(0)

    def progress(self, line: str) -> None:
        now = time.monotonic()
        if now - self._last_progress >= PROGRESS_EVERY_S:
            self._last_progress = now
            self.say("progress", line)
