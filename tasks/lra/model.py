"""The classifier around a mixer: embedding, blocks, pooling over what is valid, one linear head."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from mixers.base import Mixer
from mixers.directions import Directions
from mixers.layers import linear
from mixers.tokens import valid_tokens
from tasks.backbone import Backbone, Encoder, table_of

Pool = Literal["mean", "last", "max", "cls"]
"""Over the valid positions alone. `cls`: a learned token before the first one is read out."""
Pair = Literal["nli", "concat"]
"""Of the two documents' u and v. `nli`: [u, v, u - v, u v]. `concat`: [u, v]. Then a hidden layer
of the model's width with GELU."""


class Classifier(Encoder):
    """Sequences, or pairs of them through the same encoder, to class scores.

    Tokens are ids [b t], or scalars [b t c] of `channels` through a linear map.
    """

    def __init__(
        self,
        backbone: Backbone,
        mixer: Mixer,
        *,
        vocab_size: int,
        channels: int | None,
        classes: int,
        max_len: int,
        directions: Directions,
        pool: Pool,
        pair: Pair | None,
        generator: torch.Generator,
    ) -> None:
        d_model, init = backbone.d_model, backbone.init
        embedding: nn.Module
        if channels is None:
            embedding = table_of(vocab_size, d_model, init, generator, std=backbone.embed_std)
        else:
            embedding = linear(channels, d_model, bias=True, generator=generator, init=init)
        super().__init__(
            backbone,
            mixer,
            embedding=embedding,
            max_len=max_len + (pool == "cls"),
            directions=directions,
            generator=generator,
        )
        self.pool: Pool = pool
        self.pair: Pair | None = pair
        self.cls: nn.Parameter | None = None
        if pool == "cls":
            self.cls = nn.Parameter(torch.zeros(d_model, device=generator.device))
        if pair is None:
            self.head = linear(d_model, classes, bias=True, generator=generator, init=init)
        else:
            wide = (4 if pair == "nli" else 2) * d_model
            hidden = linear(wide, d_model, bias=True, generator=generator, init=init)
            last = linear(d_model, classes, bias=True, generator=generator, init=init)
            self.head = nn.Sequential(hidden, nn.GELU(), last)

    def forward(
        self, tokens: Shaped[Tensor, "b t *c"], lengths: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b classes"]:
        """Right padding (t >= lengths[b]) changes no score."""
        return self.head(self.features(tokens, lengths))

    def of_pairs(
        self,
        first: Shaped[Tensor, "b t *c"],
        second: Shaped[Tensor, "b t *c"],
        lengths: Int[Tensor, " b"],
        second_lengths: Int[Tensor, " b"],
    ) -> Float[Tensor, "b classes"]:
        """Neither document sees the other one before the head."""
        both = self.features(torch.cat([first, second]), torch.cat([lengths, second_lengths]))
        u, v = both.chunk(2)
        parts = [u, v, u - v, u * v] if self.pair == "nli" else [u, v]
        return self.head(torch.cat(parts, dim=-1))

    def embedded(self, tokens: Shaped[Tensor, "b t *c"]) -> Float[Tensor, "b t d"]:
        """Scalars in the type of the map's weights."""
        if isinstance(self.embedding, nn.Linear):
            tokens = tokens.to(self.embedding.weight.dtype)
        return super().embedded(tokens)

    def features(
        self, tokens: Shaped[Tensor, "b t *c"], lengths: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b d"]:
        """The pooled stream."""
        x = self.embedded(tokens)
        if self.cls is not None:
            x = torch.cat([self.cls.to(x.dtype).expand(len(x), 1, -1), x], dim=1)
            lengths = None if lengths is None else lengths + 1
        return pooled(self.encoded(x, lengths), lengths, self.pool)

    def parameter_counts(self) -> dict[str, float]:
        """Of the head, of what embeds tokens and positions, and of the token mixers."""
        parts: dict[str, list[nn.Module]] = {
            "head": [self.head],
            "embedding": [self.embedding],
            "mixers": [block.mixer for block in self.blocks],  # pyright: ignore
        }
        counts = {
            # By identity: HGRN's lower bounds are one parameter of all layers.
            f"parameters_{name}": float(
                sum({id(p): p.numel() for m in modules for p in m.parameters()}.values())
            )
            for name, modules in parts.items()
        }
        extra = [p for p in (self.cls, self.positions) if isinstance(p, nn.Parameter)]
        counts["parameters_embedding"] += sum(p.numel() for p in extra)
        return counts


def pooled(
    x: Float[Tensor, "b t d"], lengths: Int[Tensor, " b"] | None, pool: Pool
) -> Float[Tensor, "b d"]:
    """One vector of each sequence's valid positions, in x's dtype."""
    if pool == "cls":
        return x[:, 0]
    if lengths is None:
        if pool == "mean":
            return x.mean(1)
        return x[:, -1] if pool == "last" else x.amax(1)
    if pool == "last":
        index = (lengths - 1)[:, None, None].expand(-1, 1, x.shape[-1])
        return x.gather(1, index)[:, 0]
    valid = valid_tokens(lengths, x.shape[1])[..., None]
    if pool == "max":
        return x.masked_fill(~valid, -torch.inf).amax(1)
    return x.where(valid, 0).sum(1) / lengths[:, None].to(x.dtype)
