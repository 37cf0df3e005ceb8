"""The diagonal recurrence in about 2 sqrt(t) steps: blocks scanned side by side, then joined.

Only products and sums of the inputs are formed: a gate of exactly zero, or a long product that
underflows, is as exact as in the loop, and nothing is divided. The README derives it.

Axes: b batch, n blocks, c tokens of a block.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hgrn2.recurrent import widen


def diagonal_scan(f: Tensor, u: Tensor, *, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """h_t = f_t h_{t-1} + u_t element by element, without a loop over tokens.

    u [b t ...] and f, broadcastable to u over the axes after t, are real or complex; state [b ...]
    (zeros if None). Returns h [b t ...] and the last h, in fp32 or complex64 (double for double
    inputs). The backward pass keeps f, h and the state alone (Martin & Cundy, arXiv 1709.04057).
    """
    f, u, state = widen(f, u, state)
    h: Tensor = _DiagonalScan.apply(f, u, state)
    return h, h[:, -1]


class _DiagonalScan(torch.autograd.Function):
    """h [b t ...] from f, u and the state before the first token."""

    @staticmethod
    def forward(ctx: Any, f: Tensor, u: Tensor, state: Tensor | None) -> Tensor:
        h = _scan(f, u, state)
        ctx.save_for_backward(f, h, state)
        return h

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, dh: Tensor
    ) -> tuple[Tensor | None, Tensor, Tensor | None]:
        f, h, state = ctx.saved_tensors
        adjoint = f.conj().resolve_conj()
        du = _scan_back(adjoint, dh)
        dstate = None if state is None else adjoint[:, 0] * du[:, 0]
        if not ctx.needs_input_grad[0]:
            return None, du, dstate
        df = torch.empty_like(du)
        torch.mul(du[:, 1:], h[:, :-1].conj(), out=df[:, 1:])
        df[:, 0] = 0 if state is None else du[:, 0] * state.conj()
        df = df.sum_to_size(f.shape)
        return df if f.is_complex() else df.real, du, dstate


def _scan(f: Tensor, u: Tensor, state: Tensor | None) -> Tensor:
    """h_t = f_t h_{t-1} + u_t from h_{-1} = state."""
    t = u.shape[1]
    f, u = _blocks(f, 1), _blocks(u, 0)
    h, P = torch.empty_like(u), torch.empty_like(f[:, 1:])
    # Every block on its own, all side by side; P is the product of a block's gates so far.
    gates, inputs, states, products = (x.unbind(2) for x in (f, u, h, P))
    h[:, :, 0], P[:, :, 0] = u[:, :, 0], f[:, 1:, 0]
    if state is not None:
        h[:, 0, 0].addcmul_(f[:, 0, 0], state)
    for i in range(1, u.shape[2]):
        torch.addcmul(inputs[i], gates[i], states[i - 1], out=states[i])
        torch.mul(gates[i][:, 1:], products[i - 1], out=products[i])
    # Then what enters a block from the one before it.
    for j in range(1, u.shape[1]):
        h[:, j, -1].addcmul_(P[:, j - 1, -1], h[:, j - 1, -1])
    h[:, 1:, :-1].addcmul_(P[:, :, :-1], h[:, :-1, -1:])
    return h.flatten(1, 2)[:, :t]


def _scan_back(f: Tensor, dh: Tensor) -> Tensor:
    """The adjoint, the same from the end: du_t = dh_t + f_{t+1} du_{t+1}."""
    t = dh.shape[1]
    f, dh = _blocks(f, 1), _blocks(dh, 0)
    du, P = torch.empty_like(dh), torch.empty_like(f[:, 1:])
    gates, inputs, states, products = (x.unbind(2) for x in (f, dh, du, P))
    du[:, :, -1], P[:, :, -1] = dh[:, :, -1], f[:, 1:, 0]
    for i in reversed(range(dh.shape[2] - 1)):
        torch.addcmul(inputs[i], gates[i + 1], states[i + 1], out=states[i])
        torch.mul(gates[i + 1][:, :-1], products[i + 1], out=products[i])
    for j in reversed(range(dh.shape[1] - 1)):
        du[:, j, 0].addcmul_(P[:, j, 0], du[:, j + 1, 0])
    du[:, :-1, 1:].addcmul_(P[:, :, 1:], du[:, 1:, :1])
    return du.flatten(1, 2)[:, :t]


def _blocks(x: Tensor, fill: float) -> Tensor:
    """x [b t ...] in about sqrt(t) blocks [b n c ...], the last filled up with `fill`."""
    t = x.shape[1]
    c = 1 << math.ceil(math.log2(t) / 2)
    if short := -t % c:
        x = torch.cat([x, x.new_full((x.shape[0], short, *x.shape[2:]), fill)], dim=1)
    return x.unflatten(1, (-1, c))
