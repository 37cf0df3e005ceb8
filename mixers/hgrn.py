"""What HGRN1 (arXiv 2311.04823) and HGRN2 (arXiv 2404.07904) share: a forget gate that a lower
bound keeps from closing, f_t = bound + (1 - bound) sigmoid(z_t), and the tied input gate 1 - f_t.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hgrn2.gate import arithmetic_dtype
from mixers.base import Mixer
from mixers.fla import FLAGate
from mixers.layers import Init

Bound = Literal["off", "cumsum", "exclusive"]
"""How a layer's lower bound follows from P, the softmax over layers of a parameter Gamma [L d].
`off`: 0 everywhere, no parameter. `cumsum`: P_2 + .. + P_l, as in the language models' code.
`exclusive`: P_1 + .. + P_(l-1), as in HGRN1's paper and the LRA and ImageNet code. Both start at
(l - 1) / L and part in training."""


class HGRN(FLAGate):
    """The options that HGRN1 and HGRN2 share; not a mixer of its own."""

    lower_bound: Bound = "off"
    """How the forget gates of the upper layers are kept from closing."""
    init: Init = "torch"
    """How the linear maps start."""

    def lower_bounds(self, d_model: int, n_layers: int, device: torch.device) -> LowerBounds | None:
        """The one module that a whole stack shares; None where the bound is off."""
        if self.lower_bound == "off":
            return None
        return LowerBounds(self.lower_bound, n_layers, d_model, device)


def with_triton(variants: list[Mixer]) -> list[Mixer]:
    """The variants, and the same in Triton where a CPU can run it."""
    triton = [mixer.model_copy(update={"impl": "triton"}) for mixer in variants]
    cpu = torch.device("cpu")
    return variants + [m for m in triton if m.unsupported(cpu, torch.float32) is None]


class LowerBounds(nn.Module):
    """Gamma [L d], one parameter of the whole stack, and the bound that each layer gets of it."""

    def __init__(self, kind: Bound, n_layers: int, d_model: int, device: torch.device) -> None:
        super().__init__()
        self.kind = kind
        self.gamma = nn.Parameter(torch.ones(n_layers, d_model, device=device))

    def forward(self, layer: int) -> Float[Tensor, " d"]:
        """The bound of layer 0, 1, .. L - 1, in fp32 (fp64 for an fp64 Gamma), in [0, 1)."""
        P = self.gamma.to(arithmetic_dtype(self.gamma)).softmax(0)
        # Sums of the terms that stay, not a cumulative sum less the one that goes: a difference
        # can round to below zero. A sum can round to 1, where the gate would forget nothing.
        terms = P[1 : layer + 1] if self.kind == "cumsum" else P[:layer]
        return terms.sum(0).clamp(max=1 - torch.finfo(P.dtype).eps)


class HGRNLayer(nn.Module):
    """A layer that asks the stack's shared bounds for its own."""

    def __init__(self, bounds: LowerBounds | None, layer: int, d_model: int) -> None:
        super().__init__()
        self.bounds = bounds
        self.layer = layer
        self.d_model = d_model
        self.bounded = bounds is not None and layer > 0
        """False: the bound is 0 for good, and a gate in front of FLA's kernels leaves it out."""

    def bound(self, x: Tensor) -> Float[Tensor, " d"]:
        """This layer's lower bound, on x's device."""
        if self.bounds is None:
            return torch.zeros(self.d_model, dtype=arithmetic_dtype(x), device=x.device)
        return self.bounds(self.layer)
