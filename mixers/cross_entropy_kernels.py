"""Kernels of cross-entropy behind a linear head: the logits never leave the chip.

Of each row the forward pass keeps the logarithm of its softmax's sum, from which the backward pass
forms the probabilities again, as Cut Cross-Entropy does (arXiv 2411.09009).

    S_ij = h_i w_j      lse_i = log sum_j exp(S_ij)      loss_i = lse_i - S_i,target_i
    P_ij = exp(S_ij - lse_i)      dS_ij = dloss_i (P_ij - [j = target_i])
    dh_i = sum_j dS_ij w_j      dw_j = sum_i dS_ij h_i

Logarithms are kept to base 2. No number is summed by two programs: results are the same bits every
time. Axes: n rows, v vocabulary, d width. A program has C rows of one of the first two and walks
over a part of the other, STEP at a time.

`no_type_check`: Triton compiles a function's text where it stands, so nothing may wrap it.
"""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from hgrn2.kernels.first_call import enqueue
from hgrn2.kernels.gate import load_tile
from hgrn2.kernels.settings import cdiv, dot_type
from mixers.attention_rows import as_operand, load_rows
from mixers.attention_settings import Launch
from mixers.cross_entropy_settings import settings

PROGRAMS = 132
"""The multiprocessors of a Hopper GPU: where programs are fewer, each walk is cut in parts."""
MOST_PARTS = 8
ROWS = 32  # of a program that adds the parts up
PADDING = 128
"""Rows are padded to a multiple of it in lse and aim, so that who walks over rows masks neither:
each tile and step divides it."""
LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)


def parts_of(rows: int, others: int, launch: Launch) -> int:
    """In how many parts, a power of two, the walk over the other axis is cut."""
    most = min(MOST_PARTS, cdiv(others, launch.step))
    parts = 1
    while 2 * parts <= most and cdiv(rows, launch.block) * parts < PROGRAMS:
        parts *= 2
    return parts


@triton.jit
@no_type_check
def part_of(part, length, PARTS: tl.constexpr, STEP: tl.constexpr):
    """Where the walk over a part of `length` rows begins and ends: whole steps but for the last."""
    each = tl.cdiv(tl.cdiv(length, PARTS), STEP) * STEP
    return tl.minimum(part * each, length), tl.minimum((part + 1) * each, length)


@triton.jit(do_not_specialize=["N", "V"])
@no_type_check
def cross_entropy_fwd_kernel(
    hidden,
    weight,
    lse,
    hidden_stride,
    weight_stride,
    N,
    V,
    D: tl.constexpr,
    C: tl.constexpr,
    STEP: tl.constexpr,
    PARTS: tl.constexpr,
    WHOLE: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """lse of C rows over a part of the vocabulary, [parts n]; WHOLE: V % STEP is 0."""
    start = (tl.program_id(0) // PARTS) * C
    part = tl.program_id(0) % PARTS
    row = start + tl.arange(0, C)
    h = as_operand(load_rows(hidden, start, hidden_stride, N, D, C), DOT, PRECISION)
    highest = tl.full([C], float("-inf"), tl.float32)
    total = tl.zeros([C], tl.float32)
    begin, end = part_of(part, V, PARTS, STEP)
    for first in range(begin, end, STEP):
        w = as_operand(load_rows(weight, first, weight_stride, V, D, STEP, WHOLE), DOT, PRECISION)
        S = tl.dot(h, tl.trans(w), input_precision=PRECISION)
        if not WHOLE:
            S = tl.where((first + tl.arange(0, STEP) < V)[None, :], S, float("-inf"))
        higher = tl.maximum(highest, tl.max(S, 1) * LOG2E)
        total = total * tl.exp2(highest - higher)
        total += tl.sum(tl.exp2(S * LOG2E - higher[:, None]), 1)
        highest = higher
    place = part.to(tl.int64) * N + row
    tl.store(lse + place, highest + tl.log2(total), mask=row < N)


@triton.jit(do_not_specialize=["N", "V"])
@no_type_check
def cross_entropy_sum_kernel(
    hidden,
    weight,
    target,
    parts_lse,
    lse,
    aim,
    loss,
    hidden_stride,
    weight_stride,
    N,
    V,
    D: tl.constexpr,
    C: tl.constexpr,
    PARTS: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """lse [n'] of its parts [parts n], infinite past n; aim [n'], the target or -1 where it is no
    word; and loss [n], within 2^-22 of the score, so it may be below 0; NaN without a word."""
    start = tl.program_id(0) * C
    row = start + tl.arange(0, C)
    place = tl.arange(0, PARTS).to(tl.int64)[:, None] * N + row[None, :]
    part = tl.load(parts_lse + place, mask=(row < N)[None, :], other=0.0)
    highest = tl.max(part, 0)
    total = highest + tl.log2(tl.sum(tl.exp2(part - highest[None, :]), 0))
    tl.store(lse + row, tl.where(row < N, total, float("inf")))
    word = tl.load(target + row, mask=row < N, other=-1)
    a_word = (word >= 0) & (word < V)
    tl.store(aim + row, tl.where(a_word, word, -1).to(tl.int32))
    h = as_operand(load_rows(hidden, start, hidden_stride, N, D, C), DOT, PRECISION)
    w = as_operand(load_tile(weight, word, tl.arange(0, D), weight_stride, a_word), DOT, PRECISION)
    score = tl.sum(h.to(tl.float32) * w.to(tl.float32), 1)
    found = tl.where(a_word, total / LOG2E - score, float("nan"))
    tl.store(loss + row, found, mask=row < N)


def products_of(dtype: torch.dtype, width: int) -> tuple[tuple[Launch, ...], dict[str, object]]:
    """The three launches, and the constants that all kernels share."""
    dot, precision = dot_type(dtype, width, width)
    constants = {"D": width, "DOT": dot, "PRECISION": precision}
    return settings(width, "bf16" if dot == tl.bfloat16 else precision), constants


def buffers_of(hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """loss fp32 [n], and for `gradients_of` lse fp32 [n'], to base 2, and aim int32 [n'], n' being
    n padded."""
    n = len(hidden)
    whole = cdiv(n, PADDING) * PADDING
    loss, lse = (hidden.new_empty(size, dtype=torch.float32) for size in (n, whole))
    return loss, lse, hidden.new_empty(whole, dtype=torch.int32)


def losses_of(hidden: Tensor, weight: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`buffers_of` hidden [n d], filled, for weight [v d] and target int64 [n]; the last axes of
    hidden and weight, and target, are contiguous."""
    (n, width), vocabulary = hidden.shape, len(weight)
    (launch, *_), constants = products_of(hidden.dtype, width)
    parts = parts_of(n, vocabulary, launch)
    parts_lse = hidden.new_empty((parts, n), dtype=torch.float32)
    loss, lse, aim = buffers_of(hidden)
    enqueue(
        cross_entropy_fwd_kernel,
        cdiv(n, launch.block) * parts,
        *(hidden, weight, parts_lse, hidden.stride(0), weight.stride(0), n, vocabulary),
        **constants,
        **tile_of(launch, parts),
        WHOLE=vocabulary % launch.step == 0,
    )
    enqueue(
        cross_entropy_sum_kernel,
        len(lse) // ROWS,
        *(hidden, weight, target, parts_lse, lse, aim, loss),
        *(hidden.stride(0), weight.stride(0), n, vocabulary),
        **constants,
        C=ROWS,
        PARTS=parts,
    )
    return loss, lse, aim


def tile_of(launch: Launch, parts: int) -> dict[str, int]:
    tile = {"C": launch.block, "STEP": launch.step, "PARTS": parts}
    return tile | {"num_warps": launch.num_warps, "num_stages": launch.num_stages}
