"""The diagonal recurrence without a loop over tokens: Blelloch's even/odd recursion.

Only products and sums of the inputs are formed: a gate of exactly zero, or a long product that
underflows, is as exact as in the loop. See the README's section on the scan.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hgrn2.recurrent import widen


def diagonal_scan(f: Tensor, u: Tensor, *, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """h_t = f_t h_{t-1} + u_t element by element, in about 2 log2(t) steps.

    u [b t ...] and f, broadcastable to u over the axes after t, are real or complex; state [b ...]
    (zeros if None). Returns h [b t ...] and the last h, in fp32 or complex64 (double for double
    inputs). The backward pass keeps f and h alone (Martin & Cundy, arXiv 1709.04057).
    """
    f, u, state = widen(f, u, state)
    if state is None:
        h: Tensor = _DiagonalScan.apply(f, u)
    else:
        first = (u[:, :1] + f[:, :1] * state[:, None]).to(u.dtype)
        h = _DiagonalScan.apply(f, torch.cat([first, u[:, 1:]], dim=1))
    return h, h[:, -1]


class _DiagonalScan(torch.autograd.Function):
    """h from f and u, both with time on axis 1; h_{-1} = 0."""

    @staticmethod
    def forward(ctx: Any, f: Tensor, u: Tensor) -> Tensor:
        h = _scan(f, u)
        ctx.save_for_backward(f, h)
        return h

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, dh: Tensor
    ) -> tuple[Tensor | None, Tensor]:
        f, h = ctx.saved_tensors
        # The adjoint is the same recurrence run from the end: du_t = dh_t + conj(f_{t+1}) du_{t+1}.
        adjoint_gate = f[:, 1:].conj().resolve_conj().flip(1)
        adjoint_gate = torch.cat([torch.ones_like(f[:, :1]), adjoint_gate], dim=1)
        du = _scan(adjoint_gate, dh.flip(1)).flip(1)
        if not ctx.needs_input_grad[0]:
            return None, du
        df = torch.zeros_like(du)
        torch.mul(du[:, 1:], h[:, :-1].conj(), out=df[:, 1:])
        if not f.is_complex() and df.is_complex():
            df = df.real
        return df.sum_to_size(f.shape), du


def _scan(f: Tensor, u: Tensor) -> Tensor:
    """All h_t, for f [b t ...] and u [b t ...]; the steps at odd t are the scan of merged pairs."""
    t = u.shape[1]
    if t == 1:
        return u.clone()
    pairs = t // 2
    f_even, f_odd = f[:, 0 : 2 * pairs : 2], f[:, 1::2]
    u_even, u_odd = u[:, 0 : 2 * pairs : 2], u[:, 1::2]
    h = torch.empty_like(u)
    h_odd = _scan(f_even * f_odd, torch.addcmul(u_odd, f_odd, u_even))
    h[:, 1::2] = h_odd
    h[:, 0] = u[:, 0]
    rest = u[:, 2::2]
    h[:, 2::2] = torch.addcmul(rest, f[:, 2::2], h_odd[:, : rest.shape[1]])
    return h
