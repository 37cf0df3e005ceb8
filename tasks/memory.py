"""Peak memory of a mixer's operator, layer or training step at one length."""

from __future__ import annotations

from typing import ClassVar, Literal

from tasks.base import Context, Metrics
from tasks.timing import peak_memory, track_memory
from tasks.workload import WorkloadTask


class Memory(WorkloadTask):
    """MiB at the peak of one call, inputs not counted; out of memory is a result too, unless
    torch names other processes that hold the GPU."""

    name: Literal["memory"] = "memory"

    timed: ClassVar[bool] = True

    def run(self, context: Context) -> Metrics:
        track_memory(context.device)
        self.refuse_unsupported(context.device)
        work = self.prepare(context.device)
        # Before the check: a kernel that tunes itself does it at the first size it meets.
        work.call()
        self.check(context.device)
        peak = peak_memory(work.call, context.device)
        return {"peak_mib": peak.peak_mib, "reserved_mib": peak.reserved_mib}
