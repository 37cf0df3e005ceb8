"""The recurrences as per-token loops: slow, obvious, and the oracles of everything else.

Axes: b batch, t time, h heads, k key width, v value width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hgrn2.gate import arithmetic_dtype, mask_padding, zero_padding


def gated_recurrent(
    q: Tensor,
    key: Tensor,
    v: Tensor,
    f: Tensor,
    *,
    state: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Linear attention with a forget gate per key channel, one token at a time.

        S_t = Diag(f_t) S_{t-1} + key_t (x) v_t        y_t = q_t S_t

    (GLA, arXiv 2312.06635, Eq. 3; HGRN2, arXiv 2404.07904, Eq. 3.) Shapes: q, key, f [b t h k],
    v [b t h v], state [b h k v] (zeros if None), lengths [b]. Returns y [b t h v] in v's dtype,
    zero at padding, and the state after the last valid token, in fp32 (fp64 for fp64 inputs).
    """
    out_dtype = v.dtype
    dtype = arithmetic_dtype(q, key, v, f, state)
    q, key, v, f = (x.to(dtype) for x in (q, key, v, f))
    if lengths is not None:
        f, key = mask_padding(f, key, lengths)
        q, v = zero_padding(q, lengths), zero_padding(v, lengths)
    b, _, h, k = q.shape
    S = q.new_zeros(b, h, k, v.shape[-1]) if state is None else state.to(dtype)
    y = []
    # unbind, not indexing: the backward of T separate indexings would cost T * T
    with torch.autocast(q.device.type, enabled=False):
        for q_t, key_t, v_t, f_t in zip(*(x.unbind(1) for x in (q, key, v, f)), strict=True):
            S = f_t[..., None] * S + key_t[..., None] * v_t[..., None, :]
            y.append((q_t[..., None, :] @ S).squeeze(-2))
    return torch.stack(y, dim=1).to(out_dtype), S


def diagonal_recurrent(
    f: Tensor, u: Tensor, *, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """h_t = f_t h_{t-1} + u_t element by element, one token at a time.

    u [b t ...] and f, broadcastable to u over the axes after t, are real or complex; state [b ...]
    (zeros if None). Returns h [b t ...] and the last h, in fp32 or complex64 (double for double
    inputs).
    """
    f, u, state = widen(f, u, state)
    h = torch.zeros_like(u[:, 0]) if state is None else state
    states = []
    for f_t, u_t in zip(f.unbind(1), u.unbind(1), strict=True):
        h = f_t * h + u_t
        states.append(h)
    return torch.stack(states, dim=1), h


def widen(f: Tensor, u: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The diagonal recurrence's inputs in the arithmetic's dtype; u and state complex if any is."""
    real = arithmetic_dtype(f, u, state)
    is_complex = any(x is not None and x.is_complex() for x in (f, u, state))
    wide = real.to_complex() if is_complex else real
    f = f.to(wide if f.is_complex() else real)
    return f, u.to(wide), None if state is None else state.to(wide)
