"""Inputs of the diagonal scan's tests, its fp64 oracle, and the bar that the kernels have to pass.

The bar, for every channel by itself: a result's error against fp64 is at most twice that of the
eager reference on the same inputs in the same dtype, or twice what an fp32 scan is expected to
round, where the reference happens to be closer. That is eight roundings, since a token's gate
rounds about four times, its update three times and the result once; 2 sqrt(T), since behind an open
gate the roundings of T tokens, two each, add up like a random walk; and |z|, since exp(z) comes
from 2^(z / ln 2), whose exponent is rounded at its own size. Narrower results come from fp32 and
round once. exp(i theta) is rounded once and for all: its error, up to 2^-24, has the same direction
at every token, and adds up over as many tokens as a channel remembers. A state is one number a
channel, and its terms of either sign may cancel four bits. A gradient that is a sum over time
cancels without a bound: its error is measured by the sum of its terms' sizes, of which the eager
reference too loses up to three times those roundings. The bound's terms are differences besides, of
the forget gate's gradient and the key's. What is below 1e-28 may be: exp(-z) stops at 1e-35, and
meets sums over a sequence that stay below 1e7.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hgrn2 import reference
from hgrn2.scan import diagonal_scan

ROUNDING = {torch.float32: 2**-24, torch.float16: 2**-11, torch.bfloat16: 2**-8}

SUMS = ("bound", "theta", "theta_backward")
WORSE = {"last": 16, "dstate": 16, "dbound": 16, "dtheta": 4, "dtheta_backward": 4}
NOTHING = 1e-28

# regime -> logits [b t d] from normal numbers
REGIMES = {
    "ordinary": lambda r: r,
    "spread": lambda r: 4 * r,
    "open": lambda r: r + 20,
    "wide_open": lambda r: 0 * r + 100,
    "closed": lambda r: r - 50,
    "mixture": lambda r: torch.where(r < 0, -20.0, 6.0),
    "resets": lambda r: torch.where(r < -1.5, -30.0, 8.0),
}


BOUNDS = (0.0, 1e-6, 0.1, 0.99, 1 - 1e-6)


def draw(
    b: int,
    t: int,
    d: int,
    *,
    turn: bool = False,
    regime: str | None = "ordinary",
    bound: float | None = 0.3,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, Tensor]:
    """v, z, bound, state, dh and dlast, and with `turn` theta and theta_backward.

    None: the channels take turns in all regimes, or in all bounds.
    """
    generator = torch.Generator(device).manual_seed(seed)
    pair = (2,) if turn else ()

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    z = normal(b, t, d)
    names = [*REGIMES] if regime is None else [regime]
    for i, name in enumerate(names):
        z[..., i :: len(names)] = REGIMES[name](z[..., i :: len(names)])
    bounds = torch.tensor(BOUNDS if bound is None else [bound], device=device)
    case = {
        "v": normal(b, t, d, *pair).to(dtype),
        "z": z.to(dtype),
        "bound": bounds.repeat(d)[:d].contiguous(),
        "state": normal(b, d, *pair),
        "dh": normal(b, t, d, *pair).to(dtype),
        "dlast": normal(b, d, *pair),
    }
    if turn:
        case |= {"theta": normal(d), "theta_backward": normal(d)}
    return case


def run(
    operators: Any,
    case: dict[str, Tensor],
    *,
    lengths: Tensor | None = None,
    both: bool = False,
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """Results and gradients of `operators`' hgrn1 or hgrn1_bidirectional; all inputs in `dtype`."""
    names = ("v", "z", "bound", "theta", "theta_backward" if both else "state")
    leaves = {
        name: case[name].to(dtype or case[name].dtype).clone().requires_grad_()
        for name in names
        if name in case
    }
    inputs = [leaves[name] for name in ("v", "z", "bound")]
    options = {name: x for name, x in leaves.items() if name not in ("v", "z", "bound")}
    if both:
        h = operators.hgrn1_bidirectional(*inputs, **options, lengths=lengths)
        results, loss = {"h": h}, (h * case["dh"]).sum()
    else:
        h, last = operators.hgrn1(*inputs, **options, lengths=lengths)
        results = {"h": h, "last": last}
        loss = (h * case["dh"]).sum() + (last * case["dlast"]).sum()
    loss.backward()
    results |= {f"d{name}": x.grad for name, x in leaves.items() if x.grad is not None}
    return {name: x.detach() for name, x in results.items()}


class Eager:
    """The eager reference, under the operators' names."""

    hgrn1 = staticmethod(reference.hgrn1_scan)
    hgrn1_bidirectional = staticmethod(reference.hgrn1_bidirectional)


def error(x: Tensor, true: Tensor) -> float:
    """The norm of the error over the norm of the truth."""
    assert torch.isfinite(x).all()
    return ((x.double() - true).norm() / true.norm().clamp_min(1e-30)).item()


def channel_sizes(x: Tensor, d: int, order: int = 2) -> Tensor:
    """The norm of every channel, [d]."""
    assert torch.isfinite(x).all()
    axis = next(i for i in reversed(range(x.ndim)) if x.shape[i] == d)
    return x.movedim(axis, 0).reshape(d, -1).norm(order, dim=1)


def sizes(case: dict[str, Tensor], true: dict[str, Tensor], **options: Any) -> dict[str, Tensor]:
    """What an error of each result is measured by, [d]: its own norm, or the sum of its terms'."""
    d = case["z"].shape[-1]
    alone = {name: case[name].expand_as(case["z"]) for name in SUMS if name in case}
    terms = run(Eager, case | alone, **options, dtype=torch.float64)
    norms = {name: channel_sizes(x, d) for name, x in true.items()}
    norms |= {
        name: channel_sizes(terms[name], d, order=1)
        for name in (f"d{name}" for name in SUMS)
        if name in true
    }
    return {name: size.clamp_min(1e-100) for name, size in norms.items()}


def memory(case: dict[str, Tensor]) -> Tensor:
    """How many tokens a channel remembers at most: the largest sum of products of gates, [d]."""
    bound = case["bound"].double()
    f = bound + (1 - bound) * case["z"].double().sigmoid()
    return diagonal_scan(f, torch.ones_like(f))[0].amax((0, 1))


def check(operators: Any, case: dict[str, Tensor], **options: Any) -> dict[str, Tensor]:
    """Holds the operators' results and gradients to the bar; returns them."""
    found = run(operators, case, **options)
    true = run(Eager, case, **options, dtype=torch.float64)
    eager = run(Eager, case, **options)
    assert found.keys() == true.keys()
    assert all(found[name].dtype == eager[name].dtype for name in true)
    size = sizes(case, true, **options)
    t, d = case["z"].shape[1:]
    logit = case["z"].double().abs().amax((0, 1)).clamp_max(80)
    drift = memory(case) * ROUNDING[torch.float32] if "theta" in case else 0
    for name, x in true.items():
        kind = found[name].dtype
        theirs, ours = (channel_sizes(y[name] - x, d) / size[name] for y in (eager, found))
        roundings = (
            2 * (8 + 2 * t**0.5 + logit) if kind == torch.float32 else torch.ones_like(logit)
        )
        allowed = torch.maximum(2 * theirs, roundings * ROUNDING[kind]) * WORSE.get(name, 1)
        allowed += NOTHING / size[name] + drift
        worst = (ours / allowed).topk(min(3, d))
        assert (ours <= allowed).all(), (name, *worst)
    return found
