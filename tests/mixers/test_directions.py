"""HGRN over images against loops, a causal layer summed both ways, batch norm under padding."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from hgrn2.projection import split
from mixers import GLA, HGRN1, HGRN2, Mamba, Mixer
from mixers.directions import FlipSum, stack
from mixers.layers import BatchNorm

D, SIDE = 8, 5


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 2) -> Tensor:
    return torch.randn(count, SIDE * SIDE, D, generator=generator(1), dtype=torch.float64)


def top_layer(mixer: Mixer, *, causal: bool = False) -> nn.Module:
    """The last of three, its parameters away from their start."""
    layers = nn.ModuleList(mixer.stack(D, 3, causal=causal, generator=generator(0)))
    noise = generator(2)
    with torch.no_grad():
        for p in layers.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=noise))
    return layers.double()[2]


def line_states(layer: nn.Module, x: Tensor) -> Tensor:
    """A line's [n d] states before the read-out, both ways and summed, token by token."""
    if hasattr(layer, "theta"):
        v, z, _ = layer._project(x[None])
        bound = layer._bound(x)
        f = bound + (1 - bound) * z[0].sigmoid()
        thetas = (layer.theta, layer.theta_backward)
        total = torch.zeros(*v.shape[1:], dtype=x.dtype)
        for order, theta in zip((range(len(x)), reversed(range(len(x)))), thetas, strict=True):
            h = torch.zeros(D, dtype=torch.complex128)
            for t in order:
                turn = torch.polar(f[t], theta)
                h = turn * h + (1 - f[t]) * torch.view_as_complex(v[0, t].contiguous())
                total[t] += torch.view_as_real(h)
        return total
    q, z, v = (y[0] for y in split(layer._project(x[None]), layer.form.activations))
    bound = layer._bound(x)
    f = bound + (1 - bound) * z.sigmoid()
    total = torch.zeros_like(v)
    for order in (range(len(x)), reversed(range(len(x)))):
        S = torch.zeros(*v.shape[1:], v.shape[-1], dtype=x.dtype)
        for t in order:
            S = f[t][..., None] * S + (1 - f[t])[..., None] * v[t][:, None]
            total[t] += torch.einsum("hk,hkv->hv", q[t], S)
    return total


def read_out(layer: nn.Module, x: Tensor, states: Tensor) -> Tensor:
    if hasattr(layer, "theta"):
        return layer._read_out(states[None], layer._project(x[None])[2])[0]
    return layer._read_out(states)


def over_lines(layer: nn.Module, x: Tensor, axis: str) -> Tensor:
    """States of an image [t d], line by line."""
    square = x.view(SIDE, SIDE, D)
    if axis == "columns":
        lines = [line_states(layer, square[:, i]) for i in range(SIDE)]
        return torch.stack(lines, 1).flatten(0, 1)
    return torch.cat([line_states(layer, square[i]) for i in range(SIDE)])


MIXERS_2D = [
    HGRN2(expand_ratio=2, lower_bound="exclusive"),
    HGRN1(separate_theta=True, lower_bound="exclusive"),
]


@pytest.mark.parametrize("mixer", MIXERS_2D, ids=lambda mixer: mixer.name)
def test_a_parallel_scan_is_the_sum_of_four_loops(mixer):
    layer, x = top_layer(mixer.model_copy(update={"scan": "2d_parallel"})), images()
    with torch.no_grad():
        states = [over_lines(layer, y, "columns") + over_lines(layer, y, "rows") for y in x]
        expected = torch.stack([read_out(layer, y, s) for y, s in zip(x, states, strict=True)])
        torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mixer", MIXERS_2D, ids=lambda mixer: mixer.name)
@pytest.mark.parametrize("scan", ["2d_parallel", "2d_series"])
def test_tokens_of_an_image_asked_for_alone(mixer, scan):
    layer, x = top_layer(mixer.model_copy(update={"scan": scan})), images()
    at = torch.tensor([[7, 0], [3, 8]])
    expected = layer(x)[torch.arange(2)[:, None], at]
    torch.testing.assert_close(layer(x, at=at), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mixer", MIXERS_2D, ids=lambda mixer: mixer.name)
def test_a_serial_scan_is_the_layer_along_columns_then_along_rows(mixer):
    layer, x = top_layer(mixer.model_copy(update={"scan": "2d_series"})), images()
    with torch.no_grad():
        for axis in ("columns", "rows"):
            y = [read_out(layer, image, over_lines(layer, image, axis)) for image in x]
            x = torch.stack(y)
        torch.testing.assert_close(layer(images()), x, rtol=1e-10, atol=1e-12)


def test_a_scan_over_images_says_what_it_cannot_do():
    mixer = HGRN2(expand_ratio=2, scan="2d_parallel")
    with pytest.raises(ValueError, match=r"scan = '2d_parallel' sees an image from all sides"):
        mixer.stack(D, 1, causal=True, generator=generator(0))
    layer = mixer.stack(D, 1, causal=False, generator=generator(0))[0]
    with pytest.raises(ValueError, match="24 tokens are no square image"):
        layer(torch.randn(1, 24, D))
    with pytest.raises(ValueError, match="takes whole images, without lengths"):
        layer(torch.randn(1, 25, D), lengths=torch.tensor([25]))


def test_the_scan_changes_no_key_of_a_mixer_before_it():
    for mixer in (HGRN2(), HGRN1(), HGRN2(impl="fla")):
        dump = json.loads(mixer.model_dump_json())
        assert "scan" not in dump
        assert ("gate" in dump) == (mixer.impl == "fla")
        assert "scan" in mixer.model_copy(update={"scan": "2d_series"}).model_dump()


@pytest.mark.parametrize("mixer", [Mamba(), GLA(n_heads=2)], ids=lambda mixer: mixer.name)
def test_a_flip_sum_is_a_causal_layer_on_each_sequence_and_its_reverse(mixer):
    layer = stack(mixer, D, 1, directions="flip_sum", generator=generator(0))[0].double()
    assert isinstance(layer, FlipSum)
    x, lengths = images(), torch.tensor([25, 7])
    with torch.no_grad():
        y = layer(x, lengths=lengths)
        for row, n in enumerate(lengths):
            one = x[row : row + 1, :n]
            expected = layer.layer(one) + layer.layer(one.flip(1)).flip(1)
            torch.testing.assert_close(y[row : row + 1, :n], expected, rtol=1e-10, atol=1e-12)


def test_apart_each_way_has_a_layer_of_its_own():
    """HGRN2's one set of weights sees a reversed sequence reversed; two do not."""
    mixer, x = HGRN2(expand_ratio=2, lower_bound="exclusive"), images(1)
    for directions, same in (("both", True), ("flip_sum", True), ("apart_sum", False)):
        (layer,) = stack(mixer, D, 1, directions=directions, generator=generator(0))
        with torch.no_grad():
            y, reverse = (layer.double()(z) for z in (x, x.flip(1)))
        assert torch.allclose(y, reverse.flip(1), atol=1e-12) == same
    parameters = {id(p) for p in layer.parameters()}
    alone = stack(mixer, D, 1, directions="both", generator=generator(0))[0]
    assert len(parameters) == 2 * len([*alone.parameters()])


def test_batch_norm_sees_valid_tokens_alone():
    lengths = torch.tensor([4, 9])
    x = 3 + 2 * torch.randn(2, 9, D, generator=generator(3), dtype=torch.float64)
    flat = torch.cat([x[0, :4], x[1]])
    ours, theirs = BatchNorm(D, eps=1e-5).double(), nn.BatchNorm1d(D).double()
    for _ in range(2):
        expected = theirs(flat)
        torch.testing.assert_close(ours(x, lengths=lengths)[0, :4], expected[:4])
    for pads in (0, 7):
        wide = torch.cat([x, torch.full((2, pads, D), 1e3, dtype=torch.float64)], 1)
        torch.testing.assert_close(ours.train()(wide, lengths=lengths)[1, :9], expected[4:])
        theirs(flat)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name))
    torch.testing.assert_close(ours.eval()(x, lengths=lengths)[1], theirs.eval()(x[1]))
    whole, torchs = BatchNorm(D, eps=1e-5).double(), nn.BatchNorm1d(D).double()
    torch.testing.assert_close(whole(x), torchs(x.flatten(0, 1)).view_as(x))
    torch.testing.assert_close(whole.running_var, torchs.running_var)


def test_batch_norms_gradient_in_closed_form():
    lengths = torch.tensor([4, 0, 9])
    layer = BatchNorm(D, eps=1e-5).double()
    x = torch.randn(3, 9, D, generator=generator(3), dtype=torch.float64, requires_grad=True)

    def run(x, weight, bias):
        given = {"weight": weight, "bias": bias}
        return torch.func.functional_call(layer, given, (x,), {"lengths": lengths})

    weight, bias = (torch.randn(D, generator=generator(n), dtype=torch.float64) for n in (4, 5))
    assert torch.autograd.gradcheck(run, (x, weight.requires_grad_(), bias.requires_grad_()))


def test_batch_norm_is_one_graph_for_a_compiler():
    lengths, found = torch.tensor([4, 9]), []
    x = torch.randn(2, 9, D, generator=generator(3), requires_grad=True)
    for run in (lambda layer: layer, partial(torch.compile, backend="aot_eager", fullgraph=True)):
        layer = BatchNorm(D, eps=1e-5)
        y = run(layer)(x, lengths=lengths)
        gradients = torch.autograd.grad(y.cos().sum(), (x, *layer.parameters()))
        found.append([y, *gradients, layer.running_mean, layer.running_var])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("train", [True, False])
def test_padding_leaves_batch_norm_as_zeros_whatever_it_holds(train):
    lengths = torch.tensor([4, 9])
    x = torch.randn(2, 9, D, generator=generator(3))
    x[0, 4:] = torch.inf
    x.requires_grad_()
    y = BatchNorm(D, eps=1e-5).train(train)(x, lengths=lengths)
    assert (y[0, 4:] == 0).all()
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    assert gradient.isfinite().all()
    assert (gradient[0, 4:] == 0).all()
