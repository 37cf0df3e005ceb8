"""What the diagonal scan's kernels share: rows of channels, their turn, and how warps join.

A step of a walk covers W * ROWS tokens: W sub-blocks side by side, ROWS tokens of each one after
the other. A row is a tile [W BC]: one token of every sub-block, BC channels. With BC channels a
warp and W warps, a thread owns a sub-block's consecutive tokens and no lane waits for another.
Complex numbers are two such tiles, (re, im); a real scan passes `re` for both and reads `re` alone.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hgrn2.kernels.gate import OPEN, gate


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
def spread(rows, tile, BC: tl.constexpr, CHANNEL: tl.constexpr, PAIR: tl.constexpr):
    """Where BC channels of every row lie, from where the rows begin, [W 1].

    CHANNEL: how far the next channel lies; PAIR: how far im lies from re, 0 in a real row. Pairs
    are one contiguous row of re, im, re, .. so that a thread reaches its pairs whole.
    """
    if PAIR == 1:
        at = rows + tile * (2 * BC) + tl.arange(0, 2 * BC)[None, :]
    else:
        at = rows + (tile * BC + tl.arange(0, BC)[None, :]) * CHANNEL
    return at


@triton.jit
def inside(take, tile, D: tl.constexpr, SIZE: tl.constexpr):
    """`take` [W 1], and within the D numbers of a row."""
    if D % SIZE != 0:
        take = take & (tile * SIZE + tl.arange(0, SIZE)[None, :] < D)
    return take


@triton.jit
def load_row(at, take, tile, D: tl.constexpr, BC: tl.constexpr, PAIR: tl.constexpr):
    """(re, im) of the channels that `spread` found, in their dtype; take [W 1], 0 if not."""
    if PAIR == 1:
        x = tl.load(at, mask=inside(take, tile, 2 * D, 2 * BC), other=0.0)
        re, im = tl.split(tl.reshape(x, (x.shape[0], BC, 2)))
    else:
        mask = inside(take, tile, D, BC)
        re = tl.load(at, mask=mask, other=0.0)
        im = re
        if PAIR > 0:
            im = tl.load(at + PAIR, mask=mask, other=0.0)
    return re, im


@triton.jit
def load_logit(at, take, tile, D: tl.constexpr, BC: tl.constexpr):
    """Where no token is, the gate is wide open: f = 1, and a key that a v of 0 makes 0."""
    return tl.load(at, mask=inside(take, tile, D, BC), other=OPEN)


@triton.jit
def store_row(at, re, im, take, tile, D: tl.constexpr, BC: tl.constexpr, TURN: tl.constexpr):
    """Stores [W BC] channels of every row, interleaved where they are complex, in at's dtype."""
    kind = at.dtype.element_ty
    if TURN:
        x = tl.reshape(tl.join(re.to(kind), im.to(kind)), (re.shape[0], 2 * BC))
        tl.store(at, x, mask=inside(take, tile, 2 * D, 2 * BC))
    else:
        tl.store(at, re.to(kind), mask=inside(take, tile, D, BC))


@triton.jit
def load_state(rows, take, tile, D: tl.constexpr, BC: tl.constexpr, TURN: tl.constexpr):
    """`load_row` of contiguous channels; rows [W 1]."""
    PAIR: tl.constexpr = 1 if TURN else 0
    return load_row(spread(rows, tile, BC, 1, PAIR), take, tile, D, BC, PAIR)


@triton.jit
def store_state(rows, re, im, take, tile, D: tl.constexpr, BC: tl.constexpr, TURN: tl.constexpr):
    at = spread(rows, tile, BC, 1, 1 if TURN else 0)
    store_row(at, re, im, take, tile, D, BC, TURN)


@triton.jit
def held(valid, re, im, old_re, old_im, TURN: tl.constexpr):
    """The old state where no token is. The gate there holds a real one by itself."""
    if TURN:
        return tl.where(valid, re, old_re), tl.where(valid, im, old_im)
    return re, im


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
def then_real(a, u, _e, _p, a2, u2, e2, p2):
    """Sub-blocks in order: h -> a h + u over all of them, h -> e h + p over all but the last."""
    return a2 * a, a2 * u + u2, e2 * a, e2 * u + p2


@triton.jit
def then_complex(a, ai, u, ui, _e, _ei, _p, _pi, a2, ai2, u2, ui2, e2, ei2, p2, pi2):
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
