"""A fresh process: its parts add up, its caches are its own, and it never outlives its cell."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil
import pytest
import torch

from mixers import HGRN2, Attention
from tasks import cold_start
from tasks.base import Context, Paused, Unsupported
from tasks.cold_start import ColdStart

CPU = torch.device("cpu")


def task(**changed) -> ColdStart:
    fields = {
        "mixer": HGRN2(expand_ratio=16),
        "level": "op",
        "mode": "fwd_bwd",
        "seq_len": 64,
        "batch": 1,
        "d_model": 32,
    }
    return ColdStart.model_validate(fields | changed)


def test_the_parts_add_up():
    start = time.monotonic()
    metrics = task().run(Context(CPU))
    wall_s = time.monotonic() - start
    parts = {name: seconds for name, seconds in metrics.items() if name != "cold_start_s"}
    assert set(parts) == {"interpreter_s", "import_s", "device_s", "forward_s", "backward_s"}
    assert all(seconds >= 0 for seconds in parts.values())
    assert metrics["cold_start_s"] == pytest.approx(sum(parts.values()))
    # Its start is seen from here, and Python's end is not counted.
    assert wall_s - 2 < metrics["cold_start_s"] <= wall_s
    assert metrics["interpreter_s"] > 10 * metrics["import_s"]


def test_caches_are_private_and_empty(tmp_path):
    env = cold_start._without_caches(tmp_path)
    for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "CUDA_CACHE_PATH"):
        assert Path(env[name]).parent == tmp_path
        assert not Path(env[name]).exists()
    assert env["FLA_CACHE_RESULTS"] == "0"
    assert env["PATH"] == os.environ["PATH"]


def test_a_timeout_and_a_stop_end_the_process():
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    started = time.monotonic()
    with pytest.raises(TimeoutError, match=r"after timeout_s = 0\.01 seconds"):
        task(timeout_s=0.01).run(Context(CPU))
    with pytest.raises(Paused):
        task().run(Context(CPU, should_stop=lambda: True))
    assert time.monotonic() - started < 5
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before


def test_what_goes_wrong_in_the_process_is_told(monkeypatch):
    monkeypatch.setattr(ColdStart, "refuse_unsupported", lambda *_: None)
    with pytest.raises(RuntimeError, match=r"exited with code 1: ValueError: impl='triton'"):
        task(mixer=HGRN2(expand_ratio=16, impl="triton")).run(Context(CPU))


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(Unsupported, match="triton"):
        task(mixer=HGRN2(expand_ratio=16, impl="triton")).run(Context(CPU))
    with pytest.raises(ValueError, match="mode = 'fwd': a cold start measures forward and"):
        task(mode="fwd", mixer=Attention())
