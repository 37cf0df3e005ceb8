"""Between a layer's one input map and HGRN2's operator: a projection's parts, and their
activations."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor
from torch.nn import functional as F


class Activations(NamedTuple):
    """What a projection goes through before the operator; the forget logit stays raw."""

    query: Literal["sigmoid", "silu"]
    silu_value: bool
    """The value is SiLU of its projection, else the projection itself."""


def split(x: Tensor, activations: Activations) -> tuple[Tensor, Tensor, Tensor]:
    """q, z, v, each [... h k], of a projection x [... 3 h k] in the published order: value, query,
    forget logit."""
    v, q, z = x.unbind(-3)
    q = F.silu(q) if activations.query == "silu" else q.sigmoid()
    return q, z, F.silu(v) if activations.silu_value else v
