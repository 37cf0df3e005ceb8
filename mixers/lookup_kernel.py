"""The gradient of a table of which rows were looked up, in Triton.

    dtable_v = sum of dy_i over the i with ids_i = v

A program walks over some rows of dy and adds each to its row of the table, but keeps the sum of
those of id 0, which it adds at its end: a hundred rows or more are one addition.

`no_type_check`: Triton compiles a function's text where it stands, so nothing may wrap it.
"""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from hgrn2.kernels.first_call import enqueue
from hgrn2.kernels.settings import cdiv

TILE = 2048
"""Numbers of dy that four warps hold at a time."""
WIDEST = 128
WALK = 8
"""Tiles of a program."""


@triton.jit(do_not_specialize=["N"])
@no_type_check
def lookup_gradient_kernel(
    dy,
    ids,
    dtable,
    N,
    D,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    WALK: tl.constexpr,
):
    """dtable [vocab d], zeros before, of WALK * ROWS of the N rows of dy, C of their D channels."""
    blocks = tl.cdiv(D, C)
    channel = (tl.program_id(0) % blocks) * C + tl.arange(0, C)
    inside = channel < D
    start = (tl.program_id(0) // blocks) * (WALK * ROWS)
    zeros = tl.zeros((ROWS, C), dtable.dtype.element_ty)
    for step in range(WALK):
        row = start + step * ROWS + tl.arange(0, ROWS)
        there = row < N
        i = tl.load(ids + row, mask=there, other=0)
        place = row.to(tl.int64)[:, None] * D + channel[None, :]
        x = tl.load(dy + place, mask=there[:, None] & inside[None, :], other=0)
        x = x.to(dtable.dtype.element_ty)
        zero = (i == 0)[:, None]
        zeros += tl.where(zero, x, 0)
        own = dtable + i.to(tl.int64)[:, None] * D + channel[None, :]
        tl.atomic_add(own, x, mask=(~zero) & inside[None, :], sem="relaxed")
    tl.atomic_add(dtable + channel, tl.sum(zeros, 0), mask=inside, sem="relaxed")


@no_type_check
def gradient(dy: Tensor, ids: Tensor, vocab: int) -> Tensor:
    """[vocab d] in dy's dtype, of dy [b t d] and ids [b t], each from 0 to vocab - 1."""
    d = dy.shape[-1]
    c = min(WIDEST, triton.next_power_of_2(d))
    rows = TILE // c
    wide = torch.float64 if dy.dtype == torch.float64 else torch.float32
    with torch.cuda.device_of(dy):
        dtable = torch.zeros(vocab, d, dtype=wide, device=dy.device)
        programs = cdiv(ids.numel(), WALK * rows) * cdiv(d, c)
        x = dy.contiguous(), ids.contiguous(), dtable, ids.numel(), d
        tile = {"C": c, "ROWS": rows, "WALK": WALK, "num_warps": 4}
        enqueue(lookup_gradient_kernel, programs, *x, **tile)
    return dtable.to(dy.dtype)


compiled_gradient = torch.library.custom_op("mixers::lookup_gradient", gradient, mutates_args=())


@compiled_gradient.register_fake
def _gradient_fake(dy: Tensor, ids: Tensor, vocab: int) -> Tensor:
    del ids
    return dy.new_empty(vocab, dy.shape[-1])
