"""Triton's interpreter, faster and with bf16: a pytest plugin (`-p tests.interpreter`) for
interpreted_ files.

The interpreter replaces triton.language's functions by its own anew at every call of a function
that a kernel calls, two fifths of its time in attention's tests, and makes a table of numpy's types
whenever it asks for one, two fifths of the rest. What is replaced stays so until the launch ends,
so here it is done once a launch for each function, and a number's type is asked for once. Likewise
a shape is made once, not by every tensor and type, and those of one shape are not matched number by
number. Nor is a sum of integers computed again in 64 bits, for an assertion that it did not
overflow: without debug, which the interpreter never has, that assertion is left out. A scan or
reduction by a kernel's own function, four fifths of the time of HGRN2's rows in groups of tokens,
calls it once for all that lies at one place of the axis, not for each number: in the same order, to
the same bits.

It holds bf16 as the 16 bits, which it cuts off where a kernel asks for no such rounding, and whose
integers it multiplies. Here casts round to nearest, ties to even, and products are of the values,
as on a GPU. What it would still do with the bits, an addition, a comparison, raises; of a
reduction nothing tells.

It reads and writes at any address. Here the numbers of a load, a store or an atomic operation that
no mask leaves out have to lie in the memory of one argument of the kernel, so that a missing mask
is found also where its numbers are dropped later. Views of one memory are not told apart.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import triton.language as tl
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter
from triton.runtime.interpreter import (
    GridExecutor,
    InterpreterBuilder,
    ReduceOps,
    ScanOps,
    TensorHandle,
)


@pytest.fixture(autouse=True, scope="session")
def replaced_once_a_launch():
    patch_lang, launch = interpreter._patch_lang, GridExecutor.__call__
    replaced: set[Any] = set()

    def first_only(fn: Any) -> Any:
        if fn in replaced:
            return None
        replaced.add(fn)
        return patch_lang(fn)

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


def tensors_of(arguments: tuple[Any, ...]) -> list[Any]:
    """Those in tuples of arguments, too."""
    within = [tensor for x in arguments if isinstance(x, tuple) for tensor in tensors_of(x)]
    return [x for x in arguments if hasattr(x, "untyped_storage")] + within


@pytest.fixture(autouse=True, scope="session")
def every_address_within_an_argument():
    to_host = GridExecutor._init_args_hst
    memory: list[tuple[int, int]] = []
    """First byte and end of each argument's, in order."""

    def noted(self: Any, *args: Any) -> Any:
        hosts = to_host(self, *args)
        positional, named = hosts
        own = [x.untyped_storage() for x in tensors_of((*positional, *named.values()))]
        memory[:] = sorted({(x.data_ptr(), x.data_ptr() + x.nbytes()) for x in own})
        return hosts

    def check(pointers: TensorHandle, mask: TensorHandle) -> None:
        addresses = pointers.data[mask.data.astype(bool)]
        if not addresses.size:
            return
        low, high = int(addresses.min()), int(addresses.max())
        place = bisect_right(memory, low, key=lambda part: part[0]) - 1
        end = memory[place][1] if place >= 0 else 0
        if high + pointers.get_element_ty().primitive_bitwidth // 8 > end:
            raise IndexError(
                f"{addresses.size} numbers at {low:#x} to {high:#x}, not within one argument: "
                + ", ".join(f"{first:#x} to {end:#x}" for first, end in memory)
            )

    def watched(of: Any, pointers_at: int, mask_at: int) -> Any:
        def checked(self: Any, *args: Any) -> Any:
            check(args[pointers_at], args[mask_at])
            return of(self, *args)

        return checked

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GridExecutor, "_init_args_hst", noted)
        for name, *places in (
            ("create_masked_load", 0, 1),
            ("create_masked_store", 0, 2),
            ("create_atomic_rmw", 1, 3),
        ):
            of = getattr(InterpreterBuilder, name)
            patch.setattr(InterpreterBuilder, name, watched(of, *places))
        yield


def sizes_of(shape: Any) -> tuple[Any, ...]:
    return tuple(size.value if isinstance(size, tl.constexpr) else size for size in shape)


@pytest.fixture(autouse=True, scope="session")
def shapes_made_once():
    make_type, make_tensor = tl.block_type.__init__, tl.tensor.__init__
    match = TritonSemantic.broadcast_impl_value
    types: dict[Any, dict[str, Any]] = {}
    tensors: dict[Any, tuple[Any, Any]] = {}

    def shaped(self: Any, element_ty: Any, shape: Any) -> None:
        # By name, which is all that is kept of an element: a pointer's type cannot be hashed.
        key = (element_ty.name, sizes_of(shape))
        if key not in types:
            make_type(self, element_ty, shape)
            types[key] = {name: getattr(self, name) for name in ("shape", "numel", "name")}
        self.element_ty = element_ty
        self.__dict__.update(types[key])

    def filled(self: Any, handle: Any, type: Any) -> None:
        key = tuple(type.shape.values) if type.is_block() else ()
        if key not in tensors:
            make_tensor(self, handle, type)
            tensors[key] = self.shape, self.numel
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = tensors[key]

    def matched(self: Any, left: Any, right: Any) -> Any:
        if left.type.is_block() and right.type.is_block():
            same = left.type.shape.values == right.type.shape.values
        else:
            same = not left.type.is_block() and not right.type.is_block()
        return (left, right) if same else match(self, left, right)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tl.block_type, "__init__", shaped)
        patch.setattr(tl.tensor, "__init__", filled)
        patch.setattr(TritonSemantic, "broadcast_impl_value", matched)
        yield


@pytest.fixture(autouse=True, scope="session")
def no_sums_for_an_assertion_that_is_off():
    options = interpreter.interpreter_builder.options
    assert not options.debug
    with pytest.MonkeyPatch.context() as patch:
        without = replace(options, sanitize_overflow=False)
        patch.setattr(interpreter.interpreter_builder, "options", without)
        yield


@pytest.fixture(autouse=True, scope="session")
def whole_rows_combined():
    def running(self: Any, inputs: Any, axis: int) -> list[Any]:
        """What has been combined up to each place of the axis, which comes first."""
        arrays = [np.moveaxis(x.handle.data, axis, 0) for x in inputs]
        results = [x.copy() for x in arrays]

        def rows(of: Any, i: int) -> list[Any]:
            # With their axis, so that what is left of one axis is still a block.
            return [self.to_tensor(x[i : i + 1], y.dtype) for x, y in zip(of, inputs, strict=True)]

        for i in range(1, len(arrays[0])):
            found = self.combine_fn.fn(*rows(results, i - 1), *rows(arrays, i))
            for result, x in zip(results, found if len(inputs) > 1 else [found], strict=True):
                result[i] = x.handle.data[0]
        return results

    def scanned(self: Any, inputs: Any) -> Any:
        found = [np.moveaxis(x, 0, self.axis) for x in running(self, inputs, self.axis)]
        return [self.to_tensor(x, y.dtype) for x, y in zip(found, inputs, strict=True)]

    def reduced(self: Any, inputs: Any) -> Any:
        assert self.axis is not None, "no kernel reduces all axes by a function of its own"
        found = [x[-1] for x in running(self, inputs, self.axis)]
        if self.keep_dims:
            found = [np.expand_dims(x, self.axis) for x in found]
        return [self.to_tensor(x, y.dtype) for x, y in zip(found, inputs, strict=True)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScanOps, "generic_scan", scanned)
        patch.setattr(ReduceOps, "generic_reduce", reduced)
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
