"""GLA against its formula, token by token."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from mixers import GLA
from tests.mixers.test_contract import D, assert_close, moved, tokens


def test_gla_is_its_formula():
    x = tokens(2, 20)
    layer = moved(GLA(n_heads=2))
    q, key, v, gate = layer.proj_in(x).split([D // 2, D // 2, D, D], -1)
    f = layer.forget_out(layer.forget_in(x)).sigmoid() ** (1 / 16)
    S = x.new_zeros(2, 2, D // 4, D // 2)
    y = []
    for t in range(20):
        q_t, k_t, v_t, f_t = (a[:, t].unflatten(1, (2, -1)) for a in (q, key, v, f))
        S = f_t[..., None] * S + k_t[..., None] * v_t[..., None, :]
        y.append(torch.einsum("bhk,bhkv->bhv", q_t, S) * (D // 4) ** -0.5)
    y = torch.stack(y, 1)
    y = y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.norm.weight
    assert_close(layer(x), layer.proj_out(y.flatten(2) * F.silu(gate)))
