"""Triton's interpreter, faster and with bf16: a pytest plugin (`-p tests.interpreter`) for
interpreted_ files.

The interpreter replaces triton.language's functions by its own anew at every call of a function
that a kernel calls, two fifths of its time in attention's tests, and makes a table of numpy's types
whenever it asks for one, two fifths of the rest. What is replaced stays so until the launch ends,
so here it is done once a launch for each function, and a type is asked for once.

It holds bf16 as the 16 bits, which it cuts off instead of rounding, and whose integers it
multiplies. Here they are rounded to nearest, ties to even, and products are of their values, as on
a GPU. Sums and the like of bf16 are still those of integers: a kernel has them in fp32.
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
def asked_once():
    replace, launch, numpy_type = (
        interpreter._patch_lang,
        GridExecutor.__call__,
        interpreter._get_np_dtype,
    )
    replaced: set[Any] = set()
    of_numbers = cache(numpy_type)

    def first_only(fn: Any) -> Any:
        if fn in replaced:
            return None
        replaced.add(fn)
        return replace(fn)

    def fresh(self: Any, *args: Any, **options: Any) -> Any:
        replaced.clear()
        return launch(self, *args, **options)

    def known_type(kind: Any) -> Any:
        # Pointers have no hash.
        return numpy_type(kind) if kind.scalar.is_ptr() else of_numbers(kind.scalar)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang", first_only)
        patch.setattr(GridExecutor, "__call__", fresh)
        patch.setattr(interpreter, "_get_np_dtype", known_type)
        yield


def widened(data: Any) -> Any:
    return (data.astype(np.uint32) << 16).view(np.float32)


def rounded(data: Any) -> Any:
    bits = data.view(np.uint32)
    nearest = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(data), bits >> 16 | 0x40, nearest).astype(np.uint16)


@pytest.fixture(autouse=True, scope="session")
def bf16_as_on_a_gpu():
    convert, dot = interpreter._convert_float, InterpreterBuilder.create_dot

    def converted(data: Any, source: Any, target: Any, rounding: Any) -> Any:
        if (source, target) == (tl.bfloat16, tl.float32):
            return widened(data)
        if (source, target) == (tl.float32, tl.bfloat16):
            return rounded(data)
        return convert(data, source, target, rounding)

    def value(x: Any) -> Any:
        return TensorHandle(widened(x.data), tl.float32) if x.dtype.scalar == tl.bfloat16 else x

    def multiplied(self: Any, a: Any, b: Any, *args: Any) -> Any:
        return dot(self, value(a), value(b), *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_convert_float", converted)
        patch.setattr(InterpreterBuilder, "create_dot", multiplied)
        yield
