"""BaseConv keeps the mixers' contract, but reaches a few tokens alone; hybrids start with it."""

from __future__ import annotations

import pytest
import torch

from mixers import HGRN2
from mixers.base_conv import BaseConv, BaseConvLayer
from tasks.backbone import Backbone
from tests.mixers.test_contract import CHECKS, assert_close, generator, moved, tokens


@pytest.mark.parametrize("mixer", BaseConv.variants(), ids=lambda m: f"k={m.kernel_size}")
@pytest.mark.parametrize(
    "check", [c for c in CHECKS if c.__name__ != "check_both_directions"], ids=lambda c: c.__name__
)
def test_contract(mixer, check):
    check(mixer)


def test_it_is_its_formula():
    layer, x = moved(BaseConv(kernel_size=3)), tokens(2, 20)
    for t in range(20):
        taps = [layer.conv_weight[:, j] * x[:, t - 2 + j] for j in range(3) if t - 2 + j >= 0]
        expected = x[:, t] + (sum(taps) + layer.conv_bias) * layer.gate(x[:, t])
        assert_close(layer(x)[:, t : t + 1], expected[:, None])


def test_both_directions_reach_as_far_as_the_taps():
    layer, x = moved(BaseConv(kernel_size=3), causal=False), tokens(1, 30)
    other = x.clone()
    other[:, 10] += 1
    changed = (layer(other) != layer(x)).any(-1)[0]
    assert changed.nonzero().flatten().tolist() == [8, 9, 10, 11, 12]


def test_a_hybrid_has_another_mixer_in_the_first_layer():
    mixer, plain = HGRN2(expand_ratio=16), Backbone(d_model=32)
    hybrid = Backbone(d_model=32, first=BaseConv())
    model = hybrid.build(mixer, vocab_size=40, max_len=16, generator=generator(0))
    kinds = [isinstance(block.mixer, BaseConvLayer) for block in model.blocks]
    assert kinds == [True, False]
    assert model(torch.arange(16)[None]).shape == (1, 16, 40)
    assert hybrid.state_size(mixer, 16) == 2 * 32 + 32 * 16
    assert plain.state_size(mixer, 16) == 2 * 32 * 16
    assert "first" not in plain.model_dump()
    assert hybrid.model_dump()["first"]["kernel_size"] == 3
