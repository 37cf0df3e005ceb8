"""Tokens asked for alone: what is refused, the gradient of none, a projection of some."""

from __future__ import annotations

from inspect import unwrap

import pytest
import torch
from torch import nn

from mixers.tokens import projected, taken

X = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("at", "clear"),
    [
        ([[1, 3], [4, 4]], r"at asks for token 4 of row 1 twice"),
        ([[1, 3, 1], [4, 2, 0]], r"at asks for token 1 of row 0 twice"),
        ([[1, 3]], r"at is torch.int64 \[1, 2\]; for x \[2, 5, 3\] it should be .*, \[2 n\]"),
        ([[1.0], [3.0]], r"at is torch.float32 \[2, 1\]; for x .* it should be torch.int64"),
    ],
)
def test_what_would_give_a_wrong_gradient_is_refused(at: list[list[int]], clear: str):
    with pytest.raises(ValueError, match=clear):
        # Without the type checker that tests may run under: it would refuse some of them first.
        unwrap(taken)(X, torch.tensor(at))


def test_none_at_all():
    x = X.clone().requires_grad_()
    y = taken(x, torch.empty(2, 0, dtype=torch.int64))
    assert y.shape == (2, 0, 3)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient, torch.zeros_like(x))


@pytest.mark.parametrize("gate", range(3))
@pytest.mark.parametrize("bias", [True, False])
def test_one_piece_is_projected_for_some_tokens_alone(gate, bias):
    widths = (4, 2, 3)
    layer = nn.Linear(5, sum(widths), bias=bias, dtype=torch.float64)
    x = torch.randn(2, 7, 5, dtype=torch.float64, requires_grad=True)
    at = torch.tensor([[6, 0], [3, 4]])
    expected = list(layer(x).split(widths, -1))
    assert all(map(torch.equal, projected(layer, x, widths, gate, None), expected))
    expected[gate] = expected[gate][torch.arange(2)[:, None], at]
    found = projected(layer, x, widths, gate, at)
    leaves = [x, *layer.parameters()]
    gradients = [
        torch.autograd.grad(sum(y.sin().sum() for y in pieces), leaves)
        for pieces in (found, expected)
    ]
    for ours, exact in zip([*found, *gradients[0]], [*expected, *gradients[1]], strict=True):
        torch.testing.assert_close(ours, exact)
