"""Where the backward pass writes dq, dz, dv and a free key's gradient: into tensors of their own,
or a projection's."""

from __future__ import annotations

from typing import Literal, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from hgrn2.kernels.gate import LOG2E, load_tile, power, reciprocal
from hgrn2.projection import Activations


class Into(NamedTuple):
    """The gradients' places [b t h k], and what q and v were activated of.

    `raw_q` and `raw_v` are strided as z, so z's last axis must be contiguous: a copy of z would be
    strided otherwise. Where the activations are "none" they are q and v, and not read.
    """

    dq: Tensor
    dz: Tensor
    dv: Tensor
    raw_q: Tensor
    raw_v: Tensor
    query: Literal["none", "silu", "sigmoid"]
    value: Literal["none", "silu"]
    parts: int
    """Tokens lie parts * h heads apart: 3 parts in a projection."""
    dkey: Tensor | None = None
    """None where the key is tied to the gate."""

    @classmethod
    def tensors(cls, q: Tensor, z: Tensor, v: Tensor, dkey: Tensor | None = None) -> Into:
        """New ones, contiguous; dkey is one already."""
        dq, dz, dv = (x.new_empty(x.shape) for x in (q, z, v))
        return cls(dq, dz, dv, q, v, "none", "none", 1, dkey)

    @classmethod
    def projection(cls, x: Tensor, dx: Tensor, activations: Activations) -> Into:
        """Parts of dx, contiguous, and of x, both [b t 3 h k]."""
        raw_v, raw_q, _ = x.unbind(2)
        dv, dq, dz = dx.unbind(2)
        value = "silu" if activations.silu_value else "none"
        return cls(dq, dz, dv, raw_q, raw_v, activations.query, value, 3)


@triton.jit
def before_activation(
    gradient,
    raw,
    tokens,
    channels,
    stride_t,
    valid,
    ACTIVATION: tl.constexpr,
    FAST: tl.constexpr,
):
    """The gradient [c d] of what was activated, from that of the result; `raw` as `load_tile` has
    it."""
    if ACTIVATION != "none":
        x = load_tile(raw, tokens, channels, stride_t, valid).to(tl.float32)
        s = reciprocal(1.0 + power(x * -LOG2E, FAST), FAST)
        slope = s * (1.0 - s)
        if ACTIVATION == "silu":
            slope = s + x * slope
        gradient *= slope
    return gradient
