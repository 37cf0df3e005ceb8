"""The per-token loops against the recurrences written out as sums, on tiny shapes in fp64."""

from __future__ import annotations

import cmath
import math

import pytest
import torch
from torch import Tensor

from hgrn2.reference import (
    diagonal_recurrent,
    gate,
    gated_recurrent,
    hgrn1_recurrent,
    hgrn2_recurrent,
)
from tests.hgrn2.operator_inputs import F64, hgrn2_inputs, randn, relative_error


def attention_form(q: Tensor, key: Tensor, v: Tensor, f: Tensor, state: Tensor) -> Tensor:
    """y_i = sum over j <= i of (q_i . key_j prod of f over (j, i]) v_j, element by element."""
    b, t, h, k = q.shape
    y = torch.zeros(b, t, h, v.shape[-1], dtype=F64)
    for at in [(n, m) for n in range(b) for m in range(h)]:
        n, m = at
        for i in range(t):
            for c in range(k):
                path = 1.0
                for j in range(i, -1, -1):
                    score = q[n, i, m, c] * path * key[n, j, m, c]
                    y[n, i, m] += score * v[n, j, m]
                    path = path * f[n, j, m, c]
                y[n, i, m] += q[n, i, m, c] * path * state[n, m, c]
    return y


@pytest.mark.parametrize("t", [1, 2, 7])
def test_gated_recurrence_is_its_sum(t):
    q, z, v, bound, state = hgrn2_inputs(2, t, 2, 3, 4, bound=0.2)
    f, key = gate(z, bound)
    y, _ = gated_recurrent(q, key, v, f, state=state)
    assert relative_error(y, attention_form(q, key, v, f, state)) < 1e-14


def test_gated_recurrence_ends_in_its_state():
    q, z, v, bound, state = hgrn2_inputs(1, 5, 1, 2, 3, bound=0.2)
    f, key = gate(z, bound)
    _, last = gated_recurrent(q, key, v, f, state=state)
    S = state[0, 0]
    for t in range(5):
        S = torch.diag(f[0, t, 0]) @ S + torch.outer(key[0, t, 0], v[0, t, 0])
    assert relative_error(last[0, 0], S) < 1e-14


def test_gate_and_key_are_the_formula():
    z = torch.tensor([[[-50.0, -1.0, 0.0, 2.0, 60.0]]], dtype=F64)
    bound = torch.tensor([0.0, 0.1, 0.5, 0.99, 1e-6], dtype=F64)
    f, key = gate(z, bound)
    for i, (x, b) in enumerate(zip(z.flatten().tolist(), bound.tolist(), strict=True)):
        assert f[0, 0, i].item() == pytest.approx(b + (1 - b) / (1 + math.exp(-x)), rel=1e-15)
        assert key[0, 0, i].item() == pytest.approx((1 - b) / (1 + math.exp(x)), rel=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gate_keeps_the_keys_of_open_gates(dtype):
    """1 - f would be zero from z = 18 on."""
    z = torch.tensor([[[20.0, 40.0, 60.0]]], dtype=dtype)
    f, key = gate(z, torch.zeros(3, dtype=dtype))
    assert (f == 1).all()
    assert relative_error(key, torch.exp(-z.double())) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gate_gradient_is_exact_where_the_sigmoid_saturates(dtype):
    """d f/dz = (1 - bound) / (4 cosh(z/2)^2), and d key/dz is its negative."""
    z = torch.tensor([[[-60.0, -30.0, -1.0, 0.0, 3.0, 25.0, 70.0]]], dtype=dtype)
    z.requires_grad_()
    bound = torch.linspace(0, 0.9, 7, dtype=dtype, requires_grad=True)
    f, key = gate(z, bound)
    true = (1 - bound.double()) / (4 * torch.cosh(z.double() / 2) ** 2)
    closed = torch.sigmoid(-z.double()).flatten()
    for output, sign in ((f, 1), (key, -1)):
        dz, dbound = torch.autograd.grad(output.sum(), (z, bound), retain_graph=True)
        error = (dz - sign * true).abs() / true
        assert error.max() < 8 * torch.finfo(dtype).eps
        assert ((dbound - sign * closed).abs() / closed).max() < 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize("angle", [None, 0.7])
def test_hgrn1_recurrence_is_its_sum(angle):
    t = 6
    pair = () if angle is None else (2,)
    v, z = randn(1, t, 1, *pair, seed=0), randn(1, t, 1, seed=1)
    bound, state = torch.tensor([0.3], dtype=F64), randn(1, 1, *pair, seed=2)
    theta = None if angle is None else torch.tensor([angle], dtype=F64)
    h, last = hgrn1_recurrent(v, z, bound, theta=theta, state=state)
    f, key = gate(z, bound)
    turn = 1 if angle is None else cmath.exp(1j * angle)

    def number(x: Tensor) -> complex:
        return complex(*x.flatten().tolist())

    for i in range(t):
        path, total = 1 + 0j, 0j
        for j in range(i, -1, -1):
            total += path * key[0, j, 0].item() * number(v[0, j])
            path *= f[0, j, 0].item() * turn
        total += path * number(state)
        assert number(h[0, i]) == pytest.approx(total, rel=1e-13)
    assert torch.equal(last, h[:, -1])


def test_diagonal_recurrence_broadcasts_its_gate():
    f, u = torch.rand(2, 5, 3, 1, dtype=F64), randn(2, 5, 3, 4, seed=1)
    h, last = diagonal_recurrent(f, u)
    x = torch.zeros(2, 3, 4, dtype=F64)
    for t in range(5):
        x = f[:, t] * x + u[:, t]
        assert torch.equal(h[:, t], x)
    assert torch.equal(last, x)


def test_the_oracle_skips_padding():
    inputs = hgrn2_inputs(3, 9, 2, 3, 4)
    q, z, v, bound, state = inputs
    lengths = torch.tensor([9, 4, 1])
    y, last = hgrn2_recurrent(q, z, v, bound, state=state, lengths=lengths)
    for n, length in enumerate(lengths.tolist()):
        row = slice(n, n + 1)
        alone = hgrn2_recurrent(
            q[row, :length], z[row, :length], v[row, :length], bound, state=state[row]
        )
        assert relative_error(y[row, :length], alone[0]) < 1e-15
        assert relative_error(last[row], alone[1]) < 1e-15
        assert not y[row, length:].any()
