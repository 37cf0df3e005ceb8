"""The chunked form against the per-token oracle, over every regime of the gate."""

from __future__ import annotations

import pytest
import torch

from hgrn2.reference import gated_chunked, gated_recurrent, hgrn2_chunked, hgrn2_recurrent
from tests.hgrn2.operator_inputs import (
    BOUNDS,
    F64,
    REGIMES,
    hgrn2_inputs,
    outputs_and_gradients,
    randn,
    relative_error,
    worst_error,
)

# Products and sums of some hundred factors and terms in fp64.
FP64_TOLERANCE = 1e-12
LENGTHS = (1, 2, 15, 16, 17, 63, 64, 65, 100, 128, 129, 300)


def oracle(q, z, v, bound, state):
    return hgrn2_recurrent(q, z, v, bound, state=state)


def chunked(q, z, v, bound, state):
    return hgrn2_chunked(q, z, v, bound, state=state)


@pytest.mark.parametrize("t", LENGTHS)
@pytest.mark.parametrize("regime", REGIMES)
def test_every_length_and_regime(regime, t):
    bound = BOUNDS[(LENGTHS.index(t) + list(REGIMES).index(regime)) % len(BOUNDS)]
    inputs = hgrn2_inputs(2, t, 2, 5, 3, regime=regime, bound=bound)
    found = outputs_and_gradients(chunked, inputs)
    assert worst_error(found, outputs_and_gradients(oracle, inputs)) < FP64_TOLERANCE


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("regime", REGIMES)
def test_every_bound_and_regime_from_no_state(regime, bound):
    inputs = hgrn2_inputs(2, 70, 1, 4, 6, regime=regime, bound=bound)[:4]
    found = outputs_and_gradients(hgrn2_chunked, inputs)
    assert worst_error(found, outputs_and_gradients(hgrn2_recurrent, inputs)) < FP64_TOLERANCE


@pytest.mark.parametrize("t", [40, 129])
@pytest.mark.parametrize("regime", REGIMES)
def test_fp32_is_as_accurate_as_the_fp32_loop(regime, t):
    """At most twice the loop's error, plus one rounding of the result."""
    inputs = [x.float() for x in hgrn2_inputs(2, t, 2, 8, 8, regime=regime, bound=0.0)]
    true = outputs_and_gradients(oracle, [x.double() for x in inputs])
    loop = outputs_and_gradients(oracle, inputs)
    found = outputs_and_gradients(chunked, inputs)
    rounding = torch.finfo(torch.float32).eps
    for x, same_precision, y in zip(found, loop, true, strict=True):
        assert relative_error(x, y) <= 2 * relative_error(same_precision, y) + rounding


@pytest.mark.parametrize("t", [5, 64, 130])
def test_gates_of_zero_and_one(t):
    """f of exactly 0 and 1, tiny and ordinary, all within one chunk; keys that are not 1 - f."""
    pick = torch.randint(5, (2, t, 1, 4), generator=torch.Generator().manual_seed(5))
    f = torch.tensor([0.0, 1.0, 0.5, 1e-300, 0.999], dtype=F64)[pick]
    inputs = [randn(2, t, 1, 4, seed=i) for i in range(2)] + [randn(2, t, 1, 3, seed=2), f]
    found = outputs_and_gradients(gated_chunked, inputs)
    assert worst_error(found, outputs_and_gradients(gated_recurrent, inputs)) < FP64_TOLERANCE


@pytest.mark.parametrize("chunk", [1, 2, 8, 32, 128])
def test_every_chunk_gives_the_same(chunk):
    q, z, v, bound, state = inputs = hgrn2_inputs(1, 77, 2, 4, 3, regime="mixed")
    y, last = hgrn2_chunked(q, z, v, bound, state=state, chunk=chunk)
    assert worst_error((y, last), oracle(*inputs)) < FP64_TOLERANCE


@pytest.mark.parametrize("chunk", [0, -1, 48])
def test_a_chunk_that_is_no_power_of_two_is_refused(chunk):
    with pytest.raises(ValueError, match=f"chunk={chunk} should be a power of two"):
        hgrn2_chunked(*hgrn2_inputs(1, 3, 1, 2, 2)[:4], chunk=chunk)


@pytest.mark.parametrize("tile", [1, 300, 1 << 30])
def test_the_tiling_changes_nothing(monkeypatch, tile):
    """One chunk of one row at a time, some of each, everything at once."""
    inputs = hgrn2_inputs(3, 150, 2, 4, 3)
    before = outputs_and_gradients(chunked, inputs)
    monkeypatch.setattr("hgrn2.tiling.TILE", tile)
    assert worst_error(outputs_and_gradients(chunked, inputs), before) < FP64_TOLERANCE


def test_gradcheck_with_the_gate_tied():
    inputs = [x.requires_grad_() for x in hgrn2_inputs(2, 5, 1, 2, 2, bound=0.3)]
    assert torch.autograd.gradcheck(chunked, inputs)


def test_gradcheck_with_the_gate_given():
    inputs = [randn(1, 6, 2, 2, seed=i).requires_grad_() for i in range(3)]
    f = torch.rand(1, 6, 2, 2, generator=torch.Generator().manual_seed(3), dtype=F64)
    f[0, 2:4, 0] = 0
    state = randn(1, 2, 2, 2, seed=4).requires_grad_()

    def form(q, key, v, f, state):
        return gated_chunked(q, key, v, f, state=state, chunk=4)

    assert torch.autograd.gradcheck(form, (*inputs, f.requires_grad_(), state))


@pytest.mark.parametrize("t", [40, 150])
@pytest.mark.parametrize("wanted", [0, 1])
def test_a_gradient_of_one_output_alone(t, wanted):
    """Of y without the last state, and of the last state without y."""
    inputs = hgrn2_inputs(2, t, 1, 4, 3)[:4]
    found = outputs_and_gradients(lambda *x: (hgrn2_chunked(*x)[wanted],), inputs)
    true = outputs_and_gradients(lambda *x: (hgrn2_recurrent(*x)[wanted],), inputs)
    assert worst_error(found, true) < FP64_TOLERANCE


def test_inference_equals_training():
    inputs = hgrn2_inputs(2, 150, 2, 4, 3)
    with torch.no_grad():
        y, last = chunked(*inputs)
    trained = chunked(*(x.clone().requires_grad_() for x in inputs))
    assert torch.equal(y, trained[0])
    assert torch.equal(last, trained[1])


def test_slices_of_one_projection():
    """q, z and v as the layers make them: strided parts of one product."""
    whole = randn(2, 70, 3, 4, 5, seed=0).requires_grad_()
    bound = torch.full((4, 5), 0.2, dtype=F64)
    parts = [whole[:, :, i] for i in range(3)]
    y, _ = hgrn2_chunked(*parts, bound)
    apart, _ = hgrn2_chunked(*(x.contiguous() for x in parts), bound)
    assert torch.equal(y, apart)
    weight = randn(2, 70, 4, 5, seed=3)
    grads = [torch.autograd.grad(x, whole, weight, retain_graph=True)[0] for x in (y, apart)]
    assert torch.equal(*grads)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_fp32_arithmetic_rounded_once(dtype):
    inputs = [x.to(dtype) for x in hgrn2_inputs(2, 70, 2, 4, 3)]
    y, last = chunked(*inputs)
    wide, wide_last = chunked(*(x.float() for x in inputs))
    assert y.dtype == dtype
    assert torch.equal(y, wide.to(dtype))
    assert last.dtype == torch.float32
    assert torch.equal(last, wide_last)
    for x, g in zip(inputs, outputs_and_gradients(chunked, inputs)[2:], strict=True):
        assert g.dtype == x.dtype


def test_autocast_leaves_the_arithmetic_alone():
    inputs = [x.float() for x in hgrn2_inputs(1, 70, 1, 4, 3)]
    y, last = chunked(*inputs)
    loop, _ = oracle(*inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(chunked(*inputs)[0], y)
        assert torch.equal(chunked(*inputs)[1], last)
        assert torch.equal(oracle(*inputs)[0], loop)
