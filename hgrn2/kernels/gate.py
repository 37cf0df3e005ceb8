"""What every kernel does with a tile: load it, gate it, sum its log gates over tokens."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
# log2 f of one token is held at this or above: a product with 2**-126 underflows in any case.
MIN_LOG2 = tl.constexpr(-126.0)
# exp(80) and its reciprocal are both normal in fp32.
MAX_LOGIT = tl.constexpr(80.0)
# dbound divides dlnf by f without a factor that vanishes too: where f is smaller, rounding is all
# that is left, and it is not blown up any further. Bounds that are trained lie far above it.
MAX_INVERSE = tl.constexpr(2.0**20)

# 2^-112 times a q or a key of at least 2^-14 is normal in fp32, and 2^112 times a key below 2^16,
# as all tied ones are, is finite.
MAX_BITS = tl.constexpr(112.0)
# The logit at which a free key's gate is 2^-24.
FORGOTTEN = tl.constexpr(-266.17)
# A padding token is a wide-open gate: f = 1 and a tied key of 2^-115.
OPEN = tl.constexpr(1e4)


@triton.jit
def load_tile(pointer, tokens, channels, stride_t, valid, other=0.0):
    """[c d] from a pointer at the chunk's first token; `other` where not `valid`."""
    return tl.load(
        pointer + tokens[:, None] * stride_t + channels[None, :], mask=valid[:, None], other=other
    )


@triton.jit
def as_products(x, constants, FAST: tl.constexpr):
    """x [c k] in fp32. FAST (bf16, k = 64): as a product with the identity, which is exact.

    What is combined with matrix products is best formed in their layout. Triton would move x there
    once for every use, and form gates anew each time; the result of a product stays where it is.
    """
    return tl.dot(x, constant(constants, 1, x.shape[1])) if FAST else x.to(tl.float32)


@triton.jit
def constant(constants, which, SIDE: tl.constexpr):
    """Of `constants` [3 c c] in bf16: 0, ones on and below the diagonal; 1, the identity; 2, ones
    on and above the diagonal.

    Read, not formed: Triton would write a formed one to shared memory number by number.
    """
    side = tl.arange(0, SIDE)
    return tl.load(constants + which * SIDE * SIDE + side[:, None] * SIDE + side[None, :])


@triton.jit
def limited(z, TIED: tl.constexpr, FAST: tl.constexpr):
    """z within +-MAX_LOGIT; of a free key's gate from 12 MIN_LOG2 on, where it is held at MIN_LOG2.
    A NaN stays one. FAST: two bf16 at once."""
    if FAST:
        lowest: tl.constexpr = "0xC2A0C2A0" if TIED else "0xC4BDC4BD"
        z = tl.inline_asm_elementwise(
            """{
            .reg .b32 top, bottom;
            mov.b32 top, 0x42A042A0;
            mov.b32 bottom, """
            + lowest
            + """;
            min.NaN.bf16x2 $0, $1, top;
            max.NaN.bf16x2 $0, $0, bottom;
            }""",
            "=r,r",
            [z],
            dtype=tl.bfloat16,
            is_pure=True,
            pack=2,
        )
    else:
        lowest: tl.constexpr = -MAX_LOGIT if TIED else 12.0 * MIN_LOG2
        z = tl.clamp(z.to(tl.float32), lowest, MAX_LOGIT, propagate_nan=tl.PropagateNan.ALL)
    return z


@triton.jit
def power(x, FAST: tl.constexpr):
    """2^x; FAST flushes what is below fp32's normal range to 0, in one instruction."""
    if FAST:
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return tl.exp2(x)


@triton.jit
def reciprocal(x, FAST: tl.constexpr):
    """1 / x; FAST: in one instruction, within one unit in the last place."""
    if FAST:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return 1.0 / x


@triton.jit
def operand(x, DOT: tl.constexpr, PRECISION: tl.constexpr):
    """x in the precision of a matrix product's operands, rounded to nearest.

    Single tf32 products drop an operand's last 13 bits by themselves; rounded here, what is
    multiplied elsewhere is the same number.
    """
    if PRECISION == "tf32" and DOT.is_fp32():
        bits = x.to(tl.int32, bitcast=True)
        # A GPU's own NaN, all bits but the sign, would wrap to 0. As by PTX's cvt.rna.tf32, one of
        # the last 13 bits alone, which no arithmetic makes, ends as an infinity.
        x = (tl.where(x == x, bits + 0x1000, bits) & -0x2000).to(tl.float32, bitcast=True)
    return x.to(DOT)


@triton.jit
def gate(z, bound):
    """sigmoid(-z), sigmoid(z), the key and the forget gate, in fp32.

    The key is (1 - bound) sigmoid(-z), never 1 - f, which loses every bit where f is near 1. A
    NaN in z comes out as a NaN everywhere.
    """
    u = tl.exp2(tl.where(z > MAX_LOGIT, MAX_LOGIT, z) * LOG2E)
    closed = 1.0 / (1.0 + u)
    opened = u * closed
    return closed, opened, (1.0 - bound) * closed, bound + (1.0 - bound) * opened


@triton.jit
def key_and_log2_gate(z, bound, FAST: tl.constexpr):
    """The key, and log2 f: where f is near 1 by a series, as log2 of a rounded f drifts over T.

    FAST: the same in 20 instructions of inline assembly, a fifth of what the plain form becomes.
    """
    if FAST:
        return tl.inline_asm_elementwise(
            """{
            .reg .f32 u, c, w, f, p;
            .reg .pred near;
            min.NaN.f32 u, $2, 0f42A00000;
            mul.f32 u, u, 0f3FB8AA3B;
            ex2.approx.ftz.f32 u, u;
            add.f32 c, u, 0f3F800000;
            rcp.approx.ftz.f32 c, c;
            sub.f32 w, 0f3F800000, $3;
            mul.f32 u, u, c;
            fma.rn.f32 f, w, u, $3;
            mul.f32 w, w, c;
            lg2.approx.ftz.f32 f, f;
            max.f32 f, f, 0fC2FC0000;
            fma.rn.f32 p, w, 0f3E800000, 0f3EAAAAAB;
            fma.rn.f32 p, p, w, 0f3F000000;
            fma.rn.f32 p, p, w, 0f3F800000;
            mul.f32 u, w, 0fBFB8AA3B;
            mul.f32 p, p, u;
            setp.lt.f32 near, w, 0f3D800000;
            selp.f32 $1, p, f, near;
            mov.f32 $0, w;
            }""",
            "=&f,=&f,f,f",
            [z, bound],
            dtype=(tl.float32, tl.float32),
            is_pure=True,
            pack=1,
        )
    _, _, key, f = gate(z, bound)
    series = key * (1.0 + key * (0.5 + key * (1 / 3 + key * (0.25 + key * (0.2 + key * (1 / 6))))))
    return key, tl.where(key < 1 / 16, -LOG2E * series, tl.maximum(tl.log2(f), MIN_LOG2))


@triton.jit
def log2_free_gate(z, FAST: tl.constexpr):
    """log2 of `hgrn2.gate.gla_gate`, sigmoid(z)^(1/16), held at MIN_LOG2; a NaN stays one.

    -ln sigmoid(z) = -min(z, 0) + ln(1 + u), u = exp(-|z|), the logarithm by its series where u is
    small: f near 1 loses no digit. FAST: in inline assembly.
    """
    if FAST:
        return tl.inline_asm_elementwise(
            """{
            .reg .f32 u, l, p;
            .reg .pred near;
            abs.f32 u, $1;
            mul.f32 u, u, 0fBFB8AA3B;
            ex2.approx.ftz.f32 u, u;
            add.f32 l, u, 0f3F800000;
            lg2.approx.ftz.f32 l, l;
            fma.rn.f32 p, u, 0fBE800000, 0f3EAAAAAB;
            fma.rn.f32 p, p, u, 0fBF000000;
            fma.rn.f32 p, p, u, 0f3F800000;
            mul.f32 u, u, 0f3FB8AA3B;
            setp.lt.f32 near, u, 0f3DB8AA3B;
            mul.f32 p, p, u;
            selp.f32 l, p, l, near;
            min.NaN.f32 u, $1, 0f00000000;
            mul.f32 l, l, 0fBD800000;
            fma.rn.f32 u, u, 0f3DB8AA3B, l;
            max.NaN.f32 $0, u, 0fC2FC0000;
            }""",
            "=f,f",
            [z],
            dtype=tl.float32,
            is_pure=True,
            pack=1,
        )
    u = tl.exp2(tl.abs(z) * -LOG2E)
    series = u * (1.0 - u * (0.5 - u * (1 / 3 - u * (0.25 - u * (0.2 - u * (1 / 6))))))
    log2_sum = tl.where(u < 1 / 16, series * LOG2E, tl.log2(1.0 + u))
    g = (tl.where(z > 0.0, 0.0, z) * LOG2E - log2_sum) * (1 / 16)
    return tl.where(g < MIN_LOG2, MIN_LOG2, g)


@triton.jit
def at_chunk(free_key, batch, start, head):
    """A free key at a chunk's first token: its pointer and its stride of time."""
    pointer, stride_b, stride_t, stride_h = free_key
    return pointer + batch * stride_b + start * stride_t + head * stride_h, stride_t


@triton.jit
def gated_tile(z, free_key, bound, token, channels, z_stride_t, valid, FAST: tl.constexpr):
    """The key and log2 f [c k], from pointers at the chunk's first token; `free_key` as `at_chunk`
    has it, None where the key is tied."""
    z_tile = load_tile(z, token, channels, z_stride_t, valid, OPEN).to(tl.float32)
    if free_key is None:
        key, g = key_and_log2_gate(z_tile, tl.load(bound + channels)[None, :], FAST)
    else:
        pointer, stride_t = free_key
        key = load_tile(pointer, token, channels, stride_t, valid).to(tl.float32)
        g = log2_free_gate(z_tile, FAST)
    return key, g


@triton.jit
def to_start(G, FAST: tl.constexpr):
    """2^-G, held finite: rows beyond MAX_BITS do not use it."""
    return power(tl.minimum(-G, MAX_BITS), FAST)


@triton.jit
def gate_gradient(z, bound, dlnf, dkey, FAST: tl.constexpr):
    """dz, and a token's part of dbound, from the gradients of ln f and of the key.

    z as `limited` leaves it. With u = exp(z), sigmoid(-z) / f = 1 / (bound + u), and
    r = sigmoid(z) / f = u / (bound + u):

        dz = key (r dlnf - sigmoid(z) dkey)        dbound = dlnf / (bound + u) - sigmoid(-z) dkey
    """
    u = power(z * LOG2E, FAST)
    closed = reciprocal(1.0 + u, FAST)
    inverse = reciprocal(bound + u, FAST)
    dz = (1.0 - bound) * closed * (u * inverse * dlnf - u * closed * dkey)
    return dz, tl.minimum(inverse, MAX_INVERSE) * dlnf - closed * dkey


@triton.jit
def free_gate_gradient(z, dlnf, FAST: tl.constexpr):
    """dz = sigmoid(-z) / 16 dlnf, where the key is free; z as `limited` leaves it.

    0 where f is below 2^-24: f is a factor of dlnf, and a difference of sums shows mostly their
    rounding there (unless the state is some hundred times what a token adds to it), while
    sigmoid(-z) is 1 and may be thousands of times an open gate's. A NaN in dlnf stays one.
    """
    closed = reciprocal(1.0 + power(z * LOG2E, FAST), FAST)
    return dlnf * tl.where(z < FORGOTTEN, 0.0, closed) * (1 / 16)


@triton.jit
def _add(a, b):
    return a + b


@triton.jit
def _add_before(sum_a, last_a, sum_b, last_b):
    """Sums of what comes before the last element: no bit of them depends on that element."""
    return sum_a + last_a + sum_b, last_b


@triton.jit
def rows_to_tokens(C: tl.constexpr, GROUP: tl.constexpr):
    """The token of each row of a tile: every GROUP-th part of the rows holds each GROUP-th token.

    Triton spreads a tile's rows over lanes and warps first, so a thread then holds runs of GROUP
    tokens, and sums over tokens are mostly its own.
    """
    row = tl.arange(0, C)
    return row % (C // GROUP) * GROUP + row // (C // GROUP)


@triton.jit
def running_sums(g, C: tl.constexpr, BK: tl.constexpr, REVERSE: tl.constexpr, GROUP: tl.constexpr):
    """Sums of g [c k] over the tokens up to each one, itself included, over those beyond it, in the
    direction of the recurrence, and over all [k]; rows as in `rows_to_tokens`.

    GROUP > 1 takes one from the other by differences of sums: good to 2^-24 of the chunk's sum.
    """
    if GROUP == 1:
        total = tl.sum(g, 0)
        before = tl.cumsum(g, 0)
        after = tl.cumsum(g, 0, reverse=True)
        up, beyond = (after, before - g) if REVERSE else (before, after - g)
    else:
        groups = tl.reshape(g, [GROUP, C // GROUP, BK])
        totals = tl.sum(groups, 0)
        total = tl.sum(totals, 0)
        others, _ = tl.associative_scan((tl.zeros_like(totals), totals), 0, _add_before)
        inside = tl.associative_scan(groups, 0, _add)
        before = tl.reshape(inside + others[None, :, :], [C, BK])
        after = total[None, :] - before
        up, beyond = (after + g, before - g) if REVERSE else (before, after)
    return up, beyond, total


@triton.jit
def sums(ones, g, SPLIT: tl.constexpr):
    """ones [c c] (0 or 1) times g [c k]: sums of log gates over sets of tokens.

    Every set is summed by itself, so an exponent never comes from the difference of two large
    sums. SPLIT: two bf16 halves of g keep 16 bits of it, on the tensor cores' fast path.
    """
    if SPLIT:
        # Cut off, not rounded: cutting is free, where a conversion is slow.
        bits = g.to(tl.int32, bitcast=True)
        high = (bits >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
        low = g - (bits & -0x10000).to(tl.float32, bitcast=True)
        total = tl.dot(ones, low.to(tl.bfloat16), tl.dot(ones, high))
    else:
        total = tl.dot(ones, g, input_precision="tf32x3")
    return total


@triton.jit
def up_to(of, other, REVERSE: tl.constexpr):
    """Whether token `other` is `of` or lies before it, in the direction of the recurrence."""
    if REVERSE:
        return other >= of
    return other <= of


@triton.jit
def ones_up_to(constants, C: tl.constexpr, REVERSE: tl.constexpr, FAST: tl.constexpr):
    """1 where `up_to` holds of two tokens [c c], else 0, as `sums` takes it; FAST: read."""
    token = tl.arange(0, C)
    if FAST:
        ones = constant(constants, 2 if REVERSE else 0, C)
    else:
        ones = tl.where(up_to(token[:, None], token[None, :], REVERSE), 1.0, 0.0)
    return ones
