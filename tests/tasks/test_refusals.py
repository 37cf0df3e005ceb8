"""What is wrong, cannot run or cannot be gets no numbers, and says why."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import hgrn2.reference
from mixers import HGRN2, Attention, Mamba
from tasks.base import Context, Unsupported, Wrong
from tasks.decode import Decode
from tasks.memory import Memory
from tasks.speed import Speed
from tasks.workload import WorkloadTask

CPU = torch.device("cpu")


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
    with pytest.raises(
        Wrong, match=r"the output in fp32 of attention \(sdpa\) is off by 1\.00e-03"
    ):
        wrong.run(Context(CPU))


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


def test_what_cannot_be_replayed_or_has_no_bare_step_says_so():
    fields = {"context": 4, "batch": 1, "d_model": 32}
    for mixer, more, said in (
        (Attention(), {"replay": "graph"}, "a graph is replayed on a CUDA device, not cpu"),
        (Mamba(), {"level": "op"}, "mamba .reference. keeps no bare operator of one token"),
    ):
        with pytest.raises(Unsupported, match=said):
            Decode.model_validate(fields | {"mixer": mixer} | more).run(Context(CPU))


def test_impossible_cells_are_refused():
    fields = {"mixer": Attention(n_heads=3), "seq_len": 8, "batch": 1, "level": "op"}
    with pytest.raises(ValueError, match="d_model"):
        Speed.model_validate(fields | {"mode": "fwd", "d_model": 32})
    with pytest.raises(ValueError, match="mode = 'step' does not fit level = 'op'"):
        Speed.model_validate(fields | {"mode": "step", "d_model": 33})
