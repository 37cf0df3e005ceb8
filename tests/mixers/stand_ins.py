"""Stand-ins for the peers' packages: their functions' signatures over our eager forms, so that what
surrounds the kernels is tested where the kernels do not run."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hgrn2.reference import diagonal_scan, gated_chunked, gated_recurrent
from mixers.mamba import selective_scan


def install(monkeypatch: pytest.MonkeyPatch, functions: dict[str, dict[str, object]]) -> None:
    """Put modules of these functions, and packages around them, in the place of the real ones."""
    for name, contents in functions.items():
        parts = name.split(".")
        for depth in range(1, len(parts)):
            package = ".".join(parts[:depth])
            if not isinstance(sys.modules.get(package), StandIn):
                monkeypatch.setitem(sys.modules, package, StandIn(package))
        module = StandIn(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)


class StandIn(ModuleType):
    __path__ = ()


def chunk_gla(q: Tensor, k: Tensor, v: Tensor, g: Tensor, scale: float) -> tuple[Tensor, None]:
    return gated_chunked(q * scale, k, v, g.exp())[0], None


def fused_recurrent_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    gk: Tensor,
    scale: float,
    initial_state: Tensor,
    output_final_state: bool,
) -> tuple[Tensor, Tensor]:
    assert output_final_state
    return gated_recurrent(q * scale, k, v, gk.exp(), state=initial_state)


def hgrn(
    x: Tensor,
    g: Tensor,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Both of FLA's scans; the last state has x's dtype, as there."""
    h, last = diagonal_scan(g.exp(), x.to(g.dtype), state=initial_state)
    return h.to(x.dtype), last.to(x.dtype) if output_final_state else None


FLA = {
    "fla.ops.gla": {"chunk_gla": chunk_gla, "fused_recurrent_gla": fused_recurrent_gla},
    "fla.ops.hgrn": {"chunk_hgrn": hgrn, "fused_recurrent_hgrn": hgrn},
}


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """Inputs [b c t] or [b n t] with the tokens innermost, A [c n] below zero; A, D and the bias
    in fp32, where an fp64 run differs from our form by what they lose."""
    assert delta_softplus
    assert all(x.stride(-1) == 1 or x.shape[-1] == 1 for x in (u, delta))
    assert {A.dtype, D.dtype} == {torch.float32}
    delta = delta if delta_bias is None else delta + delta_bias[:, None]
    y, _ = selective_scan(u.mT, delta.mT, (-A).log(), B.mT, C.mT, D)
    return y.mT if z is None else y.mT * F.silu(z)


def mamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: None,
    A: Tensor,
    *,
    D: Tensor,
    delta_bias: Tensor,
    delta_softplus: bool,
) -> Tensor:
    """As mamba_ssm's `mamba_inner_ref`: x and z halves of xz [b 2c t], the convolution's weight
    [c 1 w]."""
    assert out_proj_bias is None
    x, z = xz.chunk(2, dim=1)
    taps = conv1d_weight.shape[-1]
    padded = F.pad(x, (taps - 1, 0))
    x = F.silu(F.conv1d(padded, conv1d_weight, conv1d_bias, groups=x.shape[1]))
    n = A.shape[1]
    dt, B, C = (x.mT @ x_proj_weight.T).split([delta_proj_weight.shape[1], n, n], dim=-1)
    delta = (dt @ delta_proj_weight.T).mT.contiguous()
    y = selective_scan_fn(x, delta, A, B.mT, C.mT, D, z, delta_bias, delta_softplus)
    return y.mT @ out_proj_weight.T


def causal_conv1d_update(
    x: Tensor, conv_state: Tensor, weight: Tensor, bias: Tensor, activation: str
) -> Tensor:
    """x [b c], the window [b c w-1], which moves on in place."""
    assert activation == "silu"
    assert conv_state.dtype == x.dtype
    seen = torch.cat([conv_state, x[..., None]], dim=-1)
    conv_state.copy_(seen[..., 1:])
    return F.silu((seen * weight).sum(-1) + bias)


def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    *,
    z: Tensor,
    dt_bias: Tensor,
    dt_softplus: bool,
) -> Tensor:
    """x, dt and z [b c], B and C [b n], the state [b c n], which moves on in place."""
    assert dt_softplus
    logit = (dt.to(state.dtype) + dt_bias)[:, None]
    y, last = selective_scan(x[:, None], logit, (-A).log(), B[:, None], C[:, None], D, state=state)
    state.copy_(last)
    return (y[:, 0] * F.silu(z)).to(x.dtype)


MAMBA = {
    "mamba_ssm.ops.selective_scan_interface": {
        "selective_scan_fn": selective_scan_fn,
        "mamba_inner_fn": mamba_inner_fn,
    },
    "mamba_ssm.ops.triton.selective_state_update": {
        "selective_state_update": selective_state_update
    },
    "causal_conv1d": {"causal_conv1d_update": causal_conv1d_update},
}
