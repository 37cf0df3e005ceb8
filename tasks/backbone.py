"""The model around a mixer: embedding, pre-norm blocks, channel mixer, head.

x += mixer(norm(x));  x += channel(norm(x));  ...;  logits = norm(x) @ head
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float, Int, Shaped
from pydantic import Field, PositiveFloat, PositiveInt, SerializeAsAny, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from mixers.base import Frozen, Mixer
from mixers.directions import Directions, stack
from mixers.layers import INIT_STD, Dropout, Init, NormName, linear, norm, normalised
from mixers.lookup import looked_up
from mixers.tokens import taken


class Backbone(Frozen):
    """Everything of a language model but its token mixer."""

    d_model: PositiveInt
    n_layers: PositiveInt = 2
    channel_mixer: Literal["none", "identity", "glu"] = "glu"
    """`glu`: W3 (act(W1 x) * (W2 x)). `none`: a block has no second branch. `identity`: zoology's
    identity state mixer, which is no no-op: each block adds a normalised copy, x += norm(x)."""
    glu_width: PositiveInt | None = None
    """None: 8 d_model / 3, rounded down."""
    glu_activation: Literal["none", "silu"] = "silu"
    """`none` is the bilinear unit of HGRN's language models."""
    glu_bias: bool = False
    norm: NormName = "layer"
    """Of the blocks."""
    final_norm: NormName | None = None
    """Before the head; None: as in the blocks."""
    positions: Literal["none", "learned", "sinusoidal"] = "none"
    """Absolute positions added to the embedding."""
    embed_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    embed_scale: bool = False
    """Multiply the embeddings by sqrt(d_model)."""
    tie_embeddings: bool = True
    init: Init = "torch"
    """Of the embedding, the head and the channel mixer; `torch` draws embeddings from
    N(0, 1 / d_model), the others from N(0, 0.02^2). A mixer owns its own."""
    embed_std: PositiveFloat | None = None
    """Of the drawn embedding; None: as `init` says."""
    first: SerializeAsAny[Mixer] | None = None
    """Another mixer in the place of the first layer's: a hybrid."""
    branch_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of what each branch of a block adds to the stream."""

    later: ClassVar[tuple[str, ...]] = ("first", "branch_dropout", "embed_std")

    @model_validator(mode="after")
    def _glu_width_is_used(self) -> Backbone:
        if self.glu_width is not None and self.channel_mixer != "glu":
            raise ValueError(
                f"glu_width = {self.glu_width} has no effect with channel_mixer = "
                f"{self.channel_mixer!r}; leave it out or use channel_mixer = 'glu'"
            )
        return self

    def state_size(self, mixer: Mixer, seq_len: int) -> int:
        """Numbers that all layers hold to decode one sequence."""
        first = self.first or mixer
        others = (self.n_layers - 1) * mixer.state_size(self.d_model, seq_len)
        return first.state_size(self.d_model, seq_len) + others

    def build(
        self,
        mixer: Mixer,
        *,
        vocab_size: int,
        max_len: int,
        causal: bool = True,
        generator: torch.Generator,
    ) -> LanguageModel:
        """The model on the generator's device, every parameter drawn from `generator`."""
        return LanguageModel(
            self, mixer, vocab_size=vocab_size, max_len=max_len, causal=causal, generator=generator
        )


class Encoder(nn.Module):
    """Embedded tokens to the normalised stream; a subclass adds its head."""

    def __init__(
        self,
        backbone: Backbone,
        mixer: Mixer,
        *,
        embedding: nn.Module,
        max_len: int,
        directions: Directions,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        d_model, n_layers = backbone.d_model, backbone.n_layers
        self.embedding = embedding
        self.embed_scale = math.sqrt(d_model) if backbone.embed_scale else 1.0
        self.positions: Tensor | None
        if backbone.positions == "learned":
            self.positions = table_of(max_len, d_model, backbone.init, generator).weight
        elif backbone.positions == "sinusoidal":
            table = sinusoidal(max_len, d_model).to(generator.device)
            self.register_buffer("positions", table, persistent=False)
        else:
            self.positions = None
        self.max_len = max_len
        self.dropout = Dropout(backbone.embed_dropout)
        size, seen = (d_model, n_layers), directions
        token_mixers = stack(mixer, *size, directions=seen, generator=generator)
        if backbone.first is not None:
            first = stack(backbone.first, *size, directions=seen, generator=generator)
            token_mixers[0] = first[0]
        self.blocks = nn.ModuleList(Block(backbone, layer, generator) for layer in token_mixers)
        final = backbone.final_norm or backbone.norm
        self.norm = norm(final, d_model, device=generator.device)
        self.norms_see_all_tokens = "batch" in (backbone.norm, final)

    def embedded(self, tokens: Shaped[Tensor, "b t *c"]) -> Float[Tensor, "b t d"]:
        """Each token by itself, without its position."""
        if isinstance(self.embedding, nn.Embedding):
            x = looked_up(self.embedding.weight, tokens)
        else:
            x = self.embedding(tokens)
        # A compiler does not leave out a product by one: its gradient would be a copy.
        return x if self.embed_scale == 1 else x * self.embed_scale

    def encoded(
        self,
        x: Float[Tensor, "b t d"],
        lengths: Int[Tensor, " b"] | None = None,
        at: Int[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Positions, blocks and the last norm. `at`: of these tokens alone, which differ; what
        follows the last mixing is computed of them only. Raises ValueError past the last
        position."""
        if self.positions is not None:
            if x.shape[1] > self.max_len:
                raise ValueError(
                    f"{x.shape[1]} tokens; the positions reach max_len = {self.max_len}"
                )
            x = x + self.positions[: x.shape[1]].to(x.dtype)
        x = self.dropout(x)
        *below, last = self.blocks
        for block in below:
            x = block(x, lengths=lengths)
        x = last(x, lengths=lengths, at=None if self.norms_see_all_tokens else at)
        x = normalised(self.norm, x, lengths)
        return taken(x, at) if self.norms_see_all_tokens else x


class LanguageModel(Encoder):
    """Tokens to logits; `hidden` and `logits` apart, so that a task pays for the head only where
    it has labels."""

    def __init__(
        self,
        backbone: Backbone,
        mixer: Mixer,
        *,
        vocab_size: int,
        max_len: int,
        causal: bool,
        generator: torch.Generator,
    ) -> None:
        d_model, init = backbone.d_model, backbone.init
        table = table_of(vocab_size, d_model, init, generator, std=backbone.embed_std)
        super().__init__(
            backbone,
            mixer,
            embedding=table,
            max_len=max_len,
            directions="causal" if causal else "both",
            generator=generator,
        )
        self.head: nn.Embedding | nn.Linear = table
        if not backbone.tie_embeddings:
            self.head = linear(d_model, vocab_size, bias=False, generator=generator, init=init)

    def hidden(
        self,
        tokens: Int[Tensor, "b t"],
        lengths: Int[Tensor, " b"] | None = None,
        at: Int[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """The normalised stream before the head, of all tokens or of those at `at`."""
        return self.encoded(self.embedded(tokens), lengths, at)

    def logits(self, hidden: Float[Tensor, "*n d"]) -> Float[Tensor, "*n vocab"]:
        """Scores of the next token."""
        return F.linear(hidden, self.head.weight)

    def forward(
        self, tokens: Int[Tensor, "b t"], lengths: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b t vocab"]:
        """Logits at every position; right padding (t >= lengths[b]) changes no valid one."""
        return self.logits(self.hidden(tokens, lengths))


class Block(nn.Module):
    """One token mixer and one channel mixer, each behind its norm."""

    def __init__(self, backbone: Backbone, mixer: nn.Module, generator: torch.Generator) -> None:
        super().__init__()
        d_model = backbone.d_model
        self.mixer_norm = norm(backbone.norm, d_model, device=generator.device)
        self.mixer = mixer
        self.channel_norm: nn.Module | None = None
        self.channel: nn.Module | None = None
        if backbone.channel_mixer != "none":
            self.channel_norm = norm(backbone.norm, d_model, device=generator.device)
            glu = backbone.channel_mixer == "glu"
            self.channel = GLU(backbone, generator) if glu else nn.Identity()
        self.dropout = Dropout(backbone.branch_dropout)

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        *,
        lengths: Int[Tensor, " b"] | None = None,
        at: Int[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """`at`: what is added after the mixer is of these tokens alone, so not with norms over the
        batch."""
        mixed = self.mixer(normalised(self.mixer_norm, x, lengths), lengths=lengths, at=at)
        x = taken(x, at) + self.dropout(mixed)
        if self.channel is not None and self.channel_norm is not None:
            x = x + self.dropout(self.channel(normalised(self.channel_norm, x, lengths)))
        return x


class GLU(nn.Module):
    """W3 (act(W1 x) * (W2 x)), HGRN's channel mixer (arXiv 2311.04823)."""

    def __init__(self, backbone: Backbone, generator: torch.Generator) -> None:
        super().__init__()
        d_model, init, bias = backbone.d_model, backbone.init, backbone.glu_bias
        width = backbone.glu_width or 8 * d_model // 3
        self.silu = backbone.glu_activation == "silu"
        self.gate = linear(d_model, width, bias=bias, generator=generator, init=init)
        self.up = linear(d_model, width, bias=bias, generator=generator, init=init)
        self.down = linear(
            width,
            d_model,
            bias=bias,
            generator=generator,
            init=init,
            out_of_layers=backbone.n_layers,
        )

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        gate = self.gate(x)
        return self.down((F.silu(gate) if self.silu else gate) * self.up(x))


def sinusoidal(max_len: int, d_model: int) -> Float[Tensor, "t d"]:
    """The Transformer's fixed positions: sine in the first half of the channels, then cosine."""
    half = (d_model + 1) // 2
    frequency = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
    angle = torch.arange(max_len, dtype=torch.float32)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)[:, :d_model]


def table_of(
    count: int,
    width: int,
    init: Init,
    generator: torch.Generator,
    *,
    std: float | None = None,
) -> nn.Embedding:
    """An embedding, drawn as `Backbone.init` says, or with that deviation."""
    # On the meta device torch's own start draws nothing.
    table = nn.Embedding(count, width, device="meta").to_empty(device=generator.device)
    own = width**-0.5 if init == "torch" else INIT_STD
    with torch.no_grad():
        table.weight.normal_(0, own if std is None else std, generator=generator)
    return table
