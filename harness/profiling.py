"""What a cell spends its time on: its kernels (a CPU's operators) under torch's profiler."""

from __future__ import annotations

import time
from typing import NamedTuple

import pandas as pd
import torch
from torch.profiler import ProfilerActivity

from tasks.base import Task

COLUMNS = ("kernel", "calls", "us_per_call", "ms", "share")
"""`calls` and `ms` are of one step; `share` of all kernels' time."""


class Profile(NamedTuple):
    """Steps of a cell, on average; one call of what is timed counts as a step."""

    table: pd.DataFrame
    """`COLUMNS`, the longest first."""
    wall_ms: float
    """Of one step, while being profiled."""
    together: float
    """Steps that are launched at once."""

    @property
    def busy_ms(self) -> float:
        """All kernels of one step; more than `wall_ms` where some run side by side."""
        return float(self.table["ms"].sum())


def profile(task: Task, device: torch.device, *, skip: int, calls: int) -> Profile:
    """The kernels of `calls` calls (a training step each, or the few that are launched together; or
    one call of what is timed), after `skip` others that compile, tune and capture.

    Raises Unsupported for a task that repeats nothing, and as the task does.
    """
    gpu = device.type == "cuda"
    if gpu:
        # As a run's workers have it.
        torch.cuda.set_device(device)
    call = task.repeated(device)
    for _ in range(skip):
        call()
    _wait(device)
    activities = [ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU]
    # There is one cycle; without `acc_events` torch warns of what more would lose.
    with torch.profiler.profile(activities=activities, acc_events=True) as found:
        started = time.perf_counter()
        steps = sum(call() for _ in range(calls))
        _wait(device)
        wall_s = time.perf_counter() - started
    rows = []
    for event in found.key_averages():
        on_gpu = event.device_type.name == "CUDA"
        us = event.self_device_time_total if gpu else event.self_cpu_time_total
        if on_gpu == gpu and us > 0 and not event.is_user_annotation:
            rows.append((event.key, event.count / steps, us / event.count, us / steps / 1e3))
    table = pd.DataFrame(rows, columns=list(COLUMNS[:-1]))
    table["share"] = table["ms"] / table["ms"].sum()
    table = table.sort_values("ms", ascending=False, ignore_index=True)
    return Profile(table, 1e3 * wall_s / steps, steps / calls)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
