"""The scores inside a chunk and their gradients by dyadic splitting: exact for every gate.

A pair of tokens is handled at the level where they lie in sibling halves of one block, anchored at
the halves' border, so every exponent is at most 0 (README, "Dyadic splitting in product space").
The lowest INNER levels are one product anchored at the start of each 2^INNER tokens, as `output`
has it for a whole chunk, where no channel decays by more than MAX_BITS inside them: 7 bits a token
where they are 16.
Pointers are at the chunk's first token and at the head.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hgrn2.kernels.gate import (
    MAX_BITS,
    beyond,
    gated_tile,
    indicator,
    load_tile,
    operand,
    power,
    sums,
    to_start,
    up_to,
)


@triton.jit
def inner_sums(g, token, SIDE: tl.constexpr, REVERSE: tl.constexpr, SPLIT: tl.constexpr):
    """Of log2 f [c k], over the tokens up to each one, itself included, from the start of its SIDE
    tokens on; and which pairs meet among them, [c c]."""
    row, column = token[:, None], token[None, :]
    inside = up_to(row, column, REVERSE) & (row // SIDE == column // SIDE)
    return sums(indicator(inside, SPLIT), g, SPLIT), inside


@triton.jit
def dyadic_level(g, token, s, REVERSE: tl.constexpr, SPLIT: tl.constexpr):
    """Level s: blocks of two halves of s tokens.

    Returns the factor [c k] that carries a token to its block's border, `later` [c 1]: whether
    the token lies in the half that comes second in the direction of the recurrence, and
    `together` [c c]: whether two tokens lie in one block.
    """
    row, column = token[:, None], token[None, :]
    later = (row // s) % 2 == (0 if REVERSE else 1)
    which = tl.where(later, up_to(row, column, REVERSE), beyond(row, column, REVERSE))
    which = which & (row // s == column // s)
    return (
        power(sums(indicator(which, SPLIT), g, SPLIT), SPLIT),
        later,
        row // (2 * s) == column // (2 * s),
    )


@triton.jit
def dyadic_scores(
    q,
    z,
    bound,
    q_stride_t,
    z_stride_t,
    token,
    valid,
    K: tl.constexpr,
    BK: tl.constexpr,
    C: tl.constexpr,
    LEVELS: tl.constexpr,
    INNER: tl.constexpr,
    REVERSE: tl.constexpr,
    DOT: tl.constexpr,
    FAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A [c c], by levels. Which way a row's inner part is formed depends on no later token."""
    A = tl.zeros([C, C], tl.float32)
    same = token[:, None] == token[None, :]
    for k_block in range(0, K, BK):
        k = k_block + tl.arange(0, BK)
        q_tile = load_tile(q, token, k, q_stride_t, valid).to(tl.float32)
        key, g = gated_tile(z, bound, token, k, z_stride_t, valid, FAST)
        inner = tl.zeros([C, C], tl.float32)
        far = tl.full([C], True, tl.int1)
        if INNER > 0:
            G, inside = inner_sums(g, token, 1 << INNER, REVERSE, FAST)
            right = operand(q_tile * power(G, FAST), DOT, PRECISION)
            left = operand(key * to_start(G, FAST), DOT, PRECISION)
            products = tl.dot(right, tl.trans(left), input_precision=PRECISION)
            inner = tl.where(inside, products, 0.0)
            far = tl.min(G, 1) < -MAX_BITS
        if tl.max(far.to(tl.int32), 0) > 0:
            split = tl.where(same, tl.sum(q_tile * key, 1)[:, None], 0.0)
            for level in range(INNER):
                E, later, together = dyadic_level(g, token, 1 << level, REVERSE, FAST)
                right = operand(tl.where(later, q_tile * E, 0.0), DOT, PRECISION)
                left = operand(tl.where(later, 0.0, key * E), DOT, PRECISION)
                products = tl.dot(right, tl.trans(left), input_precision=PRECISION)
                split += tl.where(together, products, 0.0)
            inner = tl.where(far[:, None], split, inner)
        A += inner
        for level in range(INNER, LEVELS):
            E, later, together = dyadic_level(g, token, 1 << level, REVERSE, FAST)
            right = operand(tl.where(later, q_tile * E, 0.0), DOT, PRECISION)
            left = operand(tl.where(later, 0.0, key * E), DOT, PRECISION)
            products = tl.dot(right, tl.trans(left), input_precision=PRECISION)
            A += tl.where(together, products, 0.0)
    return A


@triton.jit
def dyadic_gradients(
    dA,
    q,
    z,
    bound,
    q_stride_t,
    z_stride_t,
    token,
    valid,
    k,
    LEVELS: tl.constexpr,
    INNER: tl.constexpr,
    REVERSE: tl.constexpr,
    DOT: tl.constexpr,
    FAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dq and dkey [c k] from dA [c c] by levels, and q dq - key dkey without the diagonal, where it
    is 0.

    Of a pair, q dq and key dkey are the same product of rounded operands: in sums of the
    difference, pairs that lie inside cancel exactly.
    """
    key, g = gated_tile(z, bound, token, k, z_stride_t, valid, FAST)
    q_tile = load_tile(q, token, k, q_stride_t, valid).to(tl.float32)
    same = token[:, None] == token[None, :]
    diagonal = tl.sum(tl.where(same, dA, 0.0).to(tl.float32), 1)[:, None]
    dq, dkey = diagonal * key, diagonal * q_tile
    moved = tl.zeros_like(key)
    lowest = 0
    if INNER > 0:
        G, inside = inner_sums(g, token, 1 << INNER, REVERSE, FAST)
        if tl.min(tl.min(G, 1), 0) >= -MAX_BITS:
            lowest = INNER
            from_start, to_its_start = power(G, FAST), to_start(G, FAST)
            right = operand(q_tile * from_start, DOT, PRECISION)
            left = operand(key * to_its_start, DOT, PRECISION)
            block = tl.where(inside, dA, 0.0)
            to_right = tl.dot(block, left, input_precision=PRECISION)
            to_left = tl.dot(tl.trans(block), right, input_precision=PRECISION)
            dq, dkey = from_start * to_right, to_its_start * to_left
            moved = right.to(tl.float32) * to_right - left.to(tl.float32) * to_left
    for level in range(lowest, LEVELS):
        E, later, together = dyadic_level(g, token, 1 << level, REVERSE, FAST)
        right = operand(tl.where(later, q_tile * E, 0.0), DOT, PRECISION)
        left = operand(tl.where(later, 0.0, key * E), DOT, PRECISION)
        block = tl.where(together, dA, 0.0)
        to_right = tl.dot(block, left, input_precision=PRECISION)
        to_left = tl.dot(tl.trans(block), right, input_precision=PRECISION)
        dq += tl.where(later, E, 0.0) * to_right
        dkey += tl.where(later, 0.0, E) * to_left
        moved += right.to(tl.float32) * to_right - left.to(tl.float32) * to_left
    return dq, dkey, moved
