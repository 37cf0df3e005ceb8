"""Speed of a mixer's operator, layer or training step at one length."""

from __future__ import annotations

import time
from typing import ClassVar, Literal

from pydantic import PositiveFloat

from tasks.base import Context, Metrics
from tasks.timing import ceilings, host_ms, spread, synchronize, times_ms
from tasks.workload import WorkloadTask


class Speed(WorkloadTask):
    """Milliseconds and tokens a second. Grids list trials outermost, so that mixers interleave and
    every trial is a process of its own."""

    name: Literal["speed"] = "speed"
    trial: int = 0
    """Which of several runs of the same measurement, each in a fresh process."""
    budget_s: PositiveFloat = 0.5
    """Time spent on repetitions (5 to 100 are made)."""

    timed: ClassVar[bool] = True

    def run(self, context: Context) -> Metrics:
        self.refuse_unsupported(context.device)
        start = time.perf_counter()
        work = self.prepare(context.device)
        work.call()
        synchronize(context.device)
        # Of this process: kernels compiled and tuned, inputs made, one call. A worker has some of
        # its imports from the server: ColdStart measures what a user waits for.
        cold_start_s = time.perf_counter() - start
        # After the first call: a kernel that tunes itself does it at the first size it meets.
        self.check(context.device)
        check_s = time.perf_counter() - start - cold_start_s
        # The same call as two interleaved series: their difference is the noise floor.
        times, null_times = times_ms([work.call, work.call], context.device, budget_s=self.budget_s)
        p20, median, p80 = spread(times)
        roof = ceilings(context.device, self.compute_dtype)
        metrics: Metrics = {
            "time_ms": median,
            "time_ms_p20": p20,
            "time_ms_p80": p80,
            "repetitions": len(times),
            "times_ms": times,
            "null_ms": spread(null_times)[1],
            "tokens_per_s": 1e3 * self.batch * self.seq_len / median,
            "cold_start_s": cold_start_s,
            "check_s": check_s,
            "bytes_floor_ms": 1e3 * work.bytes_moved / roof.copy_bytes_per_s,
            "flops_floor_ms": 1e3 * work.flops() / roof.matmul_flops_per_s,
            "copy_gb_per_s": 1e-9 * roof.copy_bytes_per_s,
            "matmul_gflop_per_s": 1e-9 * roof.matmul_flops_per_s,
        }
        if context.device.type == "cuda":
            metrics["host_ms"] = host_ms(work.call, context.device)
        backend = self.backend(context.device)
        if backend is not None:
            metrics["backend"] = backend
        return metrics
