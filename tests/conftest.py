"""Fixtures that the rooms' tests share."""

from __future__ import annotations

import pytest


@pytest.fixture
def little_tuning(monkeypatch):
    """Triton's autotuner tries two of a kernel's settings: a peer's results, not its speed, are
    tested, and FLA's kernels have some 250, which take minutes."""
    autotuner = pytest.importorskip("triton.runtime.autotuner").Autotuner
    every = autotuner.prune_configs

    def two(tuner, *args, **options):
        return every(tuner, *args, **options)[:2]

    monkeypatch.setattr(autotuner, "prune_configs", two)
