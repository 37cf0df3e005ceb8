"""What every mixer has in its own way: published counts, starts of the maps, named errors."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
from pydantic import ValidationError
from torch import nn

from mixers import GLA, HGRN1, HGRN2, Attention, Mamba, Mixer
from mixers.layers import INIT_STD
from tests.mixers.test_contract import assert_close, generator, moved, tokens


def numbers(mixer: Mixer, d_model: int, *, causal: bool = True, n_layers: int = 1) -> int:
    stack = mixer.stack(d_model, n_layers, causal=causal, generator=generator(0))
    return sum(p.numel() for p in nn.ModuleList(stack).parameters())


@pytest.mark.parametrize(
    ("mixer", "squares", "widths"),
    [
        (HGRN1(kind="complex"), 7, 11),
        (HGRN1(kind="real"), 4, 6),
        (HGRN1(kind="real", expand=2), 8, 11),
        (HGRN2(preset="biased"), 4, 6),
        (HGRN2(preset="lm"), 4, 0),
        (HGRN2(preset="paper"), 4, 0),
        (HGRN2(preset="fla"), 4, 1),
        (Attention(), 4, 4),
        (Attention(bias=False), 4, 0),
    ],
)
@pytest.mark.parametrize("d", [128, 256])
def test_parameter_counts(mixer, squares, widths, d):
    assert numbers(mixer, d) == squares * d**2 + widths * d


@pytest.mark.parametrize(("mixer", "squares"), [(GLA(), 4.05), (Mamba(), 6.46)])
def test_parameter_counts_in_squares_of_the_width(mixer, squares):
    # The spec's figures are of flash-linear-attention's layers at this width.
    assert round(numbers(mixer, 512) / 512**2, 2) == pytest.approx(squares, abs=0.01)


@pytest.mark.parametrize(
    ("mixer", "d", "numbers_held"),
    [
        (HGRN2(expand_ratio=64), 256, 256 * 64),
        (HGRN1(kind="real", expand=2), 256, 2 * 256),
        (HGRN1(kind="complex"), 256, 2 * 256),
        (GLA(), 256, 256**2 // 8),
        (Mamba(), 256, 32 * 256 + 6 * 256),
        (Attention(), 256, 2 * 256 * 100),
    ],
)
def test_state_sizes(mixer, d, numbers_held):
    assert mixer.state_size(d, 100) == numbers_held


@pytest.mark.parametrize("init", ["normal", "zoology"])
@pytest.mark.parametrize("mixer", [HGRN2(), HGRN1(), GLA(), Mamba(), Attention()])
def test_starts_of_the_linear_maps(mixer, init):
    n_layers = 8
    mixer = mixer.model_copy(update={"init": init})
    layer = mixer.stack(256, n_layers, causal=True, generator=generator(0))[3]
    last = INIT_STD / math.sqrt(2 * n_layers) if init == "zoology" else INIT_STD
    assert layer.proj_in.weight.std().item() == pytest.approx(INIT_STD, rel=0.02)
    assert layer.proj_out.weight.std().item() == pytest.approx(last, rel=0.02)
    for linear_map in (layer.proj_in, layer.proj_out):
        assert linear_map.bias is None or (linear_map.bias == 0).all()


@pytest.mark.parametrize(
    ("mixer", "d_model", "message"),
    [
        (HGRN2(), 96, r"expand_ratio = 128 does not divide d_model = 96; it could be 1, 2, 3, 4"),
        (Attention(n_heads=3), 64, r"n_heads = 3 does not divide d_model = 64; .* 16, 32, 64"),
        (Attention(n_heads=12, positions="rope"), 36, r"have 3 each; n_heads could be 1, 2, 3, 6"),
        (Attention(positions="rope"), 35, r"positions = 'rope' .* use 'none'"),
        (GLA(n_heads=5), 64, r"expand_k = 0.5 and d_model = 64 make a width of 32.*multiple of 5"),
    ],
)
def test_a_width_that_does_not_fit_is_named(mixer, d_model, message):
    with pytest.raises(ValueError, match=message):
        mixer.check_width(d_model)
    with pytest.raises(ValueError, match=message):
        mixer.stack(d_model, 1, causal=True, generator=generator(0))


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (HGRN2, {"expand": 2}, "expand\n.*Extra inputs"),
        (HGRN2, {"preset": "flax"}, "'biased', 'lm', 'paper' or 'fla'"),
        (HGRN2, {"lower_bound": True}, "'off', 'cumsum' or 'exclusive'"),
        (HGRN2, {"expand_ratio": 0}, "expand_ratio"),
        (HGRN1, {"expand": 2}, "expand = 2 does not fit kind = 'complex'"),
        (HGRN1, {"kind": "real", "separate_theta": True}, "separate_theta = True does not fit"),
        (Attention, {"dropout": 0.1}, "dropout = 0.1 does not fit impl = 'sdpa'"),
        (Attention, {"dropout": 0.1, "impl": "sdpa_flash"}, "does not fit impl = 'sdpa_flash'"),
        (Attention, {"dropout": 1.0, "impl": "reference"}, "dropout"),
        (
            Attention,
            {"impl": "flash"},
            "'sdpa', 'sdpa_flash', 'sdpa_cudnn', 'triton', 'products' or",
        ),
        (Mamba, {"init": "kaiming"}, "'torch', 'normal' or 'zoology'"),
    ],
)
def test_a_wrong_option_is_named(kind, fields, message):
    with pytest.raises(ValidationError, match=message):
        kind.model_validate(fields)


@pytest.mark.parametrize("mixer", [HGRN2(preset="paper", expand_ratio=8), Mamba(d_conv=1)])
def test_both_directions_count_a_token_twice(mixer):
    """The published sum of two inclusive states; W_o without bias after no norm keeps the 2."""
    causal, both = moved(mixer), moved(mixer, causal=False)
    x = tokens(1, 1)
    assert_close(both(x), 2 * causal(x))


def test_every_mixer_is_there_without_triton():
    """Which is not everywhere, and takes a while to import."""
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch; from mixers import MIXERS, Mamba; import harness.grids\n"
        "print(Mamba(impl='triton').unsupported(torch.device('cuda'), torch.float32))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "needs triton, which is not installed" in done.stdout
