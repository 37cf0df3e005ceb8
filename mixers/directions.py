"""How the layers of a stack come to see a whole sequence."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mixers.base import Mixer
from mixers.tokens import flip_valid, taken

Directions = Literal["both", "causal", "flip_sum", "apart_sum"]
"""`both`: as the mixer itself sees both (`stack(causal=False)`). `causal`: no token sees a later
one. `flip_sum`: a causal layer runs over the tokens and over their reverse, with the same weights,
and the two outputs are summed: for kernels that run forwards alone. Of Mamba it is the same
function as `both`; of a layer with a norm behind its mixing it is another model. `apart_sum`: the
same with weights of its own each way, twice the parameters, and a layer that can tell before from
after: one set of weights both ways weighs what comes d tokens before as what comes d after."""


def stack(
    mixer: Mixer,
    d_model: int,
    n_layers: int,
    *,
    directions: Directions,
    generator: torch.Generator,
) -> list[nn.Module]:
    """The mixer's layers, each seeing what `directions` says."""
    causal = directions != "both"
    layers = mixer.stack(d_model, n_layers, causal=causal, generator=generator)
    if directions == "flip_sum":
        return [FlipSum(layer) for layer in layers]
    if directions == "apart_sum":
        others = mixer.stack(d_model, n_layers, causal=True, generator=generator)
        return [FlipSum(layer, other) for layer, other in zip(layers, others, strict=True)]
    return layers


class FlipSum(nn.Module):
    """layer(x) + flip(layer(flip(x))), over the valid tokens; `other` is the second layer, if there
    is one."""

    def __init__(self, layer: nn.Module, other: nn.Module | None = None) -> None:
        super().__init__()
        self.layer = layer
        self.other = other

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        *,
        lengths: Int[Tensor, " b"] | None = None,
        at: Int[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        reverse = self.layer if self.other is None else self.other
        backward = reverse(flip_valid(x, lengths), lengths=lengths)
        return self.layer(x, lengths=lengths, at=at) + taken(flip_valid(backward, lengths), at)
