"""The gradient of a table on a GPU; lookup_inputs.py derives the bar."""

from __future__ import annotations

import pytest
import torch

from mixers.lookup import looked_up
from tests.mixers.lookup_inputs import check, draw

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize(
    ("b", "t", "d"), [(512, 64, 64), (256, 256, 512), (128, 512, 64), (32, 2048, 64), (3, 77, 200)]
)
@pytest.mark.parametrize("vocab", [18, 8192])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_shapes_of_the_tasks(b, t, d, vocab, dtype):
    check(*draw(b, t, vocab, d, dtype=dtype, device="cuda"))


def test_compiled_and_from_a_graph():
    table, ids, dy = draw(256, 256, 8192, 64, device="cuda")
    # So that the squares' gradients are whole numbers too.
    table = table.detach().round().requires_grad_()

    def squares(table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return looked_up(table, ids).square()

    compiled = torch.compile(squares, fullgraph=True)

    def gradient() -> torch.Tensor:
        return torch.autograd.grad(compiled(table, ids), table, dy)[0]

    (expected,) = torch.autograd.grad(squares(table, ids), table, dy)
    assert torch.equal(gradient(), expected)
    graph = torch.cuda.CUDAGraph()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.graph(graph, stream=side):
        captured = gradient()
    for _ in range(2):
        graph.replay()
        assert torch.equal(captured, expected)


def test_no_index_overflows():
    """A gradient of more than 2^31 numbers."""
    b, t, d = 2**15, 2**10, 80
    if torch.cuda.mem_get_info()[0] < 5 * 2 * b * t * d:
        pytest.skip("needs 27 GB")
    ids = torch.zeros(b, t, dtype=torch.int64, device="cuda")
    ids[-1, -1] = 2
    table = torch.zeros(3, d, dtype=torch.bfloat16, device="cuda", requires_grad=True)
    found = looked_up(table, ids)
    (dtable,) = torch.autograd.grad(found, table, torch.ones_like(found))
    assert dtable[2].eq(1).all()
    assert dtable[1].eq(0).all()
    assert dtable[0].eq(2**25).all()
