"""The backward pass of cross-entropy behind a linear head: hidden rows' gradient, the weight's."""

from __future__ import annotations

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from hgrn2.kernels.first_call import enqueue
from hgrn2.kernels.settings import cdiv
from mixers.attention_rows import as_operand, load_rows, store_rows
from mixers.attention_settings import Launch
from mixers.cross_entropy_kernels import LOG2E, part_of, parts_of, products_of, tile_of


@triton.jit(do_not_specialize=["N", "V"])
@no_type_check
def cross_entropy_bwd_hidden_kernel(
    hidden,
    weight,
    lse,
    aim,
    dloss,
    dhidden,
    hidden_stride,
    weight_stride,
    dloss_stride,
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
    """dhidden [parts n d] of C rows, from a part of the vocabulary."""
    start = (tl.program_id(0) // PARTS) * C
    part = tl.program_id(0) % PARTS
    row = start + tl.arange(0, C)
    own, own_aim = tl.load(lse + row), tl.load(aim + row)
    h = as_operand(load_rows(hidden, start, hidden_stride, N, D, C), DOT, PRECISION)
    acc = tl.zeros([C, D], tl.float32)
    begin, end = part_of(part, V, PARTS, STEP)
    for first in range(begin, end, STEP):
        w = as_operand(load_rows(weight, first, weight_stride, V, D, STEP, WHOLE), DOT, PRECISION)
        S = tl.dot(h, tl.trans(w), input_precision=PRECISION)
        P = tl.exp2(S * LOG2E - own[:, None])
        if not WHOLE:
            # Past the vocabulary S is 0, whatever the scores are: P may be infinite there.
            P = tl.where((first + tl.arange(0, STEP) < V)[None, :], P, 0.0)
        # Counted from `first` on: compared with the walk's counter, both would be of 64 bits.
        P = tl.where(tl.arange(0, STEP)[None, :] == (own_aim - first)[:, None], P - 1.0, P)
        acc = tl.dot(as_operand(P, DOT, PRECISION), w, acc, input_precision=PRECISION)
    scale = tl.load(dloss + row * dloss_stride, mask=row < N, other=0.0)
    dhidden += part.to(tl.int64) * N * D
    store_rows(dhidden, acc * scale[:, None], start, D, N, D, C)


@triton.jit(do_not_specialize=["N", "V"])
@no_type_check
def cross_entropy_bwd_weight_kernel(
    hidden,
    weight,
    lse,
    aim,
    dloss,
    dweight,
    hidden_stride,
    weight_stride,
    dloss_stride,
    N,
    V,
    D: tl.constexpr,
    C: tl.constexpr,
    STEP: tl.constexpr,
    PARTS: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dweight [parts v d] of C rows of the vocabulary, from a part of the hidden rows."""
    start = (tl.program_id(0) // PARTS) * C
    part = tl.program_id(0) % PARTS
    word = start + tl.arange(0, C)
    w = as_operand(load_rows(weight, start, weight_stride, V, D, C), DOT, PRECISION)
    acc = tl.zeros([C, D], tl.float32)
    begin, end = part_of(part, N, PARTS, STEP)
    for first in range(begin, end, STEP):
        row = first + tl.arange(0, STEP)
        own, own_aim = tl.load(lse + row), tl.load(aim + row)
        scale = tl.load(dloss + row * dloss_stride, mask=row < N, other=0.0)
        h = as_operand(load_rows(hidden, first, hidden_stride, N, D, STEP), DOT, PRECISION)
        S = tl.dot(w, tl.trans(h), input_precision=PRECISION)
        P = tl.exp2(S * LOG2E - own[None, :])
        P = tl.where(word[:, None] == own_aim[None, :], P - 1.0, P) * scale[None, :]
        acc = tl.dot(as_operand(P, DOT, PRECISION), h, acc, input_precision=PRECISION)
    dweight += part.to(tl.int64) * V * D
    store_rows(dweight, acc, start, D, V, D, C)


def gradients_of(
    hidden: Tensor, weight: Tensor, lse: Tensor, aim: Tensor, dloss: Tensor
) -> tuple[Tensor, Tensor]:
    """dhidden and dweight in their tensors' dtypes, of what `losses_of` took and gave and dloss,
    fp32 [n] of any stride."""
    (n, width), vocabulary = hidden.shape, len(weight)
    (_, to_hidden, to_weight), shared = products_of(hidden.dtype, width)

    def gradient(
        of: Tensor, others: int, kernel: Any, launch: Launch, constants: dict[str, bool]
    ) -> Tensor:
        """Of one of the two, in parts of the walk over the `others` that are summed here."""
        parts = parts_of(len(of), others, launch)
        found = of.new_empty((parts, *of.shape), dtype=of.dtype if parts == 1 else torch.float32)
        enqueue(
            kernel,
            cdiv(len(of), launch.block) * parts,
            *(hidden, weight, lse, aim, dloss, found),
            *(hidden.stride(0), weight.stride(0), dloss.stride(0), n, vocabulary),
            **shared,
            **constants,
            **tile_of(launch, parts),
        )
        return found[0] if parts == 1 else found.sum(0).to(of.dtype)

    whole = {"WHOLE": vocabulary % to_hidden.step == 0}
    dhidden = gradient(hidden, vocabulary, cross_entropy_bwd_hidden_kernel, to_hidden, whole)
    dweight = gradient(weight, n, cross_entropy_bwd_weight_kernel, to_weight, {})
    return dhidden, dweight
