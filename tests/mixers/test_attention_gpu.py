"""Attention's Triton kernels on a GPU, against the fp64 oracle with the same masks.

attention_inputs.py derives the bar.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from mixers import Attention
from mixers.layers import Dropout, keeps, seed_dropout
from tests.mixers.attention_inputs import (
    DTYPES,
    ROUNDING,
    check,
    check_much_in_common,
    draw,
    generator,
    of,
    results,
    some,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # fp32 without TF32 is what some of these compile on purpose.
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning"),
]

# Batch and length of MQAR's training.
SHAPES = ((512, 64), (512, 128), (256, 256), (128, 512))


def fused(p: float):
    # triton is not everywhere, and the kernels are imported when first asked for.
    from mixers.attention_triton import Fused

    form = Fused(p)
    seed_dropout(form, generator(1, "cuda"))
    return form


def separate(form: nn.Module, qkv: Tensor) -> Tensor:
    return form(*qkv.unbind(2), causal=True, mask=None)


@pytest.mark.parametrize("k", [64, 128])
@pytest.mark.parametrize(("b", "t"), SHAPES)
def test_the_shapes_of_recall(b, t, k, precision):
    qkv, do = draw(b, t, 1, k, dtype=DTYPES[precision], device="cuda")
    check(fused(0.1).packed, qkv, do, 0.1, precision)


@pytest.mark.parametrize("k", [64, 128])
@pytest.mark.parametrize("precision", ["bf16", "fp16", "tf32"], indirect=True)
@pytest.mark.parametrize(("b", "t"), SHAPES)
def test_what_keys_and_values_have_in_common_adds_nothing(b, t, k, precision):
    qkv, do = draw(b, t, 1, k, device="cuda")
    check_much_in_common(fused(0.1).packed, qkv, do, 0.1, precision)


@pytest.mark.parametrize("k", [16, 32, 64, 128])
@pytest.mark.parametrize("t", [1, 5, 63, 64, 65, 130, 1000])
def test_every_length_and_head_size(t, k, precision):
    for h, p in ((1, 0.0), (2, 0.1), (3, 0.5)):
        qkv, do = draw(3, t, h, k, dtype=DTYPES[precision], device="cuda")
        form = fused(p)
        check(form.packed if h == 1 else partial(separate, form), qkv, do, p, precision)


def alone(form, at: Tensor, qkv: Tensor) -> Tensor:
    return form.packed(of(at, qkv[:, :, 0]), qkv[:, :, 1:], at=at)


@pytest.mark.parametrize("k", [64, 128])
@pytest.mark.parametrize(("b", "t", "n"), [(512, 64, 4), (256, 256, 16), (128, 512, 64)])
def test_queries_of_the_labelled_tokens(b, t, n, k, precision):
    at = some(b, t, n, "cuda")
    qkv, do = draw(b, t, 1, k, dtype=DTYPES[precision], device="cuda")
    check(partial(alone, fused(0.1), at), qkv, do, 0.1, precision, at)


@pytest.mark.parametrize("k", [16, 32, 64, 128])
@pytest.mark.parametrize(("t", "n"), [(1, 1), (5, 5), (65, 3), (130, 100), (1000, 65)])
def test_queries_of_some_tokens(t, n, k, precision):
    for h, p in ((1, 0.0), (3, 0.5)):
        at = some(3, t, n, "cuda")
        qkv, do = draw(3, t, h, k, dtype=DTYPES[precision], device="cuda")
        check(partial(alone, fused(p), at), qkv, do, p, precision, at)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_masks_are_dropouts_bit_for_bit(p):
    """Without scores the probabilities of row i are 1 / (i + 1), and unit values read them out."""
    b, t, h = 3, 128, 2
    q = torch.zeros(b, t, h, 128, device="cuda")
    v = torch.eye(t, 128, device="cuda")[None, :, None].expand(b, t, h, 128)
    dropout, form = Dropout(p), fused(p)
    seed_dropout(dropout, generator(1, "cuda"))
    for _ in range(3):
        kept = dropout(torch.ones(b, h, t, t, device="cuda")) != 0
        o = form(q, q, v, causal=True, mask=None).transpose(1, 2)
        assert torch.equal(o != 0, kept.tril())
        assert torch.equal(form.dropout.state, dropout.state)


def test_rows_and_states_wrap_at_32_bits():
    """A state that most rows take past 2^32, and 5 * 2^30 places; unit values read the first 128
    columns out."""
    t, h, p = 8192, 80, 0.3
    q = torch.zeros(1, t, h, 128, dtype=torch.bfloat16, device="cuda")
    v = torch.zeros(t, 128, dtype=torch.bfloat16, device="cuda").fill_diagonal_(1)
    form = fused(p)
    state = form.dropout.state.fill_(2**32 - 1000).clone()
    o = form(q, q, v[None, :, None].expand(q.shape), causal=True, mask=None)[0].transpose(0, 1)
    row, column = torch.arange(t, device="cuda"), torch.arange(128, device="cuda")
    for head in (0, 1, 63, 64, 79):
        kept = keeps(head * t + row[:, None], column, state, p)
        assert torch.equal(o[head] != 0, kept & (column <= row[:, None])), head


def test_strictly_causal_bit_for_bit(precision):
    qkv, _ = draw(4, 300, 2, 64, dtype=DTYPES[precision], device="cuda")
    y = fused(0.1).packed(qkv)
    for cut in (1, 31, 64, 65, 256, 299):
        changed = qkv.clone()
        changed[:, cut:] = 3 + changed[:, cut:].flip(1)
        found = fused(0.1).packed(changed)
        assert torch.equal(found[:, :cut], y[:, :cut])
        assert not torch.equal(found[:, cut:], y[:, cut:])


@pytest.mark.parametrize("k", [16, 64, 128])
def test_the_same_bits_every_time_into_poisoned_memory(k, precision):
    qkv, do = draw(64, 500, 2, k, dtype=DTYPES[precision], device="cuda")
    first = results(fused(0.1).packed, qkv, do)
    for _ in range(3):
        poison = torch.full((1 << 28,), float("nan"), device="cuda")
        del poison
        for name, x in results(fused(0.1).packed, qkv, do).items():
            assert torch.equal(x, first[name]), name


def test_views_of_any_strides():
    qkv, do = draw(4, 100, 2, 64, dtype=torch.bfloat16, device="cuda")
    expected = results(fused(0.1).packed, qkv, do)
    turned = qkv.transpose(0, 1).contiguous().transpose(0, 1)
    apart = qkv.mT.contiguous().mT
    for view in (qkv, turned, apart):
        for form in (fused(0.1).packed, partial(separate, fused(0.1))):
            leaf = view.detach().requires_grad_()
            o = form(leaf)
            assert torch.equal(o, expected["o"])
            (gradient,) = torch.autograd.grad(o, leaf, do)
            assert torch.equal(gradient, torch.stack([*expected.values()][1:], 2))


def layer(impl: str = "triton", **fields) -> nn.Module:
    """The first of two layers of 128 channels, whose dropout has its state."""
    mixer = Attention.model_validate({"impl": impl, "dropout": 0.1, **fields})
    stack = nn.ModuleList(mixer.stack(128, 2, causal=True, generator=generator(0, "cuda")))
    seed_dropout(stack, generator(1, "cuda"))
    return stack[0]


def steps(run, own: nn.Module, xs: list[Tensor], *, autocast: bool) -> list[Tensor]:
    """Outputs and gradients of one call after the other, and dropout's state at the end."""
    found = []
    for x in xs:
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=autocast):
            y = run(x)
        found += [y.detach(), *torch.autograd.grad(y.float().square().sum(), own.parameters())]
    return [*found, own.get_buffer("attend.dropout.state").clone()]


@pytest.mark.parametrize("positions", ["none", "rope"])
@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "autocast"])
def test_a_layer_agrees_with_the_reference(positions, autocast):
    xs = [torch.randn(16, 200, 128, device="cuda") for _ in range(2)]
    ours, theirs = (layer(impl, positions=positions) for impl in ("triton", "reference"))
    found, expected = (steps(own, own, xs, autocast=autocast) for own in (ours, theirs))
    assert torch.equal(found[-1], expected[-1])
    # A rounding for each of a sum's channels and tokens; in bf16 of a few maps in a row.
    allowed = 8 * 2**-8 if autocast else (128 + 200) * ROUNDING["tf32x3"]
    for x, y in zip(found[:-1], expected[:-1], strict=True):
        assert (x - y).norm() <= allowed * y.norm()


@pytest.mark.parametrize("positions", ["none", "rope"])
@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "autocast"])
def test_compiled_without_a_break(positions, autocast):
    xs = [torch.randn(16, 200, 128, device="cuda") for _ in range(2)]
    plain, own = layer(positions=positions), layer(positions=positions)
    run = torch.compile(own, fullgraph=True, dynamic=False)
    expected = steps(plain, plain, xs, autocast=autocast)
    found = steps(run, own, xs, autocast=autocast)
    assert torch.equal(found[-1], expected[-1])
    # As above: the compiler may round where the eager form does not, and the other way round.
    allowed = 8 * 2**-8 if autocast else (128 + 200) * ROUNDING["tf32x3"]
    for x, y in zip(found[:-1], expected[:-1], strict=True):
        assert (x - y).norm() <= allowed * y.norm()


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_graphs_replays_go_on_with_the_masks(compiled):
    xs = [torch.randn(16, 200, 128, device="cuda") for _ in range(4)]

    def step(run, own: nn.Module, x: Tensor) -> list[Tensor]:
        y = run(x)
        return [y, *torch.autograd.grad(y.square().sum(), own.parameters())]

    plain, own = layer(), layer()
    run = torch.compile(own, fullgraph=True, dynamic=False) if compiled else own
    expected_run = torch.compile(plain, fullgraph=True, dynamic=False) if compiled else plain
    expected = [[y.clone() for y in step(expected_run, plain, x)] for x in xs]

    static = xs[0].clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        first = [y.clone() for y in step(run, own, static)]
    torch.cuda.current_stream().wait_stream(side)
    assert all(torch.equal(x, y) for x, y in zip(first, expected[0], strict=True))
    state = own.get_buffer("attend.dropout.state")
    before = state.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        outputs = step(run, own, static)
    assert torch.equal(state, before)
    for x, wanted in zip(xs[1:], expected[1:], strict=True):
        static.copy_(x)
        graph.replay()
        assert all(torch.equal(y, z) for y, z in zip(outputs, wanted, strict=True))
    assert torch.equal(state, plain.get_buffer("attend.dropout.state"))


@pytest.mark.filterwarnings("ignore:.*ynchronization debug mode")
def test_the_host_never_waits():
    own, x = layer(), torch.randn(16, 200, 128, device="cuda")
    steps(own, own, [x], autocast=True)
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps(own, own, [x], autocast=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_decoding_follows_the_whole_sequence():
    own, x = layer(dropout=0.0), torch.randn(3, 70, 128, device="cuda")
    state = own.start(3, 70)
    for t in range(70):
        y, state = own.step(x[:, t], state)
    torch.testing.assert_close(y, own(x)[:, -1], rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("room_on_gpu")
def test_more_than_2_31_elements():
    """The last row of a batch whose tensors hold more elements than an int32 counts."""
    b, t, h, k = 2100, 1024, 16, 64
    small, do = draw(1, t, h, k, dtype=torch.bfloat16, device="cuda")
    qkv = torch.zeros(b, t, 3, h, k, dtype=torch.bfloat16, device="cuda")
    qkv[-1:] = small
    assert qkv.numel() > 2**31
    leaf = qkv.requires_grad_()
    o = fused(0.0).packed(leaf)
    expected = results(fused(0.0).packed, small, do)
    assert torch.equal(o[-1:], expected["o"])
    gradient = torch.zeros_like(o)
    gradient[-1:] = do
    (found,) = torch.autograd.grad(o, leaf, gradient)
    assert torch.equal(found[-1:], torch.stack([*expected.values()][1:], 2))
