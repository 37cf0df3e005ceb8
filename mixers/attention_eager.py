"""Softmax attention by torch's products, with dropout of the probabilities; rotary positions."""

from __future__ import annotations

from typing import Any, no_type_check

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hgrn2.gate import arithmetic_dtype
from mixers.layers import Dropout, kept

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
        keep = self._keep(q, k, at)
        p = probabilities(q, k, causal=causal, mask=mask, at=at)
        return _weights(p, keep, self.dropout.p, v).matmul(v.transpose(1, 2)).transpose(1, 2)

    def packed(self, qkv: Float[Tensor, "b t 3 h k"]) -> Float[Tensor, "b t h k"]:
        """`forward`, causal, of one projection: its gradient comes in one piece too."""
        q, k, _ = qkv.unbind(2)
        return _Packed.apply(self._keep(q, k, None), self.dropout.p, qkv)

    def shared(
        self, q: Float[Tensor, "b n d"], x: Float[Tensor, "b t d"], at: Int[Tensor, "b n"]
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b n 1"]]:
        """`forward`, causal, of one head, whose keys and values both are x; and what each query's
        weights sum to, which is not 1 where some are dropped."""
        keep = self._keep(q[:, :, None], x[:, :, None], at)
        return _Shared.apply(at, keep, self.dropout.p, q, x)

    def _keep(self, q: Tensor, k: Tensor, at: Tensor | None) -> Bool[Tensor, "b h n t"] | None:
        (b, n, h, _), t = q.shape, k.shape[1]
        row = None
        if at is not None:
            first = torch.arange(b * h, device=q.device).view(b, h, 1, 1) * t
            row = first + at[:, None, :, None]
        return self.dropout.mask(torch.Size((b, h, n, t)), q.device, row)


def probabilities(
    q: Float[Tensor, "b n h k"],
    k: Float[Tensor, "b t h k"],
    *,
    causal: bool,
    mask: Bool[Tensor, "#b t"] | None,
    at: Int[Tensor, "b n"] | None,
) -> Float[Tensor, "b h n t"]:
    """The softmax over the keys, in fp32 (fp64 of fp64); arguments as `Eager`."""
    q, k, scale = q.transpose(1, 2), k.transpose(1, 2), q.shape[-1] ** -0.5
    if q.dtype == torch.float16:
        # Scores that are scaled afterwards could pass its largest number.
        scores = (q * scale) @ k.mT
        scores = scores.to(arithmetic_dtype(scores))
    else:
        scores = q @ k.mT
        scores = scores.to(arithmetic_dtype(scores)) * scale
    if causal:
        token = torch.arange(k.shape[2], device=q.device)
        last = token if at is None else at[:, None]
        scores = scores.masked_fill(token > last[..., None], -torch.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None], -torch.inf)
    return scores.softmax(-1)


def _weights(p: Tensor, keep: Tensor | None, share: float, v: Tensor) -> Float[Tensor, "b h n t"]:
    """What the values are summed by, in their dtype."""
    p = p.to(v.dtype)
    return p if keep is None else kept(p, keep, share)


def _of_scores(
    p: Tensor, keep: Tensor | None, share: float, dw: Tensor, scale: float
) -> Float[Tensor, "b h n t"]:
    """The gradient of unscaled scores, of that of the weights, in its dtype."""
    dp = dw if keep is None else kept(dw, keep, share)
    return (p * (dp - (p * dp).sum(-1, keepdim=True)) * scale).to(dw.dtype)


class _Packed(torch.autograd.Function):
    """Autograd's own gradients of q, k and v would be stacked by a copy of all three, and k's would
    come in columns. With W the weights, o = W v, and dS the scores' gradient,

        dq = dS k,  dk = dS^T q,  dv = W^T do

    `no_type_check`: torch's compiler takes both functions as they are, so nothing may wrap them.
    """

    @staticmethod
    @no_type_check
    def forward(ctx: Any, keep: Any, share: Any, qkv: Any) -> Tensor:
        q, k, v = qkv.unbind(2)
        p = probabilities(q, k, causal=True, mask=None, at=None)
        weights = _weights(p, keep, share, v)
        ctx.save_for_backward(p, keep, weights, qkv)
        ctx.share = share
        return (weights @ v.transpose(1, 2)).transpose(1, 2)

    @staticmethod
    @once_differentiable
    @no_type_check
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, do: Tensor
    ) -> tuple[None, None, Tensor]:
        p, keep, weights, qkv = ctx.saved_tensors
        q, k, v = qkv.unbind(2)
        dw = do.transpose(1, 2) @ v.permute(0, 2, 3, 1)
        ds = _of_scores(p, keep, ctx.share, dw, q.shape[-1] ** -0.5)
        products = _compiled_products if torch.compiler.is_compiling() else _products
        return None, None, products([ds, ds.mT, weights.mT], [k, q, do])


class _Shared(torch.autograd.Function):
    """x has one gradient, by one product, where autograd would add up two: [W, dS]^T [do, q].

    `no_type_check`: as `_Packed`.
    """

    @staticmethod
    @no_type_check
    def forward(ctx: Any, at: Any, keep: Any, share: Any, q: Any, x: Any) -> tuple[Tensor, Tensor]:
        p = probabilities(q[:, :, None], x[:, :, None], causal=True, mask=None, at=at)
        weights = _weights(p, keep, share, x)[:, 0]
        ctx.save_for_backward(p, keep, weights, q, x)
        ctx.share = share
        return weights @ x, weights.sum(-1, keepdim=True)

    @staticmethod
    @once_differentiable
    @no_type_check
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, do: Tensor, dtotal: Tensor
    ) -> tuple[None, None, None, Tensor, Tensor]:
        p, keep, weights, q, x = ctx.saved_tensors
        dw = (do @ x.mT + dtotal)[:, None]
        ds = _of_scores(p, keep, ctx.share, dw, q.shape[-1] ** -0.5)[:, 0]
        dx = torch.cat([weights, ds], 1).mT @ torch.cat([do, q], 1)
        return None, None, None, ds @ x, dx


@no_type_check
def _products(left: list[Tensor], right: list[Tensor]) -> Tensor:
    """left [b h n t] @ right [b t h k], side by side for each pair: [b n pairs h k]."""
    out = _products_fake(left, right)
    for pair, (x, y) in enumerate(zip(left, right, strict=True)):
        for head in range(x.shape[1]):
            torch.bmm(x[:, head], y[:, :, head], out=out[:, :, pair, head])
    return out


_compiled_products = torch.library.custom_op(
    "mixers::products_side_by_side", _products, mutates_args=()
)


@_compiled_products.register_fake
@no_type_check
def _products_fake(left: list[Tensor], right: list[Tensor]) -> Tensor:
    (b, _, n, _), (_, _, h, k) = left[0].shape, right[0].shape
    return right[0].new_empty(b, n, len(left), h, k)
