"""The head's loss under a compiler is torch's."""

from __future__ import annotations

import math
from inspect import unwrap

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tasks.mqar.loss import cross_entropy, separate

# Torch's tracer stops at the type checker that tests may run under.
COMPILED = torch.compile(unwrap(separate), backend="aot_eager", fullgraph=True)


def draw(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """hidden, weight and target, the first and the last word among them, one of them twice."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(40, 16, generator=generator, dtype=torch.float64)
    weight = torch.randn(50, 16, generator=generator, dtype=torch.float64)
    target = torch.randint(50, (40,), generator=generator)
    target[:3] = torch.tensor([0, 49, 49])
    return hidden.to(dtype), weight.to(dtype), target


def results(call, hidden: Tensor, weight: Tensor, target: Tensor) -> list[Tensor]:
    leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    loss = call(*leaves, target)
    return [loss.detach(), *torch.autograd.grad(3 * loss, leaves)]


def test_the_compiled_loss_is_torchs():
    inputs = draw(torch.float64)
    for ours, exact in zip(results(COMPILED, *inputs), results(separate, *inputs), strict=True):
        assert ours.dtype == exact.dtype
        torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-14)


def test_16_bit_logits_are_summed_in_fp32():
    inputs = draw(torch.float32)
    exact = results(separate, *(x.double() if x.is_floating_point() else x for x in inputs))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = results(COMPILED, *inputs), results(separate, *inputs)
    assert ours[0].dtype == torch.float32
    for mine, baseline, truth in zip(ours, theirs, exact, strict=True):
        assert mine.dtype == baseline.dtype
        error, allowed = ((x.double() - truth).norm() for x in (mine, baseline))
        assert error <= 2 * allowed + 1e-6 * truth.norm()


def logits_of(largest: float, gap: float, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    """fp32 [n vocab], each row's target above the others by some `gap`, or below."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 97, generator=generator)
    target = torch.randint(97, (200,), generator=generator)
    row = torch.arange(200)
    logits[row, target] += gap
    return logits - logits.amax() + largest + offset, target


@pytest.mark.parametrize(
    ("largest", "gap", "offset"), [(20, 10, 0), (40, 14, 0), (100, 14, 0), (5, -8, 1e5), (0, 0, 0)]
)
def test_digits_of_small_losses_and_of_large_logits(largest: float, gap: float, offset: float):
    """As many as torch's own, against fp64 of the same logits: twice its error at most, and a
    rounding of each row's probability, which is next to 1."""
    logits, target = logits_of(largest, gap, offset)
    exact, theirs, ours = (
        with_gradient(form, x, target)
        for form, x in (
            (F.cross_entropy, logits.double()),
            (F.cross_entropy, logits),
            (unwrap(cross_entropy), logits),
        )
    )
    rounding = torch.finfo(torch.float32).eps * len(target) ** -0.5
    for mine, baseline, truth in zip(ours, theirs, exact, strict=True):
        error, allowed = ((x.double() - truth).norm() for x in (mine, baseline))
        assert error <= 2 * allowed + rounding


@pytest.mark.parametrize("odd", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("place", ["target", "other", "row"])
def test_what_is_not_finite_is_told_as_torch_tells_it(odd: float, place: str):
    logits, target = logits_of(5, 3)
    column = target[7] if place == "target" else (target[7] + 1) % 97
    logits[7, slice(None) if place == "row" else column] = odd
    ours, theirs = (
        with_gradient(f, logits, target) for f in (unwrap(cross_entropy), F.cross_entropy)
    )
    for mine, baseline in zip(ours, theirs, strict=True):
        assert torch.equal(mine.isfinite(), baseline.isfinite())


def with_gradient(form, logits: Tensor, target: Tensor) -> list[Tensor]:
    leaf = logits.clone().requires_grad_()
    loss = form(leaf, target)
    return [loss.detach(), *torch.autograd.grad(loss, leaf)]
