"""Mamba's selective scan in Triton, forward: the states never leave the chip but at borders.

With z_t = dt_t + bias, s_t = softplus(z_t), A = -exp(A_log) (arXiv 2312.00752, Algorithm 2):

    h_t = exp(s_t A) h_(t-1) + s_t x_t B_t        y_t = C_t h_t + D x_t

A program walks one sequence over time, some channels with all their numbers of state. The backward
pass starts from the borders, the states that enter every block of ROWS tokens. Axes: b batch, t
time, c channels, n numbers of state.

`no_type_check`: Triton compiles a function's text where it stands, so nothing may wrap it.
"""

from __future__ import annotations

from math import log
from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from hgrn2.kernels.first_call import enqueue
from hgrn2.kernels.settings import cdiv

LN2 = tl.constexpr(log(2))
# Tokens of a block. The backward pass holds a state for each of them.
ROWS = 8
# Numbers of state that a program of one warp holds: 16 a thread.
TILE = 512
# Warps that fill an H100: two for each of its schedulers.
WARPS = 132 * 4 * 2


def channels_of(batch: int, channels: int, d_state: int) -> int:
    """Channels of a program: fewer where the programs would not fill the device."""
    tile = max(1, min(64, TILE // triton.next_power_of_2(d_state)))
    while tile > 8 and batch * cdiv(channels, tile) < WARPS // 2:
        tile //= 2
    return tile


@triton.jit
@no_type_check
def softplus(z):
    """log(1 + exp(z)). The logarithm of 1 + e as the series of 2 artanh(e / (2 + e)), whose error
    is relative: a step size may be far below 1."""
    e = tl.exp2(-tl.abs(z) / LN2)
    r = e / (2.0 + e)
    q = r * r
    p = 1 / 11 + q * (1 / 13)
    p = 1 / 7 + q * (1 / 9 + q * p)
    p = 1.0 + q * (1 / 3 + q * (1 / 5 + q * p))
    return tl.maximum(z, 0.0) + 2.0 * r * p


@triton.jit
@no_type_check
def load_rates(A_log, c, n, CHANNELS: tl.constexpr, STATE: tl.constexpr):
    """A in units of log 2, [c n]; zeros, which keep a state, where there is none."""
    there = (c < CHANNELS)[:, None] & (n < STATE)[None, :]
    a = tl.load(A_log + c[:, None] * STATE + n[None, :], mask=there, other=0.0)
    return tl.where(there, -tl.exp2(a / LN2) / LN2, 0.0), there


@triton.jit
@no_type_check
def load_token(x, dt, B, C, left, c, n, CHANNELS: tl.constexpr, STATE: tl.constexpr):
    """x, dt [c], B, C [n] of one token; zeros where none is left."""
    here, own = (c < CHANNELS) & (left > 0), (n < STATE) & (left > 0)
    return (
        tl.load(x + c, mask=here, other=0.0),
        tl.load(dt + c, mask=here, other=0.0),
        tl.load(B + n, mask=own, other=0.0),
        tl.load(C + n, mask=own, other=0.0),
    )


@triton.jit(do_not_specialize=["T"])
@no_type_check
def mamba_fwd_kernel(
    x,
    dt,
    B,
    C,
    A_log,
    D,
    bias,
    first,
    y,
    borders,
    last,
    T,
    CHANNELS: tl.constexpr,
    STATE: tl.constexpr,
    TILE_C: tl.constexpr,
    TILE_N: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_FIRST: tl.constexpr,
    STORE_BORDERS: tl.constexpr,
):
    """y [b t c]; borders [b t/ROWS c n], first and last [b c n] fp32; all contiguous."""
    tiles: tl.constexpr = (CHANNELS + TILE_C - 1) // TILE_C
    batch = (tl.program_id(0) // tiles).to(tl.int64)
    c = (tl.program_id(0) % tiles) * TILE_C + tl.arange(0, TILE_C)
    n = tl.arange(0, TILE_N)
    here = c < CHANNELS
    A, there = load_rates(A_log, c, n, CHANNELS, STATE)
    skip = tl.load(D + c, mask=here, other=0.0)
    shift = tl.load(bias + c, mask=here, other=0.0)
    state = c[:, None] * STATE + n[None, :]
    whole: tl.constexpr = CHANNELS * STATE
    h = tl.zeros((TILE_C, TILE_N), tl.float32)
    if HAS_FIRST:
        h = tl.load(first + batch * whole + state, mask=there, other=0.0)

    blocks = tl.cdiv(T, ROWS)
    x += batch * T * CHANNELS
    dt += batch * T * CHANNELS
    y += batch * T * CHANNELS
    B += batch * T * STATE
    C += batch * T * STATE
    borders += batch * blocks * whole
    rows = ()
    for j in tl.static_range(ROWS):
        u, v = j * CHANNELS, j * STATE
        rows += (load_token(x + u, dt + u, B + v, C + v, T - j, c, n, CHANNELS, STATE),)
    for i in range(blocks):
        if STORE_BORDERS:
            tl.store(borders + state, h, mask=there)
            borders += whole
        # A block is loaded while the one before it is walked over.
        x += ROWS * CHANNELS
        dt += ROWS * CHANNELS
        B += ROWS * STATE
        C += ROWS * STATE
        left = T - i * ROWS
        ahead = ()
        for j in tl.static_range(ROWS):
            own_x, own_dt, own_B, own_C = rows[j]
            u, v = j * CHANNELS, j * STATE
            after = left - ROWS - j
            ahead += (load_token(x + u, dt + u, B + v, C + v, after, c, n, CHANNELS, STATE),)
            own_x = own_x.to(tl.float32)
            # Where no token is left the state stays.
            s = tl.where(left > j, softplus(own_dt.to(tl.float32) + shift), 0.0)
            written = (s * own_x)[:, None] * own_B.to(tl.float32)[None, :]
            h = tl.exp2(s[:, None] * A) * h + written
            out = tl.sum(h * own_C.to(tl.float32)[None, :], 1) + skip * own_x
            tl.store(y + u + c, out.to(y.dtype.element_ty), mask=here & (left > j))
        y += ROWS * CHANNELS
        rows = ahead
    tl.store(last + batch * whole + state, h, mask=there)


@no_type_check
def buffers_of(x: Tensor, d_state: int, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Room for y [b t c], the last state [b c n] and the borders (empty without `keep`)."""
    b, t, c = x.shape
    wide = {"dtype": torch.float32}
    borders = x.new_empty((b, cdiv(t, ROWS), c, d_state) if keep else (0,), **wide)
    return x.new_empty(x.shape), x.new_empty((b, c, d_state), **wide), borders


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
) -> tuple[Tensor, Tensor, Tensor]:
    """y [b t c] in x's dtype, the last state [b c n] and, with `keep`, the borders; all inputs
    contiguous, A_log, D, bias and state in fp32."""
    b, t, c = x.shape
    n = A_log.shape[1]
    y, last, borders = buffers_of(x, n, keep)
    tile = channels_of(b, c, n)
    enqueue(
        mamba_fwd_kernel,
        b * cdiv(c, tile),
        *(x, dt, B, C, A_log, D, bias, last if state is None else state, y, borders, last, t),
        CHANNELS=c,
        STATE=n,
        TILE_C=tile,
        TILE_N=triton.next_power_of_2(n),
        ROWS=ROWS,
        HAS_FIRST=state is not None,
        STORE_BORDERS=keep,
        num_warps=1,
    )
    return y, last, borders
