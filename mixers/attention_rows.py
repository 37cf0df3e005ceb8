"""Rows of a tensor as the tiles of attention's and the fused loss's kernels: loaded, rounded to a
product's operands, stored.

`no_type_check`: Triton compiles a function's text where it stands, so nothing may wrap it.
"""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl

from hgrn2.kernels.gate import load_tile, operand


@triton.jit
@no_type_check
def load_rows(x, start, stride_t, T, K: tl.constexpr, C: tl.constexpr, WHOLE: tl.constexpr = False):
    """Tokens [C K] from `start` on; zeros past T. WHOLE: none is past it."""
    token = tl.arange(0, C)
    # int64: a stride of tokens may be that of a batch.
    x += tl.cast(start, tl.int64) * stride_t
    valid = (token < C) if WHOLE else (start + token < T)
    return load_tile(x, token, tl.arange(0, K), stride_t, valid)


@triton.jit
@no_type_check
def as_operand(x, DOT: tl.constexpr, PRECISION: tl.constexpr):
    """An input, whatever its dtype, in the precision of a product's operands."""
    if DOT.is_fp32():
        x = x.to(tl.float32)
    return operand(x, DOT, PRECISION)


@triton.jit
@no_type_check
def store_rows(y, tile, start, stride_t, T, K: tl.constexpr, C: tl.constexpr):
    """The tokens [C K] from `start` on that are before T."""
    token = tl.arange(0, C)
    y += tl.cast(start, tl.int64) * stride_t
    place = token[:, None] * stride_t + tl.arange(0, K)[None, :]
    tl.store(y + place, tile.to(y.dtype.element_ty), mask=(start + token < T)[:, None])


@triton.jit
@no_type_check
def store_with_rest(y, rest, tile, start, stride_t, T, K: tl.constexpr, C: tl.constexpr):
    """As `store_rows`; in `rest`, where y is not fp32, what y's rounding leaves."""
    store_rows(y, tile, start, stride_t, T, K, C)
    if not y.dtype.element_ty.is_fp32():
        tile -= tile.to(y.dtype.element_ty).to(tl.float32)
        store_rows(rest, tile, start, stride_t, T, K, C)


@triton.jit
@no_type_check
def load_with_rest(y, rest, start, stride_t, T, K: tl.constexpr, C: tl.constexpr):
    """In fp32 what `store_with_rest` stored, but for the rest's own rounding."""
    tile = load_rows(y, start, stride_t, T, K, C).to(tl.float32)
    if not y.dtype.element_ty.is_fp32():
        tile += load_rows(rest, start, stride_t, T, K, C).to(tl.float32)
    return tile
