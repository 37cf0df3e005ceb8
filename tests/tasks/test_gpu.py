"""The tasks on a GPU, each at a small size: what a CPU cannot show."""

from __future__ import annotations

import pytest
import torch

from harness.grids_speed import gpu_mixers
from mixers import HGRN2, Attention
from tasks.accuracy import Accuracy
from tasks.base import Context
from tasks.cold_start import ColdStart
from tasks.decode import Decode
from tasks.memory import Memory
from tasks.speed import Speed

GPU = torch.device("cuda")
pytestmark = pytest.mark.gpu
OURS = HGRN2(expand_ratio=128, lower_bound="cumsum", impl="triton")


@pytest.mark.parametrize("level", ["op", "layer"])
@pytest.mark.parametrize("mixer", [OURS, Attention(n_heads=2)], ids=lambda m: m.name)
def test_a_step_is_replayed_from_a_graph(mixer, level):
    fields = {"mixer": mixer, "level": level, "context": 512, "batch": 4, "d_model": 256}
    times = {}
    for replay in ("eager", "graph"):
        task = Decode.model_validate(fields | {"replay": replay, "dtype": "bf16"})
        metrics = task.run(Context(GPU))
        times[replay] = metrics["time_ms"]
        assert metrics["bytes_floor_ms"] < metrics["time_ms"]
    # A layer launches several kernels; a bare step one, whose launch events see either way.
    assert times["graph"] <= 1.1 * times["eager"]


def test_an_out_of_memory_operator_is_told_and_leaves_room():
    fields = {"mixer": OURS, "level": "op", "mode": "fwd_bwd", "d_model": 2048, "dtype": "bf16"}
    with pytest.raises(torch.OutOfMemoryError):
        Memory.model_validate(fields | {"seq_len": 2**26, "batch": 1}).run(Context(GPU))
    torch.cuda.empty_cache()
    small = Memory.model_validate(fields | {"mode": "fwd", "seq_len": 2048, "batch": 1})
    assert 0 < small.run(Context(GPU))["peak_mib"] < 1024


def test_a_cold_start_compiles_in_a_process_of_its_own():
    fields = {"mixer": OURS, "level": "op", "mode": "fwd_bwd", "dtype": "bf16"}
    task = ColdStart.model_validate(fields | {"seq_len": 256, "batch": 1, "d_model": 256})
    metrics = task.run(Context(GPU))
    # Compiled, not read from a cache.
    assert metrics["forward_s"] > 0.5
    assert metrics["cold_start_s"] < 300


@pytest.mark.parametrize("regime", ["ordinary", "mixed"])
def test_the_forward_of_the_kernels_has_a_small_error(regime):
    task = Accuracy(mixer=OURS, regime=regime, bound=0.1, seq_len=300, d_model=256)
    metrics = task.run(Context(GPU))
    assert metrics["nonfinite"] == 0
    assert metrics["error_y"] < 8 * 2**-9
    assert metrics["reference_error_y"] < 2**-8


@pytest.mark.usefixtures("little_tuning")
@pytest.mark.parametrize("mixer", gpu_mixers(128, 256), ids=lambda m: f"{m.name}-{m.impl}")
def test_every_kernel_has_a_forward_time(mixer):
    if mixer.unsupported(GPU, torch.bfloat16):
        pytest.skip("not here")
    fields = {"mixer": mixer, "level": "op", "mode": "fwd", "d_model": 256, "dtype": "bf16"}
    task = Speed.model_validate(fields | {"seq_len": 256, "batch": 2, "budget_s": 0.05})
    metrics = task.run(Context(GPU))
    assert metrics["bytes_floor_ms"] < metrics["time_ms"]
    assert metrics["flops_floor_ms"] > 0


def test_a_training_step_has_a_time():
    fields = {"mixer": OURS, "level": "training_step", "mode": "step", "d_model": 256}
    task = Speed.model_validate(fields | {"seq_len": 256, "batch": 2, "dtype": "bf16"})
    assert task.run(Context(GPU))["time_ms"] > 0
