"""Causal softmax attention by torch's products, for heads wider than our kernels take: gradients
written by hand, so that a training step moves less than by autograd."""

from __future__ import annotations

from typing import Any, no_type_check

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hgrn2.gate import arithmetic_dtype
from mixers.layers import Dropout, kept


class Products(nn.Module):
    """`sdpa.attend` under a causal mask, with dropout of the probabilities.

    All inputs are of one dtype, that of the products: autocast does not reach the gradients'.
    """

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
        """By autograd; `at` as `attention_eager.Eager`. Raises ValueError without `causal` and with
        a mask."""
        if not causal or mask is not None:
            raise ValueError(
                f"causal = {causal} {'without' if mask is None else 'with'} a mask does not fit "
                "impl = 'products', which sees all of the past and nothing else: use causal = True "
                "without a mask, or impl = 'sdpa' or 'reference'"
            )
        p, keep = probabilities(q, k, at), self._keep(q, k, at)
        return (_weights(p, keep, self.dropout.p, v) @ v.transpose(1, 2)).transpose(1, 2)

    def packed(self, qkv: Float[Tensor, "b t 3 h k"]) -> Float[Tensor, "b t h k"]:
        """`forward` of one projection: its gradient comes in one piece too."""
        q, k, _ = qkv.unbind(2)
        return _Packed.apply(self._keep(q, k, None), self.dropout.p, qkv)

    def shared(
        self, q: Float[Tensor, "b n d"], x: Float[Tensor, "b t d"], at: Int[Tensor, "b n"]
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b n 1"]]:
        """`forward` of one head, whose keys and values both are x; and what each query's weights
        sum to, which is not 1 where some are dropped."""
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
    q: Float[Tensor, "b n h k"], k: Float[Tensor, "b t h k"], at: Int[Tensor, "b n"] | None
) -> Float[Tensor, "b h n t"]:
    """The softmax over the past keys, in fp32 (fp64 of fp64)."""
    q, k, scale = q.transpose(1, 2), k.transpose(1, 2), q.shape[-1] ** -0.5
    if q.dtype == torch.float16:
        # Scores that are scaled afterwards could pass its largest number.
        scores = (q * scale) @ k.mT
        scores = scores.to(arithmetic_dtype(scores))
    else:
        scores = q @ k.mT
        scores = scores.to(arithmetic_dtype(scores)) * scale
    token = torch.arange(k.shape[2], device=q.device)
    last = token if at is None else at[:, None]
    return scores.masked_fill(token > last[..., None], -torch.inf).softmax(-1)


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
        p = probabilities(q, k, None)
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
        products = compiled_products if torch.compiler.is_compiling() else products_of
        return None, None, products([ds, ds.mT, weights.mT], [k, q, do])


class _Shared(torch.autograd.Function):
    """x has one gradient, by one product, where autograd would add up two: [W, dS]^T [do, q].

    `no_type_check`: as `_Packed`.
    """

    @staticmethod
    @no_type_check
    def forward(ctx: Any, at: Any, keep: Any, share: Any, q: Any, x: Any) -> tuple[Tensor, Tensor]:
        p = probabilities(q[:, :, None], x[:, :, None], at)
        weights = _weights(p, keep, share, x)[:, 0]
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
        dw = (do @ x.mT + dtotal)[:, None]
        ds = _of_scores(p, keep, ctx.share, dw, q.shape[-1] ** -0.5)[:, 0]
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
