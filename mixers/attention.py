"""Softmax attention (arXiv 1706.03762)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from hgrn2 import unsupported
from mixers import sdpa
from mixers.attention_eager import Eager, rope
from mixers.attention_settings import expect_head_size
from mixers.base import Mixer, Operator, expect_divisor
from mixers.layers import Init, linear, multiplied
from mixers.tokens import taken, valid_tokens


class Attention(Mixer):
    """Softmax attention with a cache of every key and value."""

    name: Literal["attention"] = "attention"
    impl: Literal["sdpa", sdpa.Forced, "triton", "reference"] = "sdpa"
    """`sdpa`: torch's scaled_dot_product_attention, whose kernel torch picks by device, dtype and
    head size. `sdpa_flash`, `sdpa_cudnn`: that kernel of it or none; the former takes no mask, so
    it does not decode. `triton`: our kernels, causal alone, which keep no scores in memory and drop
    the probabilities that `reference` drops; it decodes as `reference`. `reference`: scores,
    softmax and sum in eager torch."""
    n_heads: PositiveInt = 1
    """Heads; zoology's recall models have one."""
    bias: bool = True
    """Biases in both linear maps."""
    positions: Literal["none", "rope"] = "none"
    """`rope`: queries and keys turn with their position (RoFormer, arXiv 2104.09864)."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of the attention probabilities in training; with impl = 'triton' or 'reference'."""
    init: Init = "torch"
    """How the linear maps start."""

    @model_validator(mode="after")
    def _dropout_is_seeded(self) -> Attention:
        if self.dropout and self.impl not in ("triton", "reference"):
            raise ValueError(
                f"dropout = {self.dropout} does not fit impl = {self.impl!r}, which draws from the "
                "global random state: use impl = 'triton' or 'reference', or dropout = 0"
            )
        return self

    @classmethod
    def variants(cls) -> list[Mixer]:
        return [
            cls(),
            cls(n_heads=4, bias=False, positions="rope", init="normal"),
            cls(impl="reference", n_heads=2, init="zoology"),
            cls(impl="reference", positions="rope"),
        ]

    def check_width(self, d_model: int) -> None:
        expect_divisor("n_heads", self.n_heads, "d_model", d_model)
        if self.positions == "rope" and d_model // self.n_heads % 2:
            fits = [n for n in range(1, d_model + 1) if d_model % (2 * n) == 0]
            instead = f"n_heads could be {', '.join(map(str, fits))}" if fits else "use 'none'"
            raise ValueError(
                f"positions = 'rope' turns pairs of channels, but n_heads = {self.n_heads} of "
                f"d_model = {d_model} have {d_model // self.n_heads} each; {instead}"
            )
        if self.impl == "triton":
            expect_head_size(self.n_heads, d_model)

    def unsupported(self, device: torch.device, dtype: torch.dtype) -> str | None:
        if self.impl == "sdpa_flash" or self.impl == "sdpa_cudnn":
            return sdpa.unsupported(self.impl, device, dtype)
        # Where HGRN2's kernels run, attention's do.
        return unsupported("triton", device, dtype) if self.impl == "triton" else None

    def backend(
        self,
        d_model: int,
        batch: int,
        seq_len: int,
        *,
        device: torch.device,
        dtype: torch.dtype,
        backward: bool,
    ) -> str | None:
        if self.impl == "sdpa":
            shape = (batch, seq_len, self.n_heads, d_model // self.n_heads)
            return sdpa.picked(
                torch.empty(shape, device=device, dtype=dtype, requires_grad=backward)
            )
        forced = self.impl in sdpa.BACKENDS
        return self.impl.removeprefix("sdpa_") if forced else None

    def stack(
        self, d_model: int, n_layers: int, *, causal: bool, generator: torch.Generator
    ) -> list[nn.Module]:
        self.check_width(d_model)
        return [AttentionLayer(self, d_model, n_layers, causal, generator) for _ in range(n_layers)]

    def state_size(self, d_model: int, seq_len: int) -> int:
        return 2 * d_model * seq_len

    def operator(
        self,
        d_model: int,
        batch: int,
        seq_len: int,
        *,
        dtype: torch.dtype,
        generator: torch.Generator,
    ) -> Operator:
        """q, k, v [b t h k], turned by their positions already where there are any.

        Floating-point operations: the products q k and p v of the pairs that a causal mask keeps,
        4 d a pair.
        """
        self.check_width(d_model)
        shape = (batch, seq_len, self.n_heads, d_model // self.n_heads)

        def draw() -> Tensor:
            return torch.randn(shape, generator=generator, device=generator.device).to(dtype)

        attend = attend_by(self.impl)

        def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attend(q, k, v, causal=True, mask=None)

        pairs = batch * seq_len * (seq_len + 1) / 2
        return Operator(run, (draw(), draw(), draw()), 4.0 * d_model * pairs, ("q", "k", "v"))

    def step_operator(
        self,
        d_model: int,
        batch: int,
        context: int,
        *,
        dtype: torch.dtype,
        generator: torch.Generator,
    ) -> Operator:
        """q [b h k] and the caches k, v [b s h k] of the context and the token itself; operations
        as in `operator`."""
        self.check_width(d_model)
        heads, width = self.n_heads, d_model // self.n_heads

        def draw(*shape: int) -> Tensor:
            # In its dtype at once: a cache in fp32 would not fit where this one does.
            device = generator.device
            return torch.randn(shape, generator=generator, device=device, dtype=dtype)

        attend = attend_by("reference" if self.impl == "triton" else self.impl)

        def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attend(q[:, None], k, v, causal=False, mask=None)[:, 0]

        caches = (draw(batch, context + 1, heads, width) for _ in range(2))
        flops = 4.0 * d_model * batch * (context + 1)
        return Operator(run, (draw(batch, heads, width), *caches), flops, ("q", "k", "v"))


def attend_by(impl: str, dropout: float = 0.0) -> Callable[..., Tensor]:
    """`sdpa.attend`, or what has its signature."""
    if impl == "reference":
        return Eager(dropout)
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
        if mixer.impl == "triton" and not causal:
            raise ValueError(
                "impl = 'triton' sees the past alone, but causal = False: use impl = 'sdpa' or "
                "'reference'"
            )
        self.causal, self.impl = causal, mixer.impl
        self.n_heads, self.rope = mixer.n_heads, mixer.positions == "rope"
        bias, init = mixer.bias, mixer.init
        # query, key, value
        self.proj_in = linear(d_model, 3 * d_model, bias=bias, generator=generator, init=init)
        self.attend: Any = attend_by(mixer.impl, mixer.dropout)
        # A gradient in one piece is no copy of three.
        self.packs = mixer.impl in ("triton", "reference") and causal and not self.rope
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
        if at is not None and self.impl in ("triton", "reference"):
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
        if self.packs and self.impl == "reference" and self.n_heads == 1:
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
