"""The backward pass of attention: the queries' gradients first, which leave delta for the keys'."""

from __future__ import annotations

from math import log
from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from hgrn2.kernels.first_call import enqueue
from hgrn2.kernels.gate import operand
from mixers.attention_kernels import compiled_for, padded, split, tokens_of, where_kept, whole_tiles
from mixers.attention_rows import as_operand, load_rows, load_with_rest, store_rows

LN2 = tl.constexpr(log(2))


@triton.jit
@no_type_check
def load_bits(bits, head, row, N, DROPPED: tl.constexpr):
    """Of rows, as `bits_of` formed them; the rows' numbers where nothing is dropped."""
    if DROPPED > 0:
        row = tl.load(bits + head * whole_tiles(N) + row)
    return row.to(tl.uint32, bitcast=True)


@triton.jit
@no_type_check
def score_gradients(
    x,
    y,
    dx,
    dy,
    lse,
    delta,
    seen,
    column,
    bits,
    SCALE: tl.constexpr,
    DROPPED: tl.constexpr,
    KEPT: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """P D and dS as operands, over the tokens of x and y: query and key, with dx = do and dy = v,
    or the other way round. lse, delta and bits have the queries' axis, column the keys', seen
    (whether a query sees a key) both."""
    S = tl.dot(x, tl.trans(y), input_precision=PRECISION)
    dP = tl.dot(dx, tl.trans(dy), input_precision=PRECISION)
    P = tl.exp2(tl.where(seen, S * SCALE - lse, float("-inf")))
    D = where_kept(KEPT, bits, column, DROPPED)
    return operand(P * D, DOT, PRECISION), operand(P * (dP * D - delta), DOT, PRECISION)


@triton.jit(do_not_specialize=["T", "N", "heads"])
@no_type_check
def attention_bwd_query_kernel(
    q,
    k,
    v,
    at,
    o,
    rest,
    do,
    lse,
    delta,
    dq,
    bits,
    q_stride_b,
    q_stride_t,
    q_stride_h,
    k_stride_b,
    k_stride_t,
    k_stride_h,
    v_stride_b,
    v_stride_t,
    v_stride_h,
    do_stride_b,
    do_stride_t,
    do_stride_h,
    d_stride_b,
    d_stride_t,
    d_stride_h,
    T,
    N,
    H,
    heads,
    K: tl.constexpr,
    C: tl.constexpr,
    STEP: tl.constexpr,
    AT: tl.constexpr,
    SCALE: tl.constexpr,
    DROPPED: tl.constexpr,
    KEPT: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dq and delta [b h n'] of C queries of one head, over the keys up to them."""
    if not AT:
        N = T
    program = tl.program_id(0)
    start = (whole_tiles(N) // C - 1 - program // heads) * C
    head = (program % heads).to(tl.int64)
    batch, own = head // H, head % H
    q += batch * q_stride_b + own * q_stride_h
    k += batch * k_stride_b + own * k_stride_h
    v += batch * v_stride_b + own * v_stride_h
    do += batch * do_stride_b + own * do_stride_h
    place = (batch * N * H + own) * K
    dq += batch * d_stride_b + own * d_stride_h

    row = start + tl.arange(0, C)
    token = tokens_of(at, batch, row, N, AT)
    own_bits = load_bits(bits, head, row, N, DROPPED)[:, None]
    query = as_operand(load_rows(q, start, q_stride_t, N, K, C), DOT, PRECISION)
    d_output = as_operand(load_rows(do, start, do_stride_t, N, K, C), DOT, PRECISION)
    output = load_with_rest(o + place, rest + place, start, H * K, N, K, C)
    own_delta = tl.sum(d_output.to(tl.float32) * output, 1)
    tl.store(delta + head * whole_tiles(N) + row, own_delta)
    own_lse = tl.load(lse + head * whole_tiles(N) + row)
    d_query = tl.zeros([C, K], tl.float32)
    end = tl.max(token, 0) + 1 if AT else tl.minimum(start + C, T)
    for first in range(0, end, STEP):
        key = as_operand(load_rows(k, first, k_stride_t, T, K, STEP), DOT, PRECISION)
        value = as_operand(load_rows(v, first, v_stride_t, T, K, STEP), DOT, PRECISION)
        _, dS = score_gradients(
            query,
            key,
            d_output,
            value,
            own_lse[:, None],
            own_delta[:, None],
            tl.arange(0, STEP)[None, :] <= (token - first)[:, None],
            (first + tl.arange(0, STEP))[None, :],
            own_bits,
            SCALE,
            DROPPED,
            KEPT,
            DOT,
            PRECISION,
        )
        d_query = tl.dot(dS, key, d_query, input_precision=PRECISION)
    store_rows(dq, d_query * (SCALE * LN2), start, d_stride_t, N, K, C)


@triton.jit(do_not_specialize=["T", "N", "heads"])
@no_type_check
def attention_bwd_key_kernel(
    q,
    k,
    v,
    at,
    do,
    lse,
    delta,
    dk,
    dv,
    bits,
    q_stride_b,
    q_stride_t,
    q_stride_h,
    k_stride_b,
    k_stride_t,
    k_stride_h,
    v_stride_b,
    v_stride_t,
    v_stride_h,
    do_stride_b,
    do_stride_t,
    do_stride_h,
    d_stride_b,
    d_stride_t,
    d_stride_h,
    T,
    N,
    H,
    heads,
    K: tl.constexpr,
    C: tl.constexpr,
    STEP: tl.constexpr,
    AT: tl.constexpr,
    SCALE: tl.constexpr,
    DROPPED: tl.constexpr,
    KEPT: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dk and dv of C keys of one head, under the queries from them on, or, AT, all of them."""
    if not AT:
        N = T
    program = tl.program_id(0)
    start = program // heads * C
    head = (program % heads).to(tl.int64)
    batch, own = head // H, head % H
    q += batch * q_stride_b + own * q_stride_h
    k += batch * k_stride_b + own * k_stride_h
    v += batch * v_stride_b + own * v_stride_h
    do += batch * do_stride_b + own * do_stride_h
    dk += batch * d_stride_b + own * d_stride_h
    dv += batch * d_stride_b + own * d_stride_h
    lse += head * whole_tiles(N)
    delta += head * whole_tiles(N)

    column = start + tl.arange(0, C)
    key = as_operand(load_rows(k, start, k_stride_t, T, K, C), DOT, PRECISION)
    value = as_operand(load_rows(v, start, v_stride_t, T, K, C), DOT, PRECISION)
    d_value = tl.zeros([C, K], tl.float32)
    d_key = tl.zeros([C, K], tl.float32)
    # From whole steps on, which a narrower tile need not begin with.
    for first in range(0 if AT else start // STEP * STEP, N, STEP):
        row = first + tl.arange(0, STEP)
        ahead = tokens_of(at, batch, row, N, AT) - first if AT else tl.arange(0, STEP)
        query = as_operand(load_rows(q, first, q_stride_t, N, K, STEP), DOT, PRECISION)
        d_output = as_operand(load_rows(do, first, do_stride_t, N, K, STEP), DOT, PRECISION)
        PD, dS = score_gradients(
            key,
            query,
            value,
            d_output,
            tl.load(lse + row)[None, :],
            tl.load(delta + row)[None, :],
            (column - first)[:, None] <= ahead[None, :],
            column[:, None],
            load_bits(bits, head, row, N, DROPPED)[None, :],
            SCALE,
            DROPPED,
            KEPT,
            DOT,
            PRECISION,
        )
        d_value = tl.dot(PD, d_output, d_value, input_precision=PRECISION)
        d_key = tl.dot(dS, query, d_key, input_precision=PRECISION)
    store_rows(dk, d_key * (SCALE * LN2), start, d_stride_t, T, K, C)
    store_rows(dv, d_value, start, d_stride_t, T, K, C)


def attention_gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    at: Tensor | None,
    o: Tensor,
    rest: Tensor,
    lse: Tensor,
    bits: Tensor,
    do: Tensor,
    p: float,
) -> list[Tensor]:
    """dq, dk and dv in one [b t 3 h k], or, with `at`, dq [b n h k] and the others [b t 2 h k],
    from what `attention_output` took and gave, and do; p is 0 where it gave no bits."""
    (b, n, h, _), t = q.shape, k.shape[1]
    gradients = gradients_like(q, k, apart=at is not None)
    dq, dk, dv = split(gradients)
    delta = torch.empty_like(lse)
    table, constants = compiled_for(q, p)
    tokens = bits if at is None else at
    for kernel, launch, rows, tensors, own in (
        (attention_bwd_query_kernel, table.query, n, (tokens, o, rest, do, lse, delta, dq), dq),
        (attention_bwd_key_kernel, table.key, t, (tokens, do, lse, delta, dk, dv), dk),
    ):
        enqueue(
            kernel,
            b * h * padded(rows) // launch.block,
            q,
            k,
            v,
            *tensors,
            bits,
            *(stride for x in (q, k, v, do, own) for stride in x.stride()[:3]),
            t,
            n,
            h,
            b * h,
            C=launch.block,
            STEP=launch.step,
            AT=at is not None,
            **constants,
            num_warps=launch.num_warps,
            num_stages=launch.num_stages,
        )
    return gradients


def gradients_like(q: Tensor, k: Tensor, *, apart: bool) -> list[Tensor]:
    """What `attention_gradients` gives, unfilled; `apart`: the queries' by themselves."""
    b, t, h, width = k.shape
    if not apart:
        return [k.new_empty((b, t, 3, h, width))]
    return [q.new_empty(q.shape), k.new_empty((b, t, 2, h, width))]
