"""HGRN1 and HGRN2 against their formulas, token by token, and the lower bound."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixers import HGRN1, HGRN2
from mixers.hgrn import LowerBounds
from tests.mixers.test_contract import D, assert_close, generator, moved, tokens
from tests.mixers.test_mixers import numbers


@pytest.mark.parametrize("kind", ["cumsum", "exclusive"])
def test_a_stack_shares_one_gamma(kind):
    d, n = 32, 5
    for mixer in (HGRN2(expand_ratio=16), HGRN1()):
        bounded = mixer.model_copy(update={"lower_bound": kind})
        assert numbers(bounded, d, n_layers=n) == numbers(mixer, d, n_layers=n) + n * d


def test_the_backward_angles_are_their_own_only_where_asked():
    shared, separate = HGRN1(), HGRN1(separate_theta=True)
    assert numbers(separate, 32, causal=False) == numbers(shared, 32, causal=False) + 32
    assert numbers(separate, 32) == numbers(shared, 32)


def test_both_bound_formulas_start_alike_and_part():
    L, d = 6, 8
    bounds = {
        kind: LowerBounds(kind, L, d, torch.device("cpu")) for kind in ("cumsum", "exclusive")
    }
    for layer in range(L):
        for module in bounds.values():
            torch.testing.assert_close(module(layer), torch.full((d,), layer / L))
    gamma = torch.randn(L, d, generator=generator(3))
    P = gamma.softmax(0)
    for module in bounds.values():
        module.gamma.data.copy_(gamma)
    for layer in range(L):
        torch.testing.assert_close(bounds["cumsum"](layer), P.cumsum(0)[layer] - P[0])
        torch.testing.assert_close(bounds["exclusive"](layer), P.cumsum(0)[layer] - P[layer])
    assert (bounds["cumsum"](1) - bounds["exclusive"](1)).abs().max() > 0.01


@pytest.mark.parametrize("kind", ["cumsum", "exclusive"])
@pytest.mark.parametrize("peak", [0, 2, 5])
def test_a_bound_stays_below_one(kind, peak):
    bounds = LowerBounds(kind, 6, 4, torch.device("cpu"))
    bounds.gamma.data[peak] = 200
    for layer in range(6):
        beta = bounds(layer)
        assert (beta >= 0).all()
        assert (beta < 1).all()


def forget(layer: nn.Module, z: Tensor) -> Tensor:
    """f, from the last layer's bound as the papers write it."""
    if layer.bounds is None:
        return z.sigmoid()
    P = layer.bounds.gamma.softmax(0)
    beta = P.cumsum(0)[-1] - (P[0] if layer.bounds.kind == "cumsum" else P[-1])
    beta = beta.repeat(z.shape[-1] // beta.shape[0])
    return beta + (1 - beta) * z.sigmoid()


@pytest.mark.parametrize("lower_bound", ["off", "cumsum", "exclusive"])
@pytest.mark.parametrize("preset", ["biased", "lm", "paper", "fla"])
def test_hgrn2_is_its_formula(preset, lower_bound):
    e, x = 8, tokens(2, 20)
    layer = moved(HGRN2(preset=preset, expand_ratio=e, lower_bound=lower_bound))
    i, o, z = layer.proj_in(x).chunk(3, -1)
    i = F.silu(i) if preset == "biased" else i
    o = o.sigmoid() if preset == "biased" else F.silu(o)
    f = forget(layer, z)
    S = x.new_zeros(2, D // e, e, e)
    y = []
    for t in range(20):
        i_t, o_t, f_t = (a[:, t].view(2, D // e, e) for a in (i, o, f))
        S = f_t[..., None] * S + (1 - f_t)[..., None] * i_t[..., None, :]
        y.append(torch.einsum("bhk,bhkv->bhv", o_t, S).flatten(1))
    y = torch.stack(y, 1) * (e**-0.5 if preset == "fla" else 1)
    if preset == "biased":
        y = F.layer_norm(y, (D,), layer.norm.weight, layer.norm.bias)
    elif preset != "paper":
        y = y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        y = y * layer.norm.weight if preset == "fla" else y
    assert_close(layer(x), layer.proj_out(y))


@pytest.mark.parametrize("lower_bound", ["off", "cumsum", "exclusive"])
def test_complex_hgrn1_is_its_formula(lower_bound):
    x = tokens(2, 20)
    layer = moved(HGRN1(lower_bound=lower_bound))
    u, gate, z = layer.proj_in(x).split([2 * D, 2 * D, D], -1)
    u, f = torch.view_as_complex(F.silu(u).view(2, 20, D, 2)), forget(layer, z)
    turn = torch.exp(1j * layer.theta)
    h, states = torch.zeros(2, D, dtype=torch.complex128), []
    for t in range(20):
        h = f[:, t] * turn * h + (1 - f[:, t]) * u[:, t]
        states.append(h)
    h = torch.stack(states, 1)
    y = F.layer_norm(torch.cat([h.real, h.imag], -1), (2 * D,), layer.norm.weight, layer.norm.bias)
    assert_close(layer(x), layer.proj_out(y * F.silu(gate)))


@pytest.mark.parametrize("expand", [1, 2])
@pytest.mark.parametrize("lower_bound", ["off", "cumsum", "exclusive"])
def test_real_hgrn1_is_its_formula(lower_bound, expand):
    x = tokens(2, 20)
    layer = moved(HGRN1(kind="real", expand=expand, lower_bound=lower_bound))
    u, gate, z = layer.proj_in(x).chunk(3, -1)
    u, f = F.silu(u), forget(layer, z)
    h, states = x.new_zeros(2, expand * D), []
    for t in range(20):
        h = f[:, t] * h + (1 - f[:, t]) * u[:, t]
        states.append(h)
    y = torch.stack(states, 1) * gate.sigmoid()
    y = F.layer_norm(y, (expand * D,), layer.norm.weight, layer.norm.bias)
    assert_close(layer(x), layer.proj_out(y))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("lower_bound", ["off", "exclusive"])
def test_hgrn2_without_expansion_is_real_hgrn1(causal, lower_bound):
    real = moved(HGRN1(kind="real", lower_bound=lower_bound), causal=causal)
    flat = moved(HGRN2(expand_ratio=1, lower_bound=lower_bound), causal=causal)
    flat.load_state_dict(real.state_dict())
    x = tokens(2, 70)
    assert_close(flat(x), real(x))


def test_angles_start_as_published():
    theta = HGRN1().stack(64, 1, causal=True, generator=generator(0))[0].theta
    for k in (0, 1, 63):
        assert theta[k].item() == pytest.approx(10000 ** (-2 * k / 64), rel=1e-5)
