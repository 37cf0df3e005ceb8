"""A worker process: takes cells from the parent one by one, measures them, appends the records.

It holds a cell's claim from before it looks at the records until its own record is on the disk, so
a cell is never measured twice at once, whichever process dies when. It says to the parent:

    ready, env          started, time       progress, line      finished, status, headline
    settled, status, headline (another run was faster)          held (another run is at it)
    paused              fatal, reason (no record can be written)
"""

from __future__ import annotations

import gc
import os
import pickle
import queue
import signal
import sys
import threading
import time
import traceback
from contextlib import AbstractContextManager, nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from harness import environment
from harness.cells import CHECKOUT, Cell, Setup
from harness.claims import claimed, headline
from harness.exclusive import device_alone
from harness.records import Metric, Record, Records, Status, utc_now
from tasks.base import Context, Paused, Unsupported, Wrong

PROGRESS_EVERY_S = 0.5
FRAMES = 4
LONGEST_ERROR = 2000

# What the out-of-memory errors say that are no torch.OutOfMemoryError.
OUT_OF_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")

_METRIC: TypeAdapter[Metric] = TypeAdapter(Metric)


def serve(connection: Connection, setup: Setup) -> None:
    """Measure cells until the parent closes the connection or dies."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # What the server had imported stays shared with it, and out of every collection.
    gc.freeze()
    parent = _Parent(connection)
    records = Records(setup.options.results / setup.grid)
    torch.set_num_threads(setup.threads)
    device = torch.device(setup.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    env = setup.options.machine.checkout | environment.capture(device)
    parent.say("ready", env)
    while True:
        cell = parent.next_cell()
        # Of the cell before: not sooner, since after a CUDA error this would raise it once more.
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        try:
            _settle(cell, records, setup, env, parent)
        except (ValueError, OSError) as error:
            parent.say("fatal", str(error))
        sys.stdout.flush()


class _Parent:
    """The connection to the parent: a thread listens, so that a stop or its death is noticed in
    the middle of a cell."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._cells: queue.SimpleQueue[Cell] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._last_progress = 0.0
        self.stop = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                message = self._connection.recv()
            except (EOFError, OSError):
                # At once, whatever the main thread is doing: an orphan must not go on measuring.
                os._exit(0)
            if isinstance(message, Cell):
                self._cells.put(message)
            else:
                self.stop.set()

    def next_cell(self) -> Cell:
        return self._cells.get()

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


def _settle(
    cell: Cell, records: Records, setup: Setup, env: environment.Env, parent: _Parent
) -> None:
    """See to it that the cell has a record, or say why not."""
    with claimed(cell, records, setup) as why_not:
        if why_not:
            parent.say(*why_not)
            return
        device = torch.device(setup.device)
        with _to_itself(cell, device, parent) as free:
            if free:
                _measure_and_record(cell, records, setup, env, parent)
            else:
                parent.say("paused")


def _to_itself(cell: Cell, device: torch.device, parent: _Parent) -> AbstractContextManager[bool]:
    """The device without another timed cell, if this one is timed; False after a stop."""
    if not cell.timed:
        return nullcontext(True)
    return device_alone(device, parent.progress, parent.stop.is_set)


def _measure_and_record(
    cell: Cell, records: Records, setup: Setup, env: environment.Env, parent: _Parent
) -> None:
    checkpoint = records.checkpoint(cell.key, setup.options.machine.device_name)
    device = torch.device(setup.device)
    started = utc_now()
    parent.say("started", started)
    context = Context(
        device=device,
        checkpoint=checkpoint,
        progress=parent.progress,
        should_stop=parent.stop.is_set,
    )
    outcome = measure(cell.payload, context)
    if outcome is None:
        parent.say("paused")
        return
    status, metrics, error = outcome
    record = Record(
        key=cell.key,
        grid=cell.grid,
        task=cell.task,
        status=status,
        metrics=metrics,
        env=env | environment.clocks(device),
        started=started,
        ended=utc_now(),
        error=error,
    )
    records.append(record)
    if status == "ok":
        checkpoint.unlink(missing_ok=True)
    parent.say("finished", status, headline(record))


Outcome = tuple[Status, dict[str, Metric], str | None]


def measure(payload: bytes, context: Context) -> Outcome | None:
    """Run the pickled task: its status, metrics and error; None if it has paused."""
    try:
        metrics = pickle.loads(payload).run(context)
        return "ok", {name: _metric(name, value) for name, value in metrics.items()}, None
    except Paused:
        return None
    except Unsupported as error:
        return "unsupported", {}, _told(error)
    except Wrong as error:
        return "wrong", {}, _told(error)
    except Exception as error:
        if _is_out_of_memory(error):
            return "oom", {}, f"{type(error).__name__}: {_told(error)}"
        return "error", {}, f"{type(error).__name__}: {_told(error)}\n{_frames(error)}"


def _metric(name: str, value: Any) -> Metric:
    try:
        return _METRIC.validate_python(value)
    except ValidationError:
        raise TypeError(
            f"metric {name!r} is {value!r}: it has to be a number, a text or a list of numbers"
        ) from None


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in OUT_OF_MEMORY)


def _told(error: Exception) -> str:
    return _without_paths(str(error))[:LONGEST_ERROR] or "(no message)"


def _frames(error: Exception) -> str:
    """The innermost frames, as `tasks/mqar/task.py:12 in run: loss.backward()`."""
    frames = traceback.extract_tb(error.__traceback__)[1:][-FRAMES:]
    lines = [f"  {_place(f.filename)}:{f.lineno} in {f.name}: {f.line}" for f in frames]
    return "\n".join(lines)


def _place(filename: str) -> str:
    path = Path(filename)
    if path.is_relative_to(CHECKOUT):
        return str(path.relative_to(CHECKOUT))
    for folder in ("site-packages", "dist-packages"):
        if folder in path.parts:
            return str(Path(*path.parts[path.parts.index(folder) + 1 :]))
    return path.name


def _without_paths(text: str) -> str:
    """Records are shared: the folders of this machine are nobody's business."""
    folders = {
        f"{CHECKOUT}{os.sep}": "",
        f"{Path.cwd()}{os.sep}": "",
        f"{sys.prefix}{os.sep}": "",
        f"{Path.home()}{os.sep}": "~/",
    }
    for folder, short in folders.items():
        if len(folder) > 1:
            text = text.replace(folder, short)
    return text
