"""What tests/interpreter.py says of loads and stores outside a kernel's arguments.

Run by test_interpreter.py with TRITON_INTERPRET=1, which must be set before triton is imported.
"""

from __future__ import annotations

import os
from typing import no_type_check

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.errors import InterpreterError

assert os.environ.get("TRITON_INTERPRET") == "1"


@triton.jit
@no_type_check
def copy_kernel(
    x, y, LOADED: tl.constexpr, STORED: tl.constexpr, N: tl.constexpr, ADD: tl.constexpr
):
    """The first of y from the first of x, a tuple; or added to them."""
    i = tl.arange(0, N)
    row = tl.load(x[0] + i, mask=i < LOADED, other=0.0)
    if ADD:
        tl.atomic_add(y + i, row, mask=i < STORED, sem="relaxed")
    else:
        tl.store(y + i, row, mask=i < STORED)


def copied(loaded: int, stored: int, add: bool) -> torch.Tensor:
    x, y = torch.arange(1.0, 6.0), torch.zeros(5)
    copy_kernel[(1,)]((x,), y, loaded, stored, 8, add)  # pyright: ignore
    return y


@pytest.mark.parametrize("add", [False, True])
def test_what_is_masked_may_lie_anywhere(add):
    assert copied(5, 5, add).tolist() == [1, 2, 3, 4, 5]
    assert copied(2, 5, add).tolist() == [1, 2, 0, 0, 0]


@pytest.mark.parametrize("add", [False, True])
def test_nothing_else_may(add):
    with pytest.raises(InterpreterError, match=r"6 numbers at .* not within one argument"):
        copied(6, 5, add)
    with pytest.raises(InterpreterError, match=r"8 numbers at .* not within one argument"):
        copied(5, 8, add)
