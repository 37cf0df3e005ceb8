"""The kernels under Triton's interpreter, against the fp64 oracle.

Run by test_triton_interpreter.py with TRITON_INTERPRET=1, which must be set before triton is
imported. fp32 only: from 64 channels on bf16 takes assembly, which is not interpreted.
kernel_inputs.py derives the bar.
"""

from __future__ import annotations

import dataclasses
import math
import os

import pytest
import torch
from torch import Tensor
from triton.runtime.interpreter import ScanOps

from hgrn2.gate import gate
from hgrn2.kernels import chunks, ops, states
from hgrn2.kernels.settings import Settings
from hgrn2.reference import gated_recurrent, hgrn2_recurrent, hgrn2_step
from tests.hgrn2.kernel_inputs import check, draw, kernels, oracle

assert os.environ.get("TRITON_INTERPRET") == "1"


@pytest.mark.parametrize(
    ("t", "k", "v", "regime", "bound"),
    [
        (1, 16, 16, "ordinary", 0.0),
        (15, 16, 32, "spread", 0.1),
        (16, 32, 16, "open", 0.0),
        (17, 16, 16, "mixture", 0.3),
        (63, 16, 16, "closed", 0.1),
        (64, 16, 64, "ordinary", 1 - 1e-6),
        (65, 64, 16, "ordinary", 0.3),
        (100, 16, 16, "resets", 0.01),
        (129, 16, 16, "spread", 0.5),
        (129, 32, 16, "leaning", 0.0),
    ],
)
def test_results_and_gradients(t, k, v, regime, bound):
    case = draw(1, t, 2, k, v, regime, bound)
    check(kernels(*case), oracle(*case))


@pytest.mark.parametrize("regime", ["ordinary", "leaning", "ravine"])
def test_nothing_is_left_unwritten(regime, monkeypatch):
    """Fresh memory holds NaN, and flags that are set."""
    ordinary = torch.Tensor.new_empty

    def poisoned(x: Tensor, *shape, **options) -> Tensor:
        fresh = ordinary(x, *shape, **options)
        return fresh.fill_(torch.nan if fresh.is_floating_point() else 77)

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
    case = draw(2, 129, 2, 16, 16, regime, 0.05)
    check(kernels(*case), oracle(*case))


@pytest.mark.parametrize(
    ("regime", "skip"), [("mixture", ()), ("taps", ("dz",)), ("closed", ("dz",))]
)
def test_gates_down_to_zero(regime, skip):
    """With a bound of 0 the gates reach 2e-9 and 2e-22: dbound has no digits left, and where every
    gate is closed all of dz lies below the rounding of the sums that it is the difference of."""
    case = draw(1, 64, 1, 16, 16, regime, 0.0)
    found = kernels(*case)
    check(found, oracle(*case), skip=("dbound", *skip))
    assert all(x.isfinite().all() for x in found.values())
    assert regime != "closed" or found["dz"].abs().max() < 1e-4


@pytest.mark.parametrize("regime", ["shut", "closed"])
def test_closed_gates_without_a_state(regime):
    """All of dz is of neighbouring tokens, each term 1e-9 of its token's own, which cancels."""
    q, z, v, bound, _, dy, _ = draw(1, 64, 1, 16, 16, regime, 0.0)
    case = (q, z, v, bound, None, dy, None)
    check(kernels(*case), oracle(*case), skip=("dbound",))


def test_lengths():
    lengths = torch.tensor([100, 37, 1])
    case = draw(3, 100, 1, 16, 16, "ordinary", 0.2)
    found = kernels(*case, lengths=lengths)
    check(found, oracle(*case, lengths=lengths))
    strided = torch.tensor([[100, 1], [37, 2], [1, 3]])[:, 0]
    assert torch.equal(kernels(*case, lengths=strided)["y"], found["y"])
    assert not found["y"][1, 37:].any()
    assert not found["dz"][1, 37:].any()


@pytest.mark.parametrize(
    ("t", "regime", "bound"),
    [(65, "ordinary", 0.3), (33, "mixture", 0.3), (65, "leaning", 1e-3)],
)
def test_bidirectional(t, regime, bound):
    q, z, v, bound, _, dy, _ = draw(2, t, 1, 16, 32, regime, bound)
    case = (q, z, v, bound, None, dy, None)
    lengths = torch.tensor([t, 17])
    check(kernels(*case, lengths=lengths), oracle(*case, lengths=lengths))


def test_segments_agree_with_one_walk(monkeypatch):
    case = draw(1, 192, 1, 16, 16, "ordinary", 0.3)
    monkeypatch.setattr(Settings, "split", lambda _self, _programs, _chunks: (2, 2))
    check(kernels(*case), oracle(*case))
    monkeypatch.setattr(Settings, "split", lambda _self, _programs, chunks: (chunks, 1))
    check(kernels(*case), oracle(*case))


@pytest.mark.parametrize("regime", ["ordinary", "mixture"])
def test_rows_in_groups_of_tokens(monkeypatch, regime):
    """What bf16 runs on a GPU: another order of rows, sums over tokens from differences of sums."""
    table = dataclasses.replace(chunks.table_of(torch.empty(16), torch.empty(16)), group=4)
    monkeypatch.setattr(chunks, "table_of", lambda _q, _v: table)
    case = draw(1, 100, 2, 16, 16, regime, 0.1)
    # Sums of a chunk's 64 log gates of up to 126 bits, at 2^-24 of their size.
    check(kernels(*case), oracle(*case), scale=64)
    q, z, v, bound, _, dy, _ = draw(2, 65, 1, 16, 32, regime, 0.3)
    case = (q, z, v, bound, None, dy, None)
    lengths = torch.tensor([65, 17])
    check(kernels(*case, lengths=lengths), oracle(*case, lengths=lengths), scale=64)


@pytest.mark.parametrize("regime", ["leaning", "ravine", "mixture"])
@pytest.mark.parametrize("group", [1, 4])
def test_deep_chunks(monkeypatch, regime, group):
    """Rows in either order; a row's spans depend on no later token."""
    table = dataclasses.replace(chunks.table_of(torch.empty(16), torch.empty(16)), group=group)
    monkeypatch.setattr(chunks, "table_of", lambda _q, _v: table)
    case = draw(1, 100, 2, 16, 16, regime, 1e-3)
    found = kernels(*case)
    # Of `mixture` a bound's gradient is sums that cancel, divided by gates of a thousandth.
    skip = ("dbound",) if regime == "mixture" else ()
    check(found, oracle(*case), skip=skip)
    q, z, v, bound, state, dy, _ = case
    changed = z.clone()
    changed[:, 40:] = -60.0
    y, _ = ops.hgrn2(q, changed, v, bound, state=state)
    assert torch.equal(y[:, :40], found["y"][:, :40])
    case = (q, z, v, bound, None, dy, None)
    check(kernels(*case), oracle(*case), skip=skip)


@pytest.mark.parametrize("scale", [1e-12, 1e12, 1e20])
def test_deep_chunks_gradients_of_any_size(scale):
    q, z, v, bound, _, dy, _ = draw(1, 64, 2, 16, 16, "leaning", 1e-3)
    case = (q, z, v, bound, None, scale * dy, None)
    check(kernels(*case), oracle(*case))


@pytest.mark.parametrize("logit", [-0.81, 0.0, 5.0, 20.0])
@pytest.mark.parametrize("scale", [1e-20, 1e-12, 1e12, 1e20])
def test_gradients_of_any_size(scale, logit):
    """From channels that are all but open to those that decay by 109 bits, a little less than what
    makes a chunk a deep one; with states at the borders."""
    q, z, v, bound, state, dy, dlast = draw(1, 129, 2, 16, 16, "ordinary", 0.0)
    z = logit + 0.01 * z
    case = (q, z, v, bound, state, scale * dy, scale * dlast)
    # Of gates that are nearly all open, what is left of dz cancels.
    check(kernels(*case), oracle(*case), skip=("dz", "dbound") if logit == 20 else ())


def test_a_key_at_a_spans_border_is_in_one_span(monkeypatch):
    """In a GPU's order of additions, a sum may rise by rounding from one token to the next."""

    def as_a_warp_does(scan, x):
        total, step = x.handle.data.copy(), 1
        while step < len(total):
            total[step:] = total[step:] + total[:-step]
            step *= 2
        return [scan.to_tensor(total, dtype=x.dtype)]

    monkeypatch.setattr(ScanOps, "cumsum", as_a_warp_does)
    q, z, v, bound, state, dy, dlast = draw(4, 64, 8, 64, 16, "ordinary", 0.0)
    noise = torch.randn(4, 64, 8, generator=torch.Generator().manual_seed(1))
    z = 14.0 + 0.5 * z
    channel = torch.arange(64)
    z[:, 5 + channel % 40, :, channel] = -112 * math.log(2) + 1e-5 * noise.movedim(1, 0)
    # One channel makes the chunk a deep one.
    z[:, 0, :, 0] = -90.0
    case = (q, z, v, bound, state, dy, dlast)
    # What is left of gates that are nearly all open, as above.
    check(kernels(*case), oracle(*case), skip=("dbound", "dz"))


@pytest.mark.filterwarnings("ignore:(invalid value|All-NaN slice) encountered:RuntimeWarning")
@pytest.mark.parametrize("place", range(3), ids="qzv")
@pytest.mark.parametrize("deep", [False, True])
def test_a_nan_comes_out_as_one(monkeypatch, place, deep):
    """A GPU's own has all bits but the sign, which TF32's rounding would turn into a zero."""
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    q, z, v, bound, state, _, _ = draw(1, 70, 1, 16, 16, "leaning" if deep else "open", 1e-3)
    inputs = [q, z, v]
    inputs[place][:, 20] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
    y, _ = ops.hgrn2(*inputs, bound, state=state)
    # Of q nothing is kept for later tokens. A value's may reach earlier ones too: 0 times it.
    assert y[:, 20 if place == 0 else slice(20, None)].isnan().all()


def test_strided_inputs_of_one_projection():
    q, z, v, bound, state, _, _ = draw(1, 20, 2, 16, 16, "ordinary", 0.3)
    fused = torch.cat([q, z, v], -1)
    views = fused.split(16, -1)
    assert not views[1].is_contiguous()
    found, _ = ops.hgrn2(*views, bound, state=state)
    expected, _ = ops.hgrn2(q, z, v, bound, state=state)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("regime", ["ordinary", "mixture", "leaning"])
def test_strictly_causal_bit_for_bit(regime):
    """Later tokens do not move an output by rounding either, whichever path they send it on."""
    q, z, v, bound, state, _, _ = draw(1, 66, 1, 16, 16, regime, 0.1)
    y, _ = ops.hgrn2(q, z, v, bound, state=state)
    for cut, logit in ((20, -60.0), (20, 30.0), (65, -60.0)):
        changed, other = z.clone(), v.clone()
        changed[:, cut:], other[:, cut:] = logit, 7.0
        found, _ = ops.hgrn2(q, changed, other, bound, state=state)
        assert torch.equal(found[:, :cut], y[:, :cut])
        assert not torch.equal(found[:, cut:], y[:, cut:])


@pytest.mark.parametrize("bidirectional", [False, True])
def test_compiled_without_a_break(bidirectional):
    """Custom operators there, a plain autograd function in eager mode: the same bits."""
    q, z, v, bound, state, dy, dlast = draw(1, 40, 1, 16, 16, "ordinary", 0.3)

    def loss(q, z, v, bound, state):
        if bidirectional:
            return (ops.hgrn2_bidirectional(q, z, v, bound) * dy).sum()
        y, last = ops.hgrn2(q, z, v, bound, state=state)
        return (y * dy).sum() + (last * dlast).sum()

    found = []
    for run in (loss, torch.compile(loss, backend="aot_eager", fullgraph=True)):
        leaves = [x.clone().requires_grad_() for x in (q, z, v, bound, state)]
        run(*leaves).backward()
        found.append([x.grad for x in leaves if x.grad is not None])
    assert len(found[0]) == (4 if bidirectional else 5)
    assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))


def test_step_follows_the_oracle_in_place():
    q, z, v, bound, state, _, _ = draw(2, 1, 2, 16, 32, "ordinary", 0.3)
    expected_state = state.double()
    expected, _ = hgrn2_step(q[:, 0], z[:, 0], v[:, 0], bound, expected_state)
    y, found_state = ops.hgrn2_step(q[:, 0], z[:, 0], v[:, 0], bound, state)
    assert found_state is state
    check({"y": y, "state": state}, {"y": expected.double(), "state": expected_state})


def test_no_final_gradient_and_no_state():
    q, z, v, bound, _, dy, _ = draw(1, 20, 1, 16, 16, "ordinary", 0.3)
    leaf = z.clone().requires_grad_()
    y, _ = ops.hgrn2(q, leaf, v, bound)
    (y * dy).sum().backward()
    wide = z.double().requires_grad_()
    expected, _ = hgrn2_recurrent(q.double(), wide, v.double(), bound.double())
    (expected * dy).sum().backward()
    check({"dz": leaf.grad}, {"dz": wide.grad})


def test_bad_input_is_named():
    q, z, v, bound, state, _, _ = draw(1, 4, 1, 16, 16, "ordinary", 0.3)
    with pytest.raises(ValueError, match="k=12: impl='triton' takes widths 16, 32"):
        ops.hgrn2(q[..., :12], z[..., :12], v, bound[:, :12])
    with pytest.raises(ValueError, match=r"q, z, v are torch\.float64"):
        ops.hgrn2(q.double(), z.double(), v.double(), bound)
    with pytest.raises(ValueError, match="state is"):
        ops.hgrn2_step(q[:, 0], z[:, 0], v[:, 0], bound, state.double())


def test_borders_are_the_states_before_each_chunk():
    """What the walk leaves, read directly: a wrong border could hide behind a wrong reader."""
    q, z, v, bound, state, _, _ = draw(1, 130, 1, 16, 16, "ordinary", 0.3)
    table = chunks.table_of(q, v)
    borders = torch.full((1, 3, 1, 16, 16), float("nan"))
    options = {"lengths": None, "reverse": False, "keep_last": True, "settings": table}
    last = states.chunk_states(z, v, bound, None, borders, q=None, first=state, **options)
    f, key = gate(z.double(), bound.double())
    expected = [state.double()]
    for cut in (64, 128, 130):
        _, S = gated_recurrent(
            q[:, :cut].double(), key[:, :cut], v[:, :cut].double(), f[:, :cut], state=state.double()
        )
        expected.append(S)
    found = torch.cat([borders.transpose(0, 1).flatten(0, 1), last])
    check({"S": found}, {"S": torch.cat(expected)})
