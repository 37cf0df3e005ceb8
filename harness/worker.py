"""A worker process: takes cells from the parent, measures them one by one or several side by side,
appends the records.

It holds a cell's claim from before it looks at the records until its own record is on the disk, so
a cell is never measured twice at once, whichever process dies when. It says to the parent:

    ready, env          started, time       progress, line      finished, status, headline
    settled, status, headline (another run was faster)          held (another run is at it)
    paused              fatal, reason (no record can be written)
    alone, status, why (it failed beside others, which is no result)
"""

from __future__ import annotations

import gc
import os
import pickle
import queue
import re
import signal
import sys
import traceback
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from harness import environment
from harness.cells import CHECKOUT, Cell, Setup
from harness.claims import claimed, headline
from harness.exclusive import device_alone
from harness.parent import Parent
from harness.records import Metric, Record, Records, Status, utc_now
from tasks.base import Context, Paused, Unsupported, Wrong

FRAMES = 4
LONGEST_ERROR = 2000

# What the out-of-memory errors say that are no torch.OutOfMemoryError.
OUT_OF_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")

# How torch lists the processes on a GPU that is full. Where it does not know its own number, in
# some containers, it is one of the others.
OTHER_PROCESS = re.compile(r"Process \d+ has (\d+\.\d+) ([MG])iB memory in use")
THIS_PROCESS = "this process has"
NO_SIZE_GIB = 1e6
"""Where the driver knows no sizes, torch tells of 2^34 GiB."""
OTHERS_MAY_HOLD_GIB = 1.0
"""A desktop takes that much; beyond it a cell that finds no room says nothing of the GPU."""

_METRIC: TypeAdapter[Metric] = TypeAdapter(Metric)


def serve(connections: list[Connection], setup: Setup) -> None:
    """Measure cells, one at a time for each connection, until the parent closes them all or dies.

    Those of several connections take turns, a few steps at a time.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # What the server had imported stays shared with it, and out of every collection.
    gc.freeze()
    cells: queue.SimpleQueue[tuple[Parent, Cell]] = queue.SimpleQueue()
    parents: list[Parent] = []
    for connection in connections:
        parents.append(Parent(connection, cells, parents))
    records = Records(setup.options.results / setup.grid)
    torch.set_num_threads(setup.threads)
    device = torch.device(setup.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    env = setup.options.machine.checkout | environment.capture(device)
    for parent in parents:
        parent.say("ready", env)
    running: dict[Parent, Iterator[None]] = {}
    while True:
        while not running or not cells.empty():
            parent, cell = cells.get()
            running[parent] = _settle(cell, records, setup, env, parent)
        for parent, steps in list(running.items()):
            try:
                if next(steps, True):
                    del running[parent]
                    _free(device)
            except (ValueError, OSError) as error:
                del running[parent]
                parent.say("fatal", str(error))
            sys.stdout.flush()


def _free(device: torch.device) -> None:
    """What a cell has left: the others of a pack, and the next one, need its room."""
    gc.collect()
    if device.type == "cuda":
        # After a CUDA error every call raises it again, and the runner starts a new process.
        with suppress(RuntimeError):
            torch.cuda.empty_cache()


def _settle(
    cell: Cell, records: Records, setup: Setup, env: environment.Env, parent: Parent
) -> Iterator[None]:
    """See to it that the cell has a record, or say why not; others have their turn in between."""
    with claimed(cell, records, setup) as why_not:
        if why_not:
            parent.say(*why_not)
            return
        device = torch.device(setup.device)
        with _to_itself(cell, device, parent) as free:
            if free:
                yield from _measure_and_record(cell, records, setup, env, parent)
            else:
                parent.say("paused")


def _to_itself(cell: Cell, device: torch.device, parent: Parent) -> AbstractContextManager[bool]:
    """The device without another timed cell, if this one is timed; False after a stop."""
    if not cell.timed:
        return nullcontext(True)
    return device_alone(device, parent.progress, parent.stop.is_set)


def _measure_and_record(
    cell: Cell, records: Records, setup: Setup, env: environment.Env, parent: Parent
) -> Iterator[None]:
    checkpoint = records.checkpoint(cell.key, setup.options.machine.device_name)
    device = torch.device(setup.device)
    started = utc_now()
    parent.say("started", started)
    context = Context(
        device=device,
        checkpoint=checkpoint,
        progress=parent.progress,
        should_stop=parent.stop.is_set,
        pack=setup.pack,
    )
    outcome = yield from measure(cell.payload, context)
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
    if status in ("oom", "error") and setup.pack > 1:
        # Another's memory, or another's CUDA error: no result.
        parent.say("alone", status, headline(record))
        return
    records.append(record)
    if status == "ok":
        checkpoint.unlink(missing_ok=True)
    parent.say("finished", status, headline(record))


Outcome = tuple[Status, dict[str, Metric], str | None]


def measure(payload: bytes, context: Context) -> Generator[None, None, Outcome | None]:
    """Run the pickled task: its status, metrics and error; None if it has paused."""
    try:
        task = pickle.loads(payload)
        metrics = (yield from task.turns(context)) if task.packs else task.run(context)
        return "ok", {name: _metric(name, value) for name, value in metrics.items()}, None
    except Paused:
        return None
    except Unsupported as error:
        return "unsupported", {}, _told(error)
    except Wrong as error:
        return "wrong", {}, _told(error)
    except Exception as error:
        if _is_out_of_memory(error):
            told = f"{type(error).__name__}: {_told(error)}"
            others_gib = _held_by_others_gib(str(error))
            if others_gib < OTHERS_MAY_HOLD_GIB:
                return "oom", {}, told
            return "error", {}, f"other processes held {others_gib:.1f} GiB of the GPU: {told}"
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


def _held_by_others_gib(told: str) -> float:
    """As far as torch says it; its messages that name no process say nothing."""
    if THIS_PROCESS not in told:
        return 0.0
    found = OTHER_PROCESS.findall(told)
    sizes = [float(size) / (1024 if unit == "M" else 1) for size, unit in found]
    return sum(size for size in sizes if size < NO_SIZE_GIB)


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
