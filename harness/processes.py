"""The processes of a run: one that has torch imported, and the planner and workers forked from it.

A forked worker starts in milliseconds where a fresh interpreter needs seconds to import torch.
The server never touches a GPU, so a worker may use CUDA; the parent never imports torch, so it
takes no memory on the device that is measured.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

import psutil

from harness.cells import Cell, Machine, Plan, Setup

STOP = "stop"
"""Sent to a worker: save and pause the cell. Any other message is a Cell."""

Message = tuple[Any, ...]
"""From a worker: its kind (ready, started, progress, finished, settled, held, alone, paused, fatal)
and what belongs to it; see `worker`."""

_END_S = 5.0

_context = multiprocessing.get_context("forkserver")


def start_server() -> None:
    """Let the server begin, in the background, to import torch and every task."""
    # typer: the command line's module is the main module, which every process imports anew.
    _context.set_forkserver_preload(["harness.plan", "harness.worker", "harness.warm", "typer"])
    # What is ignored now stays ignored in the server and its forks: Ctrl-C is the parent's.
    with on_interrupt(signal.SIG_IGN):
        forkserver.ensure_running()


@contextmanager
def on_interrupt(
    action: Callable[[int, FrameType | None], None] | signal.Handlers,
) -> Iterator[None]:
    """What Ctrl-C and a scheduler's SIGTERM do, for a while."""
    before = {n: signal.signal(n, action) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def make_plan(specs: list[str], device: str | None, machine: Machine | None = None) -> Plan:
    """`plan.plan`, run in a process of its own. Raises its ValueErrors."""
    return _apart("plan", specs, device, machine)


def find_machine(device: str | None) -> Machine:
    """`plan.find_machine`, run in a process of its own. Raises its ValueErrors."""
    return _apart("find_machine", device)


def _apart(function: str, *arguments: Any) -> Any:
    receiver, sender = _context.Pipe(duplex=False)
    process = _context.Process(target=_answer, args=(sender, function, arguments), daemon=True)
    try:
        process.start()
        sender.close()
        answer = receiver.recv()
    except (EOFError, ConnectionError):
        raise ValueError("the process that builds the grids died: see above") from None
    finally:
        receiver.close()
    process.join()
    if isinstance(answer, str):
        raise ValueError(answer)
    return answer


def _answer(sender: Connection, function: str, arguments: tuple[Any, ...]) -> None:
    # Here and in _serve: the parent, which reads this file too, stays without torch.
    from harness import plan

    try:
        sender.send(getattr(plan, function)(*arguments))
    except ValueError as error:
        sender.send(str(error))


def _serve(connections: list[Connection], setup: Setup) -> None:
    from harness.worker import serve

    serve(connections, setup)


class WorkerProcess:
    """The parent's end of one worker: of a process, or of one cell's part of it."""

    def __init__(self, connection: Connection, process: BaseProcess) -> None:
        self.connection, self._process = connection, process
        self._all = [self]
        self._closed = False

    @staticmethod
    def side_by_side(setup: Setup) -> list[WorkerProcess]:
        """Start a process that measures `setup.pack` cells at once: its ends, one a cell."""
        pipes = [_context.Pipe() for _ in range(setup.pack)]
        process = _context.Process(target=_serve, args=([theirs for _, theirs in pipes], setup))
        process.start()
        ends = [WorkerProcess(ours, process) for ours, _ in pipes]
        for (_, theirs), end in zip(pipes, ends, strict=True):
            theirs.close()
            end._all = ends
        return ends

    @property
    def signs(self) -> list[Any]:
        """What to wait on: a message, or the worker's end."""
        return (
            [self._process.sentinel] if self._closed else [self.connection, self._process.sentinel]
        )

    def give(self, cell: Cell) -> None:
        self._send(cell)

    def stop(self) -> None:
        """Ask for a pause at the next checkpoint."""
        self._send(STOP)

    def _send(self, message: Cell | str) -> None:
        # A worker that has just died is noticed by its sentinel.
        with suppress(OSError):
            self.connection.send(message)

    def messages(self) -> Iterator[Message]:
        """What the worker has said since the last look."""
        try:
            while not self._closed and self.connection.poll():
                yield self.connection.recv()
        except (EOFError, OSError):
            self._closed = True

    def has_ended(self) -> bool:
        if self._closed:
            self._process.join(_END_S)
            self.kill()
        return self._process.exitcode is not None

    def how_it_ended(self) -> str:
        code = self._process.exitcode or 0
        if code >= 0:
            return f"the worker exited with code {code}"
        name = signal.Signals(-code).name
        killer = " (by the kernel, out of memory?)" if name == "SIGKILL" else ""
        return f"the worker was killed by {name}{killer}"

    def retire(self) -> None:
        """Let an idle worker go: its process exits when its last connection closes."""
        self.connection.close()
        self._closed = True
        if all(end._closed for end in self._all):
            self.has_ended()

    def kill(self) -> None:
        """End the worker's process and what it has started, now."""
        if self._process.exitcode is not None:
            return
        with suppress(psutil.NoSuchProcess):
            worker = psutil.Process(self._process.pid)
            for process in [*worker.children(recursive=True), worker]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        self._process.join(_END_S)
