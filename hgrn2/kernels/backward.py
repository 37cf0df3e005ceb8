"""The gradients of one chunk, from the states and the states' gradients at its borders.

The key, log f and their gradients live in registers only. With dG = dL/dln f and dkey = dL/dkey,
s = sigmoid(z) and r = s / f (README, "The gate's gradient"):

    dz = key (r dlnf - s dkey)        dbound = sum over tokens of sigmoid(-z) (dlnf / f - dkey)
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hgrn2.kernels.gate import OPEN, beyond, gate, key_and_log2_gate, load_tile, power, sums, up_to
from hgrn2.kernels.intra import MAX_BITS, dyadic_gradient, dyadic_scores, gated_tile, to_start
from hgrn2.kernels.settings import CHUNK, LEVELS, Settings, cdiv, dot_type

# dlnf vanishes with f. Below this gate what is left of dlnf / f is below fp32's underflow.
MIN_GATE = tl.constexpr(2.0**-100)
# dbound divides dlnf by f without a factor that vanishes too: below this gate rounding is all that
# is left, and it is not blown up any further. Bounds that are trained lie far above it.
MAX_INVERSE_OF_BOUND = tl.constexpr(2.0**20)


@triton.jit(do_not_specialize=["T", "chunks"])
def hgrn2_bwd_value_kernel(
    q,
    z,
    dy,
    bound,
    lengths,
    dstates,
    dstates_reverse,
    dv,
    q_stride_b,
    q_stride_t,
    q_stride_h,
    z_stride_b,
    z_stride_t,
    z_stride_h,
    dy_stride_b,
    dy_stride_t,
    dy_stride_h,
    T,
    H,
    chunks,
    K: tl.constexpr,
    V: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    C: tl.constexpr,
    LEVELS: tl.constexpr,
    BIDIRECTIONAL: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    DOT: tl.constexpr,
    FAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dv [C BV] = sum over blocks of channels of (key to the border) dS, plus A^T dy."""
    program = tl.program_id(0)
    v_tile = program % (V // BV)
    head = program // (V // BV) % H
    chunk = program // (V // BV) // H % chunks
    batch = (program // (V // BV) // H // chunks).to(tl.int64)

    token = tl.arange(0, C)
    start = chunk.to(tl.int64) * C
    end = tl.minimum(tl.load(lengths + batch), T).to(tl.int32) if HAS_LENGTHS else T
    valid = token < end - chunk * C
    value = v_tile * BV + tl.arange(0, BV)
    q += batch * q_stride_b + start * q_stride_t + head * q_stride_h
    z += batch * z_stride_b + start * z_stride_t + head * z_stride_h
    dy += batch * dy_stride_b + start * dy_stride_t + head * dy_stride_h
    border = ((batch * chunks + chunk) * H + head) * K * V

    bound += head * K

    row, column = token[:, None], token[None, :]
    acc = tl.zeros([C, BV], tl.float32)
    AT = tl.zeros([C, C], tl.float32)
    for direction in tl.static_range(2 if BIDIRECTIONAL else 1):
        block = tl.zeros([C, C], tl.float32)
        lowest = tl.zeros([C], tl.float32)
        for k_block in range(0, K, BK):
            k = k_block + tl.arange(0, BK)
            key, g = gated_tile(z, bound, token, k, z_stride_t, valid, FAST)
            q_tile = load_tile(q, token, k, q_stride_t, valid).to(tl.float32)
            G = sums(up_to(row, column, direction == 1), g, FAST)
            q_start = (q_tile * power(G, FAST)).to(DOT)
            key_start = (key * to_start(G, FAST)).to(DOT)
            block = tl.dot(key_start, tl.trans(q_start), block, input_precision=PRECISION)
            lowest = tl.minimum(lowest, tl.min(G, 1))
            to_end = sums(beyond(row, column, direction == 1), g, FAST)
            key_end = (key * power(to_end, FAST)).to(DOT)
            dS = tl.load(
                (dstates_reverse if direction == 1 else dstates)
                + (border + k[:, None] * V + value[None, :])
            )
            acc = tl.dot(key_end, dS.to(DOT), acc, input_precision=PRECISION)
        block = tl.where(up_to(column, row, direction == 1), block, 0.0)
        if tl.min(lowest, 0) < -MAX_BITS:
            exact = dyadic_scores(
                q,
                z,
                bound,
                q_stride_t,
                z_stride_t,
                token,
                valid,
                K,
                BK,
                C,
                LEVELS,
                direction == 1,
                True,
                DOT,
                FAST,
                PRECISION,
            )
            block = tl.where((lowest >= -MAX_BITS)[None, :], block, exact)
        AT += block
    dy_tile = load_tile(dy, token, value, dy_stride_t, valid)
    acc = tl.dot(AT.to(DOT), dy_tile.to(DOT), acc, input_precision=PRECISION)
    dv += ((batch * T + start) * H + head) * V
    tl.store(
        dv + token[:, None] * (H * V) + value[None, :],
        acc.to(dv.dtype.element_ty),
        mask=(token < T - chunk * C)[:, None],
    )


@triton.jit(do_not_specialize=["T", "chunks"])
def hgrn2_bwd_gate_kernel(
    q,
    z,
    v,
    dy,
    bound,
    lengths,
    states,
    dstates,
    states_reverse,
    dstates_reverse,
    dq,
    dz,
    dbound,
    q_stride_b,
    q_stride_t,
    q_stride_h,
    z_stride_b,
    z_stride_t,
    z_stride_h,
    v_stride_b,
    v_stride_t,
    v_stride_h,
    dy_stride_b,
    dy_stride_t,
    dy_stride_h,
    T,
    H,
    chunks,
    K: tl.constexpr,
    V: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    C: tl.constexpr,
    LEVELS: tl.constexpr,
    BIDIRECTIONAL: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    DOT: tl.constexpr,
    FAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dq, dz [C BK], and the chunk's part of dbound [BK]."""
    program = tl.program_id(0)
    k_tile = program % (K // BK)
    head = program // (K // BK) % H
    chunk = program // (K // BK) // H % chunks
    batch = (program // (K // BK) // H // chunks).to(tl.int64)

    token = tl.arange(0, C)
    start = chunk.to(tl.int64) * C
    end = tl.minimum(tl.load(lengths + batch), T).to(tl.int32) if HAS_LENGTHS else T
    valid = token < end - chunk * C
    k = k_tile * BK + tl.arange(0, BK)
    q += batch * q_stride_b + start * q_stride_t + head * q_stride_h
    z += batch * z_stride_b + start * z_stride_t + head * z_stride_h
    v += batch * v_stride_b + start * v_stride_t + head * v_stride_h
    dy += batch * dy_stride_b + start * dy_stride_t + head * dy_stride_h
    border = ((batch * chunks + chunk) * H + head) * K * V + k_tile * BK * V

    bound += head * K
    row, column = token[:, None], token[None, :]
    channel = tl.arange(0, BK)
    offsets = ((batch * T + start) * H + head) * K + row * (H * K) + k[None, :]
    stored = (token < T - chunk * C)[:, None]

    q_tile = load_tile(q, token, k, q_stride_t, valid)
    z_tile = load_tile(z, token, k, z_stride_t, valid, OPEN)
    b = tl.load(bound + k)[None, :]
    key, g = key_and_log2_gate(z_tile.to(tl.float32), b, FAST)
    dq_tile = tl.zeros([C, BK], tl.float32)
    dkey = tl.zeros([C, BK], tl.float32)
    dlnf = tl.zeros([C, BK], tl.float32)
    for direction in tl.static_range(2 if BIDIRECTIONAL else 1):
        S = (states_reverse if direction == 1 else states) + border
        dS = (dstates_reverse if direction == 1 else dstates) + border
        dA = tl.zeros([C, C], tl.float32)
        dAT = tl.zeros([C, C], tl.float32)
        to_q = tl.zeros([C, BK], tl.float32)
        to_key = tl.zeros([C, BK], tl.float32)
        carry = tl.zeros([BK], tl.float32)
        for v_block in tl.static_range(0, V, BV):
            value = v_block + tl.arange(0, BV)
            dy_tile = load_tile(dy, token, value, dy_stride_t, valid).to(DOT)
            v_tile = load_tile(v, token, value, v_stride_t, valid).to(DOT)
            S_tile = tl.load(S + channel[:, None] * V + value[None, :])
            dS_tile = tl.load(dS + channel[:, None] * V + value[None, :])
            dA = tl.dot(dy_tile, tl.trans(v_tile), dA, input_precision=PRECISION)
            dAT = tl.dot(v_tile, tl.trans(dy_tile), dAT, input_precision=PRECISION)
            to_q = tl.dot(dy_tile, tl.trans(S_tile.to(DOT)), to_q, input_precision=PRECISION)
            to_key = tl.dot(v_tile, tl.trans(dS_tile.to(DOT)), to_key, input_precision=PRECISION)
            carry += tl.sum(S_tile.to(tl.float32) * dS_tile.to(tl.float32), 1)
        dA = tl.where(up_to(row, column, direction == 1), dA, 0.0)
        dAT = tl.where(up_to(column, row, direction == 1), dAT, 0.0)

        G = sums(up_to(row, column, direction == 1), g, FAST)
        lowest = tl.min(G, 1)
        near = lowest >= -MAX_BITS
        from_start = power(G, FAST)
        key_start = (key * to_start(G, FAST)).to(DOT)
        q_start = (q_tile.to(tl.float32) * from_start).to(DOT)
        near_dA = tl.where(near[:, None], dA, 0.0).to(DOT)
        to_q = from_start * tl.dot(near_dA, key_start, to_q, input_precision=PRECISION)
        whole = tl.sum(g, 0)
        to_end = sums(beyond(row, column, direction == 1), g, FAST)
        to_key *= power(to_end, FAST)
        # The decay of the whole chunk reaches the outputs behind it through the state alone.
        carry = carry * power(whole, FAST) + tl.sum(key * to_key, 0)
        near_dAT = tl.where(near[None, :], dAT, 0.0).to(DOT)
        to_key += to_start(G, FAST) * tl.dot(near_dAT, q_start, input_precision=PRECISION)
        if tl.min(lowest, 0) < -MAX_BITS:
            to_q += dyadic_gradient(
                tl.where(near[:, None], 0.0, dA),
                q,
                z,
                bound,
                q_stride_t,
                z_stride_t,
                token,
                valid,
                k,
                LEVELS,
                direction == 1,
                False,
                DOT,
                FAST,
                PRECISION,
            )
            to_key += dyadic_gradient(
                tl.where(near[None, :], 0.0, dAT),
                q,
                z,
                bound,
                q_stride_t,
                z_stride_t,
                token,
                valid,
                k,
                LEVELS,
                direction == 1,
                True,
                DOT,
                FAST,
                PRECISION,
            )
        # ln f_t moves the decay up to every token from t on.
        since = up_to(column, row, direction == 1)
        dlnf += carry[None, :] + sums(since, q_tile.to(tl.float32) * to_q - key * to_key, FAST)
        dq_tile += to_q
        dkey += to_key

    tl.store(dq + offsets, dq_tile.to(dq.dtype.element_ty), mask=stored)
    z_tile = load_tile(z, token, k, z_stride_t, valid, OPEN)
    closed, opened, key, f = gate(z_tile.to(tl.float32), b)
    inverse = 1.0 / tl.maximum(f, MIN_GATE)
    dz_tile = key * opened * (dlnf * inverse - dkey)
    dz_tile = tl.where(valid[:, None], dz_tile, 0.0)
    tl.store(dz + offsets, dz_tile.to(dz.dtype.element_ty), mask=stored)
    to_bound = closed * (dlnf * tl.minimum(inverse, MAX_INVERSE_OF_BOUND) - dkey)
    tl.store(dbound + ((batch * chunks + chunk) * H + head) * K + k, tl.sum(to_bound, 0))


def chunk_gradients(
    q: Tensor,
    z: Tensor,
    v: Tensor,
    dy: Tensor,
    bound: Tensor,
    forward: tuple[Tensor, Tensor],
    backward: tuple[Tensor, Tensor] | None,
    lengths: Tensor | None,
    settings: Settings,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dq, dz [b t h k], dv [b t h v] in the inputs' dtypes, and dbound [h k] in fp32.

    `forward` holds the states and the states' gradients at the chunks' borders, [b n h k v];
    `backward` the same of the reverse direction, if there is one.
    """
    b, t, h, k = q.shape
    width = v.shape[-1]
    chunks = cdiv(t, CHUNK)
    both = (forward, forward if backward is None else backward)
    dq, dz = q.new_empty(q.shape), z.new_empty(z.shape)
    dv = v.new_empty(v.shape)
    dbound = bound.new_empty((b * chunks, h, k), dtype=torch.float32)
    dot, precision = dot_type(z.dtype, k, width)
    shared = {
        "K": k,
        "V": width,
        "C": CHUNK,
        "LEVELS": LEVELS,
        "BIDIRECTIONAL": backward is not None,
        "HAS_LENGTHS": lengths is not None,
        "DOT": dot,
        "FAST": dot == tl.bfloat16,
        "PRECISION": precision,
    }
    ends = z if lengths is None else lengths
    launch = settings.bwd_gate
    hgrn2_bwd_gate_kernel[(b * h * chunks * (k // launch.bk),)](
        q,
        z,
        v,
        dy,
        bound,
        ends,
        *both[0],
        *both[1],
        dq,
        dz,
        dbound,
        *q.stride()[:3],
        *z.stride()[:3],
        *v.stride()[:3],
        *dy.stride()[:3],
        t,
        h,
        chunks,
        BK=launch.bk,
        BV=launch.bv,
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
        **shared,
    )
    launch = settings.bwd_value
    hgrn2_bwd_value_kernel[(b * h * chunks * (width // launch.bv),)](
        q,
        z,
        dy,
        bound,
        ends,
        both[0][1],
        both[1][1],
        dv,
        *q.stride()[:3],
        *z.stride()[:3],
        *dy.stride()[:3],
        t,
        h,
        chunks,
        BK=launch.bk,
        BV=launch.bv,
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
        **shared,
    )
    return dq, dz, dv, dbound.sum(0)
