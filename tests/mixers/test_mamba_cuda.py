"""What surrounds mamba_ssm's kernels: layouts, dtypes, states, fields, reasons."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

import mixers.mamba_cuda
from mixers import Mamba
from tests.mixers import stand_ins
from tests.mixers.test_contract import CHECKS, CPU, D, generator, moved, tokens
from tests.mixers.test_fla import GPU, reference_of

MADE = [Mamba(impl="mamba_ssm"), Mamba(impl="mamba_ssm", d_state=4, d_conv=2, expand=1)]
# Its kernels are causal, and are given A, D and the step size's bias in fp32 even in an fp64 run.
CAUSAL_CHECKS = ("check_causality", "check_state_size", "check_precision", "check_operator")
FP32 = torch.finfo(torch.float32).eps

pytestmark = pytest.mark.usefixtures("mamba_ssm")


@pytest.fixture
def mamba_ssm(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_ins.install(monkeypatch, stand_ins.MAMBA)


def assert_same(ours: Tensor, exact: Tensor) -> None:
    """But for three parameters in fp32, whose rounding decays with the state."""
    assert (ours - exact).norm() <= 8 * FP32 * exact.norm()


@pytest.mark.parametrize("mixer", MADE, ids=repr)
def test_the_layer_is_the_references(mixer: Mamba):
    ours, exact = moved(mixer), moved(reference_of(mixer))
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in exact.named_parameters()]
    x, dy = tokens(3, 100).requires_grad_(), tokens(3, 100, seed=8)
    y, expected = ours(x), exact(x)
    assert_same(y, expected)
    for mine, same in zip(
        torch.autograd.grad(y, [x, *ours.parameters()], dy),
        torch.autograd.grad(expected, [x, *exact.parameters()], dy),
        strict=True,
    ):
        assert_same(mine, same)


@pytest.mark.parametrize("mixer", MADE, ids=repr)
def test_steps_are_the_forward(mixer: Mamba):
    layer, x = moved(mixer), tokens(2, 20)
    state, held = layer.start(2, 20), None
    for t, token in enumerate(x.unbind(1)):
        y, state = layer.step(token, state)
        assert_same(y, layer(x)[:, t])
        held = held or [s.data_ptr() for s in state]
        assert [s.data_ptr() for s in state] == held


@pytest.mark.parametrize("check", [c for c in CHECKS if c.__name__ in CAUSAL_CHECKS])
@pytest.mark.parametrize("mixer", MADE, ids=repr)
def test_contract(mixer: Mamba, check):
    check(mixer)


def test_the_operators_inputs_are_laid_out_for_its_scan():
    ours, exact = (
        m.operator(D, 2, 70, dtype=torch.bfloat16, generator=generator(0))
        for m in (MADE[0], Mamba())
    )
    for mine, same in zip(ours.inputs, exact.inputs, strict=True):
        assert torch.equal(mine, same)
        assert mine.ndim < 3 or mine.requires_grad_().mT.is_contiguous()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"d_conv": 1}, "d_conv = 1 does not fit impl = 'mamba_ssm', which takes 2 to 4"),
        ({"d_conv": 5}, "d_conv = 5"),
        ({"d_state": 257}, "d_state = 257 does not fit impl = 'mamba_ssm', which takes 1 to 256"),
    ],
)
def test_a_size_that_the_kernels_do_not_take_is_named(fields: dict[str, int], message: str):
    with pytest.raises(ValidationError, match=message):
        Mamba.model_validate({"impl": "mamba_ssm"} | fields)


def test_both_directions_are_the_references():
    with pytest.raises(ValueError, match="use impl = 'triton' or 'reference' for both"):
        MADE[0].stack(D, 1, causal=False, generator=generator(0))


def test_what_the_kernels_need_is_named(monkeypatch: pytest.MonkeyPatch):
    reason = MADE[0].unsupported(CPU, torch.float32)
    assert reason == "impl='mamba_ssm' needs a CUDA device, not cpu: use impl='reference'"
    assert "not torch.float64" in str(MADE[0].unsupported(GPU, torch.float64))
    there = {"mamba_ssm"}
    monkeypatch.setattr(
        mixers.mamba_cuda, "find_spec", lambda name: name if name in there else None
    )
    missing = str(MADE[0].unsupported(GPU, torch.bfloat16))
    assert missing.endswith("pip install --no-build-isolation causal-conv1d==1.7.0")
    there.add("causal_conv1d")
    assert MADE[0].unsupported(GPU, torch.bfloat16) is None
