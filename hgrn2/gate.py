"""The tied gate of HGRN, the padding mask, and the dtype that the arithmetic runs in."""

from __future__ import annotations

import torch
from torch import Tensor


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
    bits where f is close to 1.
    """
    dtype = arithmetic_dtype(z, bound)
    z, bound = z.to(dtype), bound.to(dtype)
    free = 1 - bound
    return bound + free * torch.sigmoid(z), free * torch.sigmoid(-z)


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
