"""Softmax attention in eager torch, with dropout of the probabilities, and rotary positions."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hgrn2.gate import arithmetic_dtype
from mixers.layers import Dropout

ROPE_BASE = 10_000


def rope(x: Float[Tensor, "b t h k"], position: Int[Tensor, "*#b t"]) -> Float[Tensor, "b t h k"]:
    """Turn each pair of channels (i, i + k/2) by position * 10000^(-2i/k) radians."""
    half = x.shape[-1] // 2
    i = torch.arange(half, dtype=torch.float64, device=x.device)
    # fp64: at position 10^5 an fp32 angle is off by up to 0.004
    angle = position[..., None, None] * ROPE_BASE ** (-i / half)
    dtype = arithmetic_dtype(x)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    left, right = x.to(dtype).chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1).to(x.dtype)


class Eager(nn.Module):
    """`sdpa.attend`, with dropout of the probabilities."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)

    def forward(
        self,
        q: Float[Tensor, "b n h k"],
        k: Float[Tensor, "b t h k"],
        v: Float[Tensor, "b t h k"],
        *,
        causal: bool,
        mask: Bool[Tensor, "#b t"] | None,
        at: Int[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b n h k"]:
        """`at`: which of the t tokens the queries are of; None: of all, or, where not `causal`, of
        any. The probabilities that drop are those of the same tokens among all."""
        t = k.shape[1]
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        scores = (q * q.shape[-1] ** -0.5) @ k.mT
        if causal:
            token = torch.arange(t, device=q.device)
            last = token if at is None else at[:, None]
            scores = scores.masked_fill(token > last[..., None], -torch.inf)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None], -torch.inf)
        p = scores.softmax(-1, dtype=arithmetic_dtype(scores)).to(v.dtype)
        row = None
        if at is not None:
            b, h = p.shape[:2]
            first = torch.arange(b * h, device=q.device).view(b, h, 1, 1) * t
            row = first + at[:, None, :, None]
        return (self.dropout(p, row) @ v).transpose(1, 2)
