"""A short causal convolution of each channel by its own taps, and SiLU, in Triton.

    p_t = bias + sum_k w_k x_(t-K+1+k)        y_t = silu(p_t)        tokens before the first are 0

    dp_t = dy_t silu'(p_t)      dx_t = sum_k w_k dp_(t+K-1-k)      dw_k = sum_t dp_t x_(t-K+1+k)

A program walks TOKENS of one sequence, some channels, and holds the last K tokens; nothing is read
from memory twice, but the tokens where two programs meet. Axes: b batch, t time, c channels, k
taps.

`no_type_check`: Triton compiles a function's text where it stands, so nothing may wrap it.
"""

from __future__ import annotations

from math import log
from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from hgrn2.kernels.first_call import enqueue, total
from hgrn2.kernels.settings import cdiv

LN2 = tl.constexpr(log(2))
# Channels of a program of one warp, and tokens: of as many the sums over time are left apart.
CHANNELS = 64
TOKENS = 64
# Tokens that are loaded side by side.
ROWS = 8


@triton.jit
@no_type_check
def load_taps(weight, bias, c, here, K: tl.constexpr):
    """The weights of each tap, [c] each, and the bias, in fp32."""
    taps = ()
    for k in tl.static_range(K):
        taps += (tl.load(weight + c * K + k, mask=here, other=0.0).to(tl.float32),)
    return taps, tl.load(bias + c, mask=here, other=0.0).to(tl.float32)


@triton.jit
@no_type_check
def load_before(x, begin, c, here, X_STRIDE: tl.constexpr, K: tl.constexpr):
    """The K - 1 tokens before the one that x points to; zeros before the first."""
    before = ()
    for k in tl.static_range(K - 1):
        seen = here & (begin + k >= K - 1)
        before += (tl.load(x + (k - (K - 1)) * X_STRIDE + c, mask=seen, other=0.0).to(tl.float32),)
    return before


@triton.jit
@no_type_check
def convolved(window, taps, shift, K: tl.constexpr):
    """p of the last of K tokens."""
    p = shift
    for k in tl.static_range(K):
        p += taps[k] * window[k]
    return p


@triton.jit(do_not_specialize=["T", "x_stride_b"])
@no_type_check
def conv_silu_fwd_kernel(
    x,
    weight,
    bias,
    y,
    x_stride_b,
    T,
    C: tl.constexpr,
    TILE: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    X_STRIDE: tl.constexpr,
    K: tl.constexpr,
):
    """y [b t c], contiguous; x with its own strides of batch and time."""
    tiles: tl.constexpr = (C + TILE - 1) // TILE
    blocks = tl.cdiv(T, TOKENS)
    c = (tl.program_id(0) % tiles) * TILE + tl.arange(0, TILE)
    here = c < C
    begin = (tl.program_id(0) // tiles) % blocks * TOKENS
    batch = (tl.program_id(0) // tiles // blocks).to(tl.int64)
    taps, shift = load_taps(weight, bias, c, here, K)
    x += batch * x_stride_b + begin.to(tl.int64) * X_STRIDE
    y += (batch * T + begin) * C
    window = load_before(x, begin, c, here, X_STRIDE, K)
    for i in range(TOKENS // ROWS):
        left = T - begin - i * ROWS
        for j in tl.static_range(ROWS):
            own = tl.load(x + j * X_STRIDE + c, mask=here & (left > j), other=0.0)
            window += (own.to(tl.float32),)
            p = convolved(window, taps, shift, K)
            out = p / (1.0 + tl.exp2(-p / LN2))
            tl.store(y + j * C + c, out.to(y.dtype.element_ty), mask=here & (left > j))
            window = window[1:]
        x += ROWS * X_STRIDE
        y += ROWS * C


@triton.jit(do_not_specialize=["T", "x_stride_b"])
@no_type_check
def conv_silu_bwd_kernel(
    x,
    weight,
    bias,
    dy,
    dx,
    dweight,
    dbias,
    x_stride_b,
    T,
    C: tl.constexpr,
    TILE: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    X_STRIDE: tl.constexpr,
    K: tl.constexpr,
):
    """dx [b t c] of TOKENS tokens; dweight [b*t/TOKENS k c] and dbias [b*t/TOKENS c], fp32, of
    theirs alone. Walks on over the K - 1 tokens that the last of them reach."""
    tiles: tl.constexpr = (C + TILE - 1) // TILE
    blocks = tl.cdiv(T, TOKENS)
    c = (tl.program_id(0) % tiles) * TILE + tl.arange(0, TILE)
    here = c < C
    block = (tl.program_id(0) // tiles).to(tl.int64)
    begin = (tl.program_id(0) // tiles) % blocks * TOKENS
    batch = (tl.program_id(0) // tiles // blocks).to(tl.int64)
    taps, shift = load_taps(weight, bias, c, here, K)
    x += batch * x_stride_b + begin.to(tl.int64) * X_STRIDE
    dy += (batch * T + begin) * C
    dx += (batch * T + begin) * C
    window = load_before(x, begin, c, here, X_STRIDE, K)
    none = tl.zeros((TILE,), tl.float32)
    reached, sums = (), ()
    for _k in tl.static_range(K - 1):
        reached += (none,)
    for _k in tl.static_range(K):
        sums += (none,)
    sum_p = none
    for i in range(TOKENS // ROWS + (K + ROWS - 2) // ROWS):
        left = T - begin - i * ROWS
        own_left = tl.minimum(left, TOKENS - i * ROWS)
        for j in tl.static_range(ROWS):
            inside = here & (left > j)
            own = tl.load(x + j * X_STRIDE + c, mask=inside, other=0.0)
            own_dy = tl.load(dy + j * C + c, mask=inside, other=0.0).to(tl.float32)
            window += (own.to(tl.float32),)
            p = convolved(window, taps, shift, K)
            s = 1.0 / (1.0 + tl.exp2(-p / LN2))
            dp = own_dy * s * (1.0 + p * (1.0 - s))
            reached += (dp,)
            out = none
            for k in tl.static_range(K):
                out += taps[k] * reached[K - 1 - k]
            # Of the token of the first of these K.
            mine = here & (own_left > j - (K - 1)) & (i * ROWS + j >= K - 1)
            tl.store(dx + (j - (K - 1)) * C + c, out.to(dx.dtype.element_ty), mask=mine)
            # What is not this program's own is another's.
            dp = tl.where(own_left > j, dp, 0.0)
            sum_p += dp
            added = ()
            for k in tl.static_range(K):
                added += (sums[k] + dp * window[k],)
            sums = added
            window = window[1:]
            reached = reached[1:]
        x += ROWS * X_STRIDE
        dy += ROWS * C
        dx += ROWS * C
    tl.store(dbias + block * C + c, sum_p, mask=here)
    for k in tl.static_range(K):
        tl.store(dweight + (block * K + k) * C + c, sums[k], mask=here)


@no_type_check
def _launch(x: Tensor, weight: Tensor) -> tuple[int, dict[str, int]]:
    """How many programs, and what both kernels are compiled for."""
    b, t, c = x.shape
    programs = b * cdiv(t, TOKENS) * cdiv(c, CHANNELS)
    walk = {"C": c, "TILE": CHANNELS, "TOKENS": TOKENS, "ROWS": ROWS, "num_warps": 1}
    return programs, {**walk, "X_STRIDE": x.stride(1), "K": weight.shape[1]}


@no_type_check
def conv_silu_output(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """y [b t c] of x [b t c], whose channels are contiguous, weight [c k] and bias [c]."""
    y = x.new_empty(x.shape)
    programs, launch = _launch(x, weight)
    inputs = (x, weight, bias, y, x.stride(0), x.shape[1])
    enqueue(conv_silu_fwd_kernel, programs, *inputs, **launch)
    return y


@no_type_check
def conv_silu_gradients(
    x: Tensor, weight: Tensor, bias: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """dx in x's dtype, dweight [c k] and dbias [c] in fp32; dy contiguous."""
    b, t, c = x.shape
    k, blocks = weight.shape[1], b * cdiv(t, TOKENS)
    dx = x.new_empty(x.shape)
    dweight = x.new_empty((blocks, k, c), dtype=torch.float32)
    dbias = x.new_empty((blocks, c), dtype=torch.float32)
    programs, launch = _launch(x, weight)
    inputs = (x, weight, bias, dy, dx, dweight, dbias, x.stride(0), t)
    enqueue(conv_silu_bwd_kernel, programs, *inputs, **launch)
    return dx, total(dweight, 0).mT.contiguous(), total(dbias, 0)
