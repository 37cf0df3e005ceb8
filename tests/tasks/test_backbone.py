"""Whole language models: the parameter counts of the papers, positions, padding."""

from __future__ import annotations

import pytest
import torch

from mixers import HGRN1, HGRN2, Attention, Mixer
from tasks.backbone import Backbone

WIKI = {"d_model": 512, "n_layers": 6, "glu_activation": "none", "glu_bias": True, "norm": "layer"}
LARGE = {"d_model": 1024, "n_layers": 26, "glu_activation": "none", "norm": "simple_rms"}


def count(backbone: Backbone, mixer: Mixer, vocab_size: int) -> float:
    """Millions of parameters, rounded to the spec's three places."""
    # On the meta device nothing is drawn, so a billion parameters cost nothing.
    with torch.device("meta"):
        model = backbone.build(
            mixer, vocab_size=vocab_size, max_len=512, generator=torch.Generator("cpu")
        )
    return round(sum(p.numel() for p in model.parameters()) / 1e6, 3)


@pytest.mark.parametrize(
    ("mixer", "glu_width", "expected"),
    [
        (HGRN1(kind="complex", lower_bound="cumsum"), 1024, 46.248),
        (HGRN1(kind="real", lower_bound="cumsum"), 1536, 46.239),
        (HGRN1(kind="real", expand=2, lower_bound="cumsum"), 1024, 47.821),
        (HGRN2(preset="biased", lower_bound="cumsum"), 1365, 44.661),
    ],
)
def test_wikitext_models_have_the_published_sizes(mixer, glu_width, expected):
    assert count(Backbone(**WIKI, glu_width=glu_width), mixer, 50265) == expected


def test_the_large_hgrn2_model_has_the_published_size():
    mixer = HGRN2(preset="lm", lower_bound="cumsum")
    assert count(Backbone(**LARGE, glu_width=2816), mixer, 50272) == 385.477


@pytest.mark.parametrize("positions", ["none", "learned", "sinusoidal"])
@pytest.mark.parametrize("causal", [True, False])
def test_padding_changes_no_valid_logit(positions, causal):
    model = Backbone(d_model=32, n_layers=2, positions=positions).build(
        HGRN2(expand_ratio=16),
        vocab_size=50,
        max_len=40,
        causal=causal,
        generator=torch.Generator().manual_seed(0),
    )
    model = model.double().eval()
    tokens = torch.randint(50, (2, 40), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([11, 20])
    with torch.no_grad():
        short, long = model(tokens[:, :20], lengths), model(tokens, lengths)
        alone = model(tokens[:1, :11])
    torch.testing.assert_close(long[0, :11], short[0, :11], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(long[1, :20], short[1], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(long[0, :11], alone[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norm": "rms", "channel_mixer": "none", "positions": "learned"},
        {"channel_mixer": "identity", "n_layers": 1},
        # These norms see all tokens.
        {"norm": "batch"},
        {"norm": "layer", "final_norm": "batch"},
    ],
)
@pytest.mark.parametrize("causal", [True, False])
def test_tokens_asked_for_alone_are_those_of_all(options, causal):
    found = []
    at = torch.tensor([[10, 0], [3, 19]])
    for alone in (True, False):
        model = Backbone(d_model=32, **options).build(
            HGRN2(expand_ratio=16),
            vocab_size=50,
            max_len=20,
            causal=causal,
            generator=torch.Generator().manual_seed(0),
        )
        model = model.double()
        tokens = torch.randint(50, (2, 20), generator=torch.Generator().manual_seed(1))
        lengths = torch.tensor([11, 20])
        if alone:
            y = model.hidden(tokens, lengths, at)
        else:
            y = model.hidden(tokens, lengths)[torch.arange(2)[:, None], at]
        y.sin().sum().backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        found.append([y.detach(), *gradients, *model.buffers()])
    for ours, exact in zip(*found, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-10, atol=1e-12)


def test_the_head_at_initialisation_knows_nothing():
    """Initial loss of zoology's initialisation: ln 8192 = 9.011."""
    model = Backbone(d_model=64, channel_mixer="identity", init="zoology").build(
        Attention(init="zoology"),
        vocab_size=8192,
        max_len=64,
        generator=torch.Generator().manual_seed(0),
    )
    tokens = torch.randint(8192, (8, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = model(tokens)
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert float(loss) == pytest.approx(9.02, abs=0.05)


def test_embeddings_are_multiplied_where_asked_alone():
    """By the width's root; a product by one would be a copy of the gradient."""
    ids, found = torch.tensor([[3, 0, 1]]), []
    for scale in (False, True):
        backbone = Backbone(d_model=64, embed_scale=scale)
        generator = torch.Generator().manual_seed(0)
        model = backbone.build(Attention(), vocab_size=5, max_len=3, generator=generator)
        found.append(model.embedded(ids))
    plain, scaled = found
    assert torch.equal(scaled, 8 * plain)
    assert "Embedding" in plain.grad_fn.name()


def test_identity_channel_mixer_adds_a_normalised_copy():
    plain, quirky = (
        Backbone(d_model=32, n_layers=1, channel_mixer=kind, norm="simple_rms").build(
            HGRN2(expand_ratio=16),
            vocab_size=50,
            max_len=8,
            generator=torch.Generator().manual_seed(0),
        )
        for kind in ("none", "identity")
    )
    x = torch.randn(1, 8, 32, generator=torch.Generator().manual_seed(1))
    stream = plain.blocks[0](x)
    norm = torch.nn.RMSNorm(32, eps=1e-5, elementwise_affine=False)
    torch.testing.assert_close(quirky.blocks[0](x), stream + norm(stream))


def test_errors_name_the_field():
    with pytest.raises(ValueError, match="glu_width = 64 has no effect"):
        Backbone(d_model=32, channel_mixer="none", glu_width=64)
    model = Backbone(d_model=32, positions="learned").build(
        Attention(), vocab_size=50, max_len=8, generator=torch.Generator()
    )
    with pytest.raises(ValueError, match="9 tokens; the positions reach max_len = 8"):
        model(torch.zeros(1, 9, dtype=torch.int64))
