"""HGRN2 and HGRN1 in eager torch: the forms for use on any device, and their per-token oracles.

Axes: b batch, t time, h heads, k key width, v value width, d channels. Inputs are fp64, fp32, fp16
or bf16; the arithmetic and the states are fp32 (fp64 for fp64 inputs); y and h come back in v's
dtype, zero at padding. Every gradient flows: to q, z, v, bound, theta and state.

`*_recurrent` loop over tokens and are the oracles; the others are for use. The general cores, with
the gate and the key given, serve other linear-attention and state-space mixers too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hgrn2.chunked import gated_chunked, tied_chunked
from hgrn2.gate import (
    arithmetic_dtype,
    close_padding,
    gate,
    mask_padding,
    valid_tokens,
    zero_padding,
)
from hgrn2.recurrent import diagonal_recurrent, gated_recurrent
from hgrn2.scan import diagonal_scan

__all__ = [
    "diagonal_recurrent",
    "diagonal_scan",
    "gate",
    "gated_bidirectional",
    "gated_chunked",
    "gated_recurrent",
    "gated_step",
    "hgrn1_bidirectional",
    "hgrn1_recurrent",
    "hgrn1_scan",
    "hgrn2_bidirectional",
    "hgrn2_chunked",
    "hgrn2_recurrent",
    "hgrn2_step",
    "mask_padding",
]


def gated_bidirectional(
    q: Tensor, key: Tensor, v: Tensor, f: Tensor, *, lengths: Tensor | None = None
) -> Tensor:
    """`gated_chunked` in both directions, summed: a token's own term enters twice.

    Shapes as there; returns y in v's dtype. The backward direction starts at each row's last valid
    token, since padding is the identity and adds nothing to a state of zeros.
    """
    wide = v.to(arithmetic_dtype(q, key, v, f))
    if lengths is not None:
        f, key = mask_padding(f, key, lengths)
        q, wide = zero_padding(q, lengths), zero_padding(wide, lengths)
    forward, _ = gated_chunked(q, key, wide, f)
    backward, _ = gated_chunked(q.flip(1), key.flip(1), wide.flip(1), f.flip(1))
    return (forward + backward.flip(1)).to(v.dtype)


def hgrn2_recurrent(
    q: Tensor,
    z: Tensor,
    v: Tensor,
    bound: Tensor,
    *,
    state: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The oracle of HGRN2, one token at a time. Shapes and results as `hgrn2.hgrn2`."""
    f, key = gate(z, bound)
    return gated_recurrent(q, key, v, f, state=state, lengths=lengths)


def hgrn2_chunked(
    q: Tensor,
    z: Tensor,
    v: Tensor,
    bound: Tensor,
    *,
    state: Tensor | None = None,
    lengths: Tensor | None = None,
    chunk: int = 64,
) -> tuple[Tensor, Tensor]:
    """HGRN2 in chunks: the form for use. Shapes and results as `hgrn2.hgrn2`."""
    return tied_chunked(q, z, v, bound, state=state, lengths=lengths, chunk=chunk)


def hgrn2_bidirectional(
    q: Tensor, z: Tensor, v: Tensor, bound: Tensor, *, lengths: Tensor | None = None
) -> Tensor:
    """HGRN2 in both directions, y_t = q_t (S_t^forward + S_t^backward)."""
    wide = v.to(arithmetic_dtype(q, z, v, bound))
    if lengths is not None:
        z = close_padding(z, lengths)
        q, wide = zero_padding(q, lengths), zero_padding(wide, lengths)
    forward, _ = tied_chunked(q, z, wide, bound)
    backward, _ = tied_chunked(q.flip(1), z.flip(1), wide.flip(1), bound)
    return (forward + backward.flip(1)).to(v.dtype)


@torch.no_grad()
def hgrn2_step(
    q: Tensor, z: Tensor, v: Tensor, bound: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One token of HGRN2: q, z [b h k], v [b h v] -> y [b h v]; state [b h k v] changes in place.

    The arithmetic runs in the state's dtype.
    """
    f, key = gate(z.to(state.dtype), bound.to(state.dtype))
    return gated_step(q, key, v, f, state)


@torch.no_grad()
def gated_step(
    q: Tensor, key: Tensor, v: Tensor, f: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One token of `gated_recurrent`: q, key, f [b h k], v [b h v] -> y [b h v]; state [b h k v]
    changes in place, and the arithmetic runs in its dtype."""
    key, f = key.to(state.dtype), f.to(state.dtype)
    state.mul_(f[..., None]).addcmul_(key[..., None], v.to(state.dtype)[..., None, :])
    with torch.autocast(q.device.type, enabled=False):
        y = (q.to(state.dtype)[..., None, :] @ state).squeeze(-2)
    return y.to(v.dtype), state


def hgrn1_recurrent(
    v: Tensor,
    z: Tensor,
    bound: Tensor,
    *,
    theta: Tensor | None = None,
    state: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The oracle of HGRN1, one token at a time. Shapes and results as `hgrn2.hgrn1`."""
    return _hgrn1(diagonal_recurrent, v, z, bound, theta, state, lengths)


def hgrn1_scan(
    v: Tensor,
    z: Tensor,
    bound: Tensor,
    *,
    theta: Tensor | None = None,
    state: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """HGRN1 by a parallel scan: the form for use. Shapes and results as `hgrn2.hgrn1`."""
    return _hgrn1(diagonal_scan, v, z, bound, theta, state, lengths)


def hgrn1_bidirectional(
    v: Tensor,
    z: Tensor,
    bound: Tensor,
    *,
    theta: Tensor | None = None,
    theta_backward: Tensor | None = None,
    lengths: Tensor | None = None,
) -> Tensor:
    """HGRN1 in both directions, the states summed. Shapes as `hgrn2.hgrn1_bidirectional`."""
    f, u = _hgrn1_gate_and_input(v, z, bound, theta, lengths)
    forward, _ = diagonal_scan(f, u)
    if theta_backward is not None:
        f, _ = _hgrn1_gate_and_input(v, z, bound, theta_backward, lengths)
    backward, _ = diagonal_scan(f.flip(1), u.flip(1))
    h = zero_padding(forward + backward.flip(1), lengths)
    return (h if theta is None else torch.view_as_real(h)).to(v.dtype)


def _hgrn1(
    recurrence: Callable[..., tuple[Tensor, Tensor]],
    v: Tensor,
    z: Tensor,
    bound: Tensor,
    theta: Tensor | None,
    state: Tensor | None,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor]:
    dtype = arithmetic_dtype(v, z, bound, theta, state)
    f, u = _hgrn1_gate_and_input(v.to(dtype), z.to(dtype), bound, theta, lengths)
    if state is not None:
        state = state.to(dtype)
        if theta is not None:
            state = torch.view_as_complex(state.contiguous())
    h, last = recurrence(f, u, state=state)
    h = zero_padding(h, lengths)
    if theta is not None:
        h, last = torch.view_as_real(h), torch.view_as_real(last)
    return h.to(v.dtype), last


def _hgrn1_gate_and_input(
    v: Tensor, z: Tensor, bound: Tensor, theta: Tensor | None, lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    """f_t (times exp(i theta)) and key_t v_t, [b t d], complex where theta is given."""
    dtype = arithmetic_dtype(v, z, bound, theta)
    v, z = zero_padding(v.to(dtype), lengths), z.to(dtype)
    if lengths is not None:
        z = close_padding(z, lengths)
    f, key = gate(z, bound)
    if theta is None:
        return f, key * v
    theta = theta.to(dtype)
    turned = f * torch.polar(torch.ones_like(theta), theta)
    if lengths is not None:
        turned = torch.where(valid_tokens(f, lengths), turned, 1)
    return turned, key * torch.view_as_complex(v.contiguous())
