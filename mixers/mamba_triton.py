"""Mamba by our own Triton kernels, for autograd."""

from __future__ import annotations

from typing import Any, no_type_check

import torch
from jaxtyping import Float
from torch import Tensor

from hgrn2.kernels.operators import Pass, Run, operator
from mixers.conv_silu import conv_silu
from mixers.mamba import MambaLayer
from mixers.mamba_settings import expect_shapes, expect_supported


def selective_scan(
    x: Float[Tensor, "b t c"],
    dt: Float[Tensor, "b t c"],
    A_log: Float[Tensor, "c n"],
    B: Float[Tensor, "b t n"],
    C: Float[Tensor, "b t n"],
    D: Float[Tensor, " c"],
    bias: Float[Tensor, " c"] | None = None,
    *,
    state: Float[Tensor, "b c n"] | None = None,
) -> tuple[Float[Tensor, "b t c"], Float[Tensor, "b c n"]]:
    """`mixers.mamba.selective_scan` of dt + bias, in fp32 (the last state has no gradient).

    x, dt, B and C of one dtype, bf16, fp16 or fp32; what is not contiguous is copied. Raises
    ValueError for another dtype, other shapes, another device than CUDA, and a state where
    gradients are wanted.
    """
    expect_supported(x)
    if x.ndim != 3 or A_log.ndim != 2:
        raise ValueError(f"x and A_log have {x.ndim} and {A_log.ndim} axes; they should have 3, 2")
    b, t, c = x.shape
    n = A_log.shape[1]
    named = {"dt": (dt, (b, t, c)), "B": (B, (b, t, n)), "C": (C, (b, t, n))}
    named |= {"A_log": (A_log, (c, n)), "D": (D, (c,))}
    named |= {} if bias is None else {"bias": (bias, (c,))}
    named |= {} if state is None else {"state": (state, (b, c, n))}
    expect_shapes(named)
    tokens = (x, dt, B, C)
    if any(y.dtype != x.dtype for y in tokens):
        raise ValueError(
            f"x, dt, B, C are {', '.join(str(y.dtype) for y in tokens)}; impl='triton' takes one "
            "dtype for all four"
        )
    inputs = (x, dt, A_log, B, C, D, torch.zeros_like(D) if bias is None else bias)
    if (
        state is not None
        and torch.is_grad_enabled()
        and any(y.requires_grad for y in (*inputs, state))
    ):
        raise ValueError(
            "state: impl='triton' has no gradients for a scan that goes on from one: call it under "
            "torch.no_grad(), or use impl='reference'"
        )
    return _operator(*inputs, state)


# `no_type_check`: torch reads an operator's schema off a function that nothing wraps.
@no_type_check
def _forward(
    x: Tensor,
    dt: Tensor,
    A_log: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    bias: Tensor,
    state: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, the last state, and the step sizes and borders where they are to be kept."""
    # triton takes a while to import.
    from mixers.mamba_passes import scan_output

    state = None if state is None else _plain(state.mT)
    rates, B, C, D, bias = (_plain(y) for y in (A_log.mT, B, C, D, bias))
    with torch.cuda.device_of(x):
        y, last, steps, borders = scan_output(
            x.contiguous(), dt.contiguous(), rates, B, C, D, bias, state, keep
        )
    return y, last.mT, steps, borders


@no_type_check
def _backward(
    x: Tensor,
    A_log: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    steps: Tensor,
    borders: Tensor,
    dy: Tensor,
) -> list[Tensor]:
    """Of `_forward`'s first seven, of dt in x's dtype, of what is no token in fp32."""
    from mixers.mamba_passes import scan_gradients

    rates, B, C, D = (_plain(y) for y in (A_log.mT, B, C, D))
    with torch.cuda.device_of(x):
        dx, ddt, dA_log, *rest = scan_gradients(
            x.contiguous(), rates, B, C, D, dy.contiguous(), steps, borders
        )
    return [dx, ddt, dA_log.mT.contiguous(), *rest]


@no_type_check
def _plain(x: Tensor) -> Tensor:
    return x.float().contiguous()


def _forward_fake(
    x: Tensor,
    dt: Tensor,
    A_log: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    bias: Tensor,
    state: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from mixers.mamba_passes import buffers_of

    del dt, B, C, D, bias, state
    y, last, steps, borders = buffers_of(x, A_log.shape[1], keep)
    return y, last.mT, steps, borders


def _backward_fake(
    x: Tensor,
    A_log: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    steps: Tensor,
    borders: Tensor,
    dy: Tensor,
) -> list[Tensor]:
    del steps, borders, dy
    wide = (y.new_empty(y.shape, dtype=torch.float32) for y in (A_log, B, C, D, D))
    return [x.new_empty(x.shape), x.new_empty(x.shape), *wide]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, _, A_log, B, C, D, *_ = inputs
    ctx.save_for_backward(x, A_log, B, C, D, *output[2:])
    ctx.dtypes = [y.dtype for y in inputs[:7]]
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, run: Run, dy: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    gradients = run(*ctx.saved_tensors, dy)
    return *(g.to(dtype) for g, dtype in zip(gradients, ctx.dtypes, strict=True)), None, None


_operator = operator(
    Pass("mixers::selective_scan", _forward, _forward_fake),
    Pass("mixers::selective_scan_backward", _backward, _backward_fake),
    _save,
    _differentiate,
)


class TritonMambaLayer(MambaLayer):
    """`MambaLayer` with its convolution and its scan in our kernels."""

    def _from_nothing(self, x: Float[Tensor, "b t c"]) -> Float[Tensor, "b t c"]:
        return self._scan(conv_silu(x, self.conv_weight, self.conv_bias))[0]

    def _scan(
        self, x: Float[Tensor, "b t c"], state: Float[Tensor, "b c n"] | None = None
    ) -> tuple[Float[Tensor, "b t c"], Float[Tensor, "b c n"]]:
        dt, B, C = self.proj_scan(x).split(self.widths, dim=-1)
        dt = self.proj_dt(dt)
        return selective_scan(x, dt, self.A_log, B, C, self.D, self.dt_bias, state=state)
