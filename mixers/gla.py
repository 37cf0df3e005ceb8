"""Gated linear attention (arXiv 2312.06635), as flash-linear-attention's layer has it."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from hgrn2 import Impl, gla, gla_bidirectional, gla_step, unsupported
from hgrn2.gate import arithmetic_dtype, gla_log_gate
from hgrn2.kernels.settings import WIDTHS
from mixers import fla
from mixers.base import Operator
from mixers.layers import Init, linear, no_autocast, norm
from mixers.tokens import projected, taken


class GLA(fla.FLAGate):
    """Gated linear attention: a forget gate for each key channel, a free key, an output gate."""

    name: Literal["gla"] = "gla"
    impl: Literal[Impl, "fla"] = "reference"
    """Which implementation of the recurrence runs. `reference`: eager torch. `triton`: our kernels,
    for heads whose keys and values are 16, 32, 64, 128 or 256 wide. `fla`: the gate in torch, then
    flash-linear-attention's chunk_gla at every length; it decodes by the recurrent kernel."""
    n_heads: PositiveInt = 4
    """Heads, each with a state of its own."""
    expand_k: PositiveFloat = 0.5
    """Width of all keys, in units of d_model."""
    expand_v: PositiveFloat = 1.0
    """Width of all values, in units of d_model."""
    gate_rank: PositiveInt = 16
    """Rank of the map from the input to the gate's logits."""
    init: Init = "torch"
    """How the linear maps start."""

    @classmethod
    def variants(cls) -> list[GLA]:
        return [
            cls(),
            cls(n_heads=2, expand_k=1.0, expand_v=0.5, gate_rank=4, init="normal"),
            cls(n_heads=1, init="zoology"),
        ]

    def unsupported(self, device: torch.device, dtype: torch.dtype) -> str | None:
        if self.impl == "fla":
            return fla.unsupported(self.impl, device, dtype)
        return unsupported(self.impl, device, dtype)

    def check_width(self, d_model: int) -> None:
        for field, ratio in (("expand_k", self.expand_k), ("expand_v", self.expand_v)):
            width = ratio * d_model
            if width % self.n_heads:
                raise ValueError(
                    f"{field} = {ratio} and d_model = {d_model} make a width of {width:g}, which "
                    f"n_heads = {self.n_heads} does not divide; {field} * d_model should be a "
                    f"multiple of {self.n_heads}"
                )
            if self.impl == "triton" and width // self.n_heads not in WIDTHS:
                raise ValueError(
                    f"{field} = {ratio}, d_model = {d_model} and n_heads = {self.n_heads} make "
                    f"heads of {width / self.n_heads:g}; impl = 'triton' takes heads of "
                    f"{', '.join(map(str, WIDTHS))}: choose n_heads or {field} so, or another impl"
                )

    def _head_widths(self, d_model: int) -> tuple[int, int]:
        """Of one head's key and of its value."""
        self.check_width(d_model)
        return (
            round(self.expand_k * d_model) // self.n_heads,
            round(self.expand_v * d_model) // self.n_heads,
        )

    def stack(
        self, d_model: int, n_layers: int, *, causal: bool, generator: torch.Generator
    ) -> list[nn.Module]:
        k, v = self._head_widths(d_model)
        return [GLALayer(self, d_model, k, v, n_layers, causal, generator) for _ in range(n_layers)]

    def state_size(self, d_model: int, seq_len: int) -> int:
        k, v = self._head_widths(d_model)
        return self.n_heads * k * v

    def operator(
        self,
        d_model: int,
        batch: int,
        seq_len: int,
        *,
        dtype: torch.dtype,
        generator: torch.Generator,
    ) -> Operator:
        """q, key, z [b t h k] and v [b t h v], z the raw logit of the gate.

        Floating-point operations: the products key (x) v and q S, 4 h k v a token.
        """
        k, v = self._head_widths(d_model)

        def draw(width: int) -> Tensor:
            shape = (batch, seq_len, self.n_heads, width)
            return torch.randn(shape, generator=generator, device=generator.device).to(dtype)

        def run(q: Tensor, key: Tensor, z: Tensor, v: Tensor) -> Tensor:
            if self.impl == "fla":
                return fla.chunk_gla(q, key, v, fla.run_gate(self.gate, gla_log_gate, z))
            return gla(q, key, z, v, impl=self.impl)[0]

        flops = 4.0 * batch * seq_len * self.n_heads * k * v
        inputs = (draw(k), draw(k), draw(k), draw(v))
        return Operator(run, inputs, flops, ("q", "key", "z", "v"))


class GLALayer(nn.Module):
    """W_o (norm(y) * silu(gate)), the norm over each head, with y_t = q_t S_t / sqrt(k) and
    S_t = Diag(f_t) S_(t-1) + key_t (x) v_t."""

    def __init__(
        self,
        mixer: GLA,
        d_model: int,
        k: int,
        v: int,
        n_layers: int,
        causal: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.causal = causal
        self.impl: Literal[Impl, "fla"] = mixer.impl
        self.gate: fla.Gate = mixer.gate
        self.n_heads, self.k, self.v = mixer.n_heads, k, v
        keys, values = mixer.n_heads * k, mixer.n_heads * v
        init, rank = mixer.init, mixer.gate_rank
        # query, key, value, output gate
        self.widths = (keys, keys, values, values)
        self.proj_in = linear(d_model, sum(self.widths), bias=False, generator=generator, init=init)
        self.forget_in = linear(d_model, rank, bias=False, generator=generator, init=init)
        self.forget_out = linear(rank, keys, bias=True, generator=generator, init=init)
        self.norm = norm("rms", v, device=generator.device)
        self.proj_out = linear(
            values,
            d_model,
            bias=False,
            generator=generator,
            init=init,
            out_of_layers=n_layers,
        )

    def _heads(self, x: Float[Tensor, "b t n"]) -> Float[Tensor, "b t h k"]:
        return x.unflatten(-1, (self.n_heads, -1))

    def _project(
        self, x: Float[Tensor, "b t d"], at: Int[Tensor, "b n"] | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """q, key, v, the forget logit, each with its heads apart, and the output gate's logit, this
        of the tokens at `at`."""
        q, key, v, gate = projected(self.proj_in, x, self.widths, 3, at)
        z = self.forget_out(self.forget_in(x))
        q, key, v, z = (self._heads(y) for y in (q, key, v, z))
        return q, key, v, z, gate

    def _read_out(
        self, y: Float[Tensor, "b t h v"], gate: Float[Tensor, "b t n"]
    ) -> Float[Tensor, "b t d"]:
        return self.proj_out(self.norm(y).flatten(-2) * F.silu(gate))

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        *,
        lengths: Int[Tensor, " b"] | None = None,
        at: Int[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """In both directions (ours: GLA was published causal) the two states are summed before the
        read-out, as in HGRN2."""
        q, key, v, z, gate = self._project(x, at)
        scale, causal = self.k**-0.5, self.causal
        with no_autocast(x):
            if self.impl == "fla":
                log_f = fla.run_gate(self.gate, gla_log_gate, z)
                y = fla.chunk_gla(q, key, v, log_f, scale=scale, causal=causal, lengths=lengths)
            elif causal:
                y, _ = gla(q * scale, key, z, v, lengths=lengths, impl=self.impl)
            else:
                y = gla_bidirectional(q * scale, key, z, v, lengths=lengths, impl=self.impl)
        return self._read_out(taken(y, at), gate)

    def start(self, batch: int, max_len: int) -> tuple[Tensor, ...]:
        """The state [b h k v], zeros; it does not grow with `max_len`."""
        assert self.causal, "a layer that sees both directions does not decode"
        weight = self.proj_in.weight
        shape = (batch, self.n_heads, self.k, self.v)
        return (torch.zeros(shape, dtype=arithmetic_dtype(weight), device=weight.device),)

    @torch.no_grad()
    def step(
        self, x: Float[Tensor, "b d"], state: tuple[Tensor, ...]
    ) -> tuple[Float[Tensor, "b d"], tuple[Tensor, ...]]:
        """One token; the state changes in place, but not by FLA."""
        q, key, v, z, gate = self._project(x[:, None])
        scale = self.k**-0.5
        with no_autocast(x):
            if self.impl == "fla":
                log_f = fla.run_gate(self.gate, gla_log_gate, z)
                y, S = fla.step_gla(q, key, v, log_f, state[0], scale=scale)
            else:
                one = (q[:, 0] * scale, key[:, 0], z[:, 0], v[:, 0])
                y, S = gla_step(*one, state[0], impl=self.impl)
                y = y[:, None]
        return self._read_out(y, gate)[:, 0], (S,)
