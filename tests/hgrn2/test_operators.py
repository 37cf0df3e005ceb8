"""What the operators promise: segments, padding, both directions, decoding, causality."""

from __future__ import annotations

import pytest
import torch

from hgrn2 import (
    Activations,
    hgrn1,
    hgrn1_bidirectional,
    hgrn2,
    hgrn2_bidirectional,
    hgrn2_projected,
    hgrn2_step,
)
from hgrn2.reference import gate, gated_bidirectional, gated_chunked, gated_recurrent
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

FP64_TOLERANCE = 1e-12
PADDED = torch.tensor([90, 33, 1])


def hgrn1_inputs(b, t, d, *, turned):
    """v, z, bound, state, theta."""
    pair = (2,) if turned else ()
    v, z, state = randn(b, t, d, *pair, seed=0), randn(b, t, d, seed=1), randn(b, d, *pair, seed=2)
    return v, z, torch.full((d,), 0.2, dtype=F64), state, randn(d, seed=3) if turned else None


@pytest.mark.parametrize("split", [1, 16, 64, 99])
def test_hgrn2_in_segments_is_hgrn2(split):
    q, z, v, bound, state = hgrn2_inputs(2, 100, 2, 4, 3, regime="mixed")

    def whole(q, z, v, bound, state):
        return hgrn2(q, z, v, bound, state=state)

    def segments(q, z, v, bound, state):
        first, state = hgrn2(q[:, :split], z[:, :split], v[:, :split], bound, state=state)
        rest, state = hgrn2(q[:, split:], z[:, split:], v[:, split:], bound, state=state)
        return torch.cat([first, rest], dim=1), state

    inputs = [q, z, v, bound, state]
    found = outputs_and_gradients(segments, inputs)
    assert worst_error(found, outputs_and_gradients(whole, inputs)) < FP64_TOLERANCE


@pytest.mark.parametrize("turned", [False, True])
def test_hgrn1_in_segments_is_hgrn1(turned):
    v, z, bound, state, theta = hgrn1_inputs(2, 50, 4, turned=turned)
    h, last = hgrn1(v, z, bound, theta=theta, state=state)
    first, middle = hgrn1(v[:, :21], z[:, :21], bound, theta=theta, state=state)
    rest, end = hgrn1(v[:, 21:], z[:, 21:], bound, theta=theta, state=middle)
    assert relative_error(torch.cat([first, rest], dim=1), h) < FP64_TOLERANCE
    assert relative_error(end, last) < FP64_TOLERANCE


def test_hgrn2_ends_at_the_last_valid_token():
    q, z, v, bound, state = hgrn2_inputs(3, 90, 2, 4, 3)
    y, last = hgrn2(q, z, v, bound, state=state, lengths=PADDED)
    for n, length in enumerate(PADDED.tolist()):
        cut = (slice(n, n + 1), slice(length))
        alone, end = hgrn2(q[cut], z[cut], v[cut], bound, state=state[n : n + 1])
        assert relative_error(y[cut], alone) < FP64_TOLERANCE
        assert relative_error(last[n : n + 1], end) < FP64_TOLERANCE
        assert not y[n, length:].any()


@pytest.mark.parametrize("turned", [False, True])
def test_hgrn1_ends_at_the_last_valid_token(turned):
    v, z, bound, state, theta = hgrn1_inputs(3, 90, 4, turned=turned)
    h, last = hgrn1(v, z, bound, theta=theta, state=state, lengths=PADDED)
    for n, length in enumerate(PADDED.tolist()):
        cut = (slice(n, n + 1), slice(length))
        alone, end = hgrn1(v[cut], z[cut], bound, theta=theta, state=state[n : n + 1])
        assert relative_error(h[cut], alone) < FP64_TOLERANCE
        assert relative_error(last[n : n + 1], end) < FP64_TOLERANCE
        assert not h[n, length:].any()


def test_what_stands_at_padding_reaches_nothing():
    """Not even NaN: neither the outputs nor any gradient of the valid tokens or the bound."""
    q, z, v, bound, _ = hgrn2_inputs(3, 90, 2, 4, 3)
    valid = torch.arange(90) < PADDED[:, None]

    def spoil(x):
        return torch.where(valid.view(3, 90, *(1,) * (x.ndim - 2)), x, torch.nan)

    def both(q, z, v, bound):
        y, last = hgrn2(q, z, v, bound, lengths=PADDED)
        h, end = hgrn1(v.flatten(2), z[..., :3].flatten(2), bound[:, :3].flatten(), lengths=PADDED)
        return y, last, h, end, hgrn2_bidirectional(q, z, v, bound, lengths=PADDED)

    clean = outputs_and_gradients(both, [q, z, v, bound])
    dirty = outputs_and_gradients(both, [spoil(q), spoil(z), spoil(v), bound])
    for x, y in zip(dirty, clean, strict=True):
        assert torch.equal(x.nan_to_num(0.0), y)
        assert not x.isnan().any()


@pytest.mark.parametrize("lengths", [None, PADDED])
def test_hgrn2_bidirectional_is_two_causal_runs(lengths):
    q, z, v, bound, _ = hgrn2_inputs(3, 90, 2, 4, 3)
    y = hgrn2_bidirectional(q, z, v, bound, lengths=lengths)
    for n, length in enumerate([90] * 3 if lengths is None else lengths.tolist()):
        row = [x[n : n + 1, :length] for x in (q, z, v)]
        forward, _ = hgrn2(*row, bound)
        backward, _ = hgrn2(*(x.flip(1) for x in row), bound)
        assert relative_error(y[n : n + 1, :length], forward + backward.flip(1)) < FP64_TOLERANCE
        assert not y[n, length:].any()


def test_a_projection_is_its_activated_parts():
    q, z, v, bound, _ = hgrn2_inputs(3, 90, 2, 4, 4)
    x = torch.stack([v, q, z], 2)
    # Views, as the operator has: some CPUs round silu of contiguous memory otherwise.
    v, q, z = x.unbind(2)
    silu, sigmoid = torch.nn.functional.silu, torch.sigmoid
    y = hgrn2_projected(x, bound, Activations("silu", silu_value=False), lengths=PADDED)
    assert torch.equal(y, hgrn2(silu(q), z, v, bound, lengths=PADDED)[0])
    y = hgrn2_projected(x, bound, Activations("sigmoid", silu_value=True), bidirectional=True)
    assert torch.equal(y, hgrn2_bidirectional(sigmoid(q), z, silu(v), bound))


@pytest.mark.parametrize("lengths", [None, PADDED])
@pytest.mark.parametrize("turned", ["real", "shared", "own"])
def test_hgrn1_bidirectional_is_two_causal_runs(turned, lengths):
    v, z, bound, _, theta = hgrn1_inputs(3, 90, 4, turned=turned != "real")
    own = randn(4, seed=9) if turned == "own" else None
    h = hgrn1_bidirectional(v, z, bound, theta=theta, theta_backward=own, lengths=lengths)
    back = theta if own is None else own
    for n, length in enumerate([90] * 3 if lengths is None else lengths.tolist()):
        row = [x[n : n + 1, :length] for x in (v, z)]
        forward, _ = hgrn1(*row, bound, theta=theta)
        backward, _ = hgrn1(*(x.flip(1) for x in row), bound, theta=back)
        assert relative_error(h[n : n + 1, :length], forward + backward.flip(1)) < FP64_TOLERANCE
        assert not h[n, length:].any()


def test_gated_bidirectional_is_two_causal_runs():
    q, z, v, bound, _ = hgrn2_inputs(3, 90, 2, 4, 3)
    f, key = gate(z, bound)
    y = gated_bidirectional(q, 2 * key, v, f, lengths=PADDED)
    for n, length in enumerate(PADDED.tolist()):
        row = [x[n : n + 1, :length] for x in (q, 2 * key, v, f)]
        forward, _ = gated_chunked(*row)
        backward, _ = gated_chunked(*(x.flip(1) for x in row))
        assert relative_error(y[n : n + 1, :length], forward + backward.flip(1)) < FP64_TOLERANCE


def test_hgrn2_of_width_one_is_hgrn1():
    """With k = v = 1 every head is a channel of the real HGRN1, and q is its output gate."""
    q, z, v, bound, state = hgrn2_inputs(2, 70, 6, 1, 1)
    y, last = hgrn2(q, z, v, bound, state=state)
    h, end = hgrn1(v[..., 0], z[..., 0], bound[:, 0], state=state[..., 0, 0])
    assert relative_error(y[..., 0], q[..., 0] * h) < FP64_TOLERANCE
    assert relative_error(last[..., 0, 0], end) < FP64_TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, F64])
def test_steps_are_the_forward(dtype):
    q, z, v, bound, _ = (x.to(dtype) for x in hgrn2_inputs(2, 20, 2, 4, 3, bound=0.25))
    wide = torch.float64 if dtype == F64 else torch.float32
    y, last = hgrn2(q, z, v, bound)
    state = torch.zeros(2, 2, 4, 3, dtype=wide)
    steps = []
    for t in range(20):
        out, after = hgrn2_step(q[:, t], z[:, t], v[:, t], bound, state)
        assert after is state
        assert out.dtype == dtype
        steps.append(out)
    # each form rounds its own way in the arithmetic's dtype, then once to the output's
    tolerance = 20 * torch.finfo(wide).eps + torch.finfo(dtype).eps
    assert relative_error(torch.stack(steps, dim=1), y) < tolerance
    assert relative_error(state, last) < 20 * torch.finfo(wide).eps


@pytest.mark.parametrize("t", [64, 100, 200])
@pytest.mark.parametrize("regime", ["z=0", "mixed"])
def test_no_bit_of_the_past_depends_on_the_future(regime, t):
    q, z, v, bound, state = (x.float() for x in hgrn2_inputs(2, t, 2, 8, 8, regime=regime))
    pair = v[..., :2]
    theta = randn(2, seed=5).float()

    def outputs(q, z, v):
        y, _ = hgrn2(q, z, v, bound, state=state)
        h, _ = hgrn1(v.flatten(2), z.flatten(2), bound.flatten())
        turned, _ = hgrn1(pair * v[..., :1], z[..., 0], bound[:, 0], theta=theta)
        return y, h, turned

    before = outputs(q, z, v)
    for cut in (1, 31, 32, 63, t - 1):
        changed = [x.clone() for x in (q, z, v)]
        for i, x in enumerate(changed):
            x[:, cut:] = 5 * randn(2, t - cut, 2, 8, seed=20 + i).float()
        for x, y in zip(outputs(*changed), before, strict=True):
            assert torch.equal(x[:, :cut], y[:, :cut])
            assert not torch.equal(x[:, cut:], y[:, cut:])


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("regime", REGIMES)
def test_logit_gradient_in_closed_form(regime, bound):
    """dz = key (r G' - s K') and dbound = sum (1 - s) (G' / f - K'), where g = log f, s =
    sigmoid(z), r = s / f, and G', K' are the gradients of g and of the key as if they were free."""
    q, z, v, bounds, state = hgrn2_inputs(2, 70, 2, 4, 3, regime=regime, bound=bound)
    f, key = gate(z, bounds)

    def free(g, key):
        return gated_recurrent(q, key, v, g.exp(), state=state)

    def tied(z, bounds):
        return hgrn2(q, z, v, bounds, state=state)

    *_, dg, dkey = outputs_and_gradients(free, [f.log(), key])
    *_, dz, dbound = outputs_and_gradients(tied, [z, bounds])
    s = torch.sigmoid(z)
    assert relative_error(dz, key * (s / f * dg - s * dkey)) < FP64_TOLERANCE
    true = (torch.sigmoid(-z) * (dg / f - dkey)).sum((0, 1))
    assert relative_error(dbound, true) < FP64_TOLERANCE
