"""Mamba against its formula, token by token, and its own start."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from mixers import Mamba
from mixers.mamba import DT_RANGE
from tests.mixers.test_contract import D, assert_close, generator, moved, tokens


def test_mamba_is_its_formula():
    x, d_conv, rank = tokens(2, 20), 4, 2
    layer = moved(Mamba())
    u, gate = layer.proj_in(x).chunk(2, -1)
    A = -layer.A_log.exp()
    h, y = x.new_zeros(2, 2 * D, 16), []
    for t in range(20):
        taps = [
            layer.conv_weight[:, j] * u[:, t - d_conv + 1 + j]
            for j in range(d_conv)
            if t - d_conv + 1 + j >= 0
        ]
        u_t = F.silu(sum(taps) + layer.conv_bias)
        low, B, C = layer.proj_scan(u_t).split([rank, 16, 16], -1)
        dt = F.softplus(low @ layer.proj_dt.weight.T + layer.dt_bias)
        h = torch.exp(dt[..., None] * A) * h + (dt * u_t)[..., None] * B[:, None]
        y.append((h @ C[..., None])[..., 0] + layer.D * u_t)
    assert_close(layer(x), layer.proj_out(torch.stack(y, 1) * F.silu(gate)))


def test_mamba_runs_the_same_both_ways():
    layer, x = moved(Mamba(), causal=False), tokens(2, 70)
    assert_close(layer(x.flip(1)).flip(1), layer(x))


@pytest.mark.parametrize("init", ["torch", "normal", "zoology"])
def test_no_initialisation_overwrites_mambas_own(init):
    layer = Mamba(init=init).stack(256, 2, causal=True, generator=generator(0))[1]
    dt = F.softplus(layer.dt_bias).detach()
    low, high = DT_RANGE
    assert (dt >= low * (1 - 1e-4)).all()
    assert (dt <= high * (1 + 1e-4)).all()
    # Log-uniform: the mean of log dt lies within 4 standard errors of the middle.
    width = math.log(high / low)
    middle = math.log(low) + width / 2
    assert abs(dt.log().mean().item() - middle) < 4 * width / math.sqrt(12 * 512)
    torch.testing.assert_close(layer.A_log.exp()[7].detach(), torch.arange(1.0, 17))
    assert (layer.D == 1).all()
    # Uniform within the fan-in's bound and filling it: rank 16, then 4 taps.
    for weight, fan_in in ((layer.proj_dt.weight, 16), (layer.conv_weight, 4)):
        assert 0.95 < weight.abs().max().item() * math.sqrt(fan_in) <= 1
