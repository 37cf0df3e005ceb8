"""What is wrong, cannot run or cannot be gets no numbers, and says why."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

import hgrn2.reference
from mixers import HGRN2, Attention, Mamba, attention_products
from tasks.base import Context, Unsupported, Wrong
from tasks.decode import Decode
from tasks.memory import Memory
from tasks.mqar.task import MQAR
from tasks.speed import Speed
from tasks.workload import WorkloadTask
from tests.tasks.test_training import tiny

CPU = torch.device("cpu")
NAN = float("nan")


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


def test_a_wrong_gradient_of_ours_is_not_trained_with(monkeypatch):
    """Attention by torch's products, whose gradients are written by hand."""
    task = tiny(epochs=1).model_copy(update={"mixer": Attention(impl="products")})
    task.check(CPU)
    gradient = attention_products._of_scores
    monkeypatch.setattr(attention_products, "_of_scores", lambda *x: 1.1 * gradient(*x))
    said = (
        r"the gradient in fp32 of attention \(products\), together and in 9 of 9 rows alone, is off"
    )
    with pytest.raises(Wrong, match=said):
        task.run(Context(CPU))


@pytest.mark.parametrize(
    ("rows", "factor", "said"), [(4, 2, None), (5, 2, "5 of 9"), (1, NAN, "1")]
)
def test_a_gradient_wrong_in_a_few_rows_alone_is_a_rounding(monkeypatch, rows, factor, said):
    task = tiny(epochs=1).model_copy(update={"mixer": Attention(impl="products")})
    gradients = MQAR.gradients

    def crooked(self: MQAR, device: torch.device, dtype: torch.dtype, part: slice) -> Tensor:
        found = gradients(self, device, dtype, part)
        bad = self.mixer.impl == "products" and part.indices(9)[0] < rows
        return factor * found if bad else found

    monkeypatch.setattr(MQAR, "gradients", crooked)
    with pytest.raises(Wrong, match=f"{said}.* rows alone") if said else nullcontext():
        task.check(CPU)


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
