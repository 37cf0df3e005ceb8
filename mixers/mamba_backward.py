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

import torch
import triton
import triton.language as tl
from torch import Tensor

from hgrn2.kernels.first_call import enqueue, total
from hgrn2.kernels.settings import cdiv
from mixers.mamba_kernels import LN2, ROWS, channels_of, load_rates, load_token, softplus


@triton.jit(do_not_specialize=["T"])
@no_type_check
def mamba_bwd_kernel(
    x,
    dt,
    B,
    C,
    A_log,
    D,
    bias,
    dy,
    borders,
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
):
    """dx, ddt [b t c]; dB, dC [tiles b t n], dA_log [b c n], dD, dbias [b c] fp32, of this program
    alone; all contiguous."""
    tiles: tl.constexpr = (CHANNELS + TILE_C - 1) // TILE_C
    batch = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    batches = tl.num_programs(0) // tiles
    c = tile * TILE_C + tl.arange(0, TILE_C)
    n = tl.arange(0, TILE_N)
    here, own = c < CHANNELS, n < STATE
    A, there = load_rates(A_log, c, n, CHANNELS, STATE)
    skip = tl.load(D + c, mask=here, other=0.0)
    shift = tl.load(bias + c, mask=here, other=0.0)
    state = c[:, None] * STATE + n[None, :]
    whole: tl.constexpr = CHANNELS * STATE

    blocks = tl.cdiv(T, ROWS)
    start = ((blocks - 1) * ROWS).to(tl.int64)
    of_channels = (batch * T + start) * CHANNELS
    of_states = (batch * T + start) * STATE
    part = tile.to(tl.int64) * batches * T * STATE
    x += of_channels
    dt += of_channels
    dy += of_channels
    dx += of_channels
    ddt += of_channels
    B += of_states
    C += of_states
    dB += part + of_states
    dC += part + of_states
    borders += (batch * blocks + blocks - 1) * whole

    g = tl.zeros((TILE_C, TILE_N), tl.float32)
    sum_A = g
    sum_D = tl.zeros((TILE_C,), tl.float32)
    sum_bias = sum_D
    for i in range(blocks):
        left = T - (blocks - 1 - i) * ROWS
        h = tl.load(borders + state, mask=there, other=0.0)
        entering = (h,)
        for j in tl.static_range(ROWS - 1):
            u, v = j * CHANNELS, j * STATE
            own_x, own_dt, own_B, _ = load_token(
                x + u, dt + u, B + v, C + v, left - j, c, n, CHANNELS, STATE
            )
            s = tl.where(left > j, softplus(own_dt.to(tl.float32) + shift), 0.0)
            written = (s * own_x.to(tl.float32))[:, None] * own_B.to(tl.float32)[None, :]
            h = tl.exp2(s[:, None] * A) * h + written
            entering += (h,)
        for j in tl.static_range(ROWS - 1, -1, -1):
            u, v = j * CHANNELS, j * STATE
            own_x, own_dt, own_B, own_C = load_token(
                x + u, dt + u, B + v, C + v, left - j, c, n, CHANNELS, STATE
            )
            taken = here & (left > j)
            own_dy = tl.load(dy + u + c, mask=taken, other=0.0).to(tl.float32)
            own_x = own_x.to(tl.float32)
            own_B, own_C = own_B.to(tl.float32)[None, :], own_C.to(tl.float32)[None, :]
            z = own_dt.to(tl.float32) + shift
            s = tl.where(left > j, softplus(z), 0.0)
            written = (s * own_x)[:, None]
            a = tl.exp2(s[:, None] * A)
            h = a * entering[j] + written * own_B
            dh = g + own_dy[:, None] * own_C
            g = a * dh
            e = g * entering[j]
            du = tl.sum(dh * own_B, 1)
            ds = own_x * du + tl.sum(e * A, 1) * LN2
            own_ddt = ds / (1.0 + tl.exp2(-z / LN2))
            own_dx = s * du + skip * own_dy
            sum_A += e * s[:, None]
            sum_D += own_x * own_dy
            # Of a token that is none, z is no logit, but ds is 0.
            sum_bias += own_ddt
            tl.store(dx + u + c, own_dx.to(dx.dtype.element_ty), mask=taken)
            tl.store(ddt + u + c, own_ddt.to(ddt.dtype.element_ty), mask=taken)
            tl.store(dB + v + n, tl.sum(dh * written, 0), mask=own & (left > j))
            tl.store(dC + v + n, tl.sum(h * own_dy[:, None], 0), mask=own & (left > j))
        x -= ROWS * CHANNELS
        dt -= ROWS * CHANNELS
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


@no_type_check
def scan_gradients(
    x: Tensor,
    dt: Tensor,
    A_log: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    bias: Tensor,
    borders: Tensor,
    dy: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dx, ddt, dA_log, dB, dC, dD, dbias in the inputs' dtypes; inputs as `scan_output`'s."""
    b, t, c = x.shape
    n = A_log.shape[1]
    tile = channels_of(b, c, n)
    tiles = cdiv(c, tile)
    wide = {"dtype": torch.float32, "device": x.device}
    dx, ddt = torch.empty_like(x), torch.empty_like(dt)
    dB, dC = (torch.empty(tiles, b, t, n, **wide) for _ in range(2))
    dA_log = torch.empty(b, c, n, **wide)
    dD, dbias = (torch.empty(b, c, **wide) for _ in range(2))
    enqueue(
        mamba_bwd_kernel,
        b * tiles,
        *(x, dt, B, C, A_log, D, bias, dy, borders, dx, ddt, dB, dC, dA_log, dD, dbias, t),
        CHANNELS=c,
        STATE=n,
        TILE_C=tile,
        TILE_N=triton.next_power_of_2(n),
        ROWS=ROWS,
        num_warps=1,
    )
    dA_log, dD, dbias = (total(y, 0) for y in (dA_log, dD, dbias))
    return dx, ddt, dA_log, total(dB, 0).to(B.dtype), total(dC, 0).to(C.dtype), dD, dbias
