"""Mamba's first version (arXiv 2312.00752): the selective state-space layer S6."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from hgrn2.gate import arithmetic_dtype
from hgrn2.reference import diagonal_scan
from mixers import mamba_settings
from mixers.base import Mixer, Operator
from mixers.layers import Init, linear
from mixers.tokens import flip_valid, projected, taken

DT_RANGE = (1e-3, 1e-1)
"""The step sizes that a new layer spreads over its channels."""


class Mamba(Mixer):
    """Mamba-1: a short causal convolution, then a scan whose step size, B and C depend on the
    token, behind a SiLU gate."""

    name: Literal["mamba"] = "mamba"
    impl: Literal["reference", "triton", "mamba_ssm"] = "reference"
    """Which implementation runs. `reference`: eager torch. `triton`: our own kernels of convolution
    and scan. `mamba_ssm`: the published CUDA kernels, convolution, scan and gate fused; causal
    stacks alone."""
    d_state: PositiveInt = 16
    """Numbers of state for each inner channel."""
    d_conv: PositiveInt = 4
    """Taps of the causal convolution."""
    expand: PositiveInt = 2
    """Inner channels for each channel of the model."""
    init: Init = "torch"
    """How the maps in, to (dt, B, C) and out start. The step size's map and bias, A, D and the
    convolution always start as published: a general initialisation breaks them."""

    @model_validator(mode="after")
    def _sizes_fit_the_kernels(self) -> Mamba:
        limits = {
            "mamba_ssm": (("d_conv", self.d_conv, 2, 4), ("d_state", self.d_state, 1, 256)),
            "triton": (("d_state", self.d_state, 1, 256),),
        }
        for field, value, low, high in limits.get(self.impl, ()):
            if not low <= value <= high:
                raise ValueError(
                    f"{field} = {value} does not fit impl = {self.impl!r}, which takes {low} to "
                    f"{high}: use one of these, or impl = 'reference'"
                )
        return self

    @classmethod
    def variants(cls) -> list[Mixer]:
        return [
            cls(),
            cls(d_state=4, d_conv=2, expand=1, init="normal"),
            cls(d_conv=1, init="zoology"),
        ]

    def stack(
        self, d_model: int, n_layers: int, *, causal: bool, generator: torch.Generator
    ) -> list[nn.Module]:
        self.check_width(d_model)
        kind = MambaLayer
        if self.impl == "triton":
            kind = _ours().TritonMambaLayer
        if self.impl == "mamba_ssm":
            kind = _fused().FusedMambaLayer
        if self.forwards_alone and not causal:
            raise ValueError(
                f"impl = {self.impl!r} runs forwards alone: use impl = 'triton' or 'reference' for "
                "both directions"
            )
        return [kind(self, d_model, n_layers, causal, generator) for _ in range(n_layers)]

    @property
    def forwards_alone(self) -> bool:
        return self.impl == "mamba_ssm"

    def unsupported(self, device: torch.device, dtype: torch.dtype) -> str | None:
        if self.impl == "reference":
            return None
        if self.impl == "triton":
            return mamba_settings.unsupported(device, dtype)
        return _fused().unsupported(device, dtype)

    def state_size(self, d_model: int, seq_len: int) -> int:
        return self.expand * d_model * (self.d_state + self.d_conv - 1)

    def operator(
        self,
        d_model: int,
        batch: int,
        seq_len: int,
        *,
        dtype: torch.dtype,
        generator: torch.Generator,
    ) -> Operator:
        """x and the step size's logit [b t c], A_log [c n], B and C [b t n], D [c]; in memory, each
        implementation's own layout.

        Floating-point operations a token: 6 for each number of state (dt A, dt x B, the update, the
        read-out; exponentials not counted) and 2 for each channel of the skip.
        """
        channels, device = self.expand * d_model, generator.device

        def draw(width: int) -> Tensor:
            return torch.randn(batch, seq_len, width, generator=generator, device=device)

        # Cast one by one: drawn in fp32, they would take more room than the call.
        x = draw(channels).to(dtype)
        dt = draw(channels).add_(dt_bias(channels, generator)).to(dtype)
        B, C = draw(self.d_state).to(dtype), draw(self.d_state).to(dtype)
        A_log, D = a_log(channels, self.d_state, device), torch.ones(channels, device=device)

        scan = _ours().selective_scan if self.impl == "triton" else selective_scan

        def run(*inputs: Tensor) -> Tensor:
            return scan(*inputs)[0]

        if self.impl == "mamba_ssm":
            run = _fused().selective_scan
            x, dt, B, C = (_fused().tokens_innermost(y) for y in (x, dt, B, C))
        flops = batch * seq_len * channels * (6.0 * self.d_state + 2.0)
        inputs = tuple(y.to(dtype) for y in (x, dt, A_log, B, C, D))
        return Operator(run, inputs, flops, ("x", "dt", "A_log", "B", "C", "D"))


def _fused() -> ModuleType:
    """The published kernels' side, which builds on this file."""
    from mixers import mamba_cuda

    return mamba_cuda


def _ours() -> ModuleType:
    """Our own kernels' side, which does too."""
    from mixers import mamba_triton

    return mamba_triton


def dt_bias(channels: int, generator: torch.Generator) -> Float[Tensor, " c"]:
    """Biases whose softplus is log-uniform over DT_RANGE."""
    low, high = (math.log(dt) for dt in DT_RANGE)
    u = torch.rand(channels, generator=generator, device=generator.device)
    dt = torch.exp(low + (high - low) * u)
    # softplus(bias) = dt, solved for the bias without forming exp(dt) - 1
    return dt + torch.log(-torch.expm1(-dt))


def a_log(channels: int, d_state: int, device: torch.device) -> Float[Tensor, "c n"]:
    """log(-A) with A = -1, -2, .. -n in every channel (S4D-real)."""
    n = torch.arange(1, d_state + 1, dtype=torch.float32, device=device)
    return n.log().repeat(channels, 1)


def selective_scan(
    x: Float[Tensor, "b t c"],
    dt: Float[Tensor, "b t c"],
    A_log: Float[Tensor, "c n"],
    B: Float[Tensor, "b t n"],
    C: Float[Tensor, "b t n"],
    D: Float[Tensor, " c"],
    *,
    state: Float[Tensor, "b c n"] | None = None,
) -> tuple[Float[Tensor, "b t c"], Float[Tensor, "b c n"]]:
    """S6 (arXiv 2312.00752, Algorithm 2), with step sizes s_t = softplus(dt_t), A = -exp(A_log):

        h_t = exp(s_t A) h_(t-1) + s_t B_t x_t        y_t = C_t h_t + D x_t

    Returns y in x's dtype and the last h (state: the first, zeros if None) in fp32 (fp64 for fp64
    inputs), in which all arithmetic runs.
    """
    dtype = arithmetic_dtype(x, dt, A_log, B, C, D, state)
    wide, dt, A_log, B, C, D = (y.to(dtype) for y in (x, dt, A_log, B, C, D))
    dt = F.softplus(dt)
    decay = torch.exp(dt[..., None] * -torch.exp(A_log))
    h, last = diagonal_scan(decay, (dt * wide)[..., None] * B[:, :, None], state=state)
    # A product and a sum: autocast would run a matrix product in 16 bits.
    y = (h * C[:, :, None]).sum(-1) + D * wide
    return y.to(x.dtype), last


class MambaLayer(nn.Module):
    """W_o (S6(silu(conv(W_x u))) * silu(W_z u))."""

    rates = ("A_log", "D", "dt_bias")

    def __init__(
        self,
        mixer: Mamba,
        d_model: int,
        n_layers: int,
        causal: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.causal = causal
        self.channels = channels = mixer.expand * d_model
        self.d_state, self.d_conv = mixer.d_state, mixer.d_conv
        self.dt_rank = dt_rank = math.ceil(d_model / 16)
        device, init = generator.device, mixer.init
        self.proj_in = linear(d_model, 2 * channels, bias=False, generator=generator, init=init)
        # torch's start of a depthwise convolution: the fan-in is its taps
        reach = self.d_conv**-0.5
        self.conv_weight = nn.Parameter(torch.empty(channels, self.d_conv, device=device))
        self.conv_bias = nn.Parameter(torch.empty(channels, device=device))
        with torch.no_grad():
            self.conv_weight.uniform_(-reach, reach, generator=generator)
            self.conv_bias.uniform_(-reach, reach, generator=generator)
        # dt, B, C
        self.widths = (dt_rank, self.d_state, self.d_state)
        self.proj_scan = linear(
            channels, sum(self.widths), bias=False, generator=generator, init=init
        )
        self.proj_dt = linear(dt_rank, channels, bias=False, generator=generator)
        self.dt_bias = nn.Parameter(dt_bias(channels, generator))
        self.A_log = nn.Parameter(a_log(channels, self.d_state, device))
        self.D = nn.Parameter(torch.ones(channels, device=device))
        self.proj_out = linear(
            channels, d_model, bias=False, generator=generator, init=init, out_of_layers=n_layers
        )

    def _conv(self, x: Float[Tensor, "b s c"]) -> Float[Tensor, "b t c"]:
        """The convolution of x, which has the d_conv - 1 tokens before the first at its front."""
        return F.conv1d(x.mT, self.conv_weight[:, None], self.conv_bias, groups=self.channels).mT

    def _scan(
        self, x: Float[Tensor, "b t c"], state: Float[Tensor, "b c n"] | None = None
    ) -> tuple[Float[Tensor, "b t c"], Float[Tensor, "b c n"]]:
        """S6 of x, which gives dt, B and C too."""
        dt, B, C = self.proj_scan(x).split(self.widths, dim=-1)
        dtype = arithmetic_dtype(x)
        dt = self.proj_dt(dt).to(dtype) + self.dt_bias.to(dtype)
        return selective_scan(x, dt, self.A_log, B, C, self.D, state=state)

    def _from_nothing(self, x: Float[Tensor, "b t c"]) -> Float[Tensor, "b t c"]:
        x = F.silu(self._conv(F.pad(x, (0, 0, self.d_conv - 1, 0))))
        return self._scan(x)[0]

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        *,
        lengths: Int[Tensor, " b"] | None = None,
        at: Int[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Both directions (ours: Mamba was published causal) share all weights; convolution and
        scan run over the valid tokens forwards and backwards, and the two are summed before the
        gate."""
        x, gate = projected(self.proj_in, x, (self.channels, self.channels), 1, at)
        y = self._from_nothing(x)
        if not self.causal:
            y = y + flip_valid(self._from_nothing(flip_valid(x, lengths)), lengths)
        return self.proj_out(taken(y, at) * F.silu(gate))

    def start(self, batch: int, max_len: int) -> tuple[Tensor, ...]:
        """The convolution's window [b d_conv-1 c] and the state [b c n], zeros; they do not grow
        with `max_len`."""
        assert self.causal, "a layer that sees both directions does not decode"
        weight = self.proj_in.weight
        window = weight.new_zeros(batch, self.d_conv - 1, self.channels)
        h = torch.zeros(
            batch,
            self.channels,
            self.d_state,
            dtype=arithmetic_dtype(weight),
            device=weight.device,
        )
        return window, h

    @torch.no_grad()
    def step(
        self, x: Float[Tensor, "b d"], state: tuple[Tensor, ...]
    ) -> tuple[Float[Tensor, "b d"], tuple[Tensor, ...]]:
        """One token."""
        window, h = state
        x, gate = self.proj_in(x).chunk(2, dim=-1)
        seen = torch.cat([window, x[:, None]], dim=1)
        y, h = self._scan(F.silu(self._conv(seen)), h)
        return self.proj_out(y[:, 0] * F.silu(gate)), (seen[:, 1:], h)
