"""The layer around attention's implementations: its two maps, its cache, the tokens asked for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from mixers import sdpa
from mixers.attention_eager import Eager, rope
from mixers.attention_products import Products
from mixers.layers import linear, multiplied
from mixers.tokens import taken, valid_tokens

if TYPE_CHECKING:
    from mixers.attention import Attention

SEEDED = ("triton", "products", "reference")
"""Implementations whose dropout draws from the module's own state, and which form the queries of
the tokens asked for alone."""


def attend_by(impl: str, dropout: float = 0.0) -> Callable[..., Tensor]:
    """`sdpa.attend`, or what has its signature."""
    if impl == "reference":
        return Eager(dropout)
    if impl == "products":
        return Products(dropout)
    if impl == "triton":
        # Imported when first asked for: triton is not everywhere.
        from mixers.attention_triton import Fused

        return Fused(dropout)
    return partial(sdpa.attend, backend=sdpa.BACKENDS.get(impl))


class AttentionLayer(nn.Module):
    """W_o softmax(q k / sqrt(k)) v."""

    def __init__(
        self,
        mixer: Attention,
        d_model: int,
        n_layers: int,
        causal: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        if mixer.impl in ("triton", "products") and not causal:
            raise ValueError(
                f"impl = {mixer.impl!r} sees the past alone, but causal = False: use impl = 'sdpa' "
                "or 'reference'"
            )
        self.causal, self.impl = causal, mixer.impl
        self.n_heads, self.rope = mixer.n_heads, mixer.positions == "rope"
        bias, init = mixer.bias, mixer.init
        # query, key, value
        self.proj_in = linear(d_model, 3 * d_model, bias=bias, generator=generator, init=init)
        self.attend: Any = attend_by(mixer.impl, mixer.dropout)
        # A gradient in one piece is no copy of three.
        self.packs = mixer.impl in ("triton", "products") and not self.rope
        self.proj_out = linear(
            d_model, d_model, bias=bias, generator=generator, init=init, out_of_layers=n_layers
        )

    def _project(
        self, x: Float[Tensor, "b t d"], position: Int[Tensor, " t"]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v, each [b t h k]."""
        q, k, v = self.proj_in(x).unflatten(-1, (3, self.n_heads, -1)).unbind(2)
        if self.rope:
            q, k = rope(q, position), rope(k, position)
        return q, k, v

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        *,
        lengths: Int[Tensor, " b"] | None = None,
        at: Int[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        mask = None
        # Under a causal mask no valid token reaches the padding on its right.
        if lengths is not None and not self.causal:
            # A row without any token sees its first one: no key at all would make it NaN.
            mask = valid_tokens(lengths.clamp(min=1), x.shape[1])
        if at is not None and self.impl in SEEDED:
            y = self._attend_from(x, at, mask)
        else:
            y = taken(self._attend(x, mask), at)
        return self.proj_out(y.flatten(-2))

    def _attend(
        self, x: Float[Tensor, "b t d"], mask: Bool[Tensor, "#b t"] | None
    ) -> Float[Tensor, "b t h k"]:
        if self.packs:
            return self.attend.packed(self.proj_in(x).unflatten(-1, (3, self.n_heads, -1)))
        q, k, v = self._project(x, torch.arange(x.shape[1], device=x.device))
        return self.attend(q, k, v, causal=self.causal, mask=mask)

    def _attend_from(
        self,
        x: Float[Tensor, "b t d"],
        at: Int[Tensor, "b n"],
        mask: Bool[Tensor, "#b t"] | None,
    ) -> Float[Tensor, "b n h k"]:
        """Queries of the tokens at `at` alone."""
        x = multiplied(x)
        d, bias = x.shape[-1], self.proj_in.bias
        weights = self.proj_in.weight.split((d, 2 * d))
        biases = (None, None) if bias is None else bias.split((d, 2 * d))
        q = F.linear(taken(x, at), weights[0], biases[0])
        if self.impl == "products" and self.n_heads == 1:
            return self._attend_to_stream(q, x, at)[:, :, None]
        q = q.unflatten(-1, (self.n_heads, -1))
        kv = F.linear(x, weights[1], biases[1]).unflatten(-1, (2, self.n_heads, -1))
        if self.packs and self.impl == "triton":
            return self.attend.packed(q, kv, at=at)
        k, v = kv.unbind(2)
        if self.rope:
            q, k = rope(q, at), rope(k, torch.arange(x.shape[1], device=x.device))
        return self.attend(q, k, v, causal=self.causal, mask=mask, at=at)

    def _attend_to_stream(
        self, q: Float[Tensor, "b n d"], x: Float[Tensor, "b t d"], at: Int[Tensor, "b n"]
    ) -> Float[Tensor, "b n d"]:
        """With one head the maps of keys and of values move to the few queries' side (as in
        DeepSeek-V2's latent attention, arXiv 2405.04434): no key and no value is formed.

        q (W_k x + b_k) = (W_k^T q) x + q b_k, of which the last is the same for every key: the
        softmax does not see it. And sum w (W_v x + b_v) = W_v (sum w x) + b_v sum w.
        """
        _, key, value = self.proj_in.weight.chunk(3)
        y, total = self.attend.shared(F.linear(q, key.mT), x, at)
        y = F.linear(y, value)
        bias = self.proj_in.bias
        return y if bias is None else y + total * bias.chunk(3)[2].to(y.dtype)

    def start(self, batch: int, max_len: int) -> tuple[Tensor, ...]:
        """The caches of keys and values [b max_len h k], zeros, and the next position [1]."""
        assert self.causal, "a layer that sees both directions does not decode"
        weight = self.proj_in.weight
        shape = (batch, max_len, self.n_heads, weight.shape[1] // self.n_heads)
        position = torch.zeros(1, dtype=torch.int64, device=weight.device)
        return weight.new_zeros(shape), weight.new_zeros(shape), position

    @torch.no_grad()
    def step(
        self, x: Float[Tensor, "b d"], state: tuple[Tensor, ...]
    ) -> tuple[Float[Tensor, "b d"], tuple[Tensor, ...]]:
        """One token, over the whole cache with what is still empty masked, so that shapes never
        change; the caches change in place. Raises IndexError past `max_len`, on a CPU."""
        keys, values, position = state
        q, k, v = self._project(x[:, None], position)
        keys.index_copy_(1, position, k)
        values.index_copy_(1, position, v)
        mask = torch.arange(keys.shape[1], device=x.device)[None] <= position
        attend = attend_by("reference") if self.impl == "triton" else self.attend
        y = attend(q, keys, values, causal=False, mask=mask)
        return self.proj_out(y[:, 0].flatten(-2)), (keys, values, position + 1)
