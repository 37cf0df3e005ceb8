"""HGRN1's Triton scan on a GPU against the fp64 oracle.

scan_inputs.py derives the bar.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import hgrn2
from tests.hgrn2.scan_inputs import Eager, check, draw, error, run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def hgrn1(v: Tensor, z: Tensor, bound: Tensor, **options) -> tuple[Tensor, Tensor]:
    return hgrn2.hgrn1(v, z, bound, impl="triton", **options)


def hgrn1_bidirectional(v: Tensor, z: Tensor, bound: Tensor, **options) -> Tensor:
    return hgrn2.hgrn1_bidirectional(v, z, bound, impl="triton", **options)


TRITON = SimpleNamespace(hgrn1=hgrn1, hgrn1_bidirectional=hgrn1_bidirectional)
KINDS = pytest.mark.parametrize("turn", [False, True], ids=["real", "complex"])
DIRECTIONS = pytest.mark.parametrize("both", [False, True], ids=["causal", "both"])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@KINDS
@DIRECTIONS
@pytest.mark.parametrize(("b", "d"), [(2, 70), (4, 1536), (16, 2048)])
def test_every_entry_of_the_table(b, d, turn, both, dtype):
    """Over segments, with four warps, and with one."""
    case = draw(b, 300, d, turn=turn, dtype=dtype, device="cuda")
    check(TRITON, case, both=both)


@KINDS
@pytest.mark.parametrize("t", [1, 2, 15, 16, 17, 63, 64, 65, 100, 127, 128, 129, 1000, 8191, 16384])
def test_every_length(t, turn):
    check(TRITON, draw(1, t, 64, turn=turn, dtype=torch.bfloat16, device="cuda"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@KINDS
@DIRECTIONS
def test_every_gate_and_bound(turn, both, dtype):
    """35 channels: every regime with every bound. fp16 holds no logit below -65504 and no gradient
    below 6e-8, where all that is asked is a result that is finite."""
    case = draw(2, 200, 35, turn=turn, regime=None, bound=None, dtype=dtype, device="cuda")
    if dtype == torch.float16:
        assert all(x.isfinite().all() for x in run(TRITON, case, both=both).values())
    else:
        check(TRITON, case, both=both)


@pytest.mark.parametrize("seed", range(16))
def test_random_shapes_lengths_and_directions(seed):
    generator = torch.Generator().manual_seed(seed)

    def pick(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    b, t, d = pick(1, 5), pick(1, 700), pick(1, 300)
    turn, both, dtype = bool(seed & 1), bool(seed & 2), DTYPES[seed % 3]
    case = draw(b, t, d, turn=turn, regime="spread", dtype=dtype, seed=seed, device="cuda")
    lengths = torch.randint(0, t + 1, (b,), generator=generator).cuda()
    found = check(TRITON, case, both=both, lengths=lengths)
    for row, length in enumerate(lengths.tolist()):
        assert all(not found[name][row, length:].any() for name in ("h", "dv", "dz"))


@KINDS
@pytest.mark.parametrize("b", [1, 5, 16])
def test_strictly_causal_bit_for_bit(b, turn):
    """Over segments, with four warps and with one."""
    case = draw(b, 700, 2048, turn=turn, dtype=torch.bfloat16, device="cuda")
    v, z, bound, theta = (case.get(name) for name in ("v", "z", "bound", "theta"))
    h, _ = hgrn1(v, z, bound, theta=theta)
    for cut in (1, 16, 100, 128, 511, 699):
        changed, other = z.clone(), v.clone()
        changed[:, cut:], other[:, cut:] = -60.0, 7.0
        found, _ = hgrn1(other, changed, bound, theta=theta)
        assert torch.equal(found[:, :cut], h[:, :cut]), cut


@KINDS
@DIRECTIONS
@pytest.mark.parametrize("b", [1, 5, 16])
def test_the_same_bits_every_time_into_poisoned_memory(b, turn, both):
    case = draw(b, 700, 2048, turn=turn, dtype=torch.bfloat16, device="cuda")
    lengths = torch.full((b,), 333, device="cuda")
    first = run(TRITON, case, both=both, lengths=lengths)
    for _ in range(3):
        poison = torch.full((1 << 28,), float("nan"), device="cuda")
        del poison
        for name, x in run(TRITON, case, both=both, lengths=lengths).items():
            assert torch.equal(x, first[name]), name


def test_strided_views_of_one_projection():
    fused = torch.randn(2, 300, 3 * 64, device="cuda").bfloat16()
    bound = torch.full((64,), 0.2, device="cuda")
    v, z, _ = fused.split(64, -1)
    found, _ = hgrn1(v, z, bound)
    expected, _ = hgrn1(v.contiguous(), z.contiguous(), bound)
    assert torch.equal(found, expected)


def test_imaginary_parts_in_a_plane_of_their_own():
    case = draw(2, 300, 64, turn=True, dtype=torch.bfloat16, device="cuda")
    planes = {**case, **{name: case[name].mT.contiguous().mT for name in ("v", "dh")}}
    found, expected = run(TRITON, planes), run(TRITON, case)
    assert all(torch.equal(x, expected[name]) for name, x in found.items())


@KINDS
@DIRECTIONS
def test_no_graph_break_and_a_graph_capture(turn, both):
    case = draw(2, 256, 64, turn=turn, dtype=torch.bfloat16, device="cuda")
    theta = case.get("theta")
    leaves = [case[name].requires_grad_() for name in ("v", "z", "bound")]

    def call(v: Tensor, z: Tensor, bound: Tensor) -> Tensor:
        if both:
            return hgrn1_bidirectional(v, z, bound, theta=theta)
        return hgrn1(v, z, bound, theta=theta)[0]

    expected = call(*leaves)
    gradients = torch.autograd.grad(expected, leaves, case["dh"])
    found = torch.compile(call, fullgraph=True)(*leaves)
    assert torch.equal(found, expected)
    for x, y in zip(torch.autograd.grad(found, leaves, case["dh"]), gradients, strict=True):
        assert torch.equal(x, y)

    # New ones: a leaf accumulates on the stream where it was first used.
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        h = call(*leaves)
        captured = torch.autograd.grad(h, leaves, case["dh"])
    for x in (h, *captured):
        x.detach().zero_()
    graph.replay()
    for x, y in zip((h, *captured), (expected, *gradients), strict=True):
        assert torch.equal(x, y)


@pytest.mark.usefixtures("room_on_gpu")
def test_more_than_2_31_elements():
    """The last row of a batch whose tensors hold more elements than an int32 counts."""
    b, t, d = 17, 65536, 2048
    small = draw(1, 128, d, dtype=torch.bfloat16, device="cuda")
    v, z = (torch.zeros(b, t, d, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    v[-1, -128:], z[-1, -128:] = small["v"][0], small["z"][0]
    assert v.numel() > 2**31
    leaves = [v.requires_grad_(), z.requires_grad_(), small["bound"].requires_grad_()]
    h, _ = hgrn1(*leaves)
    expected, _ = hgrn1(small["v"], small["z"], small["bound"])
    assert torch.equal(h[-1, -128:], expected[0])
    dv, dz, _ = torch.autograd.grad(h, leaves, v.detach())
    ours = [small[name].requires_grad_() for name in ("v", "z", "bound")]
    true = torch.autograd.grad(hgrn1(*ours)[0], ours, small["v"].detach())
    assert torch.equal(dv[-1, -128:], true[0][0])
    assert torch.equal(dz[-1, -128:], true[1][0])


@KINDS
@pytest.mark.parametrize("b", [1, 3])
def test_no_drift_over_a_long_sequence(b, turn):
    """Almost open gates over 131,072 tokens: an error in f would add up."""
    case = draw(b, 131072, 48, turn=turn, dtype=torch.bfloat16, device="cuda")
    case["z"] = (0.5 * case["z"].float() + 12).to(torch.bfloat16)
    case["bound"] = 0 * case["bound"]
    check(TRITON, case)


def test_nothing_kept_without_gradients_is_the_same():
    case = draw(2, 300, 64, dtype=torch.bfloat16, device="cuda")
    leaves = [case[name].clone().requires_grad_() for name in ("v", "z", "bound")]
    with torch.no_grad():
        bare, _ = hgrn1(*leaves)
    assert torch.equal(bare, hgrn1(*leaves)[0])
    assert error(bare, Eager.hgrn1(*(x.detach().double() for x in leaves))[0]) <= 2**-8
