"""Causal softmax attention by torch's products, for heads wider than our kernels take: gradients
written by hand, so that a training step moves less than by autograd."""

from __future__ import annotations

from typing import Any, no_type_check

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from hgrn2.gate import arithmetic_dtype
from mixers.attention_eager import Eager
from mixers.layers import kept


class Products(Eager):
    """`Eager`, and two forms of it, causal, whose gradients are written by hand.

    Their inputs are of one dtype, that of the products: autocast does not reach the gradients'.
    """

    def packed(self, qkv: Float[Tensor, "b t 3 h k"]) -> Float[Tensor, "b t h k"]:
        """`forward` of one projection: its gradient comes in one piece too."""
        b, t, _, h, _ = qkv.shape
        keep = self.dropout.mask(torch.Size((b, h, t, t)), qkv.device)
        return _Packed.apply(keep, self.dropout.p, qkv)

    def shared(
        self, q: Float[Tensor, "b n d"], x: Float[Tensor, "b t d"], at: Int[Tensor, "b n"]
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b n 1"]]:
        """`forward` of one head, whose keys and values both are x; and what each query's weights
        sum to, which is not 1 where some are dropped."""
        (b, n, _), t = q.shape, x.shape[1]
        row = torch.arange(b, device=q.device)[:, None] * t + at
        keep = self.dropout.mask(torch.Size((b, n, t)), q.device, row[..., None])
        return _Shared.apply(at, keep, self.dropout.p, q, x)


def probabilities(
    q: Float[Tensor, "*b n k"], k: Float[Tensor, "*b t k"], last: Int[Tensor, "*#b n"]
) -> Float[Tensor, "*b n t"]:
    """The softmax over each query's keys up to its `last`, in fp32 (fp64 of fp64)."""
    scale = q.shape[-1] ** -0.5
    if q.dtype == torch.float16:
        # Scores that are scaled afterwards could pass its largest number.
        scores = (q * scale) @ k.mT
        scores = scores.to(arithmetic_dtype(scores))
    else:
        scores = q @ k.mT
        scores = scores.to(arithmetic_dtype(scores)) * scale
    token = torch.arange(k.shape[-2], device=q.device)
    return scores.masked_fill(token > last[..., None], -torch.inf).softmax(-1)


def _weights(p: Tensor, keep: Tensor | None, share: float, v: Tensor) -> Float[Tensor, "*b n t"]:
    """What the values are summed by, in their dtype."""
    p = p.to(v.dtype)
    return p if keep is None else kept(p, keep, share)


def _of_scores(
    p: Tensor, keep: Tensor | None, share: float, dw: Tensor, scale: float
) -> Float[Tensor, "*b n t"]:
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
        q, k, v = qkv.transpose(1, 3).unbind(2)
        p = probabilities(q, k, torch.arange(qkv.shape[1], device=qkv.device))
        weights = _weights(p, keep, share, v)
        ctx.save_for_backward(p, keep, weights, qkv)
        ctx.share = share
        return (weights @ v).transpose(1, 2)

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
        products = compiled_products if torch.compiler.is_compiling() else products_of
        return None, None, products([ds, ds.mT, weights.mT], [k, q, do])


class _Shared(torch.autograd.Function):
    """x has one gradient, by one product, where autograd would add up two: [W, dS]^T [do, q].

    `no_type_check`: as `_Packed`.
    """

    @staticmethod
    @no_type_check
    def forward(ctx: Any, at: Any, keep: Any, share: Any, q: Any, x: Any) -> tuple[Tensor, Tensor]:
        p = probabilities(q, x, at)
        weights = _weights(p, keep, share, x)
        ctx.save_for_backward(p, keep, weights, q, x)
        ctx.share = share
        # Autocast on a GPU would have the sum, and the gradient that comes for it, in fp32.
        return weights @ x, weights.sum(-1, keepdim=True, dtype=weights.dtype)

    @staticmethod
    @once_differentiable
    @no_type_check
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, do: Tensor, dtotal: Tensor
    ) -> tuple[None, None, None, Tensor, Tensor]:
        p, keep, weights, q, x = ctx.saved_tensors
        ds = _of_scores(p, keep, ctx.share, do @ x.mT + dtotal, q.shape[-1] ** -0.5)
        dx = torch.cat([weights, ds], 1).mT @ torch.cat([do, q], 1)
        return None, None, None, ds @ x, dx


@no_type_check
def side_by_side(left: list[Tensor], right: list[Tensor]) -> Tensor:
    """The place of `products_of`."""
    (b, _, n, _), (_, _, h, k) = left[0].shape, right[0].shape
    return right[0].new_empty(b, n, len(left), h, k)


@no_type_check
def products_of(left: list[Tensor], right: list[Tensor]) -> Tensor:
    """left [b h n t] @ right [b t h k], side by side for each pair: [b n pairs h k]."""
    out = side_by_side(left, right)
    for pair, (x, y) in enumerate(zip(left, right, strict=True)):
        for head in range(x.shape[1]):
            torch.bmm(x[:, head], y[:, :, head], out=out[:, :, pair, head])
    return out


compiled_products = torch.library.custom_op(
    "mixers::products_side_by_side", products_of, mutates_args=()
)
compiled_products.register_fake(side_by_side)
