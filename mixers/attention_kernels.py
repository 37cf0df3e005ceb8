"""Kernels of causal softmax attention with dropout: the scores never leave the chip.

As FlashAttention (arXiv 2205.14135, 2307.08691), the forward pass keeps of each row the logarithm
of its softmax's sum, from which the backward pass forms the probabilities again.

    S_ij = q_i k_j / sqrt(k)      P_ij = exp(S_ij - lse_i), j <= i      o_i = sum_j P_ij D_ij v_j
    dS_ij = P_ij (D_ij do_i v_j - delta_i)      delta_i = do_i o_i

A row of dS sums to zero, so that what its keys have in common adds nothing to dq. A delta of an o
rounded to 16 bits would undo that: what the rounding leaves is kept beside it. The softmax's sum is
of probabilities rounded for the product, so those formed again sum to 1 within a rounding.

D is 1 / (1 - p) where a probability is kept, else 0. No number is summed by two programs: results
are the same bits every time. Axes: b batch, t time, n queries (all t, or those of some tokens), h
heads, k head size. A program has C tokens of one head and walks over others STEP at a time.

`no_type_check`: Triton compiles a function's text where it stands, so nothing may wrap it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log, sqrt
from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from hgrn2.kernels.first_call import enqueue
from hgrn2.kernels.gate import operand
from hgrn2.kernels.settings import cdiv, dot_type
from mixers import attention_settings, layers
from mixers.attention_rows import as_operand, load_rows, store_with_rest
from mixers.attention_settings import Settings, settings

FIRST_FACTOR, LAST_FACTOR = map(tl.constexpr, layers.COLUMN_FACTORS)
WHOLE_TILE = tl.constexpr(attention_settings.PADDING)
COLUMN_SHIFT = tl.constexpr(layers.COLUMN_SHIFT)


@triton.jit
@no_type_check
def scattered(x):
    """`mixers.layers.hash_` of uint32, whose products wrap where that one masks."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x31848BAB
    return x ^ (x >> 16)


@triton.jit
@no_type_check
def whole_tiles(T):
    """T rounded up: the rows of a head in lse, bits and delta. Those past T have numbers too, so
    that who walks over rows masks none of them."""
    return tl.cdiv(T, WHOLE_TILE) * WHOLE_TILE


@triton.jit
@no_type_check
def tokens_of(at, batch, row, N, AT: tl.constexpr):
    """Which tokens N queries are of: at [b n], or, where not AT, the first N."""
    if AT:
        row = tl.load(at + batch * N + row, mask=row < N, other=0).to(tl.int32)
    return row


@triton.jit
@no_type_check
def bits_of(head, row, T, state, DROPPED: tl.constexpr):
    """32 bits of each row of [b h t t], from which `where_kept` makes those of its columns; its
    number where nothing is dropped, which nobody looks at."""
    x = head.to(tl.uint32) * T.to(tl.uint32) + row.to(tl.uint32)
    return scattered(x + tl.load(state).to(tl.uint32)) if DROPPED > 0 else x


@triton.jit
@no_type_check
def where_kept(x, bits, column, DROPPED: tl.constexpr):
    """x where `mixers.layers.keeps` holds for a row's bits and a column, else 0.

    DROPPED: how many of the 2^32 values, the lowest, drop a number.
    """
    if DROPPED > 0:
        own = (bits ^ column.to(tl.uint32)) * FIRST_FACTOR
        own = (own ^ (own >> COLUMN_SHIFT)) * LAST_FACTOR
        x = tl.where(own > DROPPED - 1, x, 0.0)
    return x


@triton.jit(do_not_specialize=["T", "N", "heads"])
@no_type_check
def attention_fwd_kernel(
    q,
    k,
    v,
    at,
    o,
    rest,
    lse,
    bits,
    state,
    q_stride_b,
    q_stride_t,
    q_stride_h,
    k_stride_b,
    k_stride_t,
    k_stride_h,
    v_stride_b,
    v_stride_t,
    v_stride_h,
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
    """o [b n h k], rest, which its rounding leaves, lse [b h n'], to base 2, and bits [b h n'] of C
    queries of one head, over the keys up to them, T in all.

    SCALE: log2(e) / sqrt(k), so that exponents are those of 2. KEPT: 1 / (1 - p).
    """
    if not AT:
        N = T
    program = tl.program_id(0)
    # The longest rows first: the short ones fill what is left of the device at the end.
    start = (whole_tiles(N) // C - 1 - program // heads) * C
    head = (program % heads).to(tl.int64)
    batch, own = head // H, head % H
    q += batch * q_stride_b + own * q_stride_h
    k += batch * k_stride_b + own * k_stride_h
    v += batch * v_stride_b + own * v_stride_h

    row = start + tl.arange(0, C)
    token = tokens_of(at, batch, row, N, AT)
    own_bits = bits_of(head, token, T, state, DROPPED)
    if DROPPED > 0:
        tl.store(bits + head * whole_tiles(N) + row, own_bits.to(tl.int32, bitcast=True))
    query = as_operand(load_rows(q, start, q_stride_t, N, K, C), DOT, PRECISION)
    acc = tl.zeros([C, K], tl.float32)
    highest = tl.full([C], float("-inf"), tl.float32)
    total = tl.zeros([C], tl.float32)
    end = tl.max(token, 0) + 1 if AT else tl.minimum(start + C, T)
    for first in range(0, end, STEP):
        column = first + tl.arange(0, STEP)
        key = as_operand(load_rows(k, first, k_stride_t, T, K, STEP), DOT, PRECISION)
        S = tl.dot(query, tl.trans(key), input_precision=PRECISION)
        S = tl.where(tl.arange(0, STEP)[None, :] <= (token - first)[:, None], S, float("-inf"))
        higher = tl.maximum(highest, tl.max(S, 1) * SCALE)
        shrink = tl.exp2(highest - higher)
        highest = higher
        # What is summed is what is multiplied: o's weights sum to 1, before dropout.
        P = operand(tl.exp2(S * SCALE - higher[:, None]), DOT, PRECISION).to(tl.float32)
        total = total * shrink + tl.sum(P, 1)
        P = where_kept(P, own_bits[:, None], column[None, :], DROPPED)
        value = as_operand(load_rows(v, first, v_stride_t, T, K, STEP), DOT, PRECISION)
        acc = tl.dot(P.to(DOT), value, acc * shrink[:, None], input_precision=PRECISION)
    # Of rows past N every probability is 0, infinite keys or not.
    own_lse = tl.where(row < N, highest + tl.log2(total), float("inf"))
    tl.store(lse + head * whole_tiles(N) + row, own_lse)
    place = (batch * N * H + own) * K
    output = acc * (KEPT / total)[:, None]
    store_with_rest(o + place, rest + place, output, start, H * K, N, K, C)


def split(x: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v, each [b t h k], of the three, of q and both others in one [b t 2 h k], or of all
    in one [b t 3 h k]."""
    *own, joint = x
    q, k, v = x if len(x) == 3 else (*own, *joint.unbind(2))
    return q, k, v


def padded(t: int) -> int:
    """As `whole_tiles`."""
    return cdiv(t, attention_settings.PADDING) * attention_settings.PADDING


def compiled_for(q: Tensor, p: float) -> tuple[Settings, dict[str, object]]:
    """The launches, and the constants that all kernels share."""
    width = q.shape[-1]
    dot, precision = dot_type(q.dtype, width, width)
    constants = {
        "K": width,
        "SCALE": 1 / (log(2) * sqrt(width)),
        "DROPPED": round(p * 2**32),
        "KEPT": 1 / (1 - p),
        "DOT": dot,
        "PRECISION": precision,
    }
    return settings(width, "bf16" if dot == tl.bfloat16 else precision), constants


def buffers_of(q: Tensor, *, drops: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """o [b n h k] in q's dtype, and for `attention_gradients` rest, which its rounding leaves,
    likewise, or empty in fp32, lse fp32 [b h n'], to base 2, and dropout's bits int32 [b h n'],
    empty where nothing is dropped. n' is n padded."""
    b, n, h, _ = q.shape
    lse = q.new_empty((b, h, padded(n)), dtype=torch.float32)
    bits = torch.empty_like(lse, dtype=torch.int32) if drops else lse.new_empty(0)
    rest = q.new_empty(0 if q.dtype == torch.float32 else q.shape)
    return q.new_empty(q.shape), rest, lse, bits


def attention_output(
    q: Tensor, k: Tensor, v: Tensor, at: Tensor | None, state: Tensor | None, p: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`buffers_of` q, filled, of q [b n h k], k and v [b t h k], whose last axes are contiguous.
    `at`: the tokens of the queries, int64 [b n], contiguous; None: all, n = t. `state`: dropout's,
    int64 []; None: no dropout."""
    b, n, h, _ = q.shape
    o, rest, lse, bits = buffers_of(q, drops=state is not None)
    table, constants = compiled_for(q, 0.0 if state is None else p)
    launch = table.forward
    enqueue(
        attention_fwd_kernel,
        b * h * padded(n) // launch.block,
        q,
        k,
        v,
        bits if at is None else at,
        o,
        rest,
        lse,
        bits,
        bits if state is None else state,
        *(stride for x in (q, k, v) for stride in x.stride()[:3]),
        k.shape[1],
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
    return o, rest, lse, bits
