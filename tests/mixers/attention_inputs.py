"""Inputs of attention's tests, its fp64 oracle, and the bar that the kernels have to pass.

The bar: an error against fp64 with the same mask, as a norm, is at most twice that of the eager
form on the same inputs in the same precision, or four roundings of every term of the sums that the
result is, where the eager form happens to be closer: a term's two factors, their product and their
sum are each rounded once. A gradient of a score is a difference of two such sums, and its terms
count. A probability is the exponential of a score, itself such a sum, less a logarithm: their
roundings are its relative error.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from mixers.attention_eager import Eager
from mixers.layers import seed_dropout

DTYPES = {
    **dict.fromkeys(("tf32x3", "tf32"), torch.float32),
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
"""Precision of the products -> of the inputs."""
# Of an operand, but of bf16 half of it, which is the tighter bar. Three tf32 products leave out
# what is below 2^-24 of either factor, and the product of what they leave of both.
ROUNDING = {"fp32": 2**-24, "tf32x3": 2**-22, "tf32": 2**-11, "fp16": 2**-11, "bf16": 2**-9}
# Of a score: 16 bits are multiplied as they are, and summed in fp32.
OF_SCORES = {**ROUNDING, "fp16": 2**-24, "bf16": 2**-24}

Attend = Callable[[Tensor], Tensor]
"""[b t 3 h k] -> [b t h k], or [b n h k] of n tokens alone"""


def generator(seed: int, device: str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def draw(
    b: int, t: int, h: int, k: int, *, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[Tensor, Tensor]:
    """The projection [b t 3 h k], and the output's gradient [b t h k]."""
    source = generator(t + k, device)
    qkv = torch.randn(b, t, 3, h, k, generator=source, device=device)
    do = torch.randn(b, t, h, k, generator=source, device=device)
    return qkv.to(dtype), do.to(dtype)


def eager(p: float, device: str = "cpu") -> Attend:
    """The form whose masks everything is to have."""
    form = Eager(p)
    seed_dropout(form, generator(1, device))
    return lambda qkv: copy.deepcopy(form)(*qkv.unbind(2), causal=True, mask=None)


def some(b: int, t: int, n: int, device: str = "cpu") -> Tensor:
    """n tokens of each row, in no order [b n]."""
    source = generator(n, device)
    return torch.rand(b, t, generator=source, device=device).argsort(1)[:, :n].contiguous()


def of(at: Tensor, x: Tensor) -> Tensor:
    """[b t ...] -> [b n ...]"""
    return x[torch.arange(len(x), device=x.device)[:, None], at]


def eager_of(at: Tensor, p: float) -> Attend:
    """`eager` of these tokens' queries."""
    form = Eager(p)
    seed_dropout(form, generator(1, at.device.type))

    def attend(qkv: Tensor) -> Tensor:
        q, k, v = qkv.unbind(2)
        return copy.deepcopy(form)(of(at, q), k, v, causal=True, mask=None, at=at)

    return attend


def results(attend: Attend, qkv: Tensor, do: Tensor) -> dict[str, Tensor]:
    leaf = qkv.clone().requires_grad_()
    o = attend(leaf)
    (gradient,) = torch.autograd.grad(o, leaf, do)
    dq, dk, dv = gradient.unbind(2)
    return {"o": o.detach(), "dq": dq, "dk": dk, "dv": dv}


def errors(attend: Attend, qkv: Tensor, do: Tensor, p: float) -> dict[str, Tensor]:
    """Against fp64, as norms, relative."""
    exact = results(eager(p, qkv.device.type), qkv.double(), do.double())
    found = results(attend, qkv, do)
    return {name: (found[name].double() - x).norm() / x.norm() for name, x in exact.items()}


def check_much_in_common(attend: Attend, qkv: Tensor, do: Tensor, p: float, precision: str) -> None:
    """With a large part common to all keys and values, which cancels in dq, errors are at most
    twice the eager form's; TF32's twice fp16's, which rounds alike. Roundings of every term are no
    bar here: the terms that cancel are all large."""
    source = generator(1, qkv.device.type)
    shared = torch.randn(2, *qkv.shape[3:], generator=source, device=qkv.device)
    small = qkv * torch.tensor([0.3, 0.3, 1.0], device=qkv.device)[:, None, None]
    qkv = torch.cat((small[:, :, :1], small[:, :, 1:] + 3 * shared), 2)
    like = "fp16" if precision == "tf32" else precision
    theirs, ours = (
        errors(form, qkv.to(DTYPES[products]), do.to(DTYPES[products]), p)
        for form, products in ((eager(p, qkv.device.type), like), (attend, precision))
    )
    for name, error in ours.items():
        allowed = 2 * theirs[name]
        assert error <= allowed, f"{name}: error {error:.1e}, allowed {allowed:.1e}"


def roundings(p: float, qkv: Tensor, do: Tensor, o: Tensor, precision: str) -> dict[str, Tensor]:
    """One rounding of each term, summed [b h t k], in fp64."""
    q, k, v = (x.transpose(1, 2).double() for x in qkv.unbind(2))
    do, o = do.transpose(1, 2).double(), o.transpose(1, 2).double()
    scale = q.shape[-1] ** -0.5
    seen = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).tril()
    S = (scale * q @ k.mT).masked_fill(~seen, -torch.inf)
    exponent = scale * q.abs() @ k.abs().mT + S.logsumexp(-1, keepdim=True).abs()
    P = S.softmax(-1) * (ROUNDING[precision] + OF_SCORES[precision] * exponent)
    form = Eager(p)
    seed_dropout(form, generator(1, q.device.type))
    D = form.dropout(torch.ones_like(P))
    dS = P * (D * (do.abs() @ v.abs().mT) + (do * o).abs().sum(-1, keepdim=True))
    return {
        "o": (P * D) @ v.abs(),
        "dq": scale * dS @ k.abs(),
        "dk": scale * dS.mT @ q.abs(),
        "dv": (P * D).mT @ do.abs(),
    }


def check(
    attend: Attend,
    qkv: Tensor,
    do: Tensor,
    p: float,
    precision: str,
    at: Tensor | None = None,
) -> None:
    """`attend`, of these tokens' queries or of all, meets the bar; its dropout has the state that
    `eager`'s starts with."""
    form, asked, spread = eager(p, qkv.device.type), do, do
    o = results(form, qkv.double(), do.double())["o"]
    if at is not None:
        form, asked = eager_of(at, p), of(at, do)
        # Rows that are not asked for have no gradient, and add no terms.
        spread = torch.zeros_like(do).scatter(1, at[..., None, None].expand(asked.shape), asked)
    found, theirs = results(attend, qkv, asked), results(form, qkv, asked)
    exact = results(form, qkv.double(), asked.double())
    terms = roundings(p, qkv, spread, o, precision)
    if at is not None:
        terms["o"] = of(at, terms["o"].transpose(1, 2))
    for name, x in exact.items():
        ours, other = ((y[name].double() - x).norm() for y in (found, theirs))
        allowed = max(2 * other, 4 * terms[name].norm())
        assert ours <= allowed, f"{name}: error {ours:.1e}, allowed {allowed:.1e}"
