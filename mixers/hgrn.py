"""What HGRN1 (arXiv 2311.04823) and HGRN2 (arXiv 2404.07904) share: a forget gate that a lower
bound keeps from closing, f_t = bound + (1 - bound) sigmoid(z_t), and the tied input gate 1 - f_t.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import isqrt
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from hgrn2.gate import arithmetic_dtype
from mixers.base import Mixer
from mixers.fla import FLAGate
from mixers.layers import Init
from mixers.tokens import taken

Bound = Literal["off", "cumsum", "exclusive"]
"""How a layer's lower bound follows from P, the softmax over layers of a parameter Gamma [L d].
`off`: 0 everywhere, no parameter. `cumsum`: P_2 + .. + P_l, as in the language models' code.
`exclusive`: P_1 + .. + P_(l-1), as in HGRN1's paper and the LRA and ImageNet code. Both start at
(l - 1) / L and part in training."""


Scan = Literal["1d", "2d_parallel", "2d_series"]
"""Along what a stack in both directions scans, as in the LRA code. `1d`: the sequence. The others:
square images whose pixels are the tokens, row by row. `2d_parallel`: every column and every row,
both ways, the four states summed before the one read-out. `2d_series`: the whole layer along the
columns, then the same layer, with the same weights, along the rows."""


class HGRN(FLAGate):
    """The options that HGRN1 and HGRN2 share; not a mixer of its own."""

    lower_bound: Bound = "off"
    """How the forget gates of the upper layers are kept from closing."""
    init: Init = "torch"
    """How the linear maps start."""
    scan: Scan = "1d"

    later: ClassVar[tuple[str, ...]] = ("scan",)

    def check_scan(self, causal: bool) -> None:
        """Raise ValueError where a causal stack would scan images."""
        if causal and self.scan != "1d":
            raise ValueError(
                f"scan = {self.scan!r} sees an image from all sides: use causal = False, or '1d'"
            )

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

    rates = ("gamma",)

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


def along(
    lines: Literal["columns", "rows"],
    run: Callable[..., Tensor],
    *inputs: Shaped[Tensor, "b t ..."],
) -> Shaped[Tensor, "b t ..."]:
    """`run` over each column or each row, as sequences of their own, of square images whose pixels
    are the t tokens, row by row. Raises ValueError where t is no square."""
    side = isqrt(inputs[0].shape[1])
    if side**2 != inputs[0].shape[1]:
        raise ValueError(f"{inputs[0].shape[1]} tokens are no square image: use scan = '1d'")

    def turned(images: Tensor) -> Tensor:
        return images.transpose(1, 2) if lines == "columns" else images

    y = run(*(turned(x.unflatten(1, (side, side))).flatten(0, 1) for x in inputs))
    return turned(y.unflatten(0, (-1, side))).flatten(1, 2)


class HGRNLayer(nn.Module):
    """A layer that asks the stack's shared bounds for its own."""

    def __init__(
        self, mixer: HGRN, bounds: LowerBounds | None, layer: int, d_model: int, causal: bool
    ) -> None:
        super().__init__()
        mixer.check_scan(causal)
        self.scan, self.causal = mixer.scan, causal
        self.bounds = bounds
        self.layer = layer
        self.d_model = d_model
        self.bounded = bounds is not None and layer > 0
        """False: the bound is 0 for good, and a gate in front of FLA's kernels leaves it out."""

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        *,
        lengths: Int[Tensor, " b"] | None = None,
        at: Int[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Raises ValueError for lengths, or a t that is no square, where images are scanned."""
        if self.scan != "1d" and lengths is not None:
            raise ValueError(f"scan = {self.scan!r} takes whole images, without lengths")
        if self.scan == "2d_series":
            whole = partial(self.mix, lengths=None, at=None)
            return taken(along("rows", whole, along("columns", whole, x)), at)
        return self.mix(x, lengths, at)

    def mix(
        self,
        x: Float[Tensor, "b t d"],
        lengths: Int[Tensor, " b"] | None,
        at: Int[Tensor, "b n"] | None,
    ) -> Float[Tensor, "b n d"]:
        """The layer along one sequence, or in parallel along both axes of an image."""
        raise NotImplementedError

    def states(
        self, operator: Callable[..., Tensor], *inputs: Tensor, lengths: Tensor | None
    ) -> Tensor:
        """What `operator` makes of its inputs [b t ...], along all that is scanned at once."""
        if self.scan != "2d_parallel":
            return operator(*inputs, lengths=lengths)
        return along("columns", operator, *inputs) + along("rows", operator, *inputs)

    def bound(self, x: Tensor) -> Float[Tensor, " d"]:
        """This layer's lower bound, on x's device."""
        if self.bounds is None:
            return torch.zeros(self.d_model, dtype=arithmetic_dtype(x), device=x.device)
        return self.bounds(self.layer)
