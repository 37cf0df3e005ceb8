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

import triton
import triton.language as tl

LN2 = tl.constexpr(log(2))


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
def load_row(pointers, inside, WHOLE: tl.constexpr):
    """0 where not `inside`. WHOLE: all are, and no thread asks."""
    if WHOLE:
        return tl.load(pointers)
    return tl.load(pointers, mask=inside, other=0.0)


@triton.jit
@no_type_check
def store_row(pointers, row, inside, WHOLE: tl.constexpr):
    """What is `inside`, or WHOLE."""
    if WHOLE:
        tl.store(pointers, row)
    else:
        tl.store(pointers, row, mask=inside)


@triton.jit
@no_type_check
def load_rates(A_log, c, n, CHANNELS: tl.constexpr, STATE: tl.constexpr):
    """A in units of log 2, [c n] of A_log [n c], and where there is one. Elsewhere nothing is
    written to a state, whatever its decay."""
    there = (c < CHANNELS)[:, None] & (n < STATE)[None, :]
    a = tl.load(A_log + n[None, :] * CHANNELS + c[:, None], mask=there, other=0.0)
    return -tl.exp2(a / LN2) / LN2, there


@triton.jit(
    do_not_specialize=["T"],
    do_not_specialize_on_alignment=["x", "dt", "y", "steps", "A_log", "first", "borders", "last"],
)
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
    steps,
    borders,
    last,
    T,
    CHANNELS: tl.constexpr,
    STATE: tl.constexpr,
    TILE_C: tl.constexpr,
    TILE_N: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_FIRST: tl.constexpr,
    KEEP: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """y, steps [b t c], borders [b t/ROWS n c], first, last [b n c]; all but y fp32, contiguous.

    Without the alignment of what has channels last, Triton gives each thread one channel with all
    its numbers of state: nothing but B and C is shared, and those are read by all.
    """
    tiles: tl.constexpr = (CHANNELS + TILE_C - 1) // TILE_C
    batch = (tl.program_id(0) // tiles).to(tl.int64)
    c = (tl.program_id(0) % tiles) * TILE_C + tl.arange(0, TILE_C)
    n = tl.arange(0, TILE_N)
    here = c < CHANNELS
    A, there = load_rates(A_log, c, n, CHANNELS, STATE)
    skip = tl.load(D + c, mask=here, other=0.0)
    shift = tl.load(bias + c, mask=here, other=0.0)
    state = n[None, :] * CHANNELS + c[:, None]
    whole: tl.constexpr = CHANNELS * STATE
    h = tl.zeros((TILE_C, TILE_N), tl.float32)
    if HAS_FIRST:
        h = tl.load(first + batch * whole + state, mask=there, other=0.0)

    blocks = tl.cdiv(T, ROWS)
    x += batch * T * CHANNELS + c
    dt += batch * T * CHANNELS + c
    y += batch * T * CHANNELS + c
    steps += batch * T * CHANNELS + c
    B += batch * T * STATE + n
    C += batch * T * STATE + n
    borders += batch * blocks * whole + state
    own = n < STATE
    xs, dts = (), ()
    for j in tl.static_range(ROWS):
        xs += (load_row(x + j * CHANNELS, here & (j < T), WHOLE),)
        dts += (load_row(dt + j * CHANNELS, here & (j < T), WHOLE),)
    some = own & (T > 0)
    own_B, own_C = load_row(B, some, WHOLE), load_row(C, some, WHOLE)
    for i in range(blocks):
        if KEEP:
            store_row(borders, h, there, WHOLE)
            borders += whole
        # What is loaded is used a block later, B and C a token: the next block's, or once more the
        # last one's. A warp waits on one of six counters, not on a register: what comes from far is
        # asked for together, so that no wait for B or C is for that too.
        left = T - i * ROWS
        on = tl.where(left > ROWS, ROWS, 0)
        own_xs, own_steps = (), ()
        for j in tl.static_range(ROWS):
            s = softplus(dts[j].to(tl.float32) + shift)
            # Where no token is left the state stays.
            own_steps += (s if WHOLE else tl.where(left > j, s, 0.0),)
            own_xs += (xs[j].to(tl.float32),)
        x += on * CHANNELS
        dt += on * CHANNELS
        xs, dts = (), ()
        for j in tl.static_range(ROWS):
            inside = here & (left > on + j)
            xs += (load_row(x + j * CHANNELS, inside, WHOLE),)
            dts += (load_row(dt + j * CHANNELS, inside, WHOLE),)
        for j in tl.static_range(ROWS):
            ahead = (j + 1) * STATE if j + 1 < ROWS else on * STATE
            inside = own & (left > (j + 1) % ROWS)
            B_ahead = load_row(B + ahead, inside, WHOLE)
            C_ahead = load_row(C + ahead, inside, WHOLE)
            written = (own_steps[j] * own_xs[j])[:, None] * own_B[None, :]
            h = tl.exp2(own_steps[j][:, None] * A) * h + written
            out = tl.sum(h * own_C[None, :], 1) + skip * own_xs[j]
            inside = here & (left > j)
            store_row(y + j * CHANNELS, out.to(y.dtype.element_ty), inside, WHOLE)
            if KEEP:
                store_row(steps + j * CHANNELS, own_steps[j], inside, WHOLE)
            own_B, own_C = B_ahead, C_ahead
        y += ROWS * CHANNELS
        steps += ROWS * CHANNELS
        B += on * STATE
        C += on * STATE
    store_row(last + batch * whole + state, h, there, WHOLE)
