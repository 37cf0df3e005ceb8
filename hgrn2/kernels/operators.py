"""Operators for autograd, eager and compiled: no graph break, no host synchronisation.

torch.compile sees custom operators; eager calls go around their dispatch, which costs the host more
than all launches together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.library import custom_op

Run = Callable[..., Sequence[Tensor]]


class Pass(NamedTuple):
    """A custom operator: its schema is what `run`'s parameters are annotated with."""

    name: str
    run: Run
    fake: Run


def operator(
    forward_pass: Pass,
    backward_pass: Pass,
    save: Callable[[Any, tuple[Any, ...], tuple[Tensor, ...]], None],
    differentiate: Callable[..., tuple[Tensor | None, ...]],
) -> Callable[..., tuple[Tensor, Tensor]]:
    """Of all inputs of the forward pass but the last, `keep`: its first two results.

    The others are what `keep` has it keep for the backward pass. `save(ctx, inputs, output)`, which
    torch calls by these names, saves them; `differentiate(ctx, run, dy, dlast)` gives all inputs'
    gradients by `run`, which is the backward pass or its custom operator.
    """
    compiled_forward = custom_op(forward_pass.name, forward_pass.run, mutates_args=())
    compiled_backward = custom_op(backward_pass.name, backward_pass.run, mutates_args=())
    compiled_forward.register_fake(forward_pass.fake)
    compiled_backward.register_fake(backward_pass.fake)
    compiled_forward.register_autograd(
        lambda ctx, dy, dlast, *_: differentiate(ctx, compiled_backward, dy, dlast),
        setup_context=save,
    )

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
            output = forward_pass.run(*inputs)
            save(ctx, inputs, output)
            return output[:2]

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
            return differentiate(ctx, backward_pass.run, *gradients)

    def apply(*inputs: Tensor | int | None) -> tuple[Tensor, Tensor]:
        learns = (isinstance(x, Tensor) and x.requires_grad for x in inputs)
        keep = torch.is_grad_enabled() and any(learns)
        if torch.compiler.is_compiling():
            y, last, *_ = compiled_forward(*inputs, keep)
        elif keep:
            y, last = Eager.apply(*inputs, True)
        else:
            y, last, *_ = forward_pass.run(*inputs, False)
        return y, last

    return apply
