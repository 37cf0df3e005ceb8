"""BaseConv: a gated short convolution (zoology, arXiv 2312.04927).

The first layer of zoology's hybrids. It reaches a few tokens back, so it is no mixer to compare and
not in MIXERS.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from mixers.base import Mixer, Operator
from mixers.layers import Init, linear
from mixers.tokens import flip_valid, taken


class BaseConv(Mixer):
    """A depthwise convolution of the last few tokens, gated by a linear map of the token itself."""

    name: Literal["base_conv"] = "base_conv"
    impl: Literal["reference"] = "reference"
    kernel_size: PositiveInt = 3
    """Taps of the convolution."""
    init: Init = "torch"
    """How the gate's map starts. The convolution always starts as torch's own, with a fan-in of its
    taps; zoology leaves it so."""

    @classmethod
    def variants(cls) -> list[Mixer]:
        return [cls(), cls(kernel_size=1, init="normal"), cls(kernel_size=4, init="zoology")]

    def stack(
        self, d_model: int, n_layers: int, *, causal: bool, generator: torch.Generator
    ) -> list[nn.Module]:
        self.check_width(d_model)
        return [BaseConvLayer(self, d_model, causal, generator) for _ in range(n_layers)]

    def state_size(self, d_model: int, seq_len: int) -> int:
        """The tokens before the next one that its taps see; zoology counts the next one too."""
        return (self.kernel_size - 1) * d_model

    def operator(
        self,
        d_model: int,
        batch: int,
        seq_len: int,
        *,
        dtype: torch.dtype,
        generator: torch.Generator,
    ) -> Operator:
        """x and the gate [b t d], the taps [d k] and their bias [d].

        Floating-point operations: 2 a tap and 2 for the bias and the gate, a channel and token.
        """
        taps, device = self.kernel_size, generator.device
        shapes = ((batch, seq_len, d_model), (batch, seq_len, d_model), (d_model, taps), (d_model,))
        inputs = (torch.randn(shape, generator=generator, device=device) for shape in shapes)

        def run(x: Tensor, gate: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return causal_conv(F.pad(x, (0, 0, taps - 1, 0)), weight, bias) * gate

        flops = batch * seq_len * d_model * (2.0 * taps + 2.0)
        names = ("x", "gate", "weight", "bias")
        return Operator(run, tuple(x.to(dtype) for x in inputs), flops, names)


def causal_conv(
    x: Float[Tensor, "b s d"], weight: Float[Tensor, "d k"], bias: Float[Tensor, " d"]
) -> Float[Tensor, "b t d"]:
    """Each channel by its own taps, over s = t + k - 1 tokens: those before the first are in x."""
    return F.conv1d(x.mT, weight[:, None], bias, groups=weight.shape[0]).mT


class BaseConvLayer(nn.Module):
    """x + conv(x) * (W x + b)."""

    def __init__(
        self, mixer: BaseConv, d_model: int, causal: bool, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.causal = causal
        self.taps = taps = mixer.kernel_size
        device = generator.device
        self.gate = linear(d_model, d_model, bias=True, generator=generator, init=mixer.init)
        self.conv_weight = nn.Parameter(torch.empty(d_model, taps, device=device))
        self.conv_bias = nn.Parameter(torch.empty(d_model, device=device))
        with torch.no_grad():
            for parameter in (self.conv_weight, self.conv_bias):
                parameter.uniform_(-(taps**-0.5), taps**-0.5, generator=generator)

    def _from_nothing(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        before = F.pad(x, (0, 0, self.taps - 1, 0))
        return causal_conv(before, self.conv_weight, self.conv_bias)

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        *,
        lengths: Int[Tensor, " b"] | None = None,
        at: Int[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """In both directions (ours: it was published causal) the two convolutions share their taps
        and are summed before the gate."""
        y = self._from_nothing(x)
        if not self.causal:
            y = y + flip_valid(self._from_nothing(flip_valid(x, lengths)), lengths)
        x = taken(x, at)
        return x + taken(y, at) * self.gate(x)

    def start(self, batch: int, max_len: int) -> tuple[Tensor, ...]:
        """The window [b k-1 d], zeros; it does not grow with `max_len`."""
        assert self.causal, "a layer that sees both directions does not decode"
        return (self.conv_weight.new_zeros(batch, self.taps - 1, self.conv_weight.shape[0]),)

    @torch.no_grad()
    def step(
        self, x: Float[Tensor, "b d"], state: tuple[Tensor, ...]
    ) -> tuple[Float[Tensor, "b d"], tuple[Tensor, ...]]:
        """One token."""
        seen = torch.cat([state[0], x[:, None]], dim=1)
        y = causal_conv(seen, self.conv_weight, self.conv_bias)[:, 0]
        return x + y * self.gate(x), (seen[:, 1:],)
