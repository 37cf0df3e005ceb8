"""The tied gate of HGRN, GLA's, the padding mask, and the dtype that the arithmetic runs in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

GLA_TEMPERATURE = 16
"""GLA's gate is sigmoid(z)^(1/16), which starts near 1: memory is long unless z says otherwise."""


def arithmetic_dtype(*tensors: Tensor | None) -> torch.dtype:
    """fp64 when any tensor is fp64 (or complex128), else fp32."""
    wide = (torch.float64, torch.complex128)
    found = any(x is not None and x.dtype in wide for x in tensors)
    return torch.float64 if found else torch.float32


def gate(z: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
    """HGRN's forget gate and the key tied to it, from the raw logit (arXiv 2404.07904, Eq. 3).

        f = bound + (1 - bound) sigmoid(z)        key = 1 - f = (1 - bound) sigmoid(-z)

    z [b t h k] with bound [h k], or z [b t d] with bound [d]. Returns f and key, shaped as z, in
    fp32 (fp64 for fp64 inputs). The key is never formed as 1 - f, which rounds to zero or to a few
    bits where f is close to 1; nor is its gradient.
    """
    dtype = arithmetic_dtype(z, bound)
    return _TiedGate.apply(z.to(dtype), bound.to(dtype))


class _TiedGate(torch.autograd.Function):
    """f and key. Since f + key = 1, only df - dkey matters:

        dz = (1 - bound) sigmoid(z) sigmoid(-z) (df - dkey)    dbound = sum sigmoid(-z) (df - dkey)

    autograd's own backward has 1 - sigmoid(z) in it, which is zero in fp32 from z = 18 on.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(z, bound)
        free = 1 - bound
        return torch.addcmul(bound, free, torch.sigmoid(z)), torch.neg(z).sigmoid_().mul_(free)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, df: Tensor, dkey: Tensor
    ) -> tuple[Tensor, Tensor]:
        z, bound = ctx.saved_tensors
        dclosed = (df - dkey).mul_(torch.sigmoid(-z))
        dbound = dclosed.sum_to_size(bound.shape)
        return (dclosed * torch.sigmoid(z)).mul_(1 - bound), dbound


def gla_log_gate(z: Tensor) -> Tensor:
    """log sigmoid(z) / 16 (arXiv 2312.06635, Sec. 4.4), in fp32 (fp64 for fp64 logits)."""
    return F.logsigmoid(z.to(arithmetic_dtype(z))) / GLA_TEMPERATURE


def gla_gate(z: Tensor) -> Tensor:
    """sigmoid(z)^(1/16), in fp32 (fp64 for fp64 logits)."""
    return torch.exp(gla_log_gate(z))


def valid_tokens(x: Tensor, lengths: Tensor) -> Tensor:
    """Which tokens of x [b t ...] lie before lengths [b]: a mask [b t 1 ...] that broadcasts."""
    token = torch.arange(x.shape[1], device=x.device)
    valid = token < lengths.to(x.device)[:, None]
    return valid.reshape(*valid.shape, *(1,) * (x.ndim - 2))


def mask_padding(f: Tensor, key: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Make every token at t >= lengths[b] the identity: f = 1, key = 0.

    f and key [b t ...], lengths [b].
    """
    valid = valid_tokens(f, lengths)
    return torch.where(valid, f, 1), torch.where(valid, key, 0)


def zero_padding(x: Tensor, lengths: Tensor | None) -> Tensor:
    """x [b t ...] with zeros at t >= lengths[b]; x itself where there are no lengths."""
    return x if lengths is None else torch.where(valid_tokens(x, lengths), x, 0)


def close_padding(z: Tensor, lengths: Tensor) -> Tensor:
    """The logit z [b t ...] with infinity at t >= lengths[b], where `gate` is then the identity."""
    return torch.where(valid_tokens(z, lengths), z, torch.inf)
