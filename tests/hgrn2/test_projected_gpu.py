"""HGRN2's operator on a projection, on a GPU against the fp64 oracle, by test_triton_gpu's bar."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import hgrn2
from hgrn2 import Activations
from tests.hgrn2.test_triton_gpu import TOLERANCE, WORSE

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

LM, BIASED = Activations("silu", silu_value=False), Activations("sigmoid", silu_value=True)
KINDS = pytest.mark.parametrize("activations", [LM, BIASED], ids=["lm", "biased"])
GATES = pytest.mark.parametrize("closed", [False, True], ids=["open", "closed"])
DIRECTIONS = pytest.mark.parametrize("both", [False, True], ids=["causal", "both"])


def draw(b: int, t: int, h: int, k: int, dtype: torch.dtype, *, closed: bool = False):
    """x, bound and dy; closed: every chunk is deep."""
    generator = torch.Generator("cuda").manual_seed(k)
    x = torch.randn(b, t, 3, h, k, generator=generator, device="cuda")
    x[:, :, 2] -= 3 * closed
    dy = torch.randn(b, t, h, k, generator=generator, device="cuda")
    return x.to(dtype), torch.full((h, k), 0.05 if closed else 0.3, device="cuda"), dy.to(dtype)


def run(x: Tensor, bound: Tensor, dy: Tensor, impl: hgrn2.Impl, **options) -> dict[str, Tensor]:
    x, bound = x.clone().requires_grad_(), bound.clone().requires_grad_()
    activations = options.pop("activations")
    y = hgrn2.hgrn2_projected(x, bound, activations, impl=impl, **options)
    dx, dbound = torch.autograd.grad(y, (x, bound), dy)
    dv, dq, dz = dx.unbind(2)
    return {"y": y.detach(), "dv": dv, "dq": dq, "dz": dz, "dbound": dbound}


@KINDS
@DIRECTIONS
@GATES
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("k", [16, 32, 64, 128, 256])
def test_every_width_and_dtype(k, dtype, closed, both, activations):
    case = draw(2, 200, 2, k, dtype, closed=closed)
    options = {
        "activations": activations,
        "bidirectional": both,
        "lengths": torch.tensor([200, 70], device="cuda"),
    }
    found = run(*case, "triton", **options)
    expected = run(*(x.double() for x in case), "reference", **options)
    for name, true in expected.items():
        error = (found[name].double() - true).norm() / true.norm()
        assert error <= TOLERANCE[dtype] * WORSE.get(name, 1), (name, error)


@KINDS
@DIRECTIONS
@GATES
def test_the_same_bits_every_time_into_poisoned_memory(closed, both, activations):
    case = draw(2, 700, 4, 128, torch.bfloat16, closed=closed)
    options = {"activations": activations, "bidirectional": both}
    first = run(*case, "triton", **options)
    for _ in range(3):
        poison = torch.full((1 << 27,), float("nan"), device="cuda")
        del poison
        for name, x in run(*case, "triton", **options).items():
            assert torch.equal(x, first[name]), name


@KINDS
def test_compiled_and_captured(activations):
    x, bound, dy = draw(2, 256, 2, 64, torch.bfloat16)

    def call(x: Tensor, bound: Tensor) -> Tensor:
        return hgrn2.hgrn2_projected(x, bound, activations, impl="triton")

    def gradients(y: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(y, leaves, dy)

    leaves = [x.requires_grad_(), bound.requires_grad_()]
    y = call(*leaves)
    expected = (y, *gradients(y, leaves))
    compiled = torch.compile(call, fullgraph=True)(*leaves)
    found = (compiled, *gradients(compiled, leaves))
    for mine, theirs in zip(found, expected, strict=True):
        # The compiler's activations are not torch's to the last bit.
        error = (mine.double() - theirs.double()).norm() / theirs.double().norm()
        assert error <= TOLERANCE[torch.bfloat16]

    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = call(*leaves)
        captured = (y, *gradients(y, leaves))
    for tensor in captured:
        tensor.detach().zero_()
    graph.replay()
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(captured, expected, strict=True))


@pytest.mark.usefixtures("room_on_gpu")
def test_more_than_2_31_elements():
    """The last row of a projection that holds more elements than an int32 counts."""
    b, t, h, k = 6, 65536, 16, 128
    small, bound, dy_small = draw(1, 128, h, k, torch.bfloat16)
    x = torch.zeros(b, t, 3, h, k, dtype=torch.bfloat16, device="cuda")
    dy = torch.zeros(b, t, h, k, dtype=torch.bfloat16, device="cuda")
    x[-1, -128:], dy[-1, -128:] = small[0], dy_small[0]
    assert x.numel() > 2**31
    found = run(x, bound, dy, "triton", activations=LM)
    expected = run(small, bound, dy_small, "triton", activations=LM)
    for name in ("y", "dq", "dz", "dv"):
        assert torch.equal(found[name][-1, -128:], expected[name][0]), name
