"""Softmax attention (arXiv 1706.03762)."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from hgrn2 import unsupported
from mixers import sdpa
from mixers.attention_layer import SEEDED, AttentionLayer, attend_by
from mixers.attention_settings import expect_head_size
from mixers.base import Mixer, Operator, expect_divisor
from mixers.layers import Init


class Attention(Mixer):
    """Softmax attention with a cache of every key and value."""

    name: Literal["attention"] = "attention"
    impl: Literal["sdpa", sdpa.Forced, "triton", "products", "reference"] = "sdpa"
    """`sdpa`: torch's scaled_dot_product_attention, whose kernel torch picks by device, dtype and
    head size. `sdpa_flash`, `sdpa_cudnn`: that kernel of it or none; the former takes no mask, so
    it does not decode. `triton`: our kernels, causal alone, which keep no scores in memory and drop
    the probabilities that `reference` drops; it decodes as `reference`. `products`: causal and
    without rotary positions, by torch's products with gradients of our own, for heads of any width;
    it drops and decodes as `reference`. `reference`: scores, softmax and sum in eager torch."""
    n_heads: PositiveInt = 1
    """Heads; zoology's recall models have one."""
    bias: bool = True
    """Biases in both linear maps."""
    positions: Literal["none", "rope"] = "none"
    """`rope`: queries and keys turn with their position (RoFormer, arXiv 2104.09864)."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of the attention probabilities in training; not with torch's scaled_dot_product_attention."""
    init: Init = "torch"
    """How the linear maps start."""

    @model_validator(mode="after")
    def _dropout_is_seeded(self) -> Attention:
        if self.dropout and self.impl not in SEEDED:
            raise ValueError(
                f"dropout = {self.dropout} does not fit impl = {self.impl!r}, which draws from the "
                "global random state: use impl = 'triton', 'products' or 'reference', or "
                "dropout = 0"
            )
        return self

    @model_validator(mode="after")
    def _products_turn_nothing(self) -> Attention:
        if self.positions == "rope" and self.impl == "products":
            raise ValueError(
                "positions = 'rope' does not fit impl = 'products', which takes the projection as "
                "it is: use impl = 'triton', 'sdpa' or 'reference', or positions = 'none'"
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
