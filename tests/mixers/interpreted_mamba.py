"""Mamba's scan and convolution under Triton's interpreter, against the fp64 oracles.

Run by test_mamba_triton.py with TRITON_INTERPRET=1, which must be set before triton is imported.
mamba_inputs.py and conv_silu_inputs.py derive the bars.
"""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

from mixers import Mamba, mamba_settings, mamba_triton
from mixers import conv_silu as conv_silu_module
from mixers.conv_silu import conv_silu
from mixers.mamba_settings import FORWARD, ROWS, launch_of
from mixers.mamba_triton import selective_scan
from tests.mixers import conv_silu_inputs
from tests.mixers import test_contract as contract
from tests.mixers.mamba_inputs import (
    check,
    draw,
    generator,
    output_gradient,
    reference,
    results,
)
from tests.mixers.softplus_kernel import check_softplus

assert os.environ.get("TRITON_INTERPRET") == "1"

LENGTHS = (1, ROWS - 1, ROWS, ROWS + 1, 3 * ROWS, 3 * ROWS + 5)


# The interpreter takes seconds for a large shape: fewer lengths for those.
@pytest.mark.parametrize(
    ("t", "c", "n"),
    [
        *((t, 3, 1) for t in LENGTHS),
        *((t, 8, 4) for t in LENGTHS),
        *((t, c, n) for t in (1, ROWS, ROWS + 5) for c, n in [(32, 16), (9, 24), (2, 256)]),
        *((ROWS + 5, c, n) for c, n in [(70, 16), (16, 24)]),
    ],
)
def test_results_and_gradients(t, c, n):
    check(selective_scan, draw(2, t, c, n))


@pytest.mark.parametrize(("t", "c", "n"), [(3 * ROWS + 5, 8, 4), (ROWS, 32, 16)])
def test_results_and_gradients_in_bf16(t, c, n):
    check(selective_scan, draw(2, t, c, n, dtype=torch.bfloat16))


@pytest.mark.parametrize("shift", [-12.0, 2.0, 30.0])
def test_steps_far_below_and_above_one(shift):
    """Memory that hardly decays, and none: decays of exp(-30 n) are zeros."""
    check(selective_scan, draw(1, 20, 5, 16, shift=shift))


def test_a_small_step_has_all_its_digits():
    check_softplus("cpu")


def test_a_scan_goes_on_from_a_state():
    inputs = draw(2, 30, 5, 8)
    x, dt, A_log, B, C, D, bias = inputs
    whole, last = selective_scan(*inputs)
    state, parts = None, []
    for own in (slice(0, 11), slice(11, 12), slice(12, 30)):
        y, state = selective_scan(
            x[:, own], dt[:, own], A_log, B[:, own], C[:, own], D, bias, state=state
        )
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    torch.testing.assert_close(state, last)


@pytest.mark.parametrize(("b", "t", "c", "n"), [(1, 32, 8, 4), (2, 32, 20, 16), (1, 96, 5, 8)])
@pytest.mark.parametrize("shift", [-3.0, -8.0])
def test_segments_side_by_side(monkeypatch, b, t, c, n, shift):
    monkeypatch.setattr(mamba_settings, "GRAIN", ROWS)
    assert launch_of(b, c, n, t, FORWARD).segments == 4 or b == 2
    inputs = draw(b, t, c, n, shift=shift)
    check(selective_scan, inputs)
    # The last state, and a first one.
    x, dt, A_log, B, C, D, bias = inputs
    y, last = selective_scan(*inputs)
    state, parts = None, []
    for own in (slice(0, t // 2), slice(t // 2, t)):
        part, state = selective_scan(
            x[:, own], dt[:, own], A_log, B[:, own], C[:, own], D, bias, state=state
        )
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, 1), y)
    torch.testing.assert_close(state, last)


def test_strictly_causal_bit_for_bit():
    inputs = draw(1, 30, 5, 8)
    y, _ = selective_scan(*inputs)
    for cut in (1, ROWS, 20, 29):
        changed = [x.clone() for x in inputs]
        for place in (0, 1, 3, 4):
            changed[place][:, cut:] += 1
        found, _ = selective_scan(*changed)
        assert torch.equal(found[:, :cut], y[:, :cut])
        assert not torch.equal(found[:, cut:], y[:, cut:])


def test_views_of_any_strides():
    inputs = draw(2, 20, 6, 8)
    dy = output_gradient(inputs)
    expected = results(selective_scan, inputs, dy)
    views = [x.mT.contiguous().mT if x.ndim > 1 else x for x in inputs]
    found = results(selective_scan, views, dy.mT.contiguous().mT)
    assert all(torch.equal(x, expected[name]) for name, x in found.items())
    ones = torch.ones(()).expand(dy.shape)
    constant = results(selective_scan, inputs, ones)
    assert torch.equal(constant["dx"], results(selective_scan, inputs, ones.contiguous())["dx"])


def test_without_a_bias():
    *inputs, bias = draw(1, 10, 5, 4)
    y, _ = selective_scan(*inputs)
    assert torch.equal(y, selective_scan(*inputs, torch.zeros_like(bias))[0])


def test_gradients_of_some_inputs_alone():
    inputs = draw(1, 10, 5, 4)
    dy = output_gradient(inputs)
    leaf = inputs[3].clone().requires_grad_()
    selective_scan(*inputs[:3], leaf, *inputs[4:])[0].backward(dy)
    assert torch.equal(leaf.grad, results(selective_scan, inputs, dy)["dB"])


@pytest.mark.parametrize("shape", conv_silu_inputs.SHAPES, ids=str)
def test_the_convolution(shape):
    conv_silu_inputs.check(conv_silu_inputs.draw(*shape))


def test_the_convolution_of_any_strides():
    x, *others, dy = conv_silu_inputs.draw(2, 20, 6, 4)
    expected = conv_silu_inputs.results(conv_silu, x, *others, dy)
    views = x.mT.contiguous().mT, x.transpose(0, 1).contiguous().transpose(0, 1)
    for view in views:
        found = conv_silu_inputs.results(conv_silu, view, *others, dy.mT.contiguous().mT)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def layer(impl: str, *, causal: bool = True, **fields) -> nn.Module:
    mixer = Mamba.model_validate({"impl": impl, **fields})
    return mixer.stack(16, 2, causal=causal, generator=generator(0))[0]


def test_compiled_without_a_break():
    """A custom operator there, a plain autograd function in eager mode."""
    found = []
    x = torch.randn(2, 20, 16, generator=generator(2))
    for compiled in (False, True):
        own = layer("triton")
        run = torch.compile(own, fullgraph=True) if compiled else own
        run(x).square().sum().backward()
        with torch.no_grad():
            found.append([run(x), *(p.grad for p in own.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_a_compiler_learns_the_operators_shapes():
    inputs = draw(2, ROWS + 1, 6, 8)
    torch.library.opcheck(torch.ops.mixers.selective_scan, (*inputs, None, False))
    y, state, *kept = torch.ops.mixers.selective_scan(*inputs, None, True)
    torch.library.opcheck(torch.ops.mixers.selective_scan, (*inputs, state, False))
    x, _, A_log, B, C, D, _ = inputs
    torch.library.opcheck(torch.ops.mixers.selective_scan_backward, (x, A_log, B, C, D, *kept, y))
    leaves = [x.requires_grad_() for x in inputs]
    torch.library.opcheck(torch.ops.mixers.selective_scan, (*leaves, None, True))
    x, weight, bias, dy = conv_silu_inputs.draw(2, 9, 6, 4)
    torch.library.opcheck(conv_silu_module._compiled_backward, (x, weight, bias, dy))
    leaves = [y.detach().requires_grad_() for y in (x, weight, bias)]
    torch.library.opcheck(conv_silu_module._compiled_forward, leaves)


def test_under_autocast_tokens_are_16_bits_and_rates_are_not(monkeypatch):
    seen = []
    scan = mamba_triton.selective_scan
    monkeypatch.setattr(
        mamba_triton, "selective_scan", lambda *x, state: seen.append(x) or scan(*x, state=state)
    )
    x = torch.randn(2, 10, 16, generator=generator(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer("triton")(x)
    assert y.isfinite().all()
    dtypes = [y.dtype for y in seen[0]]
    tokens, rates = torch.bfloat16, torch.float32
    assert dtypes == [tokens, tokens, rates, tokens, tokens, rates, rates]


@pytest.mark.parametrize("shape", [(0, 12, 16), (0, 512, 16)], ids=str)
def test_no_sequence_at_all(shape):
    own, x = layer("triton"), torch.zeros(shape, requires_grad=True)
    y = own(x)
    assert y.shape == shape
    gradients = torch.autograd.grad(y.sum(), [x, *own.parameters()])
    assert all((g == 0).all() for g in gradients)


def test_no_tokens_at_all():
    """Nothing is read: what follows these tensors in memory belongs to others."""
    inputs = draw(2, 0, 32, 16)
    first = torch.randn(2, 32, 16)
    y, last = selective_scan(*inputs, state=first)
    assert y.shape == (2, 0, 32)
    assert torch.equal(last, first)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_a_step_size_without_end_spoils_what_it_would_by_the_reference():
    """Rooms beyond the last number of state are in the same sums as the others."""
    inputs = draw(1, 10, 4, 3)
    inputs[1][0, 5, 2] = torch.inf
    dy = output_gradient(inputs)
    found, expected = (results(run, inputs, dy) for run in (selective_scan, reference))
    for name, x in expected.items():
        assert torch.equal(found[name].isfinite(), x.isfinite()), name


def test_the_last_state_wants_no_gradient():
    inputs = [x.requires_grad_() for x in draw(1, 10, 4, 3)]
    y, last = selective_scan(*inputs)
    assert y.requires_grad
    assert not last.requires_grad


def test_bad_input_is_named():
    x, dt, A_log, B, C, D, bias = draw(1, 4, 3, 2)
    with pytest.raises(ValueError, match=r"B is \[1, 4, 1\]; it should be \[1, 4, 2\]"):
        selective_scan(x, dt, A_log, B[:, :, :1], C, D, bias)
    with pytest.raises(ValueError, match=r"x and A_log have 2 and 2 axes; they should have 3, 2"):
        selective_scan(x[0], dt, A_log, B, C, D, bias)
    with pytest.raises(ValueError, match=r"x and weight have 3 and 1 axes; they should have 3, 2"):
        conv_silu(x, bias, bias)
    with pytest.raises(ValueError, match=r"state is \[1, 2, 3\]; it should be \[1, 3, 2\]"):
        selective_scan(x, dt, A_log, B, C, D, bias, state=torch.zeros(1, 2, 3))
    with pytest.raises(ValueError, match=r"weight is \[4, 2\]; it should be \[3, 2\]"):
        conv_silu(x, torch.zeros(4, 2), bias)
    with pytest.raises(ValueError, match=r"takes bfloat16, .* not torch\.float64"):
        conv_silu(x.double(), torch.zeros(3, 2), bias)
    with pytest.raises(ValueError, match=r"takes bfloat16, float16 or float32, not torch\.float64"):
        selective_scan(x.double(), dt, A_log, B, C, D, bias)
    with pytest.raises(ValueError, match=r"x, dt, B, C are torch\.float32, torch\.float16.*one"):
        selective_scan(x, dt.half(), A_log, B, C, D, bias)
    state = torch.zeros(1, 3, 2)
    for wanted in (x, state):
        wanted.requires_grad_()
        with pytest.raises(ValueError, match=r"state: .*no gradients.*no_grad"):
            selective_scan(x, dt, A_log, B, C, D, bias, state=state)
        wanted.requires_grad_(False)


@pytest.mark.parametrize("causal", [True, False])
def test_padding_changes_nothing(causal):
    own = layer("triton", causal=causal)
    x, lengths = torch.randn(3, 12, 16, generator=generator(2)), torch.tensor([12, 7, 1])
    y = own(x, lengths=lengths)
    for row, n in enumerate(lengths):
        torch.testing.assert_close(own(x[row : row + 1, :n])[0], y[row, :n])


def test_steps_are_the_forward():
    own, x = layer("triton"), torch.randn(2, 12, 16, generator=generator(2))
    torch.testing.assert_close(contract.decoded(own, x), own(x))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("fields", [{}, {"d_state": 4, "d_conv": 1, "expand": 1}], ids=str)
def test_the_layer_is_the_references(causal, fields):
    x = torch.randn(2, 12, 16, generator=generator(2), requires_grad=True)
    found = []
    for impl in ("triton", "reference"):
        own = layer(impl, causal=causal, **fields)
        y = own(x)
        found.append([y, *torch.autograd.grad(y.sin().sum(), [x, *own.parameters()])])
    for ours, exact in zip(*found, strict=True):
        torch.testing.assert_close(ours, exact)


# Of what every mixer promises, what it takes the interpreter no minutes to show; all of it holds
# in fp64 for the reference, of which this layer differs by its scan.
@pytest.mark.parametrize(
    "promise",
    [contract.check_configuration, contract.check_state_size, contract.check_operator],
    ids=lambda check: check.__name__,
)
def test_contract(promise):
    promise(Mamba(impl="triton", d_state=4, expand=1))
