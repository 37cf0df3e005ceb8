"""Clocks, ceilings and peak memory of a device."""

from __future__ import annotations

import ctypes
import gc
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import quantiles
from typing import NamedTuple

import torch

from tasks.base import Unsupported

_MALLOPT_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES = -3, 64 * 2**10
MIN_REPETITIONS, MAX_REPETITIONS = 5, 100
FLUSH_BYTES = 256 * 2**20
AHEAD = 1.5
"""The device waits this many times the host's part of a call before it begins."""


def synchronize(device: torch.device) -> None:
    """Wait for the device; a CPU has nothing to wait for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def times_ms(
    calls: Sequence[Callable[[], object]], device: torch.device, *, budget_s: float
) -> list[list[float]]:
    """Time each call in turn, interleaved, for `budget_s` in all, in 5 to 100 rounds.

    One warm-up round comes first; on a GPU also the calls that `host_ms` takes. There: events, with
    the L2 cache flushed before each call, and the host ahead of the device, as it is in training.
    """
    clock = _cpu_ms
    if device.type == "cuda":
        host = max(host_ms(call, device) for call in dict.fromkeys(calls))
        wait = round(AHEAD * host * _cycles_per_ms(device))
        clock = partial(_cuda_ms, wait_cycles=wait)
    flush = (
        torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)
        if device.type == "cuda"
        else torch.empty(0)
    )
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        clock(call, flush)
    end = time.monotonic() + budget_s
    while len(times[0]) < MIN_REPETITIONS or (
        time.monotonic() < end and len(times[0]) < MAX_REPETITIONS
    ):
        for call, series in zip(calls, times, strict=True):
            series.append(clock(call, flush))
    return times


def _cpu_ms(call: Callable[[], object], flush: torch.Tensor) -> float:
    del flush
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def host_ms(call: Callable[[], object], device: torch.device) -> float:
    """The host's part of a call, in which it launches what the device is to do: the least of 3."""
    times = []
    for _ in range(3):
        synchronize(device)
        times.append(_cpu_ms(call, torch.empty(0)))
    synchronize(device)
    return min(times)


def _cycles_per_ms(device: torch.device) -> float:
    """Of the clock that torch's sleeping kernel counts."""
    cycles = 2_000_000
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    for event in (start, end):
        torch.cuda._sleep(cycles)
        event.record()
    synchronize(device)
    return cycles / start.elapsed_time(end)


def _cuda_ms(call: Callable[[], object], flush: torch.Tensor, *, wait_cycles: int) -> float:
    flush.zero_()
    # Meanwhile the host launches all of the call: a slow host's pauses are not the device's time.
    torch.cuda._sleep(wait_cycles)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def wall_ms(
    call: Callable[[], object], device: torch.device, *, budget_s: float, calls: int
) -> list[float]:
    """Milliseconds of a call, from waiting for the device to waiting for it, `calls` in a row each
    time, for about `budget_s`."""
    times: list[float] = []
    end = time.monotonic() + budget_s
    fewest, most = 2 * MIN_REPETITIONS, 2 * MAX_REPETITIONS
    while len(times) < fewest or (time.monotonic() < end and len(times) < most):
        synchronize(device)
        start = time.perf_counter()
        for _ in range(calls):
            call()
        synchronize(device)
        times.append(1e3 * (time.perf_counter() - start) / calls)
    return times


def replayed(call: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """The replay of `call`, captured once as a CUDA graph: one launch, whatever `call` launches.

    Its inputs and outputs stay where they are. Raises Unsupported on a CPU.
    """
    if device.type != "cuda":
        raise Unsupported(f"a graph is replayed on a CUDA device, not {device}: replay eagerly")
    side, here = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    side.wait_stream(here)
    # What is allocated or tuned at a first call must not be captured.
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    here.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def spread(series: list[float]) -> tuple[float, float, float]:
    """The 20th percentile, the median and the 80th percentile."""
    tenths = quantiles(series, n=10, method="inclusive")
    return tenths[1], tenths[4], tenths[7]


class Ceilings(NamedTuple):
    """What this device reaches, measured now: the roofline's two lines."""

    copy_bytes_per_s: float
    """Bytes read plus bytes written by a large copy."""
    matmul_flops_per_s: float
    """Of a large matrix product in the cell's dtype."""


def ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Measure copy bandwidth and matrix rate, on random data."""
    gpu = device.type == "cuda"
    # Each timed cell measures them: no larger and longer than keeps their medians within 1 %.
    count, side = (2**27, 8192) if gpu else (2**24, 1024)
    budget_s = 0.05 if gpu else 0.2
    generator = torch.Generator(device).manual_seed(0)
    source = torch.randn(count, generator=generator, device=device)
    target = torch.empty_like(source)
    a = torch.randn(side, side, generator=generator, device=device).to(dtype)
    copy, matmul = times_ms(
        [lambda: target.copy_(source), lambda: a @ a], device, budget_s=budget_s
    )
    return Ceilings(
        copy_bytes_per_s=2 * 4 * count / (1e-3 * spread(copy)[1]),
        matmul_flops_per_s=2 * side**3 / (1e-3 * spread(matmul)[1]),
    )


class Peak(NamedTuple):
    """Memory of one call."""

    peak_mib: float
    """Highest use during the call minus the use before it (its inputs)."""
    reserved_mib: float
    """Highest memory taken from the system: the allocator's on a GPU, resident on a CPU."""


def track_memory(device: torch.device) -> None:
    """Make a CPU process's memory readable: call this before anything large is allocated.

    From now on the C library maps every larger block by itself and returns it when it is freed, so
    that the resident set is what is in use. Slows the process down: for measuring memory alone.
    Raises Unsupported where that is not to be had.
    """
    if device.type == "cuda":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError) as error:
        raise Unsupported(f"peak memory of a CPU needs glibc's mallopt: {error}") from error
    assert mallopt(_MALLOPT_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES) == 1


def peak_memory(call: Callable[[], object], device: torch.device) -> Peak:
    """Run `call` once and see how much memory it takes beyond what is there before it.

    On a CPU this is the resident set, after `track_memory`; Linux lets us reset its high-water
    mark. Raises Unsupported where either is not to be had.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device) - before
        return Peak(peak / 2**20, torch.cuda.max_memory_reserved(device) / 2**20)
    _reset_resident_peak()
    before = _resident_kib("VmRSS")
    call()
    peak = _resident_kib("VmHWM")
    return Peak((peak - before) / 2**10, peak / 2**10)


def _reset_resident_peak() -> None:
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError) as error:
        raise Unsupported(
            "peak memory of a CPU needs glibc's malloc_trim and Linux's /proc/self/clear_refs; "
            f"this system ({sys.platform}) does not offer one: {error}"
        ) from error


def _resident_kib(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise Unsupported(f"/proc/self/status has no {field}")
