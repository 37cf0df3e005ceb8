"""HGRN1: an element-wise gated recurrence, real or complex (arXiv 2311.04823)."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from hgrn2 import Impl, hgrn1, hgrn1_bidirectional, unsupported
from hgrn2.gate import arithmetic_dtype
from mixers import fla
from mixers.base import Mixer, Operator
from mixers.hgrn import HGRN, HGRNLayer, LowerBounds, with_triton
from mixers.layers import linear, norm
from mixers.tokens import projected, taken


class HGRN1(HGRN):
    """HGRN1: an element-wise recurrence, real or complex (arXiv 2311.04823)."""

    name: Literal["hgrn1"] = "hgrn1"
    impl: Literal[Impl, fla.Kernel] = "reference"
    """Which implementation of the recurrence runs. `reference`: eager torch. `triton`: our kernels.
    `fla_chunk`, `fla_recurrent`: the gate in torch, then flash-linear-attention's chunk_hgrn or
    fused_recurrent_hgrn at every length, for a real cell; both decode by the latter."""
    kind: Literal["real", "complex"] = "complex"
    """`complex`: the state turns by a learnable angle a step; LayerNorm, then a SiLU gate (the
    published cell). `real`: a sigmoid gate, then LayerNorm (HGRN2's Table 1)."""
    expand: PositiveInt = 1
    """Numbers of state for each channel of a real cell."""
    bias: bool = True
    """Biases in all linear maps."""
    separate_theta: bool = False
    """True: the backward direction of a complex cell turns by angles of its own, as in the
    published bidirectional module. Nothing to a causal stack."""

    @model_validator(mode="after")
    def _options_fit_the_kind(self) -> HGRN1:
        if self.kind == "complex" and self.expand != 1:
            raise ValueError(
                f"expand = {self.expand} does not fit kind = 'complex': use 1, or kind = 'real'"
            )
        if self.kind == "real" and self.separate_theta:
            raise ValueError(
                "separate_theta = True does not fit kind = 'real', which has no angles: use False, "
                "or kind = 'complex'"
            )
        return self

    @classmethod
    def variants(cls) -> list[Mixer]:
        return with_triton(
            [
                cls(kind="complex"),
                cls(kind="complex", bias=False, separate_theta=True, lower_bound="exclusive"),
                cls(kind="real", init="normal"),
                cls(kind="real", expand=2, lower_bound="cumsum", init="zoology"),
            ]
        )

    def unsupported(self, device: torch.device, dtype: torch.dtype) -> str | None:
        if self.impl in ("fla_chunk", "fla_recurrent"):
            if self.kind == "complex":
                return f"impl={self.impl!r} scans real cells alone: use kind='real'"
            return fla.unsupported(self.impl, device, dtype)
        return unsupported(self.impl, device, dtype)

    def stack(
        self, d_model: int, n_layers: int, *, causal: bool, generator: torch.Generator
    ) -> list[nn.Module]:
        self.check_width(d_model)
        bounds = self.lower_bounds(d_model, n_layers, generator.device)
        return [
            HGRN1Layer(self, bounds, layer, d_model, n_layers, causal, generator)
            for layer in range(n_layers)
        ]

    def state_size(self, d_model: int, seq_len: int) -> int:
        return d_model * (2 if self.kind == "complex" else self.expand)

    def operator(
        self,
        d_model: int,
        batch: int,
        seq_len: int,
        *,
        dtype: torch.dtype,
        generator: torch.Generator,
    ) -> Operator:
        """v [b t n] or [b t d 2], z [b t n], a complex cell's theta [d], and where there is a lower
        bound [n], at one half, its own input.

        Floating-point operations a token, the gates' own not counted: f h + key v takes 3 for each
        real number of state; with a turning gate, 12 for each complex one.
        """
        self.check_width(d_model)
        width, device = d_model * self.expand, generator.device
        is_complex = self.kind == "complex"
        off = torch.zeros(width, device=device)
        pair = (2,) if is_complex else ()
        # Cast one by one: drawn in fp32, they would take more room than the call.
        inputs = [
            torch.randn(batch, seq_len, width, *more, generator=generator, device=device).to(dtype)
            for more in (pair, ())
        ]
        if is_complex:
            inputs.append(angles(d_model, device))
        if self.lower_bound != "off":
            inputs.append(torch.full_like(off, 0.5))

        def run(v: Tensor, z: Tensor, *rest: Tensor) -> Tensor:
            theta = rest[0] if is_complex else None
            bound = off if self.lower_bound == "off" else rest[-1]
            if self.impl in ("fla_chunk", "fla_recurrent"):
                free = None if self.lower_bound == "off" else bound
                return fla.hgrn1(v, z, free, kernel=self.impl, gate=self.gate)
            return hgrn1(v, z, bound, theta=theta, impl=self.impl)[0]

        flops = (12.0 if is_complex else 3.0) * batch * seq_len * width
        rest = ("theta",) * is_complex + ("bound",) * (self.lower_bound != "off")
        return Operator(run, tuple(x.to(dtype) for x in inputs), flops, ("v", "z", *rest))


def angles(d_model: int, device: torch.device) -> Float[Tensor, " d"]:
    """The angles that a complex state starts to turn by, 10000^(-2k/d), in radians a token."""
    k = torch.arange(d_model, device=device)
    return 10000 ** (-2 * k / d_model)


class HGRN1Layer(HGRNLayer):
    """h_t = f_t exp(i theta) h_(t-1) + (1 - f_t) v_t (theta = 0 in a real cell).

    Complex: W_o (norm([Re h; Im h]) * gate). Real: W_o norm(h * gate).
    """

    rates = ("theta", "theta_backward")

    def __init__(
        self,
        mixer: HGRN1,
        bounds: LowerBounds | None,
        layer: int,
        d_model: int,
        n_layers: int,
        causal: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__(mixer, bounds, layer, d_model, causal)
        self.complex = mixer.kind == "complex"
        self.impl: Literal[Impl, fla.Kernel] = mixer.impl
        self.gate: fla.Gate = mixer.gate
        self.expand = mixer.expand
        device, init, bias = generator.device, mixer.init, mixer.bias
        value = mixer.state_size(d_model, 1)
        forget = d_model * mixer.expand
        # value, gate, forget logit
        self.widths = (value, value, forget)
        self.proj_in = linear(d_model, sum(self.widths), bias=bias, generator=generator, init=init)
        self.theta: nn.Parameter | None = None
        self.theta_backward: nn.Parameter | None = None
        if self.complex:
            self.theta = nn.Parameter(angles(d_model, device))
            if mixer.separate_theta and not causal:
                self.theta_backward = nn.Parameter(angles(d_model, device))
        self.norm = norm("layer", value, device=device)
        self.proj_out = linear(
            value, d_model, bias=bias, generator=generator, init=init, out_of_layers=n_layers
        )

    def _project(
        self, x: Float[Tensor, "b t d"], at: Int[Tensor, "b n"] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """v, z, the gate's logit, this of the tokens at `at`; a complex v has consecutive (real,
        imaginary) pairs."""
        v, gate, z = projected(self.proj_in, x, self.widths, 1, at)
        if self.complex:
            return F.silu(v).unflatten(-1, (-1, 2)), z, gate
        return F.silu(v), z, gate

    def _bound(self, x: Tensor) -> Float[Tensor, " n"]:
        """Each of the copies that `expand` makes of the channels has the channels' bound."""
        return self.bound(x).repeat(self.expand)

    def _read_out(self, h: Tensor, gate: Tensor) -> Float[Tensor, "b t d"]:
        if self.complex:
            return self.proj_out(self.norm(h.mT.flatten(-2)) * F.silu(gate))
        return self.proj_out(self.norm(h * gate.sigmoid()))

    def mix(
        self,
        x: Float[Tensor, "b t d"],
        lengths: Int[Tensor, " b"] | None,
        at: Int[Tensor, "b n"] | None,
    ) -> Float[Tensor, "b n d"]:
        """In both directions the states are summed before the norm, as in the published module;
        over an image the columns and the rows turn by the same angles."""
        v, z, gate = self._project(x, at)
        h = self.states(self._operator, v, z, lengths=lengths)
        return self._read_out(taken(h, at), gate)

    def _operator(self, v: Tensor, z: Tensor, lengths: Tensor | None = None) -> Tensor:
        theta, impl, causal = self.theta, self.impl, self.causal
        if impl in ("fla_chunk", "fla_recurrent"):
            bound = self._bound(z) if self.bounded else None
            return fla.hgrn1(
                v, z, bound, kernel=impl, gate=self.gate, causal=causal, lengths=lengths
            )
        if causal:
            return hgrn1(v, z, self._bound(z), theta=theta, lengths=lengths, impl=impl)[0]
        return hgrn1_bidirectional(
            v,
            z,
            self._bound(z),
            theta=theta,
            theta_backward=self.theta_backward,
            lengths=lengths,
            impl=impl,
        )

    def start(self, batch: int, max_len: int) -> tuple[Tensor, ...]:
        """The state, [b d 2] or [b n], zeros; it does not grow with `max_len`."""
        assert self.causal, "a layer that sees both directions does not decode"
        weight = self.proj_in.weight
        shape = (batch, self.d_model, 2) if self.complex else (batch, self.widths[0])
        return (torch.zeros(shape, dtype=arithmetic_dtype(weight), device=weight.device),)

    @torch.no_grad()
    def step(
        self, x: Float[Tensor, "b d"], state: tuple[Tensor, ...]
    ) -> tuple[Float[Tensor, "b d"], tuple[Tensor, ...]]:
        """One token."""
        v, z, gate = self._project(x[:, None])
        if self.impl in ("fla_chunk", "fla_recurrent"):
            bound = self._bound(x) if self.bounded else None
            h, last = fla.hgrn1_step(v, z, bound, state[0], gate=self.gate)
        else:
            bound = self._bound(x)
            h, last = hgrn1(v, z, bound, theta=self.theta, state=state[0], impl=self.impl)
        return self._read_out(h, gate)[:, 0], (last,)
