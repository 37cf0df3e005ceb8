"""HGRN2's operator on a layer's projection [b t 3 h k], with a gradient that is written in place.

Three tensors dq, dz and dv would be read and written once more to be stacked, and those of the
activations on their way there. The kernels write each where it belongs in the projection's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hgrn2.kernels.chunks import launch_backward, launch_forward, rows
from hgrn2.kernels.first_call import compile_before_first
from hgrn2.kernels.into import Into
from hgrn2.kernels.settings import check_widths
from hgrn2.projection import Activations, split


def hgrn2_projected(
    x: Tensor,
    bound: Tensor,
    activations: Activations,
    *,
    bidirectional: bool,
    lengths: Tensor | None,
) -> Tensor:
    """y [b t h k], as `hgrn2.hgrn2_projected` has it; eager alone.

    Raises ValueError for a width that the kernels do not take.
    """
    check_widths(x.shape[-1], x.shape[-1])
    x = rows(x)
    keep = torch.is_grad_enabled() and (x.requires_grad or bound.requires_grad)
    compile_before_first(_passes, x, bound, lengths, activations, bidirectional, keep)
    if keep:
        return _Projected.apply(x, bound, lengths, activations, bidirectional)
    q, z, v = split(x, activations)
    return launch_forward(q, z, v, bound, None, lengths, bidirectional, False)[0]


class _Projected(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        bound: Tensor,
        lengths: Tensor | None,
        activations: Activations,
        bidirectional: bool,
    ) -> Tensor:
        q, z, v = split(x, activations)
        y, _, *kept = launch_forward(q, z, v, bound, None, lengths, bidirectional, True)
        ctx.save_for_backward(x, q, v, bound, lengths, *kept)
        ctx.activations, ctx.bidirectional = activations, bidirectional
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, q, v, bound, lengths, *kept = ctx.saved_tensors
        inputs = (x, q, v, bound, lengths, kept, dy)
        return (*_differentiate(*inputs, ctx.activations, ctx.bidirectional), None, None, None)


def _differentiate(
    x: Tensor,
    q: Tensor,
    v: Tensor,
    bound: Tensor,
    lengths: Tensor | None,
    kept: Sequence[Tensor],
    dy: Tensor,
    activations: Activations,
    bidirectional: bool,
) -> tuple[Tensor, Tensor]:
    """dx and dbound."""
    dx = x.new_empty(x.shape)
    into = Into.projection(x, dx, activations)
    z = x.select(2, 2)
    dbound, _ = launch_backward(q, z, v, bound, lengths, kept, dy, None, bidirectional, False, into)
    return dx, dbound


def _passes(
    x: Tensor,
    bound: Tensor,
    lengths: Tensor | None,
    activations: Activations,
    bidirectional: bool,
    keep: bool,
) -> None:
    """A forward pass, and the backward pass if one may come, of x on meta: what is activated, only
    in its likeness."""
    v, q, z = x.unbind(2)
    q = q.new_empty(q.shape)
    v = v.new_empty(v.shape) if activations.silu_value else v
    y, _, *kept = launch_forward(q, z, v, bound, None, lengths, bidirectional, keep)
    if keep:
        _differentiate(x, q, v, bound, lengths, kept, y, activations, bidirectional)
