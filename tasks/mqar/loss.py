"""The loss of a linear head: the mean cross-entropy, with logits in memory or without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, no_type_check

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

HeadLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""The mean cross-entropy of hidden [n d] @ weight [vocab d] at target [n]."""


def head_loss(*, fused: bool) -> HeadLoss:
    if not fused:
        return separate
    # Imported where it is asked for: triton is not everywhere.
    from mixers.cross_entropy import linear_cross_entropy

    return linear_cross_entropy


def separate(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """By torch, the logits kept."""
    logits = F.linear(hidden, weight)
    if torch.compiler.is_compiling():
        return cross_entropy(logits, target)
    return F.cross_entropy(logits, target)


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """The mean, in fp32 (fp64 of fp64 logits), as a compiler wants it."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return _CrossEntropy.apply(wide, target)


class _CrossEntropy(torch.autograd.Function):
    """torch's own of logits [n vocab] at target [n], none of which is ignored, but that a
    comparison tells the gradient where a target is. A compiler then forms it in one pass over the
    logits, where torch's fills a tensor of their size with zeros first and reads it again; eager
    calls would take twice torch's time.

    `no_type_check`: torch's compiler takes both functions as they are, so nothing may wrap them.
    """

    @staticmethod
    @no_type_check
    def forward(ctx: Any, logits: Any, target: Any) -> Tensor:
        # Of the logits less the largest: a small loss of large logits would lose its digits.
        top = logits.amax(-1, keepdim=True)
        total = (logits - top).exp().sum(-1, keepdim=True).log()
        ctx.save_for_backward(logits, target, top, total)
        return (total - (logits.gather(-1, target[:, None]) - top)).mean()

    @staticmethod
    @once_differentiable
    @no_type_check
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, dloss: Tensor
    ) -> tuple[Tensor, None]:
        logits, target, top, total = ctx.saved_tensors
        p = (logits - top - total).exp()
        word = torch.arange(logits.shape[1], device=logits.device)
        p = torch.where(word == target[:, None], p - 1, p)
        return p * (dloss / len(target)), None
