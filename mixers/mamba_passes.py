"""Mamba's scan forward and backward as sequences of launches.

All tensors are contiguous. Segments of a sequence are rows of their own, and so nothing but views.
"""

from __future__ import annotations

from typing import no_type_check

import torch
from torch import Tensor

from hgrn2.kernels.first_call import enqueue, total
from hgrn2.kernels.settings import cdiv
from mixers.mamba_backward import mamba_bwd_kernel
from mixers.mamba_kernels import mamba_fwd_kernel
from mixers.mamba_segments import entering
from mixers.mamba_settings import BACKWARD, FORWARD, HELD, ROWS, launch_of


@no_type_check
def buffers_of(x: Tensor, d_state: int, keep: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Room for y [b t c], the last state [b n c], step sizes [b t c] and borders (both empty
    without `keep`)."""
    b, t, c = x.shape
    wide = {"dtype": torch.float32}
    steps = x.new_empty(x.shape if keep else (0,), **wide)
    borders = x.new_empty((b, cdiv(t, ROWS), d_state, c) if keep else (0,), **wide)
    return x.new_empty(x.shape), x.new_empty((b, d_state, c), **wide), steps, borders


@no_type_check
def scan_output(
    x: Tensor,
    dt: Tensor,
    A_log: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    bias: Tensor,
    state: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`buffers_of`, filled: of x and dt [b t c] of one dtype, and in fp32 A_log [n c], B and C
    [b t n], D and bias [c] and the first state [b n c], all contiguous."""
    b, t, c = x.shape
    n = len(A_log)
    y, last, steps, borders = buffers_of(x, n, keep)
    launch = launch_of(b, c, n, t, FORWARD)
    rows = b * launch.segments
    if launch.segments > 1:
        x, dt, B, C = (z.view(rows, t // launch.segments, -1) for z in (x, dt, B, C))
        state = entering(x, dt, A_log, B, bias, state, launch.segments)
        last = last.new_empty(state.shape)
    has_first = state is not None
    states = (state if has_first else last, y, steps, borders, last)
    enqueue(
        mamba_fwd_kernel,
        rows * cdiv(c, launch.tile),
        *(x, dt, B, C, A_log, D, bias, *states, x.shape[1]),
        CHANNELS=c,
        STATE=n,
        TILE_C=launch.tile,
        TILE_N=launch.room,
        ROWS=ROWS,
        HAS_FIRST=has_first,
        KEEP=keep,
        WHOLE=launch.is_whole(x.shape[1], c, n),
        num_warps=1,
        maxnreg=launch.forward_registers,
    )
    return y, last.view(b, launch.segments, n, c)[:, -1].contiguous(), steps, borders


@no_type_check
def scan_gradients(
    x: Tensor,
    A_log: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    dy: Tensor,
    steps: Tensor,
    borders: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dx and ddt in x's dtype, and in fp32 dA_log [n c], dB, dC, dD and dbias; inputs and what the
    forward pass kept as `scan_output` has them."""
    b, t, c = x.shape
    n = len(A_log)
    launch = launch_of(b, c, n, t, BACKWARD)
    tiles, rows, first = cdiv(c, launch.tile), b * launch.segments, None
    wide = {"dtype": torch.float32}
    dx, ddt = x.new_empty(b, t, c), x.new_empty(b, t, c)
    dB, dC = (x.new_empty(tiles, b, t, n, **wide) for _ in range(2))
    if launch.segments > 1:
        x, dy, steps, B, C = (z.view(rows, t // launch.segments, -1) for z in (x, dy, steps, B, C))
        first = entering(dy, steps, A_log, C, None, None, launch.segments)
    dA_log = x.new_empty(rows, n, c, **wide)
    dD, dbias = (x.new_empty(rows, c, **wide) for _ in range(2))
    kept = (steps, borders, borders if first is None else first)
    enqueue(
        mamba_bwd_kernel,
        rows * tiles,
        *(x, B, C, A_log, D, dy, *kept, dx, ddt, dB, dC, dA_log, dD, dbias, x.shape[1]),
        CHANNELS=c,
        STATE=n,
        TILE_C=launch.tile,
        TILE_N=launch.room,
        ROWS=ROWS,
        HELD=HELD,
        HAS_FIRST=first is not None,
        WHOLE=launch.is_whole(x.shape[1], c, n),
        num_warps=1,
    )
    return dx, ddt, *(total(y, 0) for y in (dA_log, dB, dC, dD, dbias))
