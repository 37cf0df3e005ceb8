"""One timed cell at a time on a device of this machine, whatever runs the cells belong to."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout

POLL_S = 0.2
WAITS = "waits for another run's timed cell"


@contextmanager
def device_alone(
    device: torch.device, progress: Callable[[str], None], should_stop: Callable[[], bool]
) -> Iterator[bool]:
    """Hold the device against the timed cells of this user's other runs, once it is free; False if
    `should_stop` came first.

    Only timed cells ask for it: an untimed run beside a timed one is not kept out. The kernel lets
    go of it when the process ends, however it ends.
    """
    lock = FileLock(lock_file(device))
    while not _acquired(lock):
        progress(WAITS)
        if should_stop():
            yield False
            return
        time.sleep(POLL_S)
    try:
        yield True
    finally:
        lock.release()


def _acquired(lock: FileLock) -> bool:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    return True


def lock_file(device: torch.device) -> Path:
    """In the system's temporary folder, by user and device."""
    # A GPU by UUID: its number depends on CUDA_VISIBLE_DEVICES.
    cuda = device.type == "cuda"
    name = f"gpu-{torch.cuda.get_device_properties(device).uuid}" if cuda else "cpu"
    return Path(tempfile.gettempdir()) / f"mixerbench-{os.getuid()}-{name}.lock"
