"""y of one chunk: what the state at its border gives, and the scores inside it."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from hgrn2.kernels.gate import load_tile, power, up_to
from hgrn2.kernels.intra import MAX_BITS, dyadic_scores, gated_tile, to_start
from hgrn2.kernels.settings import CHUNK, LEVELS, Settings, cdiv, dot_type


@triton.jit(do_not_specialize=["T", "chunks"])
def hgrn2_fwd_output_kernel(
    q,
    z,
    v,
    bound,
    lengths,
    states,
    states_reverse,
    y,
    q_stride_b,
    q_stride_t,
    q_stride_h,
    z_stride_b,
    z_stride_t,
    z_stride_h,
    v_stride_b,
    v_stride_t,
    v_stride_h,
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
    """y [C BV] = sum over blocks of channels of (q 2^G) S, plus A v."""
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
    v += batch * v_stride_b + start * v_stride_t + head * v_stride_h
    border = ((batch * chunks + chunk) * H + head) * K * V

    bound += head * K

    row, column = token[:, None], token[None, :]
    acc = tl.zeros([C, BV], tl.float32)
    A = tl.zeros([C, C], tl.float32)
    for direction in tl.static_range(2 if BIDIRECTIONAL else 1):
        block = tl.zeros([C, C], tl.float32)
        lowest = tl.zeros([C], tl.float32)
        for k_block in range(0, K, BK):
            k = k_block + tl.arange(0, BK)
            key, g = gated_tile(z, bound, token, k, z_stride_t, valid, FAST)
            q_tile = load_tile(q, token, k, q_stride_t, valid).to(tl.float32)
            G = tl.cumsum(g, 0, reverse=direction == 1)
            q_start = (q_tile * power(G, FAST)).to(DOT)
            key_start = (key * to_start(G, FAST)).to(DOT)
            block = tl.dot(q_start, tl.trans(key_start), block, input_precision=PRECISION)
            lowest = tl.minimum(lowest, tl.min(G, 1))
            S = tl.load(
                (states_reverse if direction == 1 else states)
                + (border + k[:, None] * V + value[None, :])
            )
            acc = tl.dot(q_start, S.to(DOT), acc, input_precision=PRECISION)
        block = tl.where(up_to(row, column, direction == 1), block, 0.0)
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
                False,
                DOT,
                FAST,
                PRECISION,
            )
            block = tl.where((lowest >= -MAX_BITS)[:, None], block, exact)
        A += block
    v_tile = load_tile(v, token, value, v_stride_t, valid)
    acc = tl.dot(A.to(DOT), v_tile.to(DOT), acc, input_precision=PRECISION)
    y += ((batch * T + start) * H + head) * V
    tl.store(
        y + token[:, None] * (H * V) + value[None, :],
        acc.to(y.dtype.element_ty),
        mask=(token < T - chunk * C)[:, None],
    )


def chunk_output(
    q: Tensor,
    z: Tensor,
    v: Tensor,
    bound: Tensor,
    states: Tensor,
    states_reverse: Tensor | None,
    lengths: Tensor | None,
    settings: Settings,
) -> Tensor:
    """y [b t h v] in v's dtype, from the states [b n h k v] at the chunks' borders.

    With `states_reverse`, both directions are summed.
    """
    b, t, h, k = q.shape
    width = v.shape[-1]
    chunks = cdiv(t, CHUNK)
    launch = settings.output
    y = v.new_empty((b, t, h, width))
    dot, precision = dot_type(z.dtype, k, width)
    hgrn2_fwd_output_kernel[(b * h * chunks * (width // launch.bv),)](
        q,
        z,
        v,
        bound,
        z if lengths is None else lengths,
        states,
        states if states_reverse is None else states_reverse,
        y,
        *q.stride()[:3],
        *z.stride()[:3],
        *v.stride()[:3],
        t,
        h,
        chunks,
        K=k,
        V=width,
        BK=launch.bk,
        BV=launch.bv,
        C=CHUNK,
        LEVELS=LEVELS,
        BIDIRECTIONAL=states_reverse is not None,
        HAS_LENGTHS=lengths is not None,
        DOT=dot,
        FAST=dot == tl.bfloat16,
        PRECISION=precision,
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
    )
    return y
