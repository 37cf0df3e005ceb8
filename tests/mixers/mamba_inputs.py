"""Inputs of the selective scan's tests, its fp64 oracle, and the bar that the kernels have to pass.

The bar: an error against fp64, as a norm, is at most twice the eager form's on the same inputs, and
eight roundings of a fast exponential, which is off by 2^-22: a state is a product of decays, each
of them one, and a gradient passes the decays of both walks. Both round what they return, in bf16
by far the most. Sums over all tokens may cancel: their band is of their terms.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mixers.mamba import selective_scan as eager_scan

BAND = 8 * 2**-22
NAMES = ("y", "last", "dx", "ddt", "dA_log", "dB", "dC", "dD", "dbias")

Scan = Callable[..., tuple[Tensor, Tensor]]
"""x, dt, A_log, B, C, D, bias -> y and the last state"""


def generator(seed: int, device: str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def draw(
    b: int,
    t: int,
    c: int,
    n: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    shift: float = -3.0,
) -> list[Tensor]:
    """x, dt, A_log, B, C, D, bias; rates and step sizes about those of a new layer, or with the
    step sizes' logits at `shift`."""
    source = generator(b + t + c + n, device)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source, device=device)

    rates = torch.arange(1, n + 1, device=device).expand(c, n) + normal(c, n).abs()
    tokens = normal(b, t, c), normal(b, t, c) + shift, normal(b, t, n), normal(b, t, n)
    x, dt, B, C = (y.to(dtype) for y in tokens)
    return [x, dt, rates.log(), B, C, normal(c), normal(c)]


def reference(
    x: Tensor, dt: Tensor, A_log: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """The eager form; the bias is added in fp32, as the kernels add it."""
    wide = torch.promote_types(dt.dtype, bias.dtype)
    return eager_scan(x, dt.to(wide) + bias.to(wide), A_log, B, C, D)


def results(scan: Scan, inputs: list[Tensor], dy: Tensor) -> dict[str, Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    y, last = scan(*leaves)
    gradients = torch.autograd.grad(y, leaves, dy.to(y.dtype))
    return dict(zip(NAMES, (y.detach(), last.detach(), *gradients), strict=True))


def output_gradient(inputs: list[Tensor]) -> Tensor:
    x = inputs[0]
    source = generator(7, x.device.type)
    return torch.randn(x.shape, generator=source, device=x.device).to(x.dtype)


def check(scan: Scan, inputs: list[Tensor]) -> None:
    dy = output_gradient(inputs)
    wide = [x.double() for x in inputs]
    exact = results(reference, wide, dy.double())
    same = results(reference, inputs, dy)
    terms = dict(exact)
    terms["dD"] = (wide[0] * dy).abs().sum((0, 1))
    terms["dbias"] = exact["ddt"].abs().sum((0, 1))
    for name, found in results(scan, inputs, dy).items():
        assert found.dtype == same[name].dtype, name
        ours, theirs = ((x[name].double() - exact[name]).norm() for x in ({name: found}, same))
        allowed = 2 * theirs + BAND * terms[name].norm()
        assert ours <= allowed, f"{name}: {ours:.1e}, allowed {allowed:.1e}"
