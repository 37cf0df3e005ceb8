"""The diagonal scan, and HGRN1 on it, against the per-token loops."""

from __future__ import annotations

import pytest
import torch

from hgrn2.reference import diagonal_recurrent, diagonal_scan, hgrn1_recurrent, hgrn1_scan
from tests.hgrn2.operator_inputs import (
    BOUNDS,
    F64,
    REGIMES,
    generator,
    outputs_and_gradients,
    randn,
    relative_error,
    worst_error,
)

FP64_TOLERANCE = 1e-12
C128 = torch.complex128


def scan(f, u, state):
    return diagonal_scan(f, u, state=state)


def loop(f, u, state):
    return diagonal_recurrent(f, u, state=state)


@pytest.mark.parametrize("t", [1, 2, 3, 5, 16, 17, 63, 64, 100, 257])
@pytest.mark.parametrize("gate", ["real", "complex", "broadcast", "real on complex"])
def test_every_length_and_kind(gate, t):
    f = torch.rand(2, t, 3, 1 if gate == "broadcast" else 4, dtype=F64, generator=generator(0))
    u, state = randn(2, t, 3, 4, seed=1), randn(2, 3, 4, seed=2)
    if gate == "complex":
        f = torch.polar(f, randn(*f.shape, seed=3))
    if "complex" in gate:
        u, state = torch.complex(u, u.flip(0)), torch.complex(state, state.flip(1))
    found = outputs_and_gradients(scan, [f, u, state])
    true = outputs_and_gradients(loop, [f, u, state])
    assert [x.dtype for x in found] == [x.dtype for x in true]
    assert worst_error(map(torch.abs, found), map(torch.abs, true)) < FP64_TOLERANCE
    assert worst_error(map(torch.real, found), map(torch.real, true)) < FP64_TOLERANCE


def test_gates_of_zero_and_one():
    pick = torch.randint(4, (2, 100, 5), generator=generator(1))
    f = torch.tensor([0.0, 1.0, 0.5, 1e-300], dtype=F64)[pick]
    inputs = [f, randn(2, 100, 5, seed=1), randn(2, 5, seed=2)]
    found = outputs_and_gradients(scan, inputs)
    assert worst_error(found, outputs_and_gradients(loop, inputs)) < FP64_TOLERANCE


def test_without_a_state_and_without_trailing_axes():
    f, u = torch.rand(3, 20, dtype=F64, generator=generator(0)), randn(3, 20, seed=1)
    found = outputs_and_gradients(diagonal_scan, [f, u])
    assert worst_error(found, outputs_and_gradients(diagonal_recurrent, [f, u])) < FP64_TOLERANCE


@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize("width", [1, 2])
def test_gradcheck(dtype, width):
    f = torch.rand(2, 6, 2, width, generator=generator(0), dtype=F64).to(dtype)
    u, state = randn(2, 6, 2, 2, seed=1).to(dtype), randn(2, 2, 2, seed=2).to(dtype)
    if dtype is C128:
        f, u = f * torch.exp(1j * randn(*f.shape, seed=3)), u * (1 + 2j)
    assert torch.autograd.gradcheck(scan, [x.requires_grad_() for x in (f, u, state)])


def hgrn1_inputs(t, regime, bound, turned):
    pair = (2,) if turned else ()
    z = REGIMES[regime](randn(2, t, 6, seed=1))
    inputs = [randn(2, t, 6, *pair, seed=0), z, torch.full((6,), bound, dtype=F64)]
    inputs.append(randn(2, 6, *pair, seed=2))
    return inputs + ([randn(6, seed=3)] if turned else [])


def hgrn1(form):
    def run(v, z, bound, state, theta=None):
        return form(v, z, bound, theta=theta, state=state)

    return run


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("regime", REGIMES)
def test_hgrn1_in_every_regime(regime, turned):
    for bound, t in zip(BOUNDS, (1, 15, 64, 65, 130), strict=True):
        inputs = hgrn1_inputs(t, regime, bound, turned)
        found = outputs_and_gradients(hgrn1(hgrn1_scan), inputs)
        true = outputs_and_gradients(hgrn1(hgrn1_recurrent), inputs)
        assert worst_error(found, true) < FP64_TOLERANCE


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("regime", REGIMES)
def test_hgrn1_in_fp32_is_as_accurate_as_the_fp32_loop(regime, turned):
    """At most twice the loop's error, plus one rounding of the result."""
    inputs = [x.float() for x in hgrn1_inputs(130, regime, 0.0, turned)]
    true = outputs_and_gradients(hgrn1(hgrn1_recurrent), [x.double() for x in inputs])
    same_precision = outputs_and_gradients(hgrn1(hgrn1_recurrent), inputs)
    rounding = torch.finfo(torch.float32).eps
    found = outputs_and_gradients(hgrn1(hgrn1_scan), inputs)
    for x, y, z in zip(found, same_precision, true, strict=True):
        assert relative_error(x, z) <= 2 * relative_error(y, z) + rounding


@pytest.mark.parametrize("turned", [False, True])
def test_hgrn1_gradcheck(turned):
    inputs = [x[..., :2, :] if x.ndim == 4 else x for x in hgrn1_inputs(4, "z=0", 0.3, turned)]
    v, z, bound, state, *theta = inputs
    narrow = [v[:, :, :2], z[..., :2], bound[:2], state[:, :2], *(x[:2] for x in theta)]
    narrow = [x.clone().requires_grad_() for x in narrow]
    assert torch.autograd.gradcheck(hgrn1(hgrn1_scan), narrow)


def test_hgrn1_in_bf16_is_fp32_arithmetic_rounded_once():
    v, z, bound, state, theta = (x.bfloat16() for x in hgrn1_inputs(70, "z=0", 0.1, True))
    h, last = hgrn1_scan(v, z, bound, theta=theta, state=state)
    wide = [x.float() for x in (v, z, bound, theta, state)]
    wide_h, wide_last = hgrn1_scan(*wide[:3], theta=wide[3], state=wide[4])
    assert torch.equal(h, wide_h.bfloat16())
    assert last.dtype == torch.float32
    assert torch.equal(last, wide_last)
