"""The diagonal scan's backward pass: one walk against time, from kept states.

With r_t = exp(i theta) h_{t-1}, du_t the gradient of u_t = key_t v_t, and x . y over (re, im):

    du_t = dh_t + g_{t+1}        g_t = f_t exp(-i theta) du_t        dv_t = key_t du_t
    dz_t = key_t s_t du_t . (r_t - v_t)
    dbound = sum over time of sigmoid(-z) du . (r - v)
    dtheta = sum over time of f (du_im r_re - du_re r_im)

HGRN2's heads have y_t = q_t h_t for h: dh = q dy and dq_t = h_t dy_t, and what channels share is
summed here.

r is run again inside a sub-block of BORDER tokens from the state that the forward pass kept there;
g is carried by the walk. Where both directions are summed, the other direction's h comes from its
own borders, its g from a walk of its own, and every token is read once for both.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hgrn2.kernels.gate import OPEN
from hgrn2.kernels.scan_heads import (
    key_place,
    over_keys,
    over_values,
    value_place,
    with_key,
    with_value,
)
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
    wide,
)


@triton.jit
def dot_apart(du_re, du_im, r_re, r_im, v_re, v_im, TURN: tl.constexpr):
    """du . (r - v)"""
    if TURN:
        return du_re * (r_re - v_re) + du_im * (r_im - v_im)
    return du_re * (r_re - v_re)


@triton.jit
def gradient_of_h(dh, q, HEADS: tl.constexpr):
    """dh in fp32; of heads, whose dh is dy, q dy."""
    re, im = wide(dh)
    if HEADS > 0:
        re = re * q.to(tl.float32)
    return re, im


@triton.jit(do_not_specialize=["T", "borders_n", "segments", "segment_tokens"])
def hgrn1_bwd_kernel(
    z,
    v,
    dh,
    q,
    bound,
    turn,
    turn_back,
    lengths,
    states,
    states_back,
    gradients_back,
    first,
    dz,
    dv,
    dq,
    last,
    dbound,
    dtheta,
    dtheta_back,
    z_stride_b,
    v_stride_b,
    dh_stride_b,
    q_stride_b,
    T,
    borders_n,
    segments,
    segment_tokens,
    D: tl.constexpr,
    BC: tl.constexpr,
    W: tl.constexpr,
    ROWS: tl.constexpr,
    Z_STRIDE: tl.constexpr,
    V_STRIDE: tl.constexpr,
    V_CHANNEL: tl.constexpr,
    V_PAIR: tl.constexpr,
    DH_STRIDE: tl.constexpr,
    DH_CHANNEL: tl.constexpr,
    DH_PAIR: tl.constexpr,
    Q_STRIDE: tl.constexpr,
    HEADS: tl.constexpr,
    KEYS: tl.constexpr,
    VALUES: tl.constexpr,
    KEY_ROOM: tl.constexpr,
    VALUE_ROOM: tl.constexpr,
    TURN: tl.constexpr,
    BOTH: tl.constexpr,
    FAST: tl.constexpr,
    HAS_FIRST: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    STORE_LAST: tl.constexpr,
):
    """One segment of BC channels; ROWS is the distance of two borders.

    states, states_back: the borders of h in both directions; gradients_back: those of the other
    direction's g. first, last [b s d]: what g enters the segment with and leaves it with. dbound,
    dtheta, dtheta_back: the segment's own sums, fp32 [b s d]. HEADS as in the walk: q, dh (which is
    dy) and dv are by keys and values too; dz and dq [b t parts (h k)] hold each part's sums.
    """
    N: tl.constexpr = 2 if TURN else 1
    PAIR: tl.constexpr = V_PAIR if TURN else 0
    DH: tl.constexpr = DH_PAIR if TURN else 0
    STEP: tl.constexpr = W * ROWS
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
    start = begin + (count - 1) * STEP

    z_rows, v_rows = (
        z + batch * z_stride_b + sub * Z_STRIDE,
        v + batch * v_stride_b + sub * V_STRIDE,
    )
    z_tile = spread(z_rows, tile, BC, 1, 0)
    v_tile = spread(v_rows, tile, BC, V_CHANNEL, PAIR)
    dh_rows = dh + batch * dh_stride_b + sub * DH_STRIDE
    dh_tile = spread(dh_rows, tile, BC, DH_CHANNEL, DH)
    # Rows of the gradients, and how far they lie apart.
    PARTS: tl.constexpr = (VALUES + VALUE_ROOM - 1) // VALUE_ROOM
    DZ: tl.constexpr = PARTS * HEADS * KEYS if HEADS > 0 else D
    DV: tl.constexpr = HEADS * VALUES if HEADS > 0 else D * N
    z_row, v_row = (batch * T + sub) * DZ, (batch * T + sub) * DV
    dz_tile = spread(dz + z_row, tile, BC, 1, 0)
    dv_tile = spread(dv + v_row, tile, BC, 1, N - 1)
    q_tile, dq_tile = z_tile, dz_tile
    has_key = tl.full((1, 1), True, tl.int1)
    has_value, has_dz, has_dv = has_key, has_key, has_key
    if HEADS > 0:
        # Whole groups of whole heads, and no tile beyond the last.
        EXACT: tl.constexpr = D % BC == 0 and HEADS * KEY_ROOM * VALUE_ROOM % 32 == 0
        of_key, has_key = key_place(
            d, HEADS, KEYS, VALUES, KEY_ROOM, VALUE_ROOM, PARTS=False, EXACT=EXACT
        )
        of_value, has_value = value_place(d, HEADS, VALUES, KEY_ROOM, VALUE_ROOM, EXACT)
        z_tile, v_tile, dh_tile = z_rows + of_key, v_rows + of_value, dh_rows + of_value
        q_tile = q + batch * q_stride_b + sub * Q_STRIDE + of_key
        left_by_values = with_key(tile, BC, KEY_ROOM, VALUE_ROOM)
        of_dz, has_dz = key_place(
            left_by_values, HEADS, KEYS, VALUES, KEY_ROOM, VALUE_ROOM, PARTS=True, EXACT=EXACT
        )
        dz_tile, dq_tile = dz + z_row + of_dz, dq + z_row + of_dz
        left_by_keys = with_value(tile, BC, KEY_ROOM)
        of_dv, has_dv = value_place(left_by_keys, HEADS, VALUES, KEY_ROOM, VALUE_ROOM, EXACT)
        dv_tile = dv + v_row + of_dv
    border_row = batch * borders_n

    zero = tl.zeros((W, BC), tl.float32)
    state = (batch * segments + segment) * (D * N) + 0 * sub
    g_re, g_im = zero, zero
    if HAS_FIRST:
        g_re, g_im = load_state(first + state, always, tile, D, BC, TURN)
    sum_bound, sum_theta, sum_theta_back = zero, zero, zero

    # What is walked over was loaded one step before; the first step has nothing but loads.
    zs, vs, dhs, qs = (), (), (), ()
    for _row in tl.static_range(ROWS):
        qs += (tl.zeros((W, BC), q.dtype.element_ty),)
        zs += (tl.full((W, BC), OPEN, z.dtype.element_ty),)
        none = tl.zeros((W, BC), v.dtype.element_ty)
        vs += ((none, none),)
        none = tl.zeros((W, BC), dh.dtype.element_ty)
        dhs += ((none, none),)
    h = (zero, zero)
    h_back, g_back = h, h
    left = 0 * sub

    for i in range(count + 1):
        at = start + STEP - i * STEP
        # Tokens of each sub-block from here on, and from its next row on.
        left_ahead = tl.where(i < count, end - at + STEP - sub, 0)
        token = (at - STEP).to(tl.int64)
        z_at, v_at = z_tile + token * Z_STRIDE, v_tile + token * V_STRIDE
        dh_at, q_at = dh_tile + token * DH_STRIDE, q_tile + token * Q_STRIDE
        border = (border_row + (at - STEP + sub) // ROWS) * (D * N)
        take = left_ahead > 0
        h_ahead = load_state(states + border, take, tile, D, BC, TURN)
        h_back_ahead, g_back_ahead = h_ahead, h_ahead
        if BOTH:
            h_back_ahead = load_state(states_back + border, take, tile, D, BC, TURN)
            g_back_ahead = load_state(gradients_back + border, take, tile, D, BC, TURN)
        z_ahead, v_ahead, dh_ahead, q_ahead = (), (), (), ()
        for j in tl.static_range(ROWS):
            take = left_ahead > j
            z_ahead += (load_logit(z_at + j * Z_STRIDE, take & has_key, tile, D, BC),)
            v_ahead += (load_row(v_at + j * V_STRIDE, take & has_value, tile, D, BC, PAIR),)
            dh_ahead += (load_row(dh_at + j * DH_STRIDE, take & has_value, tile, D, BC, DH),)
            if HEADS > 0:
                q_ahead += (load_row(q_at + j * Q_STRIDE, take & has_key, tile, D, BC, 0)[0],)

        # Along time: r, and the other direction's du.
        h_re, h_im = h[0], h[1]
        k_re, k_im = g_back[0], g_back[1]
        rs, dus_back = (), ()
        for j in tl.static_range(ROWS):
            _, _, key, f = tied_gate(zs[j], b, FAST)
            r_re, r_im = turned(h_re, h_im, cos, sin, TURN)
            rs += ((r_re, r_im),)
            v_re, v_im = wide(vs[j])
            h_re, h_im = plus_scaled(key * v_re, key * v_im, f, r_re, r_im, TURN)
            if BOTH:
                dh_re, dh_im = gradient_of_h(dhs[j], qs[j], HEADS)
                du_re, du_im = dh_re + k_re, dh_im + k_im
                dus_back += ((du_re, du_im),)
                k_re, k_im = turned(du_re, du_im, cos_back, -sin_back, TURN)
                k_re, k_im = f * k_re, f * k_im

        if W > 1:
            a_re, a_im = zero + 1.0, zero
            e_re, e_im = zero, zero
            for j in tl.static_range(ROWS - 1, -1, -1):
                _, _, _, f = tied_gate(zs[j], b, FAST)
                f_re, f_im = f, f
                if TURN:
                    f_re, f_im = held(left > j, f * cos, -f * sin, 1.0, 0.0, TURN)
                a_re, a_im = product(f_re, f_im, a_re, a_im, TURN)
                dh_re, dh_im = gradient_of_h(dhs[j], qs[j], HEADS)
                e_re, e_im = product(f_re, f_im, dh_re + e_re, dh_im + e_im, TURN)
            g_re, g_im = entering(g_re, g_im, a_re, a_im, e_re, e_im, True, TURN)

        # Against time.
        k_re, k_im = h_back[0], h_back[1]
        step_bound, step_theta, step_theta_back = zero, zero, zero
        token = at.to(tl.int64)
        dz_at, dv_at, dq_at = dz_tile + token * DZ, dv_tile + token * DV, dq_tile + token * DZ
        for j in tl.static_range(ROWS - 1, -1, -1):
            closed, opened, key, f = tied_gate(zs[j], b, FAST)
            v_re, v_im = wide(vs[j])
            r_re, r_im = rs[j][0], rs[j][1]
            dh_re, dh_im = gradient_of_h(dhs[j], qs[j], HEADS)
            du_re, du_im = dh_re + g_re, dh_im + g_im
            valid = left > j
            h_j = plus_scaled(key * v_re, key * v_im, f, r_re, r_im, TURN)[0]
            to_gate = dot_apart(du_re, du_im, r_re, r_im, v_re, v_im, TURN)
            next_re, next_im = turned(du_re, du_im, cos, -sin, TURN)
            next_re, next_im = f * next_re, f * next_im
            g_re, g_im = held(valid, next_re, next_im, g_re, g_im, TURN)
            if TURN:
                angle = f * (du_im * r_re - du_re * r_im)
                step_theta += tl.where(valid, angle, 0.0)
            if BOTH:
                o_re, o_im = dus_back[j][0], dus_back[j][1]
                r_re, r_im = turned(k_re, k_im, cos_back, sin_back, TURN)
                to_gate += dot_apart(o_re, o_im, r_re, r_im, v_re, v_im, TURN)
                new_re, new_im = plus_scaled(key * v_re, key * v_im, f, r_re, r_im, TURN)
                k_re, k_im = held(valid, new_re, new_im, k_re, k_im, TURN)
                h_j += new_re
                if TURN:
                    angle = f * (o_im * r_re - o_re * r_im)
                    step_theta_back += tl.where(valid, angle, 0.0)
                du_re, du_im = du_re + o_re, du_im + o_im
            take = valid
            dv_re, dv_im = key * du_re, key * du_im
            if HAS_LENGTHS or HAS_FIRST:
                # Otherwise g is 0 beyond the end, and so are they.
                to_gate = tl.where(valid, to_gate, 0.0)
            if HAS_LENGTHS:
                dv_re, dv_im = tl.where(valid, dv_re, 0.0), tl.where(valid, dv_im, 0.0)
                take = stop - at - sub > j
            dz_re = key * opened * to_gate
            if HEADS > 0:
                dy = dhs[j][0].to(tl.float32)
                dq_j = over_values(dy * h_j, KEY_ROOM, VALUE_ROOM)
                dz_j = over_values(dz_re, KEY_ROOM, VALUE_ROOM)
                dv_j = over_keys(dv_re, KEY_ROOM)
                tl.store(dz_at + j * DZ, dz_j.to(dz.dtype.element_ty), mask=take & has_dz)
                tl.store(dq_at + j * DZ, dq_j.to(dq.dtype.element_ty), mask=take & has_dz)
                tl.store(dv_at + j * DV, dv_j.to(dv.dtype.element_ty), mask=take & has_dv)
            else:
                store_row(dz_at + j * DZ, dz_re, dz_re, take, tile, D, BC, False)
                store_row(dv_at + j * DV, dv_re, dv_im, take, tile, D, BC, TURN)
            step_bound += closed * to_gate
        # Sums of a step first: long sums of small terms would lose digits.
        sum_bound += step_bound
        sum_theta += step_theta
        sum_theta_back += step_theta_back
        g_re, g_im = of_last(g_re, g_im, W, True, TURN)
        zs, vs, dhs, left = z_ahead, v_ahead, dh_ahead, left_ahead
        if HEADS > 0:
            qs = q_ahead
        h, h_back, g_back = h_ahead, h_back_ahead, g_back_ahead

    if STORE_LAST:
        store_state(last + state, g_re, g_im, sub == 0, tile, D, BC, TURN)
    partial = (batch * segments + segment) * D + d
    tl.store(dbound + partial, tl.sum(sum_bound, 0, keep_dims=True), mask=here)
    if TURN:
        tl.store(dtheta + partial, tl.sum(sum_theta, 0, keep_dims=True), mask=here)
        if BOTH:
            tl.store(dtheta_back + partial, tl.sum(sum_theta_back, 0, keep_dims=True), mask=here)
    empty = begin + count * STEP
    for i in range(stop - empty):
        token = (empty + i).to(tl.int64)
        dz_at, dq_at = dz_tile + (token - sub) * DZ, dq_tile + (token - sub) * DZ
        dv_at = dv_tile + (token - sub) * DV
        if HEADS > 0:
            no_key, no_value = over_values(zero, KEY_ROOM, VALUE_ROOM), over_keys(zero, KEY_ROOM)
            tl.store(dz_at, no_key.to(dz.dtype.element_ty), mask=(sub == 0) & has_dz)
            tl.store(dq_at, no_key.to(dq.dtype.element_ty), mask=(sub == 0) & has_dz)
            tl.store(dv_at, no_value.to(dv.dtype.element_ty), mask=(sub == 0) & has_dv)
        else:
            store_row(dz_at, zero, zero, sub == 0, tile, D, BC, False)
            store_row(dv_at, zero, zero, sub == 0, tile, D, BC, TURN)
