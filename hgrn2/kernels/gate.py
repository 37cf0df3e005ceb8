"""What every kernel does with a tile: load it, gate it, sum its log gates over tokens."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
# log2 f of one token is held at this or above: a product with 2**-126 underflows in any case.
MIN_LOG2 = tl.constexpr(-126.0)
# exp(80) and its reciprocal are both normal in fp32.
MAX_LOGIT = tl.constexpr(80.0)


# A padding token is a wide-open gate: f = 1 and a key of 2^-115.
OPEN = tl.constexpr(1e4)


@triton.jit
def load_tile(pointer, tokens, channels, stride_t, valid, other=0.0):
    """[c d] from a pointer at the chunk's first token; `other` where not `valid`."""
    return tl.load(
        pointer + tokens[:, None] * stride_t + channels[None, :], mask=valid[:, None], other=other
    )


@triton.jit
def power(x, FAST: tl.constexpr):
    """2^x; FAST flushes what is below fp32's normal range to 0, in one instruction."""
    if FAST:
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return tl.exp2(x)


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
    Impure, so that it is not computed once more for every layout that reads it.
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
            is_pure=False,
            pack=1,
        )
    _, _, key, f = gate(z, bound)
    series = key * (1.0 + key * (0.5 + key * (1 / 3 + key * (0.25 + key * (0.2 + key * (1 / 6))))))
    return key, tl.where(key < 1 / 16, -LOG2E * series, tl.maximum(tl.log2(f), MIN_LOG2))


@triton.jit
def sums(which, g, SPLIT: tl.constexpr):
    """which [c c] (0 or 1) times g [c k]: sums of log gates over sets of tokens.

    Every set is summed by itself, so an exponent never comes from the difference of two large
    sums. SPLIT: two bf16 halves of g keep 16 bits of it, on the tensor cores' fast path.
    """
    if SPLIT:
        high = g.to(tl.bfloat16)
        low = (g - high.to(tl.float32)).to(tl.bfloat16)
        ones = tl.where(which, 1.0, 0.0).to(tl.bfloat16)
        return tl.dot(ones, low, tl.dot(ones, high))
    return tl.dot(tl.where(which, 1.0, 0.0), g, input_precision="tf32x3")


@triton.jit
def sums_transposed(g, which, SPLIT: tl.constexpr):
    """g [k c] times which [c c] (0 or 1), as `sums`."""
    if SPLIT:
        high = g.to(tl.bfloat16)
        low = (g - high.to(tl.float32)).to(tl.bfloat16)
        ones = tl.where(which, 1.0, 0.0).to(tl.bfloat16)
        return tl.dot(low, ones, tl.dot(high, ones))
    return tl.dot(g, tl.where(which, 1.0, 0.0), input_precision="tf32x3")


@triton.jit
def up_to(of, other, REVERSE: tl.constexpr):
    """Whether token `other` is `of` or lies before it, in the direction of the recurrence."""
    if REVERSE:
        return other >= of
    return other <= of


@triton.jit
def beyond(of, other, REVERSE: tl.constexpr):
    """Whether token `other` comes after `of`, in the direction of the recurrence."""
    if REVERSE:
        return other < of
    return other > of
