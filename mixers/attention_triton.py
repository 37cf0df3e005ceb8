"""Causal softmax attention with dropout in Triton, for autograd: no graph break, no host
synchronisation.

FlashAttention (arXiv 2205.14135, 2307.08691), with the masks of `mixers.layers.Dropout` formed
where they are used. torch.compile sees custom operators; eager calls go around their dispatch,
which costs the host more than all launches together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, no_type_check

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from triton import knobs

from hgrn2.kernels.chunks import rows
from mixers.attention_backward import attention_gradients
from mixers.attention_kernels import attention_output, buffers_of
from mixers.attention_settings import HEAD_SIZES
from mixers.layers import Dropout

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# On a CPU, with TRITON_INTERPRET = 1 from the start.
INTERPRETED = bool(knobs.runtime.interpret)


class Fused(nn.Module):
    """`sdpa.attend` under a causal mask, with dropout of the probabilities."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)

    def forward(
        self,
        q: Float[Tensor, "b t h k"],
        k: Float[Tensor, "b t h k"],
        v: Float[Tensor, "b t h k"],
        *,
        causal: bool,
        mask: Bool[Tensor, "#b s"] | None,
    ) -> Float[Tensor, "b t h k"]:
        """In the inputs' dtype: bf16, fp16 or fp32, whose products follow
        torch.set_float32_matmul_precision. Raises ValueError for another dtype or head size, for
        shapes that differ, without `causal` and with a mask."""
        if not causal or mask is not None:
            raise ValueError(
                f"causal = {causal} {'without' if mask is None else 'with'} a mask does not fit "
                "impl = 'triton', which sees all of the past and nothing else: use causal = True "
                "without a mask, or impl = 'sdpa' or 'reference'"
            )
        return attend(q, k, v, state=self.dropout.draw(), p=self.dropout.p)

    def packed(self, qkv: Float[Tensor, "b t 3 h k"]) -> Float[Tensor, "b t h k"]:
        """`forward` of one projection, whose gradient comes in one piece too."""
        return attend(qkv, state=self.dropout.draw(), p=self.dropout.p)


def attend(*x: Tensor, state: Tensor | None, p: float) -> Float[Tensor, "b t h k"]:
    """Causal attention of q, k, v [b t h k], or of all three in one [b t 3 h k].

    `state`: that of `Dropout`, int64 [] (None: no dropout), on the inputs' device; p its share. The
    inputs may be strided views as long as their last axes are contiguous; others are copied. Raises
    ValueError as `Fused`.
    """
    _check(*(x[0].unbind(2) if len(x) == 1 else x))
    if torch.compiler.is_compiling():
        o, *_ = _compiled_forward(list(x), state, p)
    elif torch.is_grad_enabled() and any(part.requires_grad for part in x):
        o = _Eager.apply(state, p, *x)
    else:
        o, *_ = _forward(x, state, p)
    return o


def _parts(x: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v, the last axes contiguous."""
    q, k, v = x[0].unbind(2) if len(x) == 1 else x
    return rows(q), rows(k), rows(v)


def _check(q: Tensor, k: Tensor, v: Tensor) -> None:
    if q.dtype not in DTYPES or k.dtype != q.dtype or v.dtype != q.dtype:
        raise ValueError(
            f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}; impl='triton' takes one of "
            "torch.bfloat16, torch.float16, torch.float32 for all three"
        )
    if k.shape != q.shape or v.shape != q.shape:
        raise ValueError(
            f"q, k, v have shapes {list(q.shape)}, {list(k.shape)}, {list(v.shape)}; "
            "impl='triton' takes one [b t h k] for all three"
        )
    if q.shape[-1] not in HEAD_SIZES:
        raise ValueError(
            f"the heads have {q.shape[-1]} channels; impl='triton' takes "
            f"{', '.join(map(str, HEAD_SIZES))}: use another number of heads, or impl='reference'"
        )
    if not (q.is_cuda or INTERPRETED):
        raise ValueError(f"impl='triton' needs a CUDA device, not {q.device}: use impl='reference'")


# `no_type_check`: torch reads an operator's schema off a function that nothing wraps.
@no_type_check
def _forward(x: Sequence[Tensor], state: Tensor | None, p: float) -> tuple[Tensor, Tensor, Tensor]:
    """o [b t h k], lse [b h t'] and bits [b h t'].

    Not the state for the backward pass: the caller's own copy may have moved on by then, since
    torch's compiler takes it for the buffer that it is of.
    """
    with torch.cuda.device_of(x[0]):
        return attention_output(*_parts(x), state, p)


@no_type_check
def _backward(
    x: Sequence[Tensor], o: Tensor, lse: Tensor, bits: Tensor, do: Tensor, p: float
) -> Tensor:
    """[b t 3 h k]"""
    with torch.cuda.device_of(do):
        return attention_gradients(*_parts(x), o, lse, bits, rows(do), p)


# torch's compiler keeps code by an operator's name and not by what its likeness below returns:
# where that changes, the name must.
_compiled_forward = torch.library.custom_op("mixers::causal_attention", _forward, mutates_args=())
_compiled_backward = torch.library.custom_op(
    "mixers::causal_attention_backward", _backward, mutates_args=()
)


@_compiled_forward.register_fake
def _forward_fake(
    x: Sequence[Tensor], state: Tensor | None, p: float
) -> tuple[Tensor, Tensor, Tensor]:
    del p
    q, *_ = _parts(x)
    return buffers_of(q, drops=state is not None)


@_compiled_backward.register_fake
def _backward_fake(
    x: Sequence[Tensor], o: Tensor, lse: Tensor, bits: Tensor, do: Tensor, p: float
) -> Tensor:
    del x, lse, bits, do, p
    b, t, h, k = o.shape
    return o.new_empty((b, t, 3, h, k))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, state, p = inputs
    ctx.save_for_backward(*output, *x)
    ctx.p = 0.0 if state is None else p


def _differentiate(ctx: Any, run: Callable[..., Tensor], do: Tensor) -> list[Tensor]:
    """Of each of the inputs."""
    o, lse, bits, *x = ctx.saved_tensors
    gradients = run(x, o, lse, bits, do, ctx.p)
    return [gradients] if len(x) == 1 else list(gradients.unbind(2))


class _Eager(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, state: Tensor | None, p: float, *x: Tensor) -> Tensor:
        output = _forward(x, state, p)
        _save(ctx, (x, state, p), output)
        return output[0]

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, do: Tensor
    ) -> tuple[Tensor | None, ...]:
        return None, None, *_differentiate(ctx, _backward, do)


_compiled_forward.register_autograd(
    lambda ctx, do, *_: (_differentiate(ctx, _compiled_backward, do), None, None),
    setup_context=lambda ctx, inputs, output: _save(ctx, inputs, output),
)
