"""`python -m tasks.first_calls DEVICE STARTED`: a pickled ColdStart on stdin, its parts on stdout.

STARTED is the time (`time.time()`) at which the process was asked for.
"""

from __future__ import annotations

import json
import pickle
import sys
import time
from importlib import import_module

import torch

from tasks.timing import synchronize
from tasks.workload import WorkloadTask

IMPORTED = ("triton", "fla", "mamba_ssm")
"""Packages after which the implementations are named that import them."""


class _Parts:
    """Seconds since the last look, by name."""

    def __init__(self, started: float) -> None:
        self.last = started
        self.seconds: dict[str, float] = {}

    def end(self, name: str) -> None:
        now = time.time()
        self.seconds[name] = now - self.last
        self.last = now


def main() -> None:
    device, parts = torch.device(sys.argv[1]), _Parts(float(sys.argv[2]))
    task: WorkloadTask = pickle.loads(sys.stdin.buffer.read())
    parts.end("interpreter_s")
    for package in IMPORTED:
        if task.mixer.impl.startswith(package):
            import_module(package)
    parts.end("import_s")
    torch.zeros(1, device=device).add_(1)
    synchronize(device)
    parts.end("device_s")
    task.model_copy(update={"mode": "fwd"}).prepare(device).call()
    synchronize(device)
    parts.end("forward_s")
    task.prepare(device).call()
    synchronize(device)
    parts.end("backward_s")
    print(json.dumps(parts.seconds))


if __name__ == "__main__":
    main()
