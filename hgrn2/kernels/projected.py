"""HGRN2's operator on a layer's projection [b t 3 h k], with a gradient that is written in place.

Three tensors dq, dz and dv would be read and written once more to be stacked, and those of the
activations on their way there. The kernels write each where it belongs in the projection's.
torch.compile sees custom operators, and what activates q and v.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hgrn2.kernels.chunks import launch_backward, launch_forward, room, rows
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
    """y [b t h k], as `hgrn2.hgrn2_projected` has it.

    Raises ValueError for a width that the kernels do not take.
    """
    check_widths(x.shape[-1], x.shape[-1])
    x = rows(x)
    keep = torch.is_grad_enabled() and (x.requires_grad or bound.requires_grad)
    if torch.compiler.is_compiling():
        # x's gradient is that of the raw q and v too.
        q, _, v = split(x.detach(), activations)
        return _compiled_forward(x, q, v, bound, lengths, *activations, bidirectional, keep)[0]
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


def _forward(
    x: Tensor,
    q: Tensor,
    v: Tensor,
    bound: Tensor,
    lengths: Tensor | None,
    query: str,
    silu_value: bool,
    bidirectional: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """y of x and of what its parts were activated to, and what the backward needs of it (empty
    without `keep`)."""
    activations = Activations(cast(Any, query), silu_value)
    compile_before_first(_passes, x, bound, lengths, activations, bidirectional, keep)
    z = x.select(2, 2)
    y, _, *kept = launch_forward(q, z, v, bound, None, lengths, bidirectional, keep)
    return y, *kept


def _backward(
    x: Tensor,
    q: Tensor,
    v: Tensor,
    bound: Tensor,
    lengths: Tensor | None,
    states: Tensor,
    states_reverse: Tensor,
    scores: Tensor,
    deep: Tensor,
    dy: Tensor,
    query: str,
    silu_value: bool,
    bidirectional: bool,
) -> tuple[Tensor, Tensor]:
    """dx and dbound."""
    activations = Activations(cast(Any, query), silu_value)
    kept = (states, states_reverse, scores, deep)
    return _differentiate(x, q, v, bound, lengths, kept, dy, activations, bidirectional)


# torch's compiler keeps code by an operator's name and not by what its likeness below returns:
# where shapes or dtypes of that change, the name must.
_compiled_forward = torch.library.custom_op("hgrn2::projected", _forward, mutates_args=())
_compiled_backward = torch.library.custom_op(
    "hgrn2::projected_backward", _backward, mutates_args=()
)


@_compiled_forward.register_fake
def _forward_fake(
    x: Tensor,
    q: Tensor,
    v: Tensor,
    bound: Tensor,
    lengths: Tensor | None,
    query: str,
    silu_value: bool,
    bidirectional: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    del x, bound, lengths, query, silu_value
    y = v.new_empty(v.shape)
    if keep:
        return y, *room(q, v, bidirectional, True)
    return y, *(q.new_empty(0) for _ in range(4))


@_compiled_backward.register_fake
def _backward_fake(
    x: Tensor, _q: Tensor, _v: Tensor, bound: Tensor, *_: object
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), bound.new_empty(bound.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, query, silu_value, bidirectional, _ = inputs
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.options = (query, silu_value, bidirectional)


def _gradients(ctx: Any, dy: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    dx, dbound = _compiled_backward(*ctx.saved_tensors, dy, *ctx.options)
    return dx, None, None, dbound, *(None,) * 5


_compiled_forward.register_autograd(_gradients, setup_context=_save)


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
