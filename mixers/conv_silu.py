"""Mamba's short convolution and its SiLU by one kernel each way, eager and compiled.

Of torch's operations over the taps a compiler makes kernels that move four times as many bytes in
the backward pass.
"""

from __future__ import annotations

from typing import Any, no_type_check

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from mixers.mamba_settings import expect_shapes, expect_supported


def conv_silu(
    x: Float[Tensor, "b t c"], weight: Float[Tensor, "c k"], bias: Float[Tensor, " c"]
) -> Float[Tensor, "b t c"]:
    """silu(bias + sum_k weight_k x_(t-K+1+k)), tokens before the first being zeros, in x's dtype;
    sums in fp32. x in bf16, fp16 or fp32, a view as long as its channels are contiguous. Raises
    ValueError for another dtype, other shapes, and another device than CUDA."""
    expect_supported(x)
    if x.ndim != 3 or weight.ndim != 2:
        raise ValueError(
            f"x and weight have {x.ndim} and {weight.ndim} axes; they should have 3, 2"
        )
    c = x.shape[2]
    expect_shapes({"weight": (weight, (c, weight.shape[1])), "bias": (bias, (c,))})
    if torch.compiler.is_compiling():
        return _compiled_forward(x, weight, bias)
    return _Eager.apply(x, weight, bias)


# `no_type_check`: torch reads an operator's schema off a function that nothing wraps.
@no_type_check
def _rows(x: Tensor) -> Tensor:
    return x if x.stride(2) == 1 else x.contiguous()


@no_type_check
def _forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    # triton takes a while to import.
    from mixers.conv_silu_kernels import conv_silu_output

    with torch.cuda.device_of(x):
        return conv_silu_output(_rows(x), weight.contiguous(), bias.contiguous())


@no_type_check
def _backward(x: Tensor, weight: Tensor, bias: Tensor, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    from mixers.conv_silu_kernels import conv_silu_gradients

    with torch.cuda.device_of(x):
        inputs = _rows(x), weight.contiguous(), bias.contiguous(), dy.contiguous()
        dx, dweight, dbias = conv_silu_gradients(*inputs)
    return dx, dweight.to(weight.dtype), dbias.to(bias.dtype)


_compiled_forward = torch.library.custom_op("mixers::conv_silu", _forward, mutates_args=())
_compiled_backward = torch.library.custom_op(
    "mixers::conv_silu_backward", _backward, mutates_args=()
)


@_compiled_forward.register_fake
def _forward_fake(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    del weight, bias
    return x.new_empty(x.shape)


@_compiled_backward.register_fake
def _backward_fake(
    x: Tensor, weight: Tensor, bias: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    del dy
    return x.new_empty(x.shape), weight.new_empty(weight.shape), bias.new_empty(bias.shape)


class _Eager(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        return _forward(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, dy: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        x, weight, bias = ctx.saved_tensors
        return _backward(x, weight, bias, dy)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    del output
    ctx.save_for_backward(*inputs)


_compiled_forward.register_autograd(
    lambda ctx, dy: _compiled_backward(*ctx.saved_tensors, dy), setup_context=_save
)
