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
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from triton import knobs

from hgrn2.kernels.chunks import rows
from mixers.attention_backward import attention_gradients, gradients_like
from mixers.attention_kernels import attention_output, buffers_of, split
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
        q: Float[Tensor, "b n h k"],
        k: Float[Tensor, "b t h k"],
        v: Float[Tensor, "b t h k"],
        *,
        causal: bool,
        mask: Bool[Tensor, "#b t"] | None,
        at: Int[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b n h k"]:
        """In the inputs' dtype: bf16, fp16 or fp32, whose products follow
        torch.set_float32_matmul_precision. `at`: as `attention_eager.Eager`. Raises ValueError for
        another dtype or head size, for shapes that differ, without `causal` and with a mask."""
        if not causal or mask is not None:
            raise ValueError(
                f"causal = {causal} {'without' if mask is None else 'with'} a mask does not fit "
                "impl = 'triton', which sees all of the past and nothing else: use causal = True "
                "without a mask, or impl = 'sdpa' or 'reference'"
            )
        return self.packed(q, k, v, at=at)

    def packed(self, *x: Tensor, at: Int[Tensor, "b n"] | None = None) -> Tensor:
        """`forward` of one projection [b t 3 h k], or of the queries [b n h k] at `at` and the rest
        [b t 2 h k]: gradients come in these pieces too."""
        return attend(*x, at=at, state=self.dropout.draw(), p=self.dropout.p)


def attend(
    *x: Tensor, state: Tensor | None, p: float, at: Tensor | None = None
) -> Float[Tensor, "b n h k"]:
    """Causal attention of q, k, v [b t h k], or of all three in one [b t 3 h k]. With `at`, int64
    [b n]: of the queries [b n h k] of these tokens, k and v, or both in one [b t 2 h k].

    `state`: that of `Dropout`, int64 [] (None: no dropout), on the inputs' device; p its share. The
    inputs may be strided views as long as their last axes are contiguous; others are copied. Raises
    ValueError as `Fused`.
    """
    if len(x) not in ((1, 3) if at is None else (2, 3)):
        raise ValueError(
            f"{len(x)} tensors {'without' if at is None else 'with'} `at`: q, k, v or, without it, "
            "all in one, with it, q and the others in one"
        )
    _check(*split(x), at)
    if torch.compiler.is_compiling():
        o, *_ = _compiled_forward(list(x), at, state, p)
    elif torch.is_grad_enabled() and any(part.requires_grad for part in x):
        o = _Eager.apply(at, state, p, *x)
    else:
        o, *_ = _forward(x, at, state, p)
    return o


def _parts(x: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v, the last axes contiguous."""
    q, k, v = split(x)
    return rows(q), rows(k), rows(v)


def _check(q: Tensor, k: Tensor, v: Tensor, at: Tensor | None) -> None:
    if q.dtype not in DTYPES or k.dtype != q.dtype or v.dtype != q.dtype:
        raise ValueError(
            f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}; impl='triton' takes one of "
            "torch.bfloat16, torch.float16, torch.float32 for all three"
        )
    if at is not None and (at.dtype != torch.int64 or at.shape != q.shape[:2]):
        raise ValueError(
            f"at is {at.dtype} {list(at.shape)}; for q {list(q.shape)} it should be torch.int64, "
            f"{list(q.shape[:2])}"
        )
    n = k.shape[1] if at is None else q.shape[1]
    if v.shape != k.shape or q.shape != (len(k), n, *k.shape[2:]):
        raise ValueError(
            f"q, k, v have shapes {list(q.shape)}, {list(k.shape)}, {list(v.shape)}; "
            "impl='triton' takes one [b t h k] for all three, or q [b n h k] with `at`"
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
def _forward(
    x: Sequence[Tensor], at: Tensor | None, state: Tensor | None, p: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """o and rest [b n h k], lse [b h n'] and bits [b h n'].

    Not the state for the backward pass: the caller's own copy may have moved on by then, since
    torch's compiler takes it for the buffer that it is of.
    """
    with torch.cuda.device_of(x[0]):
        at = None if at is None else at.contiguous()
        return attention_output(*_parts(x), at, state, p)


@no_type_check
def _backward(
    x: Sequence[Tensor],
    at: Tensor | None,
    o: Tensor,
    rest: Tensor,
    lse: Tensor,
    bits: Tensor,
    do: Tensor,
    p: float,
) -> list[Tensor]:
    """As `attention_gradients`."""
    with torch.cuda.device_of(do):
        at = None if at is None else at.contiguous()
        return attention_gradients(*_parts(x), at, o, rest, lse, bits, rows(do), p)


# torch's compiler keeps code by an operator's name and not by what its likeness below returns:
# where that changes, the name must.
_compiled_forward = torch.library.custom_op("mixers::causal_attention", _forward, mutates_args=())
_compiled_backward = torch.library.custom_op(
    "mixers::causal_attention_backward", _backward, mutates_args=()
)


@_compiled_forward.register_fake
def _forward_fake(
    x: Sequence[Tensor], at: Tensor | None, state: Tensor | None, p: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    del at, p
    q, *_ = _parts(x)
    return buffers_of(q, drops=state is not None)


@_compiled_backward.register_fake
def _backward_fake(
    x: Sequence[Tensor],
    at: Tensor | None,
    o: Tensor,
    rest: Tensor,
    lse: Tensor,
    bits: Tensor,
    do: Tensor,
    p: float,
) -> list[Tensor]:
    del o, rest, lse, bits, do, p
    q, k, _ = split(x)
    return gradients_like(q, k, apart=at is not None)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, at, state, p = inputs
    ctx.save_for_backward(at, *output, *x)
    ctx.p = 0.0 if state is None else p


def _differentiate(ctx: Any, run: Callable[..., list[Tensor]], do: Tensor) -> list[Tensor]:
    """Of each of the inputs."""
    at, o, rest, lse, bits, *x = ctx.saved_tensors
    gradients = run(x, at, o, rest, lse, bits, do, ctx.p)
    return gradients if len(x) == len(gradients) else list(split(gradients))


class _Eager(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, at: Tensor | None, state: Tensor | None, p: float, *x: Tensor) -> Tensor:
        output = _forward(x, at, state, p)
        _save(ctx, (x, at, state, p), output)
        return output[0]

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, do: Tensor
    ) -> tuple[Tensor | None, ...]:
        return None, None, None, *_differentiate(ctx, _backward, do)


_compiled_forward.register_autograd(
    lambda ctx, do, *_: (_differentiate(ctx, _compiled_backward, do), None, None, None),
    setup_context=lambda ctx, inputs, output: _save(ctx, inputs, output),
)
