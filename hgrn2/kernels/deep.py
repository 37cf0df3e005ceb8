"""The chunks that the forward flagged: there some row has decayed by more than MAX_BITS.

Such rows of y and of the scores are formed anew, over what `output` has left there, by `spans`,
which take any gate; so are such chunks' gradients, in `deep_backward`. One launch looks at every
flag, so that the host need not know them.
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
    up_to,
)
from hgrn2.kernels.keys import FreeKey
from hgrn2.kernels.settings import CHUNK, Settings, cdiv, dot_type
from hgrn2.kernels.spans import running_decays, span_scores, spans

# Flags that one program looks at, at most: few programs, so that a launch with nothing to do is
# short, but enough that deep chunks fill every multiprocessor several times.
PER_PROGRAM = 16
PROGRAMS = 1024


@triton.jit
def flagged(deep, first, last, count):
    """Whether any chunk from the first to before the last, `count` at most, is deep."""
    place = first + tl.arange(0, count)
    return tl.max(tl.load(deep + place, mask=place < last, other=0).to(tl.int32), 0) > 0


def chunks_each(places: int) -> int:
    return max(1, min(PER_PROGRAM, places // PROGRAMS))


@triton.jit(do_not_specialize=["T", "chunks", "places", "per_program"])
def hgrn2_fwd_deep_kernel(
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
    places,
    per_program,
    K: tl.constexpr,
    V: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    C: tl.constexpr,
    GROUP: tl.constexpr,
    PER_PROGRAM: tl.constexpr,
    BIDIRECTIONAL: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    STORE_SCORES: tl.constexpr,
    DOT: tl.constexpr,
    FAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The rows of y and of the scores that `hgrn2_fwd_output_kernel` could not form."""
    v_tile = tl.program_id(0) % (V // BV)
    first = (tl.program_id(0) // (V // BV)).to(tl.int64) * per_program
    last = tl.minimum(first + per_program, places)
    if not flagged(deep, first, last, PER_PROGRAM):
        return
    token = rows_to_tokens(C, GROUP)
    row, column = token[:, None], token[None, :]
    square = tl.arange(0, C)[:, None] * C + tl.arange(0, C)[None, :]
    value = v_tile * BV + tl.arange(0, BV)
    for place in range(first, last):
        if tl.load(deep + place) != 0:
            head = place % H
            chunk = place // H % chunks
            batch = place // H // chunks
            start = chunk * C
            end = tl.minimum(tl.load(lengths + batch), T) if HAS_LENGTHS else T
            valid = start + token < end
            q_chunk = q + batch * q_stride_b + start * q_stride_t + head * q_stride_h
            z_chunk = z + batch * z_stride_b + start * z_stride_t + head * z_stride_h
            v_chunk = v + batch * v_stride_b + start * v_stride_t + head * v_stride_h
            b, key_chunk = bound, free_key
            if free_key is None:
                b += head * K
            else:
                key_chunk = at_chunk(free_key, batch, start, head)
            acc = tl.zeros([C, BV], tl.float32)
            A = tl.zeros([C, C], tl.float32)
            lowest = tl.zeros([C], tl.float32)
            for direction in tl.static_range(2 if BIDIRECTIONAL else 1):
                S = (states_reverse if direction == 1 else states) + place * K * V
                up = up_to(row, column, direction == 1)
                block = tl.zeros([C, C], tl.float32)
                for k_block in range(0, K, BK):
                    k = k_block + tl.arange(0, BK)
                    q_tile = load_tile(q_chunk, token, k, q_stride_t, valid).to(tl.float32)
                    key, g = gated_tile(z_chunk, key_chunk, b, token, k, z_stride_t, valid, FAST)
                    part, whole = running_decays(g, C, BK, direction == 1, GROUP, FAST)
                    lowest_here = tl.min(part + whole, 1)
                    lowest = tl.minimum(lowest, lowest_here)
                    q_start = operand(q_tile * power(part + whole, FAST), DOT, PRECISION)
                    S_tile = tl.load(S + k[:, None] * V + value[None, :]).to(DOT)
                    acc = tl.dot(q_start, S_tile, acc, input_precision=PRECISION)
                    block = span_scores(
                        block,
                        q_tile,
                        key,
                        part,
                        whole,
                        spans(tl.min(lowest_here, 0)),
                        DOT,
                        FAST,
                        PRECISION,
                    )
                A += tl.where(up, block, 0.0)
            far = lowest < -MAX_BITS
            A_operand = operand(A, DOT, PRECISION)
            if STORE_SCORES and v_tile == 0:
                tl.store(scores + place * C * C + square, A_operand, mask=far[:, None])
            values = load_tile(v_chunk, token, value, v_stride_t, valid).to(DOT)
            acc = tl.dot(A_operand, values, acc, input_precision=PRECISION)
            tl.store(
                y + ((batch * T + start + row) * H + head) * V + value[None, :],
                acc.to(y.dtype.element_ty),
                mask=((start + token < T) & far)[:, None],
            )


def deep_output(
    q: Tensor,
    z: Tensor,
    v: Tensor,
    bound: Tensor | None,
    free_key: FreeKey | None,
    states: Tensor,
    states_reverse: Tensor | None,
    lengths: Tensor | None,
    y: Tensor,
    deep: Tensor,
    scores: Tensor | None,
    settings: Settings,
) -> None:
    """Replaces what `chunk_output` has left in y and scores where rows have decayed too far."""
    b, t, h, k = q.shape
    width = v.shape[-1]
    chunks = cdiv(t, CHUNK)
    places = b * h * chunks
    per = chunks_each(places)
    launch = settings.deep
    dot, precision = dot_type(z.dtype, k, width)
    enqueue(
        hgrn2_fwd_deep_kernel,
        cdiv(places, per) * (width // launch.bv),
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
        *(stride for x in (q, z, v) for stride in x.stride()[:3]),
        t,
        h,
        chunks,
        places,
        per,
        K=k,
        V=width,
        BK=launch.bk,
        BV=launch.bv,
        C=CHUNK,
        GROUP=settings.group,
        PER_PROGRAM=PER_PROGRAM,
        BIDIRECTIONAL=states_reverse is not None,
        HAS_LENGTHS=lengths is not None,
        STORE_SCORES=scores is not None,
        DOT=dot,
        FAST=dot == tl.bfloat16,
        PRECISION=precision,
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
    )
