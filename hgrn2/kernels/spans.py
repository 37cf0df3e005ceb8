"""The scores inside a chunk and their gradients for gates of any size, anchored every SPAN bits.

In each channel, a token lies in span n where the channel has decayed by n SPAN bits or more since
the chunk's start, and by less than (n + 1) SPAN. A span's keys, and all queries from there on, are
carried to its middle:

    A_ij = sum over n, and over the channels k in which j lies in span n, of
           (q_i 2^(G_i + a_n)) (key_j 2^(-G_j - a_n))    a_n = (n + 1/2) SPAN,  G: sums of log2 f

Factors of a span's own tokens lie within 2^+-56, so that gradients of any ordinary size neither
overflow nor vanish; a query that underflows has decayed by 70 bits since the key. No span of a key
depends on a later token where G does not, which is so in the direction of time.
Tiles hold some of a head's channels, [c k], in fp32: q, the key, and g = log2 f.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hgrn2.kernels.gate import operand, power, running_sums, sums

SPAN = tl.constexpr(112.0)


@triton.jit
def running_decays(
    g,
    C: tl.constexpr,
    BK: tl.constexpr,
    REVERSE: tl.constexpr,
    GROUP: tl.constexpr,
    FAST: tl.constexpr,
):
    """G by `running_sums` in two parts: what log gates have beyond the nearest whole numbers, and
    these. FAST: all in the first, good to 2^-24 of the chunk's sum.

    Sums of whole numbers are exact, so the rounding is that of a sum of parts, 32 bits at most; a
    gate near 1 is all part, and costs none.
    """
    if FAST:
        part, _, _ = running_sums(g, C, BK, REVERSE, GROUP)
        whole = tl.zeros_like(part)
    else:
        down = tl.floor(g + 0.5)
        part, _, _ = running_sums(g - down, C, BK, REVERSE, GROUP)
        whole, _, _ = running_sums(down, C, BK, REVERSE, GROUP)
    return part, whole


@triton.jit
def decays(up, g, FAST: tl.constexpr):
    """`running_decays` by `sums`, which keep 16 bits of each gate where they are FAST."""
    if FAST:
        part = sums(up, g, FAST)
        whole = tl.zeros_like(part)
    else:
        down = tl.floor(g + 0.5)
        part = sums(up, g - down, FAST)
        whole = tl.dot(up, down, input_precision="tf32")
    return part, whole


@triton.jit
def together(part, whole, FAST: tl.constexpr):
    """G of its two parts."""
    return part if FAST else part + whole


@triton.jit
def spans(lowest):
    """How many spans there are where the lowest G is `lowest`."""
    return tl.maximum(lowest * (-1.0 / SPAN), 0.0).to(tl.int32) + 1


@triton.jit
def to_span(part, whole, n, count, FAST: tl.constexpr):
    """The factors [c k] of queries and of keys to the middle of span n of `count`; 0 for queries
    before it and for keys outside it. A NaN stays one.

    Rounded, G may rise by a trifle from one token to the next, or be above 0, and `count` may be of
    sums that were rounded otherwise. So queries are kept from a bit before the span on, and the
    outer spans take the keys that lie beyond them.
    """
    decay = together(part, whole, FAST)
    begin = tl.where(n == 0, float("inf"), -SPAN * n)
    end = tl.where(n == count - 1, float("-inf"), -SPAN * (n + 1))
    half = 0.5 * SPAN
    bits = (whole + (SPAN * n + half)) + part
    of_query = power(tl.where(bits > half + 1.0, float("-inf"), bits), FAST)
    of_key = power(tl.where((decay > begin) | (decay <= end), float("-inf"), -bits), FAST)
    return of_query, of_key


@triton.jit
def span_scores(
    A,
    q,
    key,
    part,
    whole,
    count,
    DOT: tl.constexpr,
    FAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A [c c] and what the tile adds to it. Pairs whose key is the later are left to be masked."""
    for n in range(count):
        of_query, of_key = to_span(part, whole, n, count, FAST)
        right = operand(q * of_query, DOT, PRECISION)
        left = operand(key * of_key, DOT, PRECISION)
        A = tl.dot(right, tl.trans(left), A, input_precision=PRECISION)
    return A


@triton.jit
def span_gradients(
    dA,
    q,
    key,
    part,
    whole,
    count,
    dq,
    dkey,
    moved,
    DOT: tl.constexpr,
    FAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dq, dkey and moved = q dq - key dkey [c k], and what dA [c c], masked and without its
    diagonal, adds to them.

    Of a pair, q dq and key dkey are the same product of rounded operands: in sums of `moved`, pairs
    that lie inside cancel but for fp32's rounding. The diagonal would be the largest term by far
    where gates are closed, and its rounding more than all the others.
    """
    for n in range(count):
        of_query, of_key = to_span(part, whole, n, count, FAST)
        right = operand(q * of_query, DOT, PRECISION)
        left = operand(key * of_key, DOT, PRECISION)
        to_right = tl.dot(dA, left, input_precision=PRECISION)
        dq += of_query * to_right
        moved += right.to(tl.float32) * to_right
        to_left = tl.dot(tl.trans(dA), right, input_precision=PRECISION)
        dkey += of_key * to_left
        moved -= left.to(tl.float32) * to_left
    return dq, dkey, moved
