"""The scores inside a chunk and their gradients, exact for every gate.

    A_ij = sum_k q_ik key_jk 2^(G_ik - G_jk),   j <= i,   G the inclusive sums of log2 f

Ordinary gates: one product anchored at the chunk's start, (q 2^G) (key 2^-G)^T. Row i is exact
as long as no channel has decayed by more than MAX_BITS up to row i; bf16 and tf32 keep fp32's
exponent range, so until then the anchor costs no precision. Other rows take the dyadic splitting:
a pair is handled at the level where its tokens lie in sibling halves of one block, anchored at the
halves' border, so every exponent is at most 0. Both depend on no token after i, and which of the
two a row takes depends on none either: a chunk is strictly causal, bit for bit.

The dyadic functions read their tiles anew from memory: they are rare, and so the common path keeps
its registers. Pointers are at the chunk's first token and at the head.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hgrn2.kernels.gate import OPEN, beyond, key_and_log2_gate, load_tile, power, sums, up_to

# 2^-96 times a normal q and 2^96 times a normal key both stay normal, with 30 bits to spare.
MAX_BITS = tl.constexpr(96.0)


@triton.jit
def gated_tile(z, bound, token, channels, stride_t, valid, FAST: tl.constexpr):
    """The key and log2 f [c k]."""
    z_tile = load_tile(z, token, channels, stride_t, valid, OPEN).to(tl.float32)
    return key_and_log2_gate(z_tile, tl.load(bound + channels)[None, :], FAST)


@triton.jit
def to_start(G, FAST: tl.constexpr):
    """2^-G, held finite: rows beyond MAX_BITS do not use it."""
    return power(tl.minimum(-G, MAX_BITS), FAST)


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
    return power(sums(which, g, SPLIT), SPLIT), later, row // (2 * s) == column // (2 * s)


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
    REVERSE: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    DOT: tl.constexpr,
    FAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A [c c], or its transpose, by levels."""
    A = tl.zeros([C, C], tl.float32)
    same = token[:, None] == token[None, :]
    for k_block in range(0, K, BK):
        k = k_block + tl.arange(0, BK)
        q_tile = load_tile(q, token, k, q_stride_t, valid).to(tl.float32)
        key, g = gated_tile(z, bound, token, k, z_stride_t, valid, FAST)
        A += tl.where(same, tl.sum(q_tile * key, 1)[:, None], 0.0)
        for level in range(LEVELS):
            E, later, together = dyadic_level(g, token, 1 << level, REVERSE, FAST)
            right = tl.where(later, q_tile * E, 0.0).to(DOT)
            left = tl.where(later, 0.0, key * E).to(DOT)
            if TRANSPOSED:
                products = tl.dot(left, tl.trans(right), input_precision=PRECISION)
            else:
                products = tl.dot(right, tl.trans(left), input_precision=PRECISION)
            A += tl.where(together, products, 0.0)
    return A


@triton.jit
def dyadic_gradient(
    dA,
    x,
    z,
    bound,
    x_stride_t,
    z_stride_t,
    token,
    valid,
    k,
    LEVELS: tl.constexpr,
    REVERSE: tl.constexpr,
    TO_KEY: tl.constexpr,
    DOT: tl.constexpr,
    FAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dq [c k] from dA [c c], or (TO_KEY) dkey from its transpose, by levels. x is q."""
    key, g = gated_tile(z, bound, token, k, z_stride_t, valid, FAST)
    other = load_tile(x, token, k, x_stride_t, valid).to(tl.float32) if TO_KEY else key
    same = token[:, None] == token[None, :]
    gradient = tl.sum(tl.where(same, dA, 0.0), 1)[:, None] * other
    for level in range(LEVELS):
        E, later, together = dyadic_level(g, token, 1 << level, REVERSE, FAST)
        block = tl.where(together, dA, 0.0).to(DOT)
        from_later = tl.where(later, other * E, 0.0)
        from_earlier = tl.where(later, 0.0, other * E)
        operand = (from_later if TO_KEY else from_earlier).to(DOT)
        products = E * tl.dot(block, operand, input_precision=PRECISION)
        to_later = tl.where(later, products, 0.0)
        to_earlier = tl.where(later, 0.0, products)
        gradient += to_earlier if TO_KEY else to_later
    return gradient
