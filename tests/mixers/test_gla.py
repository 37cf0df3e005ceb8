"""GLA against its formula, token by token, and what its implementations ask for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from mixers import GLA
from tests.apart import expect_passes
from tests.mixers.test_contract import D, assert_close, generator, moved, tokens


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


def test_the_interpreted_layer_is_the_references():
    pytest.importorskip("triton")
    expect_passes(Path(__file__).with_name("interpreted_gla.py"))


@pytest.mark.parametrize(
    ("fields", "d_model", "message"),
    [
        ({}, 64, r"expand_k = 0.5, d_model = 64 and n_heads = 4 make heads of 8; .* 16, 32, 64"),
        ({"n_heads": 2}, 384, r"expand_k = 0.5, d_model = 384 and n_heads = 2 make heads of 96"),
        ({"n_heads": 1, "expand_v": 0.75}, 64, r"expand_v = 0.75, .* make heads of 48; .* n_heads"),
    ],
)
def test_a_width_that_our_kernels_do_not_take_is_named(fields, d_model, message):
    mixer = GLA(impl="triton", **fields)
    with pytest.raises(ValueError, match=message):
        mixer.check_width(d_model)
    with pytest.raises(ValueError, match=message):
        mixer.stack(d_model, 1, causal=True, generator=generator(0))
    GLA(**fields).check_width(d_model)


def test_where_our_kernels_do_not_run_is_named():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    mixer = GLA(impl="triton", n_heads=1)
    message = "impl='triton' needs a CUDA device, not cpu: use impl='reference'"
    assert mixer.unsupported(cpu, torch.float32) == message
    assert "not torch.float64" in str(mixer.unsupported(gpu, torch.float64))
    layer = mixer.stack(D, 1, causal=True, generator=generator(0))[0]
    with pytest.raises(ValueError, match=message):
        layer(torch.zeros(1, 4, D))
    assert GLA().unsupported(cpu, torch.float64) is None
    with pytest.raises(ValidationError, match="gate = 'compiled' does not fit impl = 'triton'"):
        GLA(impl="triton", gate="compiled")
