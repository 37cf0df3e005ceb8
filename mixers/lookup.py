"""Rows of a table by their numbers, and the gradient of the table.

Id 0 fills most of a row of recall: additions to its gradient, one by one, would wait for one
another. On a GPU a kernel adds them up before (`lookup_kernel.py`).
"""

from __future__ import annotations

import os
from typing import Any, no_type_check

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from hgrn2.api import HAS_TRITON

# On a CPU.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def looked_up(table: Float[Tensor, "vocab d"], ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
    """table[ids], ids from 0 on: compiled, a negative one is not refused. On a GPU the gradient is
    summed in fp32 (in fp64 of fp64), in no fixed order."""
    if HAS_TRITON and (table.is_cuda or INTERPRETED):
        return _LookedUp.apply(table, ids)
    return F.embedding(ids, table)


def _gradient(dy: Tensor, ids: Tensor, vocab: int) -> Tensor:
    """[vocab d] of dy [b t d]."""
    # triton is not everywhere, and takes a while to import.
    from mixers import lookup_kernel

    if torch.compiler.is_compiling():
        return lookup_kernel.compiled_gradient(dy, ids, vocab)
    return lookup_kernel.gradient(dy, ids, vocab)


class _LookedUp(torch.autograd.Function):
    """`no_type_check`: torch's compiler takes both functions as they are, so nothing may wrap
    them."""

    @staticmethod
    @no_type_check
    def forward(ctx: Any, table: Any, ids: Any) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.vocab = len(table)
        # An embedding's rows a compiler would keep for the backward pass; these it looks up again.
        return table[ids] if torch.compiler.is_compiling() else F.embedding(ids, table)

    @staticmethod
    @once_differentiable
    @no_type_check
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, dy: Tensor
    ) -> tuple[Tensor, None]:
        (ids,) = ctx.saved_tensors
        return _gradient(dy, ids, ctx.vocab), None
