"""Speed, memory and decode: what is measured is what is said, and only once it is right."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mixers import MIXERS, Attention, Mixer
from tasks.base import Context, Unsupported, Wrong
from tasks.decode import Decode
from tasks.memory import Memory
from tasks.speed import Speed
from tasks.timing import peak_memory, spread, times_ms
from tasks.workload import WorkloadTask

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
    assert ("flops_floor_ms" in metrics) == (level == "op")


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


@pytest.mark.parametrize("mixer_class", MIXERS, ids=lambda m: m.__name__)
def test_every_mixer_decodes(mixer_class):
    mixer = small(mixer_class)
    metrics = Decode(mixer=mixer, context=8, batch=2, d_model=32, budget_s=0.01).run(Context(CPU))
    assert metrics["time_ms"] > 0
    # A cache for the context and the token that is timed.
    assert metrics["state_bytes"] == 4 * mixer.state_size(32, 9)


def test_quadratic_attention_takes_its_scores_worth_of_memory():
    """The eager scores of 1,024 tokens are 4 MiB a head and sequence; SDPA keeps none."""

    def peak(impl: str) -> float:
        task = Memory(
            mixer=Attention.model_validate({"impl": impl}),
            level="op",
            mode="fwd",
            seq_len=1024,
            batch=16,
            d_model=32,
        )
        return float(task.run(Context(CPU))["peak_mib"])

    # Pages are 4 KiB and the allocator keeps some: a twentieth less than the two score tensors.
    assert peak("reference") >= 0.95 * 2 * 16 * 4
    assert peak("sdpa") < 16 * 4


@pytest.mark.parametrize("mib", [1, 4, 64])
def test_peak_memory_sees_a_temporary_also_after_a_warm_up(mib):
    def call() -> None:
        torch.ones(mib * 2**18)

    for _ in range(3):
        call()
    assert peak_memory(call, CPU).peak_mib == pytest.approx(mib, abs=0.5)


def test_timing_interleaves_and_warms_up():
    order: list[str] = []
    a, b = times_ms([lambda: order.append("a"), lambda: order.append("b")], CPU, budget_s=0.0)
    assert len(a) == len(b) == 5
    assert order == ["a", "b"] * 6
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0]) == (3, 6, 9)


class Crooked(Attention):
    """An attention whose fast implementation is wrong in the third digit."""

    def operator(self, d_model, batch, seq_len, *, dtype, generator):
        operator = super().operator(d_model, batch, seq_len, dtype=dtype, generator=generator)
        if self.impl == "reference":
            return operator

        def run(*inputs: Tensor) -> Tensor:
            return 1.001 * operator.run(*inputs)

        return operator._replace(run=run)


@pytest.mark.parametrize("task_class", [Speed, Memory])
def test_a_wrong_implementation_gets_no_numbers(task_class: type[WorkloadTask]):
    fields = {"level": "op", "mode": "fwd", "seq_len": 32, "batch": 1, "d_model": 32}
    wrong = task_class.model_validate({"mixer": Crooked(impl="sdpa")} | fields)
    with pytest.raises(Wrong, match=r"the output of attention \(sdpa\) is off by 1\.00e-03"):
        wrong.run(Context(CPU))


class Elsewhere(Attention):
    def unsupported(self, device: torch.device, dtype: torch.dtype) -> str | None:
        return "needs a machine that is not here"

    def stack(self, *args: object, **kwargs: object) -> list[nn.Module]:
        raise AssertionError("an unsupported mixer is not built")


def test_an_unsupported_mixer_says_why():
    fields = {"level": "layer", "mode": "fwd", "seq_len": 32, "batch": 1, "d_model": 32}
    for task in (
        Speed.model_validate({"mixer": Elsewhere()} | fields),
        Decode(mixer=Elsewhere(), context=4, batch=1, d_model=32),
    ):
        with pytest.raises(Unsupported, match="not here"):
            task.run(Context(CPU))


def test_impossible_cells_are_refused():
    fields = {"mixer": Attention(n_heads=3), "seq_len": 8, "batch": 1, "level": "op"}
    with pytest.raises(ValueError, match="d_model"):
        Speed.model_validate(fields | {"mode": "fwd", "d_model": 32})
    with pytest.raises(ValueError, match="mode = 'step' does not fit level = 'op'"):
        Speed.model_validate(fields | {"mode": "step", "d_model": 33})
