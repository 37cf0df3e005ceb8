"""The gradient of a table under Triton's interpreter, eager and as torch's compiler calls it.

Run by test_lookup.py with TRITON_INTERPRET=1, which must be set before triton is imported.
"""

from __future__ import annotations

import os

import pytest
import torch

from mixers import lookup_kernel
from mixers.lookup import looked_up
from tests.mixers.lookup_inputs import check, draw

assert os.environ.get("TRITON_INTERPRET") == "1"


@pytest.mark.parametrize("d", [1, 16, 24, 64, 130, 200])
@pytest.mark.parametrize(("b", "t", "vocab"), [(1, 1, 3), (3, 50, 40), (4, 300, 7)])
def test_widths_and_rows_that_fill_no_tile(b, t, vocab, d):
    check(*draw(b, t, vocab, d))


def test_rows_without_and_of_nothing_but_the_filler():
    table, ids, dy = draw(2, 200, 30, 16)
    check(table, ids.clamp(min=1), dy)
    check(table, torch.zeros_like(ids), dy)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_sums_are_in_fp32_at_least(dtype):
    check(*draw(2, 1500, 9, 16, dtype=dtype))


def test_strides():
    table, ids, dy = draw(4, 60, 30, 16)
    check(table, ids.mT.contiguous().mT, dy.mT.contiguous().mT)


def test_the_compiler_meets_one_operator(monkeypatch):
    """Of the backward pass, which it traces too."""
    calls = []
    gradient = lookup_kernel.gradient
    monkeypatch.setattr(lookup_kernel, "gradient", lambda *x: calls.append(x) or gradient(*x))
    table, ids, dy = draw(2, 40, 30, 16)

    def squares(table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return looked_up(table, ids).square()

    compiled = torch.compile(squares, fullgraph=True, backend="aot_eager")
    (found,) = torch.autograd.grad(compiled(table, ids), table, dy)
    assert not calls
    (expected,) = torch.autograd.grad(squares(table, ids), table, dy)
    assert len(calls) == 1
    assert torch.equal(found, expected)


def test_a_compiler_looks_rows_up_again():
    """It keeps the table and the ids for the backward pass, which is less."""
    table, ids, dy = draw(4, 40, 30, 16)
    kept: list[torch.Size] = []

    def squares(table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return looked_up(table, ids).square()

    compiled = torch.compile(squares, fullgraph=True, backend="aot_eager_decomp_partition")
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x):
        y = compiled(table, ids)
    assert table.shape in kept
    assert y.shape not in kept
    (found,) = torch.autograd.grad(y, table, dy)
    torch.testing.assert_close(found, torch.autograd.grad(squares(table, ids), table, dy)[0])


def test_the_operator_is_one_for_torch():
    for dtype in (torch.float32, torch.bfloat16):
        _, ids, dy = draw(2, 40, 30, 16, dtype=dtype)
        torch.library.opcheck(lookup_kernel.compiled_gradient, (dy, ids, 30))
