"""Cross-entropy behind a linear head in Triton, for autograd, without the logits: no graph break,
no host synchronisation.

torch.compile sees custom operators; eager calls go around their dispatch, as attention's do.
"""

from __future__ import annotations

from typing import Any, no_type_check

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from triton import knobs

from hgrn2.kernels.chunks import rows
from mixers.cross_entropy_backward import gradients_of
from mixers.cross_entropy_kernels import buffers_of, losses_of
from mixers.cross_entropy_settings import expect_width, needs_cuda

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# On a CPU, with TRITON_INTERPRET = 1 from the start.
INTERPRETED = bool(knobs.runtime.interpret)


def linear_cross_entropy(
    hidden: Float[Tensor, "n d"], weight: Float[Tensor, "vocab d"], target: Int[Tensor, " n"]
) -> Float[Tensor, ""]:
    """The mean of cross_entropy(hidden @ weight.T, target), in fp32.

    Products have operands of hidden's dtype (bf16, fp16 or fp32), or of autocast's where that is
    on, and fp32's follow torch.set_float32_matmul_precision; all sums are in fp32. `target`: int64,
    each a row of `weight`, or the loss is NaN. Raises ValueError for another dtype, shape or width,
    or without a GPU.
    """
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):
        hidden = hidden.to(torch.get_autocast_dtype(kind))
    _check(hidden, weight, target)
    x = hidden, weight, target
    if torch.compiler.is_compiling():
        loss, *_ = _compiled_forward(*x)
    elif torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        loss = _Eager.apply(*x)
    else:
        loss, *_ = _forward(*x)
    return loss.mean()


def _check(hidden: Tensor, weight: Tensor, target: Tensor) -> None:
    if hidden.dtype not in DTYPES or weight.dtype not in DTYPES:
        raise ValueError(
            f"hidden, weight are {hidden.dtype}, {weight.dtype}; the fused loss takes one of "
            "torch.bfloat16, torch.float16, torch.float32 for each"
        )
    fits = hidden.ndim == 2 and weight.ndim == 2 and hidden.shape[1] == weight.shape[1]
    if not fits or target.shape != hidden.shape[:1] or target.dtype != torch.int64:
        raise ValueError(
            f"hidden, weight, target have shapes {list(hidden.shape)}, {list(weight.shape)}, "
            f"{list(target.shape)}, the last is {target.dtype}; the fused loss takes [n d], "
            "[vocab d] and int64 [n]"
        )
    expect_width(hidden.shape[1])
    if not (hidden.is_cuda or INTERPRETED):
        raise ValueError(needs_cuda(hidden.device))


# `no_type_check`: torch reads an operator's schema off a function that nothing wraps.
@no_type_check
def _forward(hidden: Tensor, weight: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """loss [n], lse and aim [n']"""
    with torch.cuda.device_of(hidden):
        return losses_of(rows(hidden), rows(weight), target.contiguous())


@no_type_check
def _backward(
    hidden: Tensor, weight: Tensor, lse: Tensor, aim: Tensor, dloss: Tensor
) -> tuple[Tensor, Tensor]:
    with torch.cuda.device_of(hidden):
        return gradients_of(rows(hidden), rows(weight), lse, aim, dloss)


# A name for what they return, as attention's.
_compiled_forward = torch.library.custom_op("mixers::head_cross_entropy", _forward, mutates_args=())
_compiled_backward = torch.library.custom_op(
    "mixers::head_cross_entropy_backward", _backward, mutates_args=()
)


@_compiled_forward.register_fake
def _forward_fake(hidden: Tensor, weight: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    del weight, target
    return buffers_of(hidden)


@_compiled_backward.register_fake
def _backward_fake(
    hidden: Tensor, weight: Tensor, lse: Tensor, aim: Tensor, dloss: Tensor
) -> tuple[Tensor, Tensor]:
    del lse, aim, dloss
    return hidden.new_empty(hidden.shape), weight.new_empty(weight.shape)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, _ = inputs
    _, lse, aim = output
    ctx.save_for_backward(hidden, weight, lse, aim)


class _Eager(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *x: Tensor) -> Tensor:
        output = _forward(*x)
        _save(ctx, x, output)
        return output[0]

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, dloss: Tensor
    ) -> tuple[Tensor | None, ...]:
        hidden, weight, lse, aim = ctx.saved_tensors
        return *_backward(hidden, weight, lse, aim, dloss), None


_compiled_forward.register_autograd(
    lambda ctx, dloss, *_: (*_compiled_backward(*ctx.saved_tensors, dloss), None),
    setup_context=lambda ctx, inputs, output: _save(ctx, inputs, output),
)
