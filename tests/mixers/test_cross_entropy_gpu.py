"""The fused loss's kernels on a GPU, against the fp64 oracle.

cross_entropy_inputs.py derives the bar.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.mixers.attention_inputs import DTYPES, ROUNDING
from tests.mixers.cross_entropy_inputs import check, draw, results

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # fp32 without TF32 is what some of these compile on purpose.
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning"),
]


@pytest.fixture
def loss() -> Callable[..., Tensor]:
    # triton is not everywhere, and the kernels are imported when first asked for.
    from mixers.cross_entropy import linear_cross_entropy

    return linear_cross_entropy


@pytest.mark.parametrize("d", [64, 128])
@pytest.mark.parametrize("n", [2048, 4096, 8192])
def test_the_shapes_of_recall(n, d, precision, loss):
    hidden, weight, target = draw(n, 8192, d, device="cuda")
    check(loss, hidden.to(DTYPES[precision]), weight, target, precision)


@pytest.mark.parametrize("d", [16, 32, 64, 128])
@pytest.mark.parametrize(("n", "v"), [(1, 2), (5, 33), (67, 1000), (300, 70), (9000, 129)])
def test_every_width_and_ends_that_do_not_fit(n, v, d, precision, loss):
    hidden, weight, target = draw(n, v, d, device="cuda")
    check(loss, hidden.to(DTYPES[precision]), weight, target, precision)


def test_large_scores(precision, loss):
    hidden, weight, target = draw(70, 130, 32, device="cuda")
    check(loss, hidden.to(DTYPES[precision]), 60 * weight, target, precision)


def test_the_same_bits_every_time_and_from_a_graph(precision, loss):
    hidden, weight, target = draw(2048, 8192, 64, device="cuda")
    hidden = hidden.to(DTYPES[precision])
    expected = results(loss, hidden, weight, target)
    graph = torch.cuda.CUDAGraph()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.graph(graph, stream=side):
        captured = results(loss, hidden, weight, target)
    graph.replay()
    for found in (captured, results(loss, hidden, weight, target)):
        assert all(torch.equal(x, found[name]) for name, x in expected.items())


def test_compiled_under_autocast(loss):
    """By torch's compiler, in the precision that autocast says, gradients in the inputs' own."""
    hidden, weight, target = draw(512, 1000, 64, device="cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        found = results(torch.compile(loss, fullgraph=True), hidden, weight, target)
    assert found["dhidden"].dtype == found["dweight"].dtype == torch.float32
    expected = results(loss, hidden.bfloat16(), weight, target)
    for name, x in expected.items():
        torch.testing.assert_close(found[name], x.float(), rtol=4 * ROUNDING["bf16"], atol=1e-6)
