"""y of one chunk: what the state at its border gives, and the scores inside it.

    A_ij = sum_k q_ik key_jk 2^(G_ik - G_jk),   j <= i,   G the inclusive sums of log2 f

is one product anchored at the chunk's start, (q 2^G) (key 2^-G)^T. Row i is exact as long as no
channel has decayed by more than MAX_BITS up to row i; bf16 and tf32 keep fp32's exponent range, so
until then the anchor costs no precision. Other rows are left to `deep`, which a flag tells of.
A row depends on no token after it, and neither does the choice: y is strictly causal, bit for bit.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from hgrn2.kernels.first_call import enqueue
from hgrn2.kernels.gate import (
    MAX_BITS,
    at_chunk,
    gated_tile,
    load_tile,
    operand,
    power,
    rows_to_tokens,
    running_sums,
    to_start,
    up_to,
)
from hgrn2.kernels.keys import FreeKey
from hgrn2.kernels.settings import CHUNK, Settings, cdiv, dot_type
from hgrn2.kernels.spans import spans


@triton.jit(do_not_specialize=["T", "chunks"])
def hgrn2_fwd_output_kernel(
    q,
    z,
    v,
    bound,
    free_key,
    lengths,
    states,
    states_reverse,
    y,
    scores,
    deep,
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
    GROUP: tl.constexpr,
    BIDIRECTIONAL: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    STORE_SCORES: tl.constexpr,
    DOT: tl.constexpr,
    FAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """y [C BV] = sum over blocks of channels of (q 2^G) S, plus A v. scores [b n h C C]: A.

    deep [b n h]: 0, or where a row of the chunk has decayed too far for this, its `spans`.
    """
    program = tl.program_id(0)
    v_tile = program % (V // BV)
    # int64: a stride of heads may be that of a whole sequence.
    head = (program // (V // BV) % H).to(tl.int64)
    chunk = program // (V // BV) // H % chunks
    batch = (program // (V // BV) // H // chunks).to(tl.int64)

    token = rows_to_tokens(C, GROUP)
    start = chunk.to(tl.int64) * C
    end = tl.minimum(tl.load(lengths + batch), T).to(tl.int32) if HAS_LENGTHS else T
    valid = token < end - chunk * C
    value = v_tile * BV + tl.arange(0, BV)
    q += batch * q_stride_b + start * q_stride_t + head * q_stride_h
    z += batch * z_stride_b + start * z_stride_t + head * z_stride_h
    v += batch * v_stride_b + start * v_stride_t + head * v_stride_h
    place = (batch * chunks + chunk) * H + head
    border = place * K * V

    if free_key is None:
        bound += head * K
    else:
        free_key = at_chunk(free_key, batch, start, head)

    row, column = token[:, None], token[None, :]
    acc = tl.zeros([C, BV], tl.float32)
    A = tl.zeros([C, C], tl.float32)
    lowest = tl.zeros([C], tl.float32)
    for direction in tl.static_range(2 if BIDIRECTIONAL else 1):
        block = tl.zeros([C, C], tl.float32)
        for k_block in range(0, K, BK):
            k = k_block + tl.arange(0, BK)
            key, g = gated_tile(z, free_key, bound, token, k, z_stride_t, valid, FAST)
            q_tile = load_tile(q, token, k, q_stride_t, valid).to(tl.float32)
            G, _, _ = running_sums(g, C, BK, direction == 1, GROUP)
            q_start = operand(q_tile * power(G, FAST), DOT, PRECISION)
            key_start = operand(key * to_start(G, FAST), DOT, PRECISION)
            block = tl.dot(q_start, tl.trans(key_start), block, input_precision=PRECISION)
            lowest = tl.minimum(lowest, tl.min(G, 1))
            S = tl.load(
                (states_reverse if direction == 1 else states)
                + (border + k[:, None] * V + value[None, :])
            )
            acc = tl.dot(q_start, S.to(DOT), acc, input_precision=PRECISION)
        A += tl.where(up_to(row, column, direction == 1), block, 0.0)
    if v_tile == 0:
        lowest_of_all = tl.min(lowest, 0)
        count = tl.where(lowest_of_all < -MAX_BITS, spans(lowest_of_all), 0)
        tl.store(deep + place, count.to(tl.int8))
    A_operand = operand(A, DOT, PRECISION)
    if STORE_SCORES and v_tile == 0:
        square = tl.arange(0, C)[:, None] * C + tl.arange(0, C)[None, :]
        tl.store(scores + place * C * C + square, A_operand)
    values = load_tile(v, token, value, v_stride_t, valid)
    acc = tl.dot(A_operand, values.to(DOT), acc, input_precision=PRECISION)
    y += ((batch * T + start) * H + head) * V
    tl.store(
        y + row * (H * V) + value[None, :],
        acc.to(y.dtype.element_ty),
        mask=(token < T - chunk * C)[:, None],
    )


def chunk_output(
    q: Tensor,
    z: Tensor,
    v: Tensor,
    bound: Tensor | None,
    free_key: FreeKey | None,
    states: Tensor,
    states_reverse: Tensor | None,
    lengths: Tensor | None,
    settings: Settings,
    *,
    deep: Tensor,
    scores: Tensor | None,
) -> Tensor:
    """y [b t h v] in v's dtype, from the states [b n h k v] at the chunks' borders.

    With `states_reverse`, both directions are summed. `scores` [b n h c c] takes A, its rows and
    columns in the order of `rows_to_tokens`; `deep` int8 [b n h] how many spans
    a deep chunk has, 0 for the others.
    """
    b, t, h, k = q.shape
    width = v.shape[-1]
    chunks = cdiv(t, CHUNK)
    launch = settings.output
    y = v.new_empty((b, t, h, width))
    dot, precision = dot_type(z.dtype, k, width)
    enqueue(
        hgrn2_fwd_output_kernel,
        b * h * chunks * (width // launch.bv),
        q,
        z,
        v,
        bound,
        free_key,
        z if lengths is None else lengths,
        states,
        states if states_reverse is None else states_reverse,
        y,
        states if scores is None else scores,
        deep,
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
        GROUP=settings.group,
        BIDIRECTIONAL=states_reverse is not None,
        HAS_LENGTHS=lengths is not None,
        STORE_SCORES=scores is not None,
        DOT=dot,
        FAST=dot == tl.bfloat16,
        PRECISION=precision,
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
    )
    return y
