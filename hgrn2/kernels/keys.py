"""Where a kernel's key and log gate come from.

    tied (HGRN2):  f = bound + (1 - bound) sigmoid(z)     key = 1 - f
    free (GLA):    f = sigmoid(z)^(1/16)                  key: a tensor of its own

Kernels take `free_key`, a pointer with its strides, all None where the key is tied, and `bound`,
None where it is free. What is None is no parameter of the compiled kernel.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from hgrn2.gate import GLA_TEMPERATURE
from hgrn2.kernels.gate import (
    LOG2E,
    MAX_LOGIT,
    MIN_LOG2,
    OPEN,
    key_and_log2_gate,
    load_tile,
    power,
    reciprocal,
)

TEMPERATURE = tl.constexpr(float(GLA_TEMPERATURE))
# A free key's gate is held at MIN_LOG2 from -1397 on.
MIN_FREE_LOGIT = tl.constexpr(-2048.0)


def _bf16_pair_from(bits: str) -> tl.constexpr:
    """Assembly that holds two bf16 between the number of these bits, in hexadecimal digits, and
    MAX_LOGIT; a NaN stays one."""
    return tl.constexpr(f"""{{
            .reg .b32 top, bottom;
            mov.b32 top, 0x42A042A0;
            mov.b32 bottom, 0x{bits}{bits};
            min.NaN.bf16x2 $0, $1, top;
            max.NaN.bf16x2 $0, $0, bottom;
            }}""")


_FROM_MINUS_MAX_LOGIT = _bf16_pair_from("C2A0")
_FROM_MIN_FREE_LOGIT = _bf16_pair_from("C500")


@triton.jit
def limited(z, TIED: tl.constexpr, FAST: tl.constexpr):
    """z within +-MAX_LOGIT, or where the key is free from MIN_FREE_LOGIT to MAX_LOGIT; a NaN stays
    one. FAST: two bf16 at once."""
    if FAST:
        z = tl.inline_asm_elementwise(
            _FROM_MINUS_MAX_LOGIT if TIED else _FROM_MIN_FREE_LOGIT,
            "=r,r",
            [z],
            dtype=tl.bfloat16,
            is_pure=True,
            pack=2,
        )
    else:
        lowest: tl.constexpr = -MAX_LOGIT if TIED else MIN_FREE_LOGIT
        z = tl.clamp(z.to(tl.float32), lowest, MAX_LOGIT, propagate_nan=tl.PropagateNan.ALL)
    return z


@triton.jit
def log2_free_gate(z, FAST: tl.constexpr):
    """log2 of sigmoid(z)^(1/16), held at MIN_LOG2; a NaN stays one.

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
    g = (tl.where(z > 0.0, 0.0, z) * LOG2E - log2_sum) * (1 / TEMPERATURE)
    return tl.where(g < MIN_LOG2, MIN_LOG2, g)


@triton.jit
def gated_tile(
    z,
    free_key,
    bound,
    token,
    channels,
    z_stride_t,
    key_stride_t,
    valid,
    FAST: tl.constexpr,
):
    """The key and log2 f [c k], from pointers at the chunk's first token."""
    z_tile = load_tile(z, token, channels, z_stride_t, valid, OPEN).to(tl.float32)
    if free_key is None:
        key, g = key_and_log2_gate(z_tile, tl.load(bound + channels)[None, :], FAST)
    else:
        key = load_tile(free_key, token, channels, key_stride_t, valid).to(tl.float32)
        g = log2_free_gate(z_tile, FAST)
    return key, g


@triton.jit
def free_gate_gradient(z, dlnf, FAST: tl.constexpr):
    """dz = sigmoid(-z) / 16 dlnf, where the key is free; z as `limited` leaves it."""
    return dlnf * reciprocal(1.0 + power(z * LOG2E, FAST), FAST) * (1 / TEMPERATURE)


def strides(free_key: Tensor | None) -> tuple[int | None, ...]:
    """Of the key's batch, time and heads, as kernels take them."""
    return (None, None, None) if free_key is None else free_key.stride()[:3]
