"""HGRN2: the state of HGRN1 expanded by an outer product (arXiv 2404.07904)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import PositiveInt
from torch import Tensor, nn

from hgrn2 import Activations, Impl, hgrn2, hgrn2_projected, hgrn2_step, unsupported
from hgrn2.gate import arithmetic_dtype
from hgrn2.projection import split
from mixers import fla
from mixers.base import Mixer, Operator, expect_divisor
from mixers.hgrn import HGRN, HGRNLayer, LowerBounds, with_triton
from mixers.layers import NormName, linear, no_autocast, norm
from mixers.tokens import taken


class _Form(NamedTuple):
    """One of the published forms of HGRN2's layer."""

    activations: Activations
    norm: NormName
    bias: bool
    scaled: bool
    """y is divided by the square root of the head size."""


_SILU_QUERY = Activations(query="silu", silu_value=False)
_FORMS = {
    "biased": _Form(Activations("sigmoid", silu_value=True), "layer", bias=True, scaled=False),
    "lm": _Form(_SILU_QUERY, "simple_rms", bias=False, scaled=False),
    "paper": _Form(_SILU_QUERY, "none", bias=False, scaled=False),
    "fla": _Form(_SILU_QUERY, "rms", bias=False, scaled=True),
}


class HGRN2(HGRN):
    """HGRN2: the state of HGRN1 expanded by an outer product (arXiv 2404.07904, Eq. 3)."""

    name: Literal["hgrn2"] = "hgrn2"
    impl: Literal[Impl, "fla"] = "reference"
    """Which implementation of the recurrence runs. `reference`: eager torch. `triton`: our kernels.
    `fla`: the gate in torch, then flash-linear-attention's chunk_gla at every length; it decodes by
    the recurrent kernel."""
    preset: Literal["biased", "lm", "paper", "fla"] = "biased"
    """The layer around the recurrence. `biased`: SiLU value, sigmoid query, LayerNorm, biases (the
    published modules: LRA, ImageNet, MQAR). `lm`: linear value, SiLU query, RMSNorm without
    weights, no biases (the published language model). `paper`: Eq. 3 as printed, no norm. `fla`: as
    `lm` with RMSNorm's weights and y divided by the square root of the head size, as a divided
    query makes it (flash-linear-attention). Every norm is over the whole width."""
    expand_ratio: PositiveInt = 128
    """Numbers of state for each channel, which is the size of a head."""

    @classmethod
    def variants(cls) -> list[Mixer]:
        return with_triton(
            [
                cls(preset="biased", expand_ratio=16),
                cls(preset="lm", expand_ratio=8, lower_bound="cumsum", init="normal"),
                cls(preset="paper", expand_ratio=16, lower_bound="exclusive"),
                cls(preset="fla", expand_ratio=32, init="zoology"),
            ]
        )

    def check_width(self, d_model: int) -> None:
        expect_divisor("expand_ratio", self.expand_ratio, "d_model", d_model)

    def unsupported(self, device: torch.device, dtype: torch.dtype) -> str | None:
        if self.impl == "fla":
            return fla.unsupported(self.impl, device, dtype)
        return unsupported(self.impl, device, dtype)

    def stack(
        self, d_model: int, n_layers: int, *, causal: bool, generator: torch.Generator
    ) -> list[nn.Module]:
        self.check_width(d_model)
        bounds = self.lower_bounds(d_model, n_layers, generator.device)
        return [
            HGRN2Layer(self, bounds, layer, d_model, n_layers, causal, generator)
            for layer in range(n_layers)
        ]

    def state_size(self, d_model: int, seq_len: int) -> int:
        return d_model * self.expand_ratio

    def operator(
        self,
        d_model: int,
        batch: int,
        seq_len: int,
        *,
        dtype: torch.dtype,
        generator: torch.Generator,
    ) -> Operator:
        """q, z, v [b t h k], and where there is a lower bound [h k], at one half, its own input.

        Floating-point operations: the products key (x) v and q S, 4 e d a token.
        """
        self.check_width(d_model)
        heads, e = d_model // self.expand_ratio, self.expand_ratio
        shape, device = (batch, seq_len, heads, e), generator.device
        # Cast one by one: drawn in fp32, they would take more room than the call.
        inputs = [
            torch.randn(shape, generator=generator, device=device).to(dtype) for _ in range(3)
        ]
        off = torch.zeros(heads, e, device=device)
        if self.lower_bound != "off":
            inputs.append(torch.full_like(off, 0.5))

        def run(q: Tensor, z: Tensor, v: Tensor, bound: Tensor | None = None) -> Tensor:
            if self.impl == "fla":
                return fla.hgrn2(q, z, v, bound, gate=self.gate)
            return hgrn2(q, z, v, off if bound is None else bound, impl=self.impl)[0]

        flops = 4.0 * batch * seq_len * d_model * e
        names = ("q", "z", "v", "bound")[: len(inputs)]
        return Operator(run, tuple(x.to(dtype) for x in inputs), flops, names)

    def step_operator(
        self,
        d_model: int,
        batch: int,
        context: int,
        *,
        dtype: torch.dtype,
        generator: torch.Generator,
    ) -> Operator | None:
        """q, z, v [b h k], the bound [h k], at one half, and the state [b h k v], both as a layer
        has them, in fp32; 5 operations a number of state. None for 'fla', whose step makes a new
        state."""
        impl = self.impl
        if impl == "fla":
            return None
        self.check_width(d_model)
        heads, e = d_model // self.expand_ratio, self.expand_ratio
        device = generator.device
        q, z, v = (
            torch.randn(batch, heads, e, generator=generator, device=device).to(dtype)
            for _ in range(3)
        )
        bound = torch.full((heads, e), 0.5, device=device)
        state = torch.randn(batch, heads, e, e, generator=generator, device=device)

        def run(q: Tensor, z: Tensor, v: Tensor, bound: Tensor, state: Tensor) -> Tensor:
            return hgrn2_step(q, z, v, bound, state, impl=impl)[0]

        names = ("q", "z", "v", "bound", "state")
        return Operator(run, (q, z, v, bound, state), 5.0 * batch * d_model * e, names)


class HGRN2Layer(HGRNLayer):
    """W_o norm(y), with y_t = q_t S_t and S_t = Diag(f_t) S_(t-1) + (1 - f_t) (x) v_t."""

    def __init__(
        self,
        mixer: HGRN2,
        bounds: LowerBounds | None,
        layer: int,
        d_model: int,
        n_layers: int,
        causal: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__(mixer, bounds, layer, d_model, causal)
        self.form = form = _FORMS[mixer.preset]
        self.impl: Literal[Impl, "fla"] = mixer.impl
        self.gate: fla.Gate = mixer.gate
        self.e = mixer.expand_ratio
        init = mixer.init
        # One map in the published order: value, query, forget logit.
        self.proj_in = linear(d_model, 3 * d_model, bias=form.bias, generator=generator, init=init)
        self.norm = norm(form.norm, d_model, device=generator.device)
        self.proj_out = linear(
            d_model,
            d_model,
            bias=form.bias,
            generator=generator,
            init=init,
            out_of_layers=n_layers,
        )

    def _project(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b 3 h k"]:
        return self.proj_in(x).unflatten(-1, (3, -1, self.e))

    def _bound(self, x: Tensor) -> Float[Tensor, "h k"]:
        return self.bound(x).view(-1, self.e)

    def _read_out(self, y: Float[Tensor, "*b h v"]) -> Float[Tensor, "*b d"]:
        if self.form.scaled:
            y = y * self.e**-0.5
        return self.proj_out(self.norm(y.flatten(-2)))

    def mix(
        self,
        x: Float[Tensor, "b t d"],
        lengths: Int[Tensor, " b"] | None,
        at: Int[Tensor, "b n"] | None,
    ) -> Float[Tensor, "b n d"]:
        """In both directions the states are summed before the read-out, so that a token's own term
        enters once for each, as in the published modules."""
        projection = self._project(x)
        with no_autocast(x):
            y = self.states(self._operator, projection, lengths=lengths)
        return self._read_out(taken(y, at))

    def _operator(
        self, projection: Float[Tensor, "b t 3 h k"], lengths: Tensor | None = None
    ) -> Float[Tensor, "b t h k"]:
        causal, impl, activations = self.causal, self.impl, self.form.activations
        if impl == "fla":
            q, z, v = split(projection, activations)
            bound = self._bound(z) if self.bounded else None
            return fla.hgrn2(q, z, v, bound, gate=self.gate, causal=causal, lengths=lengths)
        return hgrn2_projected(
            projection,
            self._bound(projection),
            activations,
            bidirectional=not causal,
            lengths=lengths,
            impl=impl,
        )

    def start(self, batch: int, max_len: int) -> tuple[Tensor, ...]:
        """The state [b h k v], zeros; it does not grow with `max_len`."""
        assert self.causal, "a layer that sees both directions does not decode"
        weight = self.proj_in.weight
        shape = (batch, self.d_model // self.e, self.e, self.e)
        return (torch.zeros(shape, dtype=arithmetic_dtype(weight), device=weight.device),)

    @torch.no_grad()
    def step(
        self, x: Float[Tensor, "b d"], state: tuple[Tensor, ...]
    ) -> tuple[Float[Tensor, "b d"], tuple[Tensor, ...]]:
        """One token; the state changes in place, but not by FLA."""
        q, z, v = split(self._project(x), self.form.activations)
        with no_autocast(x):
            if self.impl == "fla":
                bound = self._bound(x) if self.bounded else None
                y, S = fla.hgrn2_step(q, z, v, bound, state[0], gate=self.gate)
            else:
                y, S = hgrn2_step(q, z, v, self._bound(x), state[0], impl=self.impl)
        return self._read_out(y), (S,)
