"""What the diagonal scan's kernels share: rows of channels, their turn, and how warps join.

A step of a walk covers W * ROWS tokens: W sub-blocks side by side, ROWS tokens of each one after
the other. A row is a tile [W BC]: one token of every sub-block, BC channels. With BC channels a
warp and W warps, a thread owns a sub-block's consecutive tokens and no lane waits for another.
Complex numbers are two such tiles, (re, im); a real scan passes `re` for both and reads `re` alone.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hgrn2.kernels.gate import gate


@triton.jit
def tied_gate(z, bound, FAST: tl.constexpr):
    """sigmoid(-z), sigmoid(z), the key and the forget gate of a row of any dtype, in fp32.

    f is 1 - key where that is the larger: one rounding to nearest, which the many products of a
    long sequence forgive, while u / (1 + u) falls short of 1 more often than not. FAST: without
    care for subnormal exp(z), in half the instructions; f within 2^-126 of the bound is the bound.
    """
    if FAST:
        closed, opened = tl.inline_asm_elementwise(
            """{
            .reg .f32 u, c;
            min.NaN.f32 u, $2, 0f42A00000;
            mul.f32 u, u, 0f3FB8AA3B;
            ex2.approx.ftz.f32 u, u;
            add.f32 c, u, 0f3F800000;
            rcp.approx.ftz.f32 c, c;
            mul.f32 $1, u, c;
            mov.f32 $0, c;
            }""",
            "=&f,=&f,f",
            [z.to(tl.float32)],
            dtype=(tl.float32, tl.float32),
            is_pure=True,
            pack=1,
        )
        key, f = (1.0 - bound) * closed, bound + (1.0 - bound) * opened
    else:
        closed, opened, key, f = gate(z.to(tl.float32), bound)
    return closed, opened, key, tl.where(key < 0.5, 1.0 - key, f)


@triton.jit
def load_row(
    rows,
    take,
    tile,
    D: tl.constexpr,
    BC: tl.constexpr,
    CHANNEL: tl.constexpr,
    PAIR: tl.constexpr,
    TURN: tl.constexpr,
):
    """(re, im) of BC channels of every row, [W BC], in the pointer's dtype.

    rows, take [W 1]: where a row begins, and whether it is read (0 if not). CHANNEL: how far the
    next channel lies; PAIR: how far im lies from re, 1 where they are interleaved.
    """
    d = tile * BC + tl.arange(0, BC)[None, :]
    mask = take
    if D % BC != 0:
        mask = take & (d < D)
    if not TURN:
        x = tl.load(rows + d * CHANNEL, mask=mask, other=0.0)
        return x, x
    if PAIR == 1:
        # One contiguous row of re, im, re, .. so that a thread loads its pairs whole.
        e = tile * (2 * BC) + tl.arange(0, 2 * BC)[None, :]
        mask = take
        if D % BC != 0:
            mask = take & (e < 2 * D)
        x = tl.load(rows + e, mask=mask, other=0.0)
        return tl.split(tl.reshape(x, (x.shape[0], BC, 2)))
    re = tl.load(rows + d * CHANNEL, mask=mask, other=0.0)
    return re, tl.load(rows + d * CHANNEL + PAIR, mask=mask, other=0.0)


@triton.jit
def store_row(rows, re, im, take, tile, D: tl.constexpr, BC: tl.constexpr, TURN: tl.constexpr):
    """Stores [W BC] channels of every row, interleaved where they are complex, in rows' dtype."""
    kind = rows.dtype.element_ty
    N: tl.constexpr = 2 if TURN else 1
    e = tile * (N * BC) + tl.arange(0, N * BC)[None, :]
    mask = take
    if D % BC != 0:
        mask = take & (e < N * D)
    x = re.to(kind)
    if TURN:
        x = tl.reshape(tl.join(x, im.to(kind)), (x.shape[0], 2 * BC))
    tl.store(rows + e, x, mask=mask)


@triton.jit
def wide(x):
    """(re, im) in fp32."""
    return x[0].to(tl.float32), x[1].to(tl.float32)


@triton.jit
def turned(re, im, cos, sin, TURN: tl.constexpr):
    """(re, im) exp(i theta)."""
    if TURN:
        return cos * re - sin * im, sin * re + cos * im
    return re, re


@triton.jit
def plus_scaled(u_re, u_im, f, re, im, TURN: tl.constexpr):
    """u + f (re, im) for a real f."""
    if TURN:
        return u_re + f * re, u_im + f * im
    x = u_re + f * re
    return x, x


@triton.jit
def product(a_re, a_im, b_re, b_im, TURN: tl.constexpr):
    if TURN:
        return a_re * b_re - a_im * b_im, a_re * b_im + a_im * b_re
    x = a_re * b_re
    return x, x


@triton.jit
def then_real(a, u, e, p, a2, u2, e2, p2):  # noqa: ARG001
    """Sub-blocks in order: h -> a h + u over all of them, h -> e h + p over all but the last."""
    return a2 * a, a2 * u + u2, e2 * a, e2 * u + p2


@triton.jit
def then_complex(a, ai, u, ui, e, ei, p, pi, a2, ai2, u2, ui2, e2, ei2, p2, pi2):  # noqa: ARG001
    """`then_real` with complex gates and states."""
    return (
        a2 * a - ai2 * ai,
        a2 * ai + ai2 * a,
        a2 * u - ai2 * ui + u2,
        a2 * ui + ai2 * u + ui2,
        e2 * a - ei2 * ai,
        e2 * ai + ei2 * a,
        e2 * u - ei2 * ui + p2,
        e2 * ui + ei2 * u + pi2,
    )


@triton.jit
def entering(c_re, c_im, a_re, a_im, u_re, u_im, DESCEND: tl.constexpr, TURN: tl.constexpr):
    """What enters every sub-block, [W BC], from each one's own product a and end u.

    c: what enters the step, [W BC], the same in every row.
    """
    one, zero = tl.full(a_re.shape, 1.0, tl.float32), tl.zeros(a_re.shape, tl.float32)
    if TURN:
        _, _, _, _, e_re, e_im, p_re, p_im = tl.associative_scan(
            (a_re, a_im, u_re, u_im, one, zero, zero, zero), 0, then_complex, reverse=DESCEND
        )
        return e_re * c_re - e_im * c_im + p_re, e_re * c_im + e_im * c_re + p_im
    _, _, e, p = tl.associative_scan((a_re, u_re, one, zero), 0, then_real, reverse=DESCEND)
    x = e * c_re + p
    return x, x


@triton.jit
def of_last(re, im, W: tl.constexpr, DESCEND: tl.constexpr, TURN: tl.constexpr):
    """The row of the sub-block that the walk leaves last, in every row."""
    if W == 1:
        return re, im
    last = (tl.arange(0, W) == (0 if DESCEND else W - 1))[:, None]
    x = tl.zeros(re.shape, tl.float32) + tl.sum(tl.where(last, re, 0.0), 0, keep_dims=True)
    if TURN:
        return x, tl.zeros(re.shape, tl.float32) + tl.sum(
            tl.where(last, im, 0.0), 0, keep_dims=True
        )
    return x, x


@triton.jit
def times_real(a, b):
    return a * b


@triton.jit
def times_complex(a, ai, b, bi):
    return a * b - ai * bi, a * bi + ai * b


@triton.jit
def whole(re, im, W: tl.constexpr, TURN: tl.constexpr):
    """The product of all sub-blocks' products, in every row."""
    if W == 1:
        return re, im
    zero = tl.zeros(re.shape, tl.float32)
    if TURN:
        x, y = tl.reduce((re, im), 0, times_complex, keep_dims=True)
        return zero + x, zero + y
    x = zero + tl.reduce(re, 0, times_real, keep_dims=True)
    return x, x
