"""Which tokens of a row: the valid ones, the same backwards, those that are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, no_type_check

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def valid_tokens(lengths: Tensor, t: int) -> Tensor:
    """[b] -> [b t] bool: True where a token is not right padding."""
    return torch.arange(t, device=lengths.device) < lengths[:, None]


def taken(x: Shaped[Tensor, "b t *c"], at: Int[Tensor, "b n"] | None) -> Shaped[Tensor, "b n *c"]:
    """The tokens of each row at `at`, which differ; None: all of them.

    Raises ValueError where `at` is not int64 or has other rows than x, and on a CPU, in eager
    calls, where a row asks for a token twice: its gradient would be wrong.
    """
    if at is None:
        return x
    if at.dtype != torch.int64 or at.ndim != 2 or len(at) != len(x):
        raise ValueError(
            f"at is {at.dtype} {list(at.shape)}; for x {list(x.shape)} it should be torch.int64, "
            f"[{len(x)} n]"
        )
    # No subclass: a tracer's tensors hold no numbers.
    if type(at) is Tensor and at.device.type == "cpu" and not torch.compiler.is_compiling():
        _expect_different(at)
    return _Taken.apply(x, at)


def projected(
    layer: nn.Linear,
    x: Float[Tensor, "b t d"],
    widths: Sequence[int],
    gate: int,
    at: Int[Tensor, "b n"] | None,
) -> list[Float[Tensor, "b _t _n"]]:
    """layer(x) in pieces of these widths, of which the one with the number `gate` meets no other
    token: with `at`, it is of those tokens alone [b n _n]. Raises ValueError as `taken`."""
    if at is None:
        return list(layer(x).split(list(widths), dim=-1))
    weights = list(layer.weight.split(list(widths)))
    biases = [None] * len(widths) if layer.bias is None else list(layer.bias.split(list(widths)))
    late = F.linear(taken(x, at), weights.pop(gate), biases.pop(gate))
    bias = None if layer.bias is None else torch.cat([b for b in biases if b is not None])
    early = F.linear(x, torch.cat(weights), bias)
    pieces = list(early.split([len(w) for w in weights], dim=-1))
    pieces.insert(gate, late)
    return pieces


def _expect_different(at: Tensor) -> None:
    ordered = at.sort(1).values
    twice = (ordered[:, 1:] == ordered[:, :-1]).nonzero()
    if len(twice):
        row, place = twice[0].tolist()
        raise ValueError(
            f"at asks for token {int(ordered[row, place])} of row {row} twice; the tokens of a row "
            "should differ"
        )


def _gathered(x: Tensor, index: Tensor) -> Tensor:
    """[b t *c], [b n] -> [b n *c]."""
    return x.gather(1, index.view(*index.shape, *[1] * (x.ndim - 2)).expand(-1, -1, *x.shape[2:]))


class _Taken(torch.autograd.Function):
    """A gather along t whose gradient is a gather too: each token looks for its own place in `at`,
    so that a compiler forms the gradient where it is used, where autograd's own would fill zeros
    and add to them.

    `no_type_check`: torch's compiler takes both functions as they are, so nothing may wrap them.
    """

    @staticmethod
    @no_type_check
    def forward(ctx: Any, x: Any, at: Any) -> Tensor:
        ctx.save_for_backward(at)
        ctx.t = x.shape[1]
        return _gathered(x, at)

    @staticmethod
    @once_differentiable
    @no_type_check
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, dy: Tensor
    ) -> tuple[Tensor, None]:
        (at,) = ctx.saved_tensors
        b, n = at.shape
        if n == 0:
            return dy.new_zeros((b, ctx.t, *dy.shape[2:])), None
        place = at.new_full((b, ctx.t), -1)
        place = place.scatter(1, at, torch.arange(n, device=at.device).expand(b, n))
        own = (place >= 0).view(b, ctx.t, *[1] * (dy.ndim - 2))
        return torch.where(own, _gathered(dy, place.clamp(min=0)), 0), None


def flip_valid(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Reverse [b t ...] along t; right padding stays on the right."""
    if lengths is None:
        return x.flip(1)
    t = x.shape[1]
    position = torch.arange(t, device=x.device)
    index = torch.where(valid_tokens(lengths, t), lengths[:, None] - 1 - position, position)
    return _gathered(x, index)
