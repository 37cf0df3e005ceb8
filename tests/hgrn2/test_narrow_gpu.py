"""HGRN2 with few keys a head, as a scan, on a GPU against the fp64 oracle.

scan_inputs.py derives the bar.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import hgrn2
from hgrn2.gate import gate
from hgrn2.reference import gated_bidirectional, gated_recurrent
from tests.hgrn2.scan_inputs import ROUNDING, error

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
DIRECTIONS = pytest.mark.parametrize("both", [False, True], ids=["causal", "both"])


def call(q: Tensor, z: Tensor, v: Tensor, bound: Tensor, *, both: bool) -> Tensor:
    if both:
        return hgrn2.hgrn2_bidirectional(q, z, v, bound, impl="triton")
    return hgrn2.hgrn2(q, z, v, bound, impl="triton")[0]


def inputs(b: int, t: int, h: int, k: int, v: int) -> list[Tensor]:
    """q, z, v, bound, in bf16 but for the bound, with gradients."""
    generator = torch.Generator("cuda").manual_seed(k)
    shapes = [(b, t, h, k), (b, t, h, k), (b, t, h, v)]
    drawn = [torch.randn(s, generator=generator, device="cuda").bfloat16() for s in shapes]
    return [x.requires_grad_() for x in (*drawn, torch.full((h, k), 0.2, device="cuda"))]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@DIRECTIONS
@pytest.mark.parametrize(
    ("b", "k", "v"),
    [
        (2, 1, 64),
        (2, 2, 2),
        (2, 3, 5),
        (2, 4, 8),
        (2, 8, 24),
        (2, 15, 16),
        (200, 4, 4),
        (900, 4, 4),
    ],
)
def test_narrow_keys(b, k, v, both, dtype):
    """A warp alone, four that take turns in time (200), and alone again."""
    generator = torch.Generator("cuda").manual_seed(k)
    t, h = 200, 3
    shapes = [(b, t, h, k), (b, t, h, k), (b, t, h, v)]
    q, z, x = (torch.randn(s, generator=generator, device="cuda").to(dtype) for s in shapes)
    state = torch.randn(b, h, k, v, generator=generator, device="cuda")
    bound = 0.5 * torch.rand(h, k, generator=generator, device="cuda")
    lengths = torch.tensor([t, 77], device="cuda").repeat(b)[:b]
    dy = torch.randn(x.shape, generator=generator, device="cuda").to(dtype)
    leaves = [y.clone().requires_grad_() for y in (q, z, x, bound, state)]
    wide = [y.double().requires_grad_() for y in (q, z, x, bound, state)]
    f, key = gate(wide[1], wide[3])
    ours = theirs = torch.zeros((), device="cuda")
    if both:
        y = hgrn2.hgrn2_bidirectional(*leaves[:4], lengths=lengths, impl="triton")
        true = gated_bidirectional(wide[0], key, wide[2], f, lengths=lengths)
    else:
        y, last = hgrn2.hgrn2(*leaves[:4], state=leaves[4], lengths=lengths, impl="triton")
        true, end = gated_recurrent(wide[0], key, wide[2], f, state=wide[4], lengths=lengths)
        ours, theirs = ours + (last * state).sum(), theirs + (end * state).sum()
    (ours + (y * dy).sum()).backward()
    (theirs + (true * dy).sum()).backward()
    pairs = [(y, true)] + [(a.grad, c.grad) for a, c in zip(leaves, wide, strict=True)]
    for found, expected in pairs:
        if expected is not None:
            # y and each gradient are rounded once; fp32 sums of k states and t tokens besides.
            allowed = ROUNDING[dtype] + (16 + 2 * t**0.5) * 2**-24
            assert error(found.detach(), expected.detach()) <= allowed


def test_narrow_steps_continue_a_sequence():
    q, z = (torch.randn(3, 6, 2, 4, device="cuda").bfloat16() for _ in range(2))
    v = torch.randn(3, 6, 2, 10, device="cuda").bfloat16()
    bound, state = torch.full((2, 4), 0.2, device="cuda"), torch.zeros(3, 2, 4, 10, device="cuda")
    y, last = hgrn2.hgrn2(q, z, v, bound, impl="triton")
    for t in range(6):
        args = (q[:, t], z[:, t], v[:, t], bound)
        found, given = hgrn2.hgrn2_step(*args, state, impl="triton")
        assert given is state
        assert torch.equal(found, y[:, t])
    assert torch.equal(state, last)


@DIRECTIONS
@pytest.mark.parametrize(("b", "h", "k", "v"), [(2, 3, 4, 8), (2, 1, 5, 9), (200, 16, 4, 4)])
def test_the_same_bits_every_time_into_poisoned_memory(b, h, k, v, both):
    """The last group of channels is not full, or there is an odd number of groups, or all fit."""
    leaves = inputs(b, 333, h, k, v)
    y = call(*leaves, both=both)
    dy = torch.randn_like(y)
    first = [y, *torch.autograd.grad(y, leaves, dy)]
    for _ in range(3):
        poison = torch.full((1 << 27,), float("nan"), device="cuda")
        del poison
        y = call(*leaves, both=both)
        for found, expected in zip([y, *torch.autograd.grad(y, leaves, dy)], first, strict=True):
            assert torch.equal(found, expected)


@DIRECTIONS
def test_no_graph_break_and_a_graph_capture(both):
    leaves = inputs(2, 256, 8, 4, 4)
    expected = call(*leaves, both=both)
    dy = torch.randn_like(expected)
    gradients = torch.autograd.grad(expected, leaves, dy)
    found = torch.compile(call, fullgraph=True)(*leaves, both=both)
    assert torch.equal(found, expected)
    for x, y in zip(torch.autograd.grad(found, leaves, dy), gradients, strict=True):
        assert torch.equal(x, y)

    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        h = call(*leaves, both=both)
        captured = torch.autograd.grad(h, leaves, dy)
    for x in (h, *captured):
        x.detach().zero_()
    graph.replay()
    for x, y in zip((h, *captured), (expected, *gradients), strict=True):
        assert torch.equal(x, y)


@pytest.mark.usefixtures("room_on_gpu")
def test_more_than_2_31_elements():
    """The last row of a batch whose tensors hold more elements than an int32 counts."""
    small = inputs(1, 128, 512, 4, 4)
    b, t = 17, 65536
    large = [torch.zeros(b, t, 512, 4, dtype=torch.bfloat16, device="cuda") for _ in range(3)]
    for x, few in zip(large, small[:3], strict=True):
        x[-1, -128:] = few.detach()[0]
    assert large[0].numel() > 2**31
    y = call(*(x.requires_grad_() for x in large), small[3], both=False)
    expected = call(*small, both=False)
    # Other segments and warps sum in another order.
    assert error(y[-1, -128:].detach(), expected[0].detach()) <= 2**-8
    found = torch.autograd.grad(y, large, large[2].detach())
    true = torch.autograd.grad(expected, small[:3], small[2].detach())
    for x, few in zip(found, true, strict=True):
        assert error(x[-1, -128:], few[0]) <= 2**-8
