"""The short convolution's fp64 oracle, and the bar that its kernels have to pass.

The bar: an error against fp64, as a norm, is at most twice the eager form's, which sums in fp32 and
rounds what it returns, and eight roundings of SiLU's fast exponential, which is off by 2^-22.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mixers.conv_silu import conv_silu

BAND = 8 * 2**-22
SHAPES = [
    (1, 1, 3, 4),
    (2, 5, 7, 4),
    (2, 64, 70, 4),
    (1, 66, 5, 2),
    (2, 131, 9, 1),
    (1, 130, 64, 3),
]
"""Batch, tokens, channels, taps."""


def eager(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    before = F.pad(x.to(weight.dtype), (0, 0, weight.shape[1] - 1, 0)).mT
    return F.silu(F.conv1d(before, weight[:, None], bias, groups=len(weight)).mT).to(x.dtype)


def results(run, x: Tensor, weight: Tensor, bias: Tensor, dy: Tensor) -> list[Tensor]:
    leaves = [y.detach().requires_grad_() for y in (x, weight, bias)]
    y = run(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy.to(y.dtype))]


def draw(
    b: int, t: int, c: int, k: int, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> list[Tensor]:
    """x, one half of a projection, its weight and bias in fp32, and y's gradient."""
    source = torch.Generator(device).manual_seed(b + t + c + k)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source, device=device)

    x, dy = normal(b, t, 2 * c).to(dtype), normal(b, t, c).to(dtype)
    return [x.chunk(2, -1)[1], normal(c, k), normal(c), dy]


def check(inputs: list[Tensor]) -> None:
    exact = results(eager, *(x.double() for x in inputs))
    same, found = results(eager, *inputs), results(conv_silu, *inputs)
    for index, (ours, theirs, wanted) in enumerate(zip(found, same, exact, strict=True)):
        assert ours.dtype == theirs.dtype
        off, allowed = ((x.double() - wanted).norm() for x in (ours, theirs))
        assert off <= 2 * allowed + BAND * wanted.norm(), index
