"""Mamba's Triton kernels on a GPU, against the fp64 oracles.

mamba_inputs.py and conv_silu_inputs.py derive the bars.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mixers import Mamba
from mixers.conv_silu import conv_silu
from mixers.mamba_triton import selective_scan
from tests.mixers import conv_silu_inputs
from tests.mixers.mamba_inputs import (
    check,
    draw,
    generator,
    output_gradient,
    results,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning"),
]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("b", "t", "c"), [(32, 64, 128), (16, 256, 128), (8, 512, 1024)])
def test_the_shapes_of_recall(b, t, c, dtype):
    check(selective_scan, draw(b, t, c, 16, dtype=dtype, device="cuda"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("t", [1, 7, 8, 9, 100])
@pytest.mark.parametrize(("c", "n"), [(3, 1), (40, 4), (70, 16), (96, 24), (128, 64), (6, 256)])
def test_every_length_and_width(t, c, n, dtype):
    check(selective_scan, draw(3, t, c, n, dtype=dtype, device="cuda"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("b", "t", "c"), [(1, 4096, 256), (2, 1024, 96), (1, 3000, 128)])
def test_few_long_sequences(b, t, c, dtype):
    """The first two in segments."""
    check(selective_scan, draw(b, t, c, 16, dtype=dtype, device="cuda"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [*conv_silu_inputs.SHAPES, (16, 256, 1024, 4)], ids=str)
def test_the_convolution(shape, dtype):
    conv_silu_inputs.check(conv_silu_inputs.draw(*shape, dtype=dtype, device="cuda"))


@pytest.mark.parametrize("shift", [-12.0, 2.0, 30.0])
def test_steps_far_below_and_above_one(shift):
    check(selective_scan, draw(2, 200, 64, 16, device="cuda", shift=shift))


def test_a_small_step_has_all_its_digits():
    from tests.mixers.softplus_kernel import check_softplus

    check_softplus("cuda")


def test_the_same_bits_every_time_into_poisoned_memory():
    inputs = draw(16, 300, 128, 16, dtype=torch.bfloat16, device="cuda")
    dy = output_gradient(inputs)
    first = results(selective_scan, inputs, dy)
    for _ in range(3):
        poison = torch.full((1 << 26,), float("nan"), device="cuda")
        del poison
        for name, x in results(selective_scan, inputs, dy).items():
            assert torch.equal(x, first[name]), name


def layer(impl: str = "triton") -> nn.Module:
    mixer = Mamba.model_validate({"impl": impl})
    return mixer.stack(128, 2, causal=True, generator=generator(0, "cuda"))[0]


def step(run, own: nn.Module, x: Tensor, *, autocast: bool) -> list[Tensor]:
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=autocast):
        y = run(x)
    return [y.detach(), *torch.autograd.grad(y.float().square().sum(), own.parameters())]


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "autocast"])
def test_compiled_without_a_break(autocast):
    x = torch.randn(16, 200, 128, device="cuda")
    own = layer()
    expected = step(own, own, x, autocast=autocast)
    found = step(torch.compile(own, fullgraph=True, dynamic=False), own, x, autocast=autocast)
    # A rounding for each of a sum's channels and tokens; in bf16 of a few maps in a row.
    allowed = 8 * 2**-8 if autocast else (128 + 200) * 2**-22
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= allowed * other.norm()


def test_replayed_from_a_graph():
    own, xs = layer(), [torch.randn(16, 200, 128, device="cuda") for _ in range(3)]
    expected = [step(own, own, x, autocast=True) for x in xs]
    static = xs[0].clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(own, own, static, autocast=True)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        outputs = step(own, own, static, autocast=True)
    for x, wanted in zip(xs, expected, strict=True):
        static.copy_(x)
        graph.replay()
        assert all(torch.equal(y, z) for y, z in zip(outputs, wanted, strict=True))


@pytest.mark.filterwarnings("ignore:.*ynchronization debug mode")
def test_the_host_never_waits():
    own, x = layer(), torch.randn(16, 200, 128, device="cuda")
    step(own, own, x, autocast=True)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(own, own, x, autocast=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_decoding_and_padding_follow_the_whole_sequence():
    own, x = layer(), torch.randn(3, 1000, 128, device="cuda")
    y, state = own(x), own.start(3, 1000)
    for t in range(70):
        one, state = own.step(x[:, t], state)
        torch.testing.assert_close(one, y[:, t], rtol=1e-4, atol=1e-5)
    for t in (1, 63, 64, 65, 999):
        torch.testing.assert_close(own(x[:, :t]), y[:, :t], rtol=1e-4, atol=1e-5)


def tall(x: Tensor, batch: int) -> Tensor:
    """Zeros, but for x [1 ...] first and last."""
    wide = torch.zeros(batch, *x.shape[1:], dtype=x.dtype, device="cuda")
    wide[0] = wide[-1] = x[0]
    return wide


@pytest.mark.usefixtures("room_on_gpu")
@pytest.mark.parametrize(
    ("batch", "c", "n"),
    # x; the parts of dB and dC, of four channels each
    [(2100, 1024, 4), (130, 1024, 64)],
)
def test_the_last_of_more_than_2_31_elements(batch, c, n):
    small = draw(1, 1024, c, n, dtype=torch.bfloat16, device="cuda")
    inputs = [tall(x, batch) if x.ndim == 3 else x for x in small]
    found = results(selective_scan, inputs, tall(output_gradient(small), batch))
    for name in ("y", "dx", "ddt", "dB", "dC"):
        assert torch.equal(found[name][0], found[name][-1]), name
        assert found[name][-1].abs().max() > 0


@pytest.mark.usefixtures("room_on_gpu")
def test_a_convolution_of_more_than_2_31_elements():
    x, weight, bias, dy = conv_silu_inputs.draw(1, 1024, 1024, 4, torch.bfloat16, "cuda")
    inputs = tall(x, 2100), weight, bias, tall(dy, 2100)
    y, dx, *_ = conv_silu_inputs.results(conv_silu, *inputs)
    for result in (y, dx):
        assert torch.equal(result[0], result[-1])
        assert result[-1].abs().max() > 0
