"""Inputs of the fused loss's tests, its fp64 oracle, and the bar that the kernels have to pass.

The bar, as for attention: an error against fp64, as a norm, is at most twice that of torch's
product and cross_entropy on the same inputs in the same precision, or four roundings of every term
of the sums that the result is, where torch happens to be closer. A probability is the exponential
of a score less a logarithm: their roundings are its relative error.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.mixers.attention_inputs import OF_SCORES, ROUNDING, generator

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""hidden [n d], weight [v d], target [n] -> the mean loss"""


def draw(
    n: int, v: int, d: int, *, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """hidden as a layer norm leaves it, a weight whose scores are of size 1, and targets."""
    source = generator(n + v + d, device)
    hidden = torch.randn(n, d, generator=source, device=device)
    weight = torch.randn(v, d, generator=source, device=device) / d**0.5
    target = torch.randint(v, (n,), generator=source, device=device)
    return hidden.to(dtype), weight, target


def separate(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """torch's own, the product in hidden's dtype and all after it in fp32 at least."""
    logits = F.linear(hidden, weight.to(hidden.dtype))
    wide = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(logits.to(wide), target)


def results(loss: Loss, hidden: Tensor, weight: Tensor, target: Tensor) -> dict[str, Tensor]:
    leaves = [x.detach().requires_grad_() for x in (hidden, weight)]
    value = loss(*leaves, target)
    dhidden, dweight = torch.autograd.grad(value, leaves)
    return {"loss": value.detach(), "dhidden": dhidden, "dweight": dweight}


def roundings(hidden: Tensor, weight: Tensor, target: Tensor, precision: str) -> dict[str, Tensor]:
    """One rounding of each term, summed, in fp64."""
    h, w = hidden.double(), weight.double()
    S, one = h @ w.T, OF_SCORES[precision]
    # The weight is rounded to the products' precision where it is not in it.
    score = (one + ROUNDING[precision]) * h.abs() @ w.abs().T
    lse = S.logsumexp(-1, keepdim=True)
    P = (S - lse).exp()
    chosen = F.one_hot(target, len(w))
    exponent = score + one * lse.abs()
    dS = (P * (exponent + ROUNDING[precision]) + chosen * ROUNDING[precision]) / len(h)
    return {
        "loss": (((P + chosen) * exponent).sum(-1)).mean(),
        "dhidden": dS @ w.abs(),
        "dweight": dS.T @ h.abs(),
    }


def check(loss: Loss, hidden: Tensor, weight: Tensor, target: Tensor, precision: str) -> None:
    """`loss` meets the bar."""
    found = results(loss, hidden, weight, target)
    theirs = results(separate, hidden, weight, target)
    exact = results(separate, hidden.double(), weight.double(), target)
    terms = roundings(hidden, weight, target, precision)
    for name, x in exact.items():
        ours, other = ((y[name].double() - x).norm() for y in (found, theirs))
        allowed = max(2 * other, 4 * terms[name].norm())
        assert ours <= allowed, f"{name}: error {ours:.1e}, allowed {allowed:.1e}"
