"""Speed, memory and decode: what is measured is what is said, and only once it is right."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import hgrn2.reference
from mixers import HGRN2, MIXERS, Attention, Mamba, Mixer
from tasks.base import Context, Unsupported, Wrong
from tasks.decode import Decode
from tasks.memory import Memory
from tasks.speed import Speed
from tasks.timing import spread, times_ms
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


@pytest.mark.parametrize("mixer_class", MIXERS, ids=lambda m: m.__name__)
def test_every_mixer_decodes(mixer_class):
    mixer = small(mixer_class)
    metrics = Decode(mixer=mixer, context=8, batch=2, d_model=32, budget_s=0.01).run(Context(CPU))
    assert metrics["time_ms"] > 0
    # A cache for the context and the token that is timed.
    assert metrics["state_bytes"] == 4 * mixer.state_size(32, 9)


@pytest.mark.parametrize("mixer_class", [HGRN2, Attention], ids=lambda m: m.__name__)
def test_the_bare_operator_of_a_step_has_a_floor(mixer_class):
    task = Decode(mixer=small(mixer_class), context=8, batch=2, d_model=32, level="op")
    metrics = task.model_copy(update={"budget_s": 0.01}).run(Context(CPU))
    vectors, fp32 = 4 * 32 * 2, 4
    if mixer_class is HGRN2:
        assert metrics["state_bytes"] == fp32 * 32 * 16
        # q, z, v, y, the bound; the state read and written
        moved = 4 * vectors + fp32 * 32 + 2 * 2 * metrics["state_bytes"]
    else:
        assert metrics["state_bytes"] == fp32 * 2 * 32 * 9
        moved = 2 * vectors + 2 * metrics["state_bytes"]
    floor_s = moved / (1e9 * metrics["copy_gb_per_s"])
    assert metrics["bytes_floor_ms"] == pytest.approx(1e3 * floor_s)


def test_a_decode_step_is_timed_at_its_context_without_the_tokens_before_it():
    """A full cache, and its position: what a step sees is the whole of it."""
    seen = []

    class Watched(Attention):
        def stack(self, d_model, n_layers, *, causal, generator):
            layers = super().stack(d_model, n_layers, causal=causal, generator=generator)
            step = layers[0].step

            def watched(x, state):
                if state[0].shape[0] == 3:
                    seen.append((int(state[2]), bool((state[0] != 0).all())))
                return step(x, state)

            layers[0].step = watched
            return layers

    Decode(mixer=Watched(), context=100, batch=3, d_model=32, budget_s=0.01).run(Context(CPU))
    assert set(seen) == {(100, True)}
    assert len(seen) < 100


def test_what_cannot_be_replayed_or_has_no_bare_step_says_so():
    fields = {"context": 4, "batch": 1, "d_model": 32}
    for mixer, more, said in (
        (Attention(), {"replay": "graph"}, "a graph is replayed on a CUDA device, not cpu"),
        (Mamba(), {"level": "op"}, "mamba .reference. keeps no bare operator of one token"),
    ):
        with pytest.raises(Unsupported, match=said):
            Decode.model_validate(fields | {"mixer": mixer} | more).run(Context(CPU))


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


@pytest.mark.parametrize(("mib", "blocks"), [(4, 1), (64, 1), (16, 8), (64, 8)])
def test_peak_memory_sees_temporaries_also_after_a_warm_up(mib, blocks):
    """In a process of its own, as the runner gives it: an old heap has room that nobody sees."""
    code = f"""
import torch
from tasks.timing import peak_memory, track_memory

track_memory(torch.device("cpu"))

def call():
    held = [torch.ones({mib} * 2**18 // {blocks}) for _ in range({blocks})]
    for _ in range(20):
        held.append(torch.ones({mib} * 2**18 // {blocks}))
        held.pop(0)

for _ in range(3):
    call()
print(peak_memory(call, torch.device("cpu")).peak_mib)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # While one more is made, one more is there.
    assert float(done.stdout) == pytest.approx(mib * (1 + 1 / blocks), abs=0.5)


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


def test_a_wrong_reference_gets_no_numbers_either(monkeypatch):
    """Its layer is held to its own decode steps, and its steps to its layer."""
    fields = {"mixer": HGRN2(expand_ratio=16), "batch": 1, "d_model": 32}
    layer = Speed.model_validate(fields | {"level": "layer", "mode": "fwd", "seq_len": 32})
    decode = Decode.model_validate(fields | {"context": 4})
    chunked = hgrn2.reference.hgrn2_chunked

    def crooked(*args: Tensor, **options: Tensor) -> tuple[Tensor, Tensor]:
        y, state = chunked(*args, **options)
        return 1.05 * y + 0.05 * y.roll(1, 1), state

    monkeypatch.setattr(hgrn2.reference, "hgrn2_chunked", crooked)
    with pytest.raises(Wrong, match="the fp64 output of hgrn2"):
        layer.run(Context(CPU))
    with pytest.raises(Wrong, match="decoding in fp32 of hgrn2"):
        decode.run(Context(CPU))


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


@pytest.mark.parametrize("task_class", [Speed, Memory])
def test_a_wrong_implementation_gets_no_numbers(task_class: type[WorkloadTask]):
    fields = {"level": "op", "mode": "fwd", "seq_len": 32, "batch": 1, "d_model": 32}
    wrong = task_class.model_validate({"mixer": Crooked(impl="sdpa")} | fields)
    with pytest.raises(
        Wrong, match=r"the output in fp32 of attention \(sdpa\) is off by 1\.00e-03"
    ):
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
