"""The scores inside a chunk and their gradients, anchored anew every SPAN bits: for every gate.

In each channel, tokens lie in spans: the n-th begins where the channel has decayed by n SPAN bits
since the chunk's start. A span's keys are carried back to where it begins, and so is every query
from there on:

    A_ij = sum over n, and over the channels k in which j lies in span n, of
           (q_i 2^(G_i + n SPAN)) (key_j 2^(-G_j - n SPAN))        G: the sums of log2 f [c k]

A key grows by less than SPAN bits and a query only shrinks, so nothing overflows; a product that
underflows is of a pair that has decayed by 30 bits. Where no channel decays by SPAN bits, that is
the one product of `output`. A key's span depends on no later token, and the spans of other keys add
zeros: no bit of a row depends on a later token.
Tiles hold some of a head's channels, [c k], in fp32: q, the key, and g = log2 f.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hgrn2.kernels.gate import operand, power, running_sums, sums

SPAN = tl.constexpr(96.0)


@triton.jit
def running_decays(
    g,
    C: tl.constexpr,
    BK: tl.constexpr,
    REVERSE: tl.constexpr,
    GROUP: tl.constexpr,
    FAST: tl.constexpr,
):
    """G by `running_sums` in two parts: what log gates have beyond their whole parts, and these.
    FAST: all in the first, good to 2^-24 of the sum.

    Sums of whole numbers are exact, so what is left of one once an anchor is taken off it has the
    rounding of a small one.
    """
    if FAST:
        part, _, _ = running_sums(g, C, BK, REVERSE, GROUP)
        whole = tl.zeros_like(part)
    else:
        down = tl.floor(g)
        part, _, _ = running_sums(g - down, C, BK, REVERSE, GROUP)
        whole, _, _ = running_sums(down, C, BK, REVERSE, GROUP)
    return part, whole


@triton.jit
def decays(up, g, FAST: tl.constexpr):
    """`running_decays` by `sums`."""
    if FAST:
        part = sums(up, g, FAST)
        whole = tl.zeros_like(part)
    else:
        down = tl.floor(g)
        part = sums(up, g - down, FAST)
        whole = tl.dot(up, down, input_precision="tf32")
    return part, whole


@triton.jit
def spans(lowest):
    """How many spans there are where the lowest G is `lowest`."""
    return tl.maximum(lowest * (-1.0 / SPAN), 0.0).to(tl.int32) + 1


@triton.jit
def to_span(part, whole, n, count, FAST: tl.constexpr):
    """The factors [c k] of queries and of keys to the start of span n of `count`: 0 for queries
    before it and for keys outside it; a NaN stays one."""
    # Where `count` is of sums that were rounded otherwise, the last span takes what lies behind it.
    of = tl.minimum(tl.floor((part + whole) * (-1.0 / SPAN)), count - 1)
    bits = (whole + SPAN * n) + part
    none = float("-inf")
    of_query = power(tl.where(of < n, none, bits), FAST)
    of_key = power(tl.where((of < n) | (of > n), none, -bits), FAST)
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
    """dq, dkey and moved = q dq - key dkey [c k], and what dA [c c], masked, adds to them.

    Of a pair, q dq and key dkey are the same product of rounded operands: in sums of `moved`, pairs
    that lie inside cancel exactly.
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
