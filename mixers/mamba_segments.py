"""Mamba's walks over few sequences: time in segments side by side.

What enters each segment is found before: every segment is walked from zero, which leaves its end
and its whole step size, and one walk over the segments decays and adds these. A segment is then a
sequence of its own. Every token is walked over twice so, which pays where a walk would leave most
of the device idle.

`no_type_check`: Triton compiles a function's text where it stands, so nothing may wrap it.
"""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl
from torch import Tensor

from hgrn2.kernels.first_call import enqueue
from hgrn2.kernels.settings import cdiv
from mixers.mamba_kernels import load_rates, softplus
from mixers.mamba_settings import FORWARD, ROWS, tile_of


@triton.jit(
    do_not_specialize=["T"],
    do_not_specialize_on_alignment=["x", "dt", "A_log", "ends", "lengths"],
)
@no_type_check
def mamba_sum_kernel(
    x,
    dt,
    B,
    A_log,
    bias,
    ends,
    lengths,
    T,
    CHANNELS: tl.constexpr,
    STATE: tl.constexpr,
    TILE_C: tl.constexpr,
    TILE_N: tl.constexpr,
    ROWS: tl.constexpr,
    BACK: tl.constexpr,
):
    """What a sequence of T tokens, a multiple of ROWS, leaves of nothing: ends [b n c], and
    lengths [b c], the sum of its step sizes.

    BACK: of the gradients, against time; x is dy then, B is C, and dt the step sizes.
    """
    tiles: tl.constexpr = (CHANNELS + TILE_C - 1) // TILE_C
    batch = (tl.program_id(0) // tiles).to(tl.int64)
    c = (tl.program_id(0) % tiles) * TILE_C + tl.arange(0, TILE_C)
    n = tl.arange(0, TILE_N)
    here, own = c < CHANNELS, n < STATE
    A, there = load_rates(A_log, c, n, CHANNELS, STATE)
    shift = tl.zeros((TILE_C,), tl.float32)
    if not BACK:
        shift = tl.load(bias + c, mask=here, other=0.0)
    blocks = T // ROWS
    start = batch * T + (T - ROWS if BACK else 0)
    x += start * CHANNELS
    dt += start * CHANNELS
    B += start * STATE
    h = tl.zeros((TILE_C, TILE_N), tl.float32)
    length = tl.zeros((TILE_C,), tl.float32)
    ON: tl.constexpr = -ROWS if BACK else ROWS
    for _ in range(blocks):
        for j in tl.static_range(ROWS):
            row = ROWS - 1 - j if BACK else j
            own_x = tl.load(x + row * CHANNELS + c, mask=here, other=0.0).to(tl.float32)
            s = tl.load(dt + row * CHANNELS + c, mask=here, other=0.0).to(tl.float32)
            own_B = tl.load(B + row * STATE + n, mask=own, other=0.0)[None, :]
            if BACK:
                h = tl.exp2(s[:, None] * A) * (h + own_x[:, None] * own_B)
            else:
                s = softplus(s + shift)
                h = tl.exp2(s[:, None] * A) * h + (s * own_x)[:, None] * own_B
            length += s
        x += ON * CHANNELS
        dt += ON * CHANNELS
        B += ON * STATE
    state = n[None, :] * CHANNELS + c[:, None]
    tl.store(ends + batch * (CHANNELS * STATE) + state, h, mask=there)
    tl.store(lengths + batch * CHANNELS + c, length, mask=here)


@triton.jit(
    do_not_specialize=["segments"],
    do_not_specialize_on_alignment=["A_log", "first", "ends", "lengths", "starts"],
)
@no_type_check
def mamba_enter_kernel(
    A_log,
    first,
    ends,
    lengths,
    starts,
    segments,
    CHANNELS: tl.constexpr,
    STATE: tl.constexpr,
    TILE_C: tl.constexpr,
    TILE_N: tl.constexpr,
    HAS_FIRST: tl.constexpr,
    BACK: tl.constexpr,
):
    """starts [b s n c]: what enters each of a sequence's segments, of their ends [b s n c] and
    lengths [b s c], and of first [b n c]."""
    tiles: tl.constexpr = (CHANNELS + TILE_C - 1) // TILE_C
    batch = (tl.program_id(0) // tiles).to(tl.int64)
    c = (tl.program_id(0) % tiles) * TILE_C + tl.arange(0, TILE_C)
    n = tl.arange(0, TILE_N)
    A, there = load_rates(A_log, c, n, CHANNELS, STATE)
    state = n[None, :] * CHANNELS + c[:, None]
    whole: tl.constexpr = CHANNELS * STATE
    h = tl.zeros((TILE_C, TILE_N), tl.float32)
    if HAS_FIRST:
        h = tl.load(first + batch * whole + state, mask=there, other=0.0)
    for i in range(segments):
        row = batch * segments + (segments - 1 - i if BACK else i)
        tl.store(starts + row * whole + state, h, mask=there)
        s = tl.load(lengths + row * CHANNELS + c, mask=c < CHANNELS, other=0.0)
        end = tl.load(ends + row * whole + state, mask=there, other=0.0)
        h = tl.exp2(s[:, None] * A) * h + end


@no_type_check
def entering(
    x: Tensor,
    dt: Tensor,
    A_log: Tensor,
    B: Tensor,
    bias: Tensor | None,
    first: Tensor | None,
    segments: int,
) -> Tensor:
    """What enters each segment [b*s n c], whose tokens are the rows of x and dt [b*s t c] and B
    [b*s t n]; the rest as `mamba_passes.scan_output` has it. Without a bias: as the kernels' BACK.
    """
    rows, t, c = x.shape
    n, b = len(A_log), rows // segments
    ends, starts = (A_log.new_empty(rows, n, c) for _ in range(2))
    lengths = A_log.new_empty(rows, c)
    tile, room = tile_of(n, FORWARD)
    back, has_first = bias is None, first is not None
    size = {"CHANNELS": c, "STATE": n, "TILE_C": tile, "TILE_N": room, "BACK": back}
    walked = (x, dt, B, A_log, A_log if back else bias, ends, lengths, t)
    enqueue(mamba_sum_kernel, rows * cdiv(c, tile), *walked, ROWS=ROWS, num_warps=1, **size)
    summed = (A_log, first if has_first else ends, ends, lengths, starts, segments)
    enqueue(
        mamba_enter_kernel, b * cdiv(c, tile), *summed, HAS_FIRST=has_first, num_warps=1, **size
    )
    return starts
