"""Speed: every mixer has one at every level, next to the operations that it takes."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mixers import MIXERS, Attention, Mixer
from tasks.base import Context
from tasks.speed import Speed
from tasks.timing import spread, times_ms

CPU = torch.device("cpu")
LEVELS = [("op", "fwd"), ("op", "fwd_bwd"), ("layer", "fwd_bwd"), ("training_step", "step")]


def small(mixer_class: type[Mixer]) -> Mixer:
    return mixer_class.variants()[0]


@pytest.mark.parametrize(("level", "mode"), LEVELS)
@pytest.mark.parametrize("mixer_class", MIXERS, ids=lambda m: m.__name__)
def test_every_mixer_has_a_speed(mixer_class, level, mode):
    task = Speed(
        mixer=small(mixer_class),
        level=level,
        mode=mode,
        seq_len=48,
        batch=2,
        d_model=32,
        budget_s=0.01,
    )
    metrics = task.run(Context(CPU))
    assert metrics["repetitions"] == len(metrics["times_ms"]) >= 5
    assert 0 < metrics["time_ms_p20"] <= metrics["time_ms"] <= metrics["time_ms_p80"]
    assert metrics["tokens_per_s"] == pytest.approx(1e3 * 96 / metrics["time_ms"])
    assert metrics["null_ms"] > 0
    assert metrics["bytes_floor_ms"] > 0
    assert metrics["flops_floor_ms"] > 0
    assert metrics.get("backend") == ("flash" if mixer_class is Attention else None)


@pytest.mark.parametrize("level", ["layer", "training_step"])
@pytest.mark.parametrize("mixer_class", MIXERS, ids=lambda m: m.__name__)
def test_floating_point_operations_are_the_counters_around_the_operator(mixer_class, level):
    """torch counts the linear maps right; what it counts of the operator is taken off, and
    Mamba's short convolution, a few taps a channel, which it counts as a dense one."""
    mixer, mode = small(mixer_class), "fwd" if level == "layer" else "step"
    if isinstance(mixer, Attention):
        mixer = Attention(impl="reference")
    fields = {"mixer": mixer, "seq_len": 24, "batch": 2, "d_model": 32}
    generator = torch.Generator().manual_seed(0)
    operator = mixer.operator(32, 2, 24, dtype=torch.float32, generator=generator)
    inputs = [x.requires_grad_() for x in operator.inputs]
    with FlopCounterMode(display=False) as around:
        y = operator.run(*inputs)
        if mode == "step":
            y.sum().backward()
    task = Speed.model_validate(fields | {"level": level, "mode": mode})
    work = task.prepare(CPU)
    with FlopCounterMode(display=False) as counter:
        work.call()
    ours = work.flops() - (1 if mode == "fwd" else 3) * operator.flops
    counts = counter.get_flop_counts()["Global"]
    linear = sum(count for op, count in counts.items() if "conv" not in str(op))
    assert ours == linear - around.get_total_flops()


def test_causal_attention_counts_half_of_the_square():
    generator = torch.Generator().manual_seed(0)
    operator = Attention(impl="reference").operator(
        32, 2, 24, dtype=torch.float32, generator=generator
    )
    with FlopCounterMode(display=False) as counter:
        operator.run(*operator.inputs)
    assert operator.flops == counter.get_total_flops() * 25 / 48


def test_a_later_field_changes_no_key():
    fields = {"mixer": Attention(), "seq_len": 8, "batch": 1, "d_model": 32, "mode": "step"}
    task = Speed.model_validate(fields | {"level": "training_step"})
    wider = Speed.model_validate(fields | {"level": "training_step", "glu_width": 48})
    assert "glu_width" not in task.canonical()
    assert wider.model_dump(mode="json")["glu_width"] == 48
    assert task.key != wider.key
    with pytest.raises(ValueError, match="glu_width = 48 has no effect at level = 'op'"):
        Speed.model_validate(fields | {"level": "op", "mode": "fwd", "glu_width": 48})


@pytest.mark.parametrize("mixer_class", MIXERS, ids=lambda m: m.__name__)
def test_the_operator_has_the_layers_axes_and_dtype(mixer_class):
    operator = small(mixer_class).operator(
        32, 2, 16, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(0)
    )
    y = operator.run(*operator.inputs)
    assert y.shape[:2] == (2, 16)
    assert torch.isfinite(y).all()
    assert all(x.dtype == torch.bfloat16 for x in operator.inputs)
    assert operator.flops > 0


def test_timing_interleaves_and_warms_up():
    order: list[str] = []
    a, b = times_ms([lambda: order.append("a"), lambda: order.append("b")], CPU, budget_s=0.0)
    assert len(a) == len(b) == 5
    assert order == ["a", "b"] * 6
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0]) == (3, 6, 9)


def test_cold_start_counts_the_first_call():
    class Slow(Attention):
        def operator(self, d_model, batch, seq_len, *, dtype, generator):
            operator = super().operator(d_model, batch, seq_len, dtype=dtype, generator=generator)
            calls: list[int] = []

            def run(*inputs: Tensor) -> Tensor:
                time.sleep(0 if calls else 0.2)
                calls.append(1)
                return operator.run(*inputs)

            return operator._replace(run=run)

    fields = {"level": "op", "mode": "fwd", "seq_len": 32, "batch": 1, "d_model": 32}
    metrics = Speed.model_validate({"mixer": Slow(), "budget_s": 0.01} | fields).run(Context(CPU))
    assert metrics["cold_start_s"] > 0.2
    assert metrics["time_ms"] < 200
