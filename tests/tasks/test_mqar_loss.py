"""The head's loss under a compiler is torch's."""

from __future__ import annotations

from inspect import unwrap

import torch
from torch import Tensor

from tasks.mqar.loss import separate

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
