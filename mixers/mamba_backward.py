"""Mamba's selective scan in Triton, backward: one walk against time, from the kept borders.

With `mamba_kernels.py`'s letters, a_t = exp(s_t A), u_t = s_t x_t, and sums over c, n or both:

    dh_t = C_t dy_t + g_(t+1)        g_t = a_t dh_t        e_t = g_t h_(t-1)
    dC_t = sum_c h_t dy_t            dB_t = sum_c dh_t u_t            du_t = sum_n dh_t B_t
    dx_t = s_t du_t + D dy_t         ddt_t = sigmoid(z_t) (x_t du_t + sum_n A e_t)
    dA_log = A sum_t s_t e_t         dD = sum_t x_t dy_t              dbias = sum_t ddt_t

Inside a block h is run again from its border. What other programs add to (dB and dC over channels,
the parameters' over sequences) each leaves in a place of its own, summed after: the same bits every
time.
"""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl

from mixers.mamba_kernels import LN2, load_rates, load_row, store_row


@triton.jit
@no_type_check
def slope(s):
    """The derivative of softplus where it is s, 1 - exp(-s); of a small s its series."""
    p = 1.0 - s * (1 / 5) * (1.0 - s * (1 / 6))
    p = s * (1.0 - s * (1 / 2) * (1.0 - s * (1 / 3) * (1.0 - s * (1 / 4) * p)))
    return tl.where(s < 0.25, p, 1.0 - tl.exp2(-s / LN2))


@triton.jit(do_not_specialize=["T"])
@no_type_check
def mamba_bwd_kernel(
    x,
    B,
    C,
    A_log,
    D,
    dy,
    steps,
    borders,
    first,
    dx,
    ddt,
    dB,
    dC,
    dA_log,
    dD,
    dbias,
    T,
    CHANNELS: tl.constexpr,
    STATE: tl.constexpr,
    TILE_C: tl.constexpr,
    TILE_N: tl.constexpr,
    ROWS: tl.constexpr,
    HELD: tl.constexpr,
    HAS_FIRST: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """dx, ddt [b t c]; dB, dC [tiles b t n], dA_log [b n c], dD, dbias [b c] fp32, of this program
    alone; first [b n c] fp32: the g that comes from after the last token; all contiguous."""
    tiles: tl.constexpr = (CHANNELS + TILE_C - 1) // TILE_C
    batch = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    batches = tl.num_programs(0) // tiles
    c = tile * TILE_C + tl.arange(0, TILE_C)
    n = tl.arange(0, TILE_N)
    here, own = c < CHANNELS, n < STATE
    # Triton gives a thread two channels and four numbers of state then: fewest sums among threads.
    pairs = tl.max_contiguous(c, 2)
    A, there = load_rates(A_log, pairs, n, CHANNELS, STATE)
    skip = tl.load(D + c, mask=here, other=0.0)
    state = n[None, :] * CHANNELS + pairs[:, None]
    whole: tl.constexpr = CHANNELS * STATE

    blocks = tl.cdiv(T, ROWS)
    start = ((blocks - 1) * ROWS).to(tl.int64)
    of_channels = (batch * T + start) * CHANNELS
    of_states = (batch * T + start) * STATE
    part = tile.to(tl.int64) * batches * T * STATE
    x += of_channels + c
    steps += of_channels + c
    dy += of_channels + c
    dx += of_channels
    ddt += of_channels
    B += of_states + n
    C += of_states + n
    dB += part + of_states
    dC += part + of_states
    borders += (batch * blocks + blocks - 1) * whole + state

    g = tl.zeros((TILE_C, TILE_N), tl.float32)
    sum_A = g
    if HAS_FIRST:
        g = tl.load(first + batch * whole + state, mask=there, other=0.0)
    sum_D = tl.zeros((TILE_C,), tl.float32)
    sum_bias = sum_D
    for i in range(blocks):
        left = T - (blocks - 1 - i) * ROWS
        # The later half first, so that no more than HELD states are held; what leads there is run
        # twice.
        for begin in tl.static_range(ROWS - HELD, -1, -HELD):
            row = begin + tl.arange(0, HELD)
            h = load_row(borders, there, WHOLE)
            states = ()
            for j in tl.static_range(begin + HELD):
                u, v = j * CHANNELS, j * STATE
                inside = here & (left > j)
                own_x = load_row(x + u, inside, WHOLE).to(tl.float32)
                # Past the end it is 0, which keeps the state.
                s = load_row(steps + u, inside, WHOLE)
                own_B = load_row(B + v, own & (left > j), WHOLE)
                if j >= begin:
                    states += (h,)
                h = tl.exp2(s[:, None] * A) * h + (s * own_x)[:, None] * own_B[None, :]
            states += (h,)
            # Rows are stored together: a program's channels change lanes at a store.
            dxs = tl.zeros((TILE_C, HELD), tl.float32)
            ddts = dxs
            dBs = tl.zeros((HELD, TILE_N), tl.float32)
            dCs = dBs
            for j in tl.static_range(begin + HELD - 1, begin - 1, -1):
                u, v = j * CHANNELS, j * STATE
                inside = here & (left > j)
                own_x = load_row(x + u, inside, WHOLE).to(tl.float32)
                own_dy = load_row(dy + u, inside, WHOLE).to(tl.float32)
                s = load_row(steps + u, inside, WHOLE)
                own_B = load_row(B + v, own & (left > j), WHOLE)[None, :]
                own_C = load_row(C + v, own & (left > j), WHOLE)[None, :]
                dh = g + own_dy[:, None] * own_C
                g = tl.exp2(s[:, None] * A) * dh
                e = g * states[j - begin]
                du = tl.sum(dh * own_B, 1)
                own_ddt = (own_x * du + tl.sum(e * A, 1) * LN2) * slope(s)
                sum_A += e * s[:, None]
                sum_D += own_x * own_dy
                sum_bias += own_ddt
                dB_row = tl.sum(dh * (s * own_x)[:, None], 0)
                dC_row = tl.sum(states[j + 1 - begin] * own_dy[:, None], 0)
                dxs = tl.where((row == j)[None, :], (s * du + skip * own_dy)[:, None], dxs)
                ddts = tl.where((row == j)[None, :], own_ddt[:, None], ddts)
                dBs = tl.where((row == j)[:, None], dB_row[None, :], dBs)
                dCs = tl.where((row == j)[:, None], dC_row[None, :], dCs)
            inside = here[:, None] & (left > row)[None, :]
            to = row[None, :] * CHANNELS + c[:, None]
            store_row(dx + to, dxs.to(dx.dtype.element_ty), inside, WHOLE)
            store_row(ddt + to, ddts.to(ddt.dtype.element_ty), inside, WHOLE)
            inside = (left > row)[:, None] & own[None, :]
            to = row[:, None] * STATE + n[None, :]
            store_row(dB + to, dBs, inside, WHOLE)
            store_row(dC + to, dCs, inside, WHOLE)
        x -= ROWS * CHANNELS
        steps -= ROWS * CHANNELS
        dy -= ROWS * CHANNELS
        dx -= ROWS * CHANNELS
        ddt -= ROWS * CHANNELS
        B -= ROWS * STATE
        C -= ROWS * STATE
        dB -= ROWS * STATE
        dC -= ROWS * STATE
        borders -= whole
    tl.store(dA_log + batch * whole + state, sum_A * A * LN2, mask=there)
    tl.store(dD + batch * CHANNELS + c, sum_D, mask=here)
    tl.store(dbias + batch * CHANNELS + c, sum_bias, mask=here)
