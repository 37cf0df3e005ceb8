"""The classifier: padding changes nothing, pools and pair heads are what they say."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from mixers import GLA, HGRN1, HGRN2, Attention, Mamba, Mixer
from tasks.backbone import Backbone
from tasks.lra.model import Classifier, pooled

MIXERS = [
    HGRN2(expand_ratio=4, lower_bound="exclusive"),
    HGRN1(separate_theta=True),
    GLA(n_heads=2),
    Mamba(d_state=4),
    Attention(n_heads=2),
]
POOLS = ("mean", "last", "max", "cls")


def classifier(mixer: Mixer = MIXERS[0], **fields: object) -> Classifier:
    settings = {"norm": "layer", "positions": "sinusoidal"} | {
        name: fields.pop(name) for name in ("norm", "positions") if name in fields
    }
    backbone = Backbone.model_validate({"d_model": 16, "glu_width": 16} | settings)
    options = {"directions": "both", "pool": "mean", "pair": None, "channels": None} | fields
    return Classifier(
        backbone,
        mixer,
        vocab_size=20,
        classes=3,
        max_len=40,
        generator=torch.Generator().manual_seed(0),
        **options,
    ).double()


def ids(*shape: int) -> Tensor:
    return torch.randint(20, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("mixer", "directions"),
    [*product(MIXERS, ("both", "flip_sum")), (MIXERS[0], "apart_sum")],
    ids=lambda part: part if isinstance(part, str) else part.name,
)
@pytest.mark.parametrize("norm", ["layer", "rms", "batch"])
def test_padding_changes_no_score(mixer, norm, directions):
    lengths = torch.tensor([5, 20, 11])
    tokens = ids(3, 40)
    for pool in POOLS:
        model = classifier(mixer, norm=norm, directions=directions, pool=pool)
        for training in (True, False):
            model.train(training)
            with torch.no_grad():
                short, long = model(tokens[:, :20], lengths), model(tokens, lengths)
            torch.testing.assert_close(long, short, rtol=1e-9, atol=1e-11)
        with torch.no_grad():
            alone = torch.cat([model(tokens[i : i + 1, :n]) for i, n in enumerate(lengths)])
        torch.testing.assert_close(short, alone, rtol=1e-9, atol=1e-11)


def test_pools_by_hand():
    x = torch.tensor([[[1.0], [3.0], [9.0]], [[-4.0], [-2.0], [-6.0]]])
    lengths = torch.tensor([2, 3])
    by_hand = {"mean": [2.0, -4.0], "last": [3.0, -6.0], "max": [3.0, -2.0], "cls": [1.0, -4.0]}
    for pool, values in by_hand.items():
        assert pooled(x, lengths, pool)[:, 0].tolist() == values
        whole = pooled(x, torch.tensor([3, 3]), pool)
        assert torch.equal(pooled(x, None, pool), whole)


@pytest.mark.parametrize("pair", ["nli", "concat"])
def test_a_pair_is_two_documents_through_one_encoder(pair):
    model = classifier(pair=pair).eval()
    first, second = ids(2, 30), ids(4, 30)[2:]
    lengths, others = torch.tensor([30, 12]), torch.tensor([8, 25])
    with torch.no_grad():
        u, v = model.features(first, lengths), model.features(second, others)
        parts = (u, v, u - v, u * v) if pair == "nli" else (u, v)
        expected = model.head(torch.cat(parts, -1))
        scores = model.of_pairs(first, second, lengths, others)
        torch.testing.assert_close(scores, expected, rtol=1e-10, atol=1e-12)
        # No document sees the other.
        changed = model.of_pairs(first, second.flip(0), lengths, others.flip(0))
        assert not torch.equal(changed, scores)
    width = {"nli": 64, "concat": 32}[pair]
    assert model.head[0].in_features == width


def test_scalars_go_through_a_linear_map_and_ids_through_a_table():
    pixels = classifier(channels=3)
    assert pixels.embedding.weight.shape == (16, 3)
    assert pixels(torch.randn(2, 25, 3, dtype=torch.float64)).shape == (2, 3)
    assert classifier().embedding.weight.shape == (20, 16)
    with pytest.raises(ValueError, match="41 tokens; the positions reach max_len = 40"):
        classifier()(ids(1, 41))


def test_parameters_are_counted_once_and_apart():
    model = classifier(HGRN2(expand_ratio=4, lower_bound="exclusive"), pool="cls")
    counts = model.parameter_counts()
    d = 16
    assert counts["parameters_head"] == 3 * d + 3
    assert counts["parameters_embedding"] == 20 * d + d
    # Four maps, four biases and a norm a layer; the bounds of two layers once.
    assert counts["parameters_mixers"] == 2 * (4 * d * d + 6 * d) + 2 * d
    blocks = sum(p.numel() for block in model.blocks for p in block.parameters())
    assert counts["parameters_mixers"] < blocks
