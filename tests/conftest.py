"""Fixtures that the rooms' tests share."""

from __future__ import annotations

import pytest
import torch
from filelock import FileLock


@pytest.fixture
def little_tuning(monkeypatch):
    """Triton's autotuner tries two of a kernel's settings: a peer's results, not its speed, are
    tested, and FLA's kernels have some 250, which take minutes."""
    autotuner = pytest.importorskip("triton.runtime.autotuner").Autotuner
    every = autotuner.prune_configs

    def two(tuner, *args, **options):
        return every(tuner, *args, **options)[:2]

    monkeypatch.setattr(autotuner, "prune_configs", two)


@pytest.fixture
def room_on_gpu(tmp_path_factory):
    """Tests that take tens of GiB of a GPU come one after another, in whichever process (xdist)."""
    with FileLock(tmp_path_factory.getbasetemp().parent / "room_on_gpu.lock"):
        yield
        torch.cuda.empty_cache()
