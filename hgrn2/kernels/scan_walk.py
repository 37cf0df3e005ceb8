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

from hgrn2.kernels.gate import OPEN
from hgrn2.kernels.scan_heads import key_place, over_keys, value_place, with_value
from hgrn2.kernels.scan_rows import (
    entering,
    held,
    load_logit,
    load_row,
    load_state,
    of_last,
    plus_scaled,
    product,
    spread,
    store_row,
    store_state,
    tied_gate,
    turned,
    whole,
    wide,
)


@triton.jit(do_not_specialize=["T", "borders_n", "segments", "segment_tokens"])
def hgrn1_fwd_walk_kernel(
    z,
    x,
    q,
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
    q_stride_b,
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
    Q_STRIDE: tl.constexpr,
    HEADS: tl.constexpr,
    KEYS: tl.constexpr,
    VALUES: tl.constexpr,
    KEY_ROOM: tl.constexpr,
    VALUE_ROOM: tl.constexpr,
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
    so that a row's address is an immediate. HEADS: the channels are those of `scan_heads`; q and z
    are [b t (h k)], v [b t (h v)], what is stored as h is y = q h, and x in an ADJOINT walk is dy
    [b t (h v)], so that dh = q dy. 0: one z, v and h a channel, and no q.
    """
    N: tl.constexpr = 2 if TURN else 1
    PAIR: tl.constexpr = X_PAIR if TURN else 0
    STEP: tl.constexpr = W * ROWS
    # Rows in the order of the walk.
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
        end = tl.minimum(
            tl.maximum(tl.minimum(tl.load(lengths + batch), T).to(tl.int32), begin), stop
        )
    count = (end - begin + STEP - 1) // STEP
    start = begin + ((count - 1) * STEP if DESCEND else 0)

    z_rows, x_rows = (
        z + batch * z_stride_b + sub * Z_STRIDE,
        x + batch * x_stride_b + sub * X_STRIDE,
    )
    z_tile = spread(z_rows, tile, BC, 1, 0)
    x_tile = spread(x_rows, tile, BC, X_CHANNEL, PAIR)
    H_STRIDE: tl.constexpr = HEADS * VALUES if HEADS > 0 else D * N
    h_rows = h + batch * T * H_STRIDE + sub * H_STRIDE
    h_tile = spread(h_rows, tile, BC, 1, N - 1)
    READS: tl.constexpr = HEADS > 0 and (ADJOINT or STORE_H)
    q_tile = z_tile
    has_key = tl.full((1, 1), True, tl.int1)
    has_value, has_y = has_key, has_key
    if HEADS > 0:
        # Whole groups of whole heads, and no tile beyond the last.
        EXACT: tl.constexpr = D % BC == 0 and HEADS * KEY_ROOM * VALUE_ROOM % 32 == 0
        of_key, has_key = key_place(
            d, HEADS, KEYS, VALUES, KEY_ROOM, VALUE_ROOM, PARTS=False, EXACT=EXACT
        )
        of_value, has_value = value_place(d, HEADS, VALUES, KEY_ROOM, VALUE_ROOM, EXACT)
        z_tile, x_tile = z_rows + of_key, x_rows + of_value
        q_tile = q + batch * q_stride_b + sub * Q_STRIDE + of_key
        left_by_keys = with_value(tile, BC, KEY_ROOM)
        of_y, has_y = value_place(left_by_keys, HEADS, VALUES, KEY_ROOM, VALUE_ROOM, EXACT)
        h_tile = h_rows + of_y
    border_row = batch * borders_n

    state = (batch * segments + segment) * (D * N) + 0 * sub
    c_re = tl.zeros((W, BC), tl.float32)
    c_im = c_re
    if HAS_FIRST:
        c_re, c_im = load_state(first + state, always, tile, D, BC, TURN)
    decay_re = tl.full((W, BC), 1.0, tl.float32)
    decay_im = tl.zeros((W, BC), tl.float32)

    # What is walked over was loaded one step before; the first step has nothing but loads.
    zs, xs, qs = (), (), ()
    for _row in tl.static_range(ROWS):
        zs += (tl.full((W, BC), OPEN, z.dtype.element_ty),)
        qs += (tl.zeros((W, BC), q.dtype.element_ty),)
        none = tl.zeros((W, BC), x.dtype.element_ty)
        xs += ((none, none),)
    left = 0 * sub

    for i in range(count + 1):
        at = start + (i - 1) * (ON * STEP)
        ahead = at + ON * STEP
        # Tokens of each sub-block from here on, and from its next row on.
        left_ahead = tl.where(i < count, end - ahead - sub, 0)
        z_at = z_tile + ahead.to(tl.int64) * Z_STRIDE
        x_at = x_tile + ahead.to(tl.int64) * X_STRIDE
        q_at = q_tile + ahead.to(tl.int64) * Q_STRIDE
        h_at = h_tile + at.to(tl.int64) * H_STRIDE
        room = left
        if HAS_LENGTHS:
            room = tl.where(i > 0, stop - at - sub, 0)

        backs = ()
        if BOTH:
            index = (at + sub + ROWS - 1) // BORDER
            # Beyond the end nothing was kept: the other direction starts there, from zero.
            border = back + (border_row + index) * (D * N)
            k_re, k_im = load_state(border, (index * BORDER < end) & (i > 0), tile, D, BC, TURN)
            for j in tl.static_range(ROWS - 1, -1, -1):
                _, _, key, f = tied_gate(zs[(j - TOP) * ON], b, FAST)
                r_re, r_im = turned(k_re, k_im, cos_back, sin_back, TURN)
                y_re, y_im = wide(xs[(j - TOP) * ON])
                new_re, new_im = plus_scaled(key * y_re, key * y_im, f, r_re, r_im, TURN)
                k_re, k_im = held(left > j, new_re, new_im, k_re, k_im, TURN)
                backs += ((k_re, k_im),)

        if W > 1 or STORE_DECAY:
            a_re = tl.full((W, BC), 1.0, tl.float32)
            a_im = tl.zeros((W, BC), tl.float32)
            u_re, u_im = a_im, a_im
            for j in tl.static_range(TOP, PAST, ON):
                _, _, key, f = tied_gate(zs[(j - TOP) * ON], b, FAST)
                f_re, f_im = f, f
                if TURN:
                    f_re, f_im = held(left > j, f * cos, f * sin, 1.0, 0.0, TURN)
                a_re, a_im = product(f_re, f_im, a_re, a_im, TURN)
                if W > 1:
                    y_re, y_im = wide(xs[(j - TOP) * ON])
                    if ADJOINT:
                        if READS:
                            y_re = y_re * qs[(j - TOP) * ON].to(tl.float32)
                        u_re, u_im = product(f_re, f_im, y_re + u_re, y_im + u_im, TURN)
                    else:
                        u_re, u_im = product(f_re, f_im, u_re, u_im, TURN)
                        u_re, u_im = u_re + key * y_re, u_im + key * y_im
            if STORE_DECAY:
                decay_re, decay_im = product(a_re, a_im, decay_re, decay_im, TURN)
            if W > 1:
                c_re, c_im = entering(c_re, c_im, a_re, a_im, u_re, u_im, DESCEND, TURN)

        z_ahead, x_ahead, q_ahead = (), (), ()
        for j in tl.static_range(TOP, PAST, ON):
            if STORE_BORDERS and (j + 1 if DESCEND else j) % BORDER == 0:
                index = (at + sub + j) // BORDER
                border = borders + (border_row + index) * (D * N)
                take = left > (j + 1 - BORDER if DESCEND else j)
                store_state(border, c_re, c_im, take, tile, D, BC, TURN)
            _, _, key, f = tied_gate(zs[(j - TOP) * ON], b, FAST)
            y_re, y_im = wide(xs[(j - TOP) * ON])
            # A row that is used up makes room for the same row of the next step.
            take = left_ahead > j
            z_ahead += (load_logit(z_at + j * Z_STRIDE, take & has_key, tile, D, BC),)
            x_ahead += (load_row(x_at + j * X_STRIDE, take & has_value, tile, D, BC, PAIR),)
            row_q = y_re
            if READS:
                row_q = qs[(j - TOP) * ON].to(tl.float32)
                q_ahead += (load_row(q_at + j * Q_STRIDE, take & has_key, tile, D, BC, 0)[0],)
            if ADJOINT:
                if READS:
                    y_re = y_re * row_q
                r_re, r_im = turned(c_re + y_re, c_im + y_im, cos, sin, TURN)
                new_re, new_im = f * r_re, f * r_im
            else:
                r_re, r_im = turned(c_re, c_im, cos, sin, TURN)
                new_re, new_im = plus_scaled(key * y_re, key * y_im, f, r_re, r_im, TURN)
            c_re, c_im = held(left > j, new_re, new_im, c_re, c_im, TURN)
            if STORE_H:
                h_re, h_im = c_re, c_im
                if BOTH:
                    h_re, h_im = h_re + backs[ROWS - 1 - j][0], h_im + backs[ROWS - 1 - j][1]
                if HAS_LENGTHS:
                    h_re = tl.where(left > j, h_re, 0.0)
                    h_im = tl.where(left > j, h_im, 0.0)
                if READS:
                    y = over_keys(h_re * row_q, KEY_ROOM)
                    to = h_at + j * H_STRIDE
                    tl.store(to, y.to(h.dtype.element_ty), mask=(room > j) & has_y)
                else:
                    store_row(h_at + j * H_STRIDE, h_re, h_im, room > j, tile, D, BC, TURN)
        c_re, c_im = of_last(c_re, c_im, W, DESCEND, TURN)
        zs, xs, left = z_ahead, x_ahead, left_ahead
        if READS:
            qs = q_ahead

    if STORE_LAST:
        store_state(last + state, c_re, c_im, sub == 0, tile, D, BC, TURN)
    if STORE_DECAY:
        decay_re, decay_im = whole(decay_re, decay_im, W, TURN)
        store_state(decay + state, decay_re, decay_im, sub == 0, tile, D, BC, TURN)
    if STORE_H:
        zero = tl.zeros((W, BC), tl.float32)
        empty = begin + count * STEP
        for i in range(stop - empty):
            h_at = h_tile - sub * H_STRIDE + (empty + i).to(tl.int64) * H_STRIDE
            if READS:
                nothing = over_keys(zero, KEY_ROOM)
                tl.store(h_at, nothing.to(h.dtype.element_ty), mask=(sub == 0) & has_y)
            else:
                store_row(h_at, zero, zero, sub == 0, tile, D, BC, TURN)


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
        c_re, c_im = load_state(first + start, one, tile, D, BC, TURN)
    for step in range(segments):
        row = start * segments + (segments - 1 - step if DESCEND else step) * (D * N)
        own_re, own_im = load_state(sums + row, one, tile, D, BC, TURN)
        a_re, a_im = load_state(decay + row, one, tile, D, BC, TURN)
        store_state(starts + row, c_re, c_im, one, tile, D, BC, TURN)
        c_re, c_im = product(a_re, a_im, c_re, c_im, TURN)
        c_re, c_im = c_re + own_re, c_im + own_im
    store_state(last + start, c_re, c_im, one, tile, D, BC, TURN)
