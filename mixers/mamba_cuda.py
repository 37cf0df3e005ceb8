"""Mamba by the CUDA kernels of mamba_ssm and causal_conv1d, on the parameters of our own layer.

Their scan reads its inputs with the tokens innermost, [b c t]; A, D and the step size's bias are
fp32 there.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mixers.mamba import MambaLayer
from mixers.peers import not_compiled
from mixers.tokens import taken

INSTALL = {
    "mamba_ssm": "mamba-ssm==2.3.2.post1",
    "causal_conv1d": "causal-conv1d==1.7.0",
}


def unsupported(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the kernels cannot run there, in words; None when they can."""
    if device.type != "cuda":
        return f"impl='mamba_ssm' needs a CUDA device, not {device}: use impl='reference'"
    if dtype not in (torch.bfloat16, torch.float16, torch.float32):
        return f"impl='mamba_ssm' takes bfloat16, float16 or float32, not {dtype}: use one of them"
    missing = [package for name, package in INSTALL.items() if find_spec(name) is None]
    if missing:
        command = f"pip install --no-build-isolation {' '.join(missing)}"
        return f"impl='mamba_ssm' needs packages that CUDA's compiler builds: {command}"
    return None


def tokens_innermost(x: Float[Tensor, "b t c"]) -> Float[Tensor, "b t c"]:
    """The same numbers, laid out in memory as the scan reads them."""
    return x.mT.contiguous().mT


def selective_scan(
    x: Float[Tensor, "b t c"],
    dt: Float[Tensor, "b t c"],
    A_log: Float[Tensor, "c n"],
    B: Float[Tensor, "b t n"],
    C: Float[Tensor, "b t n"],
    D: Float[Tensor, " c"],
) -> Float[Tensor, "b t c"]:
    """`mixers.mamba.selective_scan` without states; what is not laid out so is copied first."""
    A = -torch.exp(A_log.float())
    return _scan(x.mT, dt.mT, A, B.mT, C.mT, D.float()).mT


@not_compiled
def _scan(*inputs: Tensor) -> Tensor:
    interface = import_module("mamba_ssm.ops.selective_scan_interface")
    return interface.selective_scan_fn(*inputs, delta_softplus=True)


@not_compiled
def _inner(*inputs: Tensor | None, D: Tensor, delta_bias: Tensor) -> Tensor:
    interface = import_module("mamba_ssm.ops.selective_scan_interface")
    return interface.mamba_inner_fn(*inputs, D=D, delta_bias=delta_bias, delta_softplus=True)


class FusedMambaLayer(MambaLayer):
    """`MambaLayer` with everything between its first and its last map in mamba_ssm's kernels.

    Causal, for 2 to 4 taps and up to 256 numbers of state a channel.
    """

    def _a(self) -> Float[Tensor, "c n"]:
        return -torch.exp(self.A_log.float())

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        *,
        lengths: Int[Tensor, " b"] | None = None,
        at: Int[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """No valid token sees the padding on its right, so that lengths change nothing."""
        # The product comes out with the tokens innermost: no copy.
        xz = self.proj_in.weight @ x.flatten(0, 1).mT
        y = _inner(
            xz.unflatten(1, x.shape[:2]).transpose(0, 1),
            self.conv_weight[:, None],
            self.conv_bias,
            self.proj_scan.weight,
            self.proj_dt.weight,
            self.proj_out.weight,
            None,
            self._a(),
            D=self.D.float(),
            delta_bias=self.dt_bias.float(),
        )
        # The published kernel's last map is of all tokens.
        return taken(y, at)

    def start(self, batch: int, max_len: int) -> tuple[Tensor, ...]:
        """As `MambaLayer.start`, but the window is [b c d_conv-1]."""
        window, h = super().start(batch, max_len)
        return window.mT.contiguous(), h

    @torch.no_grad()
    def step(
        self, x: Float[Tensor, "b d"], state: tuple[Tensor, ...]
    ) -> tuple[Float[Tensor, "b d"], tuple[Tensor, ...]]:
        """One token; window and state change in place."""
        convolve = import_module("causal_conv1d").causal_conv1d_update
        update = import_module("mamba_ssm.ops.triton.selective_state_update").selective_state_update
        window, h = state
        x, gate = self.proj_in(x).chunk(2, dim=-1)
        x = convolve(x, window, self.conv_weight, self.conv_bias, "silu")
        dt, B, C = self.proj_scan(x).split(self.widths, dim=-1)
        y = update(
            h,
            x,
            self.proj_dt(dt),
            self._a(),
            B,
            C,
            self.D,
            z=gate,
            dt_bias=self.dt_bias,
            dt_softplus=True,
        )
        return self.proj_out(y), (window, h)
