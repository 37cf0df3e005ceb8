"""The diagonal scan's walk over time: states, borders, segments.

    state:     h_t = f_t exp(i theta) h_{t-1} + key_t v_t
    gradient:  g_t = f_t exp(-i theta) (dh_t + g_{t+1})         what reaches h_{t-1}

Both are one walk, along time or against it. It can store h, what enters every sub-block (the
borders, from which the other kernels start), and a segment's whole decay and end. Where batch *
channels is too small to fill the device, time is split into segments: a first walk sums each from
zero, `hgrn1_fwd_segments_kernel` carries over the segments, and the walk proper starts from there.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hgrn2.kernels.scan_rows import (
    entering,
    load_row,
    of_last,
    plus_scaled,
    product,
    store_row,
    tied_gate,
    turned,
    whole,
    wide,
)


@triton.jit(do_not_specialize=["T", "borders_n", "segments", "segment_tokens"])
def hgrn1_fwd_walk_kernel(
    z,
    x,
    bound,
    turn,
    turn_back,
    lengths,
    first,
    back,
    h,
    borders,
    last,
    decay,
    z_stride_b,
    x_stride_b,
    T,
    borders_n,
    segments,
    segment_tokens,
    D: tl.constexpr,
    BC: tl.constexpr,
    W: tl.constexpr,
    ROWS: tl.constexpr,
    BORDER: tl.constexpr,
    Z_STRIDE: tl.constexpr,
    X_STRIDE: tl.constexpr,
    X_CHANNEL: tl.constexpr,
    X_PAIR: tl.constexpr,
    TURN: tl.constexpr,
    DESCEND: tl.constexpr,
    ADJOINT: tl.constexpr,
    BOTH: tl.constexpr,
    FAST: tl.constexpr,
    HAS_FIRST: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    STORE_H: tl.constexpr,
    STORE_BORDERS: tl.constexpr,
    STORE_LAST: tl.constexpr,
    STORE_DECAY: tl.constexpr,
):
    """One segment of BC channels.

    x: v, or dh (ADJOINT). first, last, decay [b s d] fp32, borders and back [b n d] fp32; back: the
    other direction's borders, whose states are added to the h [b t d] that is stored (BOTH). turn
    [2 d]: cos and sin of theta; turn_back the other direction's. Strides along time are constants,
    so that a row's address is an immediate.
    """
    N: tl.constexpr = 2 if TURN else 1
    STEP: tl.constexpr = W * ROWS
    # Rows, and whole steps before the rest or after it, in the order of the walk.
    ON: tl.constexpr = -1 if DESCEND else 1
    TOP: tl.constexpr = ROWS - 1 if DESCEND else 0
    PAST: tl.constexpr = -1 if DESCEND else ROWS
    tiles = (D + BC - 1) // BC
    tile = tl.program_id(0) % tiles
    row = tl.program_id(0) // tiles
    segment = row % segments
    batch = (row // segments).to(tl.int64)

    d = tile * BC + tl.arange(0, BC)[None, :]
    sub = tl.arange(0, W)[:, None] * ROWS
    here = (d < D) if D % BC != 0 else tl.full((1, BC), True, tl.int1)
    always = sub >= 0
    b = tl.load(bound + d, mask=here, other=0.0)
    cos, sin, cos_back, sin_back = b, b, b, b
    if TURN:
        cos = tl.load(turn + d, mask=here, other=1.0)
        sin = tl.load(turn + D + d, mask=here, other=0.0)
        if ADJOINT:
            sin = -sin
        if BOTH:
            cos_back = tl.load(turn_back + d, mask=here, other=1.0)
            sin_back = tl.load(turn_back + D + d, mask=here, other=0.0)

    begin = segment * segment_tokens
    stop = tl.minimum(begin + segment_tokens, T)
    end = stop
    if HAS_LENGTHS:
        end = tl.minimum(tl.maximum(tl.load(lengths + batch).to(tl.int32), begin), stop)
    full = (end - begin) // STEP
    rest = (end - begin) - full * STEP

    z_tile = z + batch * z_stride_b + sub * Z_STRIDE
    x_tile = x + batch * x_stride_b + sub * X_STRIDE
    h_tile = h + batch * T * (D * N) + sub * (D * N)
    border_row = batch * borders_n

    state = (batch * segments + segment) * (D * N) + 0 * sub
    c_re = tl.zeros((W, BC), tl.float32)
    c_im = c_re
    if HAS_FIRST:
        c_re, c_im = load_row(first + state, always, tile, D, BC, N, 1, TURN)
    decay_re = tl.full((W, BC), 1.0, tl.float32)
    decay_im = tl.zeros((W, BC), tl.float32)

    for masked in tl.static_range(1 if DESCEND else 0, -1 if DESCEND else 2, ON):
        count = full
        if masked:
            count = tl.minimum(rest, 1)
        start = begin
        if masked:
            start = begin + full * STEP
        elif DESCEND:
            start = begin + (full - 1) * STEP
        zs, xs = (), ()
        for j in tl.static_range(TOP, PAST, ON):
            take = always & (count > 0)
            if masked:
                take = start + sub + j < end
            z_row = z_tile + start.to(tl.int64) * Z_STRIDE + j * Z_STRIDE
            x_row = x_tile + start.to(tl.int64) * X_STRIDE + j * X_STRIDE
            zs += (load_row(z_row, take, tile, D, BC, 1, 1, False)[0],)
            xs += (load_row(x_row, take, tile, D, BC, X_CHANNEL, X_PAIR, TURN),)
        for i in range(count):
            at = start
            if not masked:
                at = (start - i * STEP) if DESCEND else (start + i * STEP)
            more = i + 1 < count
            ahead = (at - STEP if DESCEND else at + STEP).to(tl.int64)

            backs = ()
            if BOTH:
                index = (at + sub + ROWS - 1) // BORDER
                # Beyond the end nothing was kept: the other direction starts there, from zero.
                take = index * BORDER < end
                k_re, k_im = load_row(
                    back + (border_row + index) * (D * N), take, tile, D, BC, N, 1, TURN
                )
                for j in tl.static_range(ROWS - 1, -1, -1):
                    _, _, key, f = tied_gate(zs[(j - TOP) * ON], b, FAST)
                    r_re, r_im = turned(k_re, k_im, cos_back, sin_back, TURN)
                    y_re, y_im = wide(xs[(j - TOP) * ON])
                    new_re, new_im = plus_scaled(key * y_re, key * y_im, f, r_re, r_im, TURN)
                    if masked:
                        valid = at + sub + j < end
                        new_re = tl.where(valid, new_re, k_re)
                        new_im = tl.where(valid, new_im, k_im)
                    k_re, k_im = new_re, new_im
                    backs += ((k_re, k_im),)

            if W > 1 or STORE_DECAY:
                a_re = tl.full((W, BC), 1.0, tl.float32)
                a_im = tl.zeros((W, BC), tl.float32)
                u_re, u_im = a_im, a_im
                for j in tl.static_range(TOP, PAST, ON):
                    _, _, key, f = tied_gate(zs[(j - TOP) * ON], b, FAST)
                    f_re, f_im = f * cos, f * sin
                    if not TURN:
                        f_re, f_im = f, f
                    if masked:
                        valid = at + sub + j < end
                        f_re = tl.where(valid, f_re, 1.0)
                        f_im = tl.where(valid, f_im, 0.0)
                        key = tl.where(valid, key, 0.0)
                    a_re, a_im = product(f_re, f_im, a_re, a_im, TURN)
                    if W > 1:
                        y_re, y_im = wide(xs[(j - TOP) * ON])
                        if ADJOINT:
                            u_re, u_im = product(f_re, f_im, y_re + u_re, y_im + u_im, TURN)
                        else:
                            u_re, u_im = product(f_re, f_im, u_re, u_im, TURN)
                            u_re, u_im = u_re + key * y_re, u_im + key * y_im
                if STORE_DECAY:
                    decay_re, decay_im = product(a_re, a_im, decay_re, decay_im, TURN)
                if W > 1:
                    c_re, c_im = entering(c_re, c_im, a_re, a_im, u_re, u_im, DESCEND, TURN)

            z_ahead, x_ahead = (), ()
            for j in tl.static_range(TOP, PAST, ON):
                token = at + sub + j
                if STORE_BORDERS and (j + 1 if DESCEND else j) % BORDER == 0:
                    index = token // BORDER
                    take = always
                    if masked:
                        take = index < borders_n
                    border = borders + (border_row + index) * (D * N)
                    store_row(border, c_re, c_im, take, tile, D, BC, TURN)
                _, _, key, f = tied_gate(zs[(j - TOP) * ON], b, FAST)
                y_re, y_im = wide(xs[(j - TOP) * ON])
                if not masked:
                    # A row that is used up makes room for the same row of the next step.
                    take = always & more
                    z_row = z_tile + ahead * Z_STRIDE + j * Z_STRIDE
                    z_next = load_row(z_row, take, tile, D, BC, 1, 1, False)[0]
                    x_row = x_tile + ahead * X_STRIDE + j * X_STRIDE
                    x_next = load_row(x_row, take, tile, D, BC, X_CHANNEL, X_PAIR, TURN)
                    z_ahead += (z_next,)
                    x_ahead += (x_next,)
                if ADJOINT:
                    r_re, r_im = turned(c_re + y_re, c_im + y_im, cos, sin, TURN)
                    new_re, new_im = f * r_re, f * r_im
                else:
                    r_re, r_im = turned(c_re, c_im, cos, sin, TURN)
                    new_re, new_im = plus_scaled(key * y_re, key * y_im, f, r_re, r_im, TURN)
                if masked:
                    valid = token < end
                    new_re, new_im = tl.where(valid, new_re, c_re), tl.where(valid, new_im, c_im)
                c_re, c_im = new_re, new_im
                if STORE_H:
                    h_re, h_im = c_re, c_im
                    if BOTH:
                        h_re, h_im = h_re + backs[ROWS - 1 - j][0], h_im + backs[ROWS - 1 - j][1]
                    take = always
                    if masked:
                        take = token < stop
                        h_re, h_im = tl.where(valid, h_re, 0.0), tl.where(valid, h_im, 0.0)
                    h_row = h_tile + at.to(tl.int64) * (D * N) + j * (D * N)
                    store_row(h_row, h_re, h_im, take, tile, D, BC, TURN)
            c_re, c_im = of_last(c_re, c_im, W, DESCEND, TURN)
            if not masked:
                zs, xs = z_ahead, x_ahead

    if STORE_LAST:
        store_row(last + state, c_re, c_im, sub == 0, tile, D, BC, TURN)
    if STORE_DECAY:
        decay_re, decay_im = whole(decay_re, decay_im, W, TURN)
        store_row(decay + state, decay_re, decay_im, sub == 0, tile, D, BC, TURN)
    if STORE_H:
        zero = tl.zeros((W, BC), tl.float32)
        empty = begin + (full + tl.minimum(rest, 1)) * STEP
        for i in range(stop - empty):
            h_row = h_tile - sub * (D * N) + (empty + i).to(tl.int64) * (D * N)
            store_row(h_row, zero, zero, sub == 0, tile, D, BC, TURN)


@triton.jit(do_not_specialize=["segments"])
def hgrn1_fwd_segments_kernel(
    first,
    sums,
    decay,
    starts,
    last,
    segments,
    D: tl.constexpr,
    BC: tl.constexpr,
    TURN: tl.constexpr,
    DESCEND: tl.constexpr,
    HAS_FIRST: tl.constexpr,
):
    """What enters every segment, [b s d], from their sums and decays; `last` [b d]: what leaves."""
    N: tl.constexpr = 2 if TURN else 1
    tiles = (D + BC - 1) // BC
    batch = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    one = tl.full((1, 1), True, tl.int1)
    c_re = tl.zeros((1, BC), tl.float32)
    c_im = c_re
    start = batch * (D * N) + tl.zeros((1, 1), tl.int64)
    if HAS_FIRST:
        c_re, c_im = load_row(first + start, one, tile, D, BC, N, 1, TURN)
    for step in range(segments):
        row = start * segments + (segments - 1 - step if DESCEND else step) * (D * N)
        own_re, own_im = load_row(sums + row, one, tile, D, BC, N, 1, TURN)
        a_re, a_im = load_row(decay + row, one, tile, D, BC, N, 1, TURN)
        store_row(starts + row, c_re, c_im, one, tile, D, BC, TURN)
        c_re, c_im = product(a_re, a_im, c_re, c_im, TURN)
        c_re, c_im = c_re + own_re, c_im + own_im
    store_row(last + start, c_re, c_im, one, tile, D, BC, TURN)
