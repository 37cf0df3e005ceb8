"""Triton's interpreter, faster and with bf16: a pytest plugin (`-p tests.interpreter`) for
interpreted_ files.

The interpreter replaces triton.language's functions by its own anew at every call of a function
that a kernel calls, two fifths of its time in attention's tests, and makes a table of numpy's types
whenever it asks for one, two fifths of the rest. What is replaced stays so until the launch ends,
so here it is done once a launch for each function, and a number's type is asked for once.

It holds bf16 as the 16 bits, which it cuts off where a kernel asks for no such rounding, and whose
integers it multiplies. Here casts round to nearest, ties to even, and products are of the values,
as on a GPU. What it would still do with the bits, an addition, a comparison, raises; of a
reduction nothing tells.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, TensorHandle


@pytest.fixture(autouse=True, scope="session")
def replaced_once_a_launch():
    replace, launch = interpreter._patch_lang, GridExecutor.__call__
    replaced: set[Any] = set()

    def first_only(fn: Any) -> Any:
        if fn in replaced:
            return None
        replaced.add(fn)
        return replace(fn)

    def fresh(self: Any, *args: Any, **options: Any) -> Any:
        replaced.clear()
        return launch(self, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang", first_only)
        patch.setattr(GridExecutor, "__call__", fresh)
        yield


@pytest.fixture(autouse=True, scope="session")
def numpy_types_asked_once():
    numpy_type = interpreter._get_np_dtype
    of_numbers = cache(numpy_type)

    def known(kind: Any) -> Any:
        # A pointer's type cannot be hashed.
        return numpy_type(kind) if kind.scalar.is_ptr() else of_numbers(kind.scalar)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_get_np_dtype", known)
        yield


def widened(data: Any) -> Any:
    return (data.astype(np.uint32) << 16).view(np.float32)


def rounded(data: Any) -> Any:
    bits = data.view(np.uint32)
    nearest = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(data), bits >> 16 | 0x40, nearest).astype(np.uint16)


def is_bf16(x: Any) -> bool:
    return x.dtype.scalar == tl.bfloat16


@pytest.fixture(autouse=True, scope="session")
def bf16_as_on_a_gpu():
    cast, dot = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot
    combine = InterpreterBuilder.binary_op

    def value(x: Any) -> Any:
        return TensorHandle(widened(x.data), tl.float32) if is_bf16(x) else x

    def casted(self: Any, source: Any, target: Any) -> Any:
        if target.scalar == tl.bfloat16:
            return TensorHandle(rounded(value(source).data.astype(np.float32)), tl.bfloat16)
        return cast(self, value(source), target)

    def multiplied(self: Any, a: Any, b: Any, *args: Any) -> Any:
        return dot(self, value(a), value(b), *args)

    def combined(self: Any, x: Any, y: Any, op: Any) -> Any:
        if is_bf16(x) or is_bf16(y):
            raise NotImplementedError(f"{op.__name__} of bf16: a kernel has it in fp32")
        return combine(self, x, y, op)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpreterBuilder, "cast_impl", casted)
        patch.setattr(InterpreterBuilder, "create_dot", multiplied)
        patch.setattr(InterpreterBuilder, "binary_op", combined)
        yield
