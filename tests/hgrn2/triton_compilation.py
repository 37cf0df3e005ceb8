"""Compile the kernels for a GPU that is not there: the launchers run on meta tensors, and what they
would have launched is compiled."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hgrn2.kernels import (
    backward_gate,
    backward_value,
    chunks,
    decode,
    deep,
    deep_backward,
    output,
    states,
)
from hgrn2.kernels.first_call import Enqueued, noted
from hgrn2.kernels.into import Into
from hgrn2.kernels.keys import with_strides
from hgrn2.kernels.settings import settings
from hgrn2.projection import Activations

# Shared memory that one program may use, in bytes (CUDA programming guide, compute capabilities).
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
NAMES = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.int8: "i8",
}


@dataclass
class Resources:
    registers: int
    spill_bytes: int
    shared_bytes: int


def launches(
    k: int, v: int, dtype: torch.dtype, architecture: int, *, free_key: bool = False
) -> list[Enqueued]:
    """What one forward, backward and step launch, at a batch that needs segments.

    With a `free_key` GLA's, without it HGRN2's."""

    def meta(*shape: int, kind: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=kind, device="meta")

    q, z = meta(1, 8192, 2, k, kind=dtype), meta(1, 8192, 2, k, kind=dtype)
    x = meta(1, 8192, 2, v, kind=dtype)
    bound, key, dkey = meta(2, k), None, None
    if free_key:
        bound, key, dkey = None, with_strides(q), q
    state = meta(1, 2, k, v)
    table = settings(k, v, dtype, divmod(architecture, 10))
    shared = {
        "first": None,
        "lengths": None,
        "reverse": False,
        "keep_last": True,
        "settings": table,
    }
    S, _, A, flags = chunks.room(q, x, False, True)
    places = [Into.tensors(q, z, x, dkey)]
    if k == v and not free_key:
        projection = meta(1, 8192, 3, 2, k, kind=dtype)
        for query in ("silu", "sigmoid"):
            activations = Activations(query, silu_value=True)
            places.append(Into.projection(projection, projection, activations))
    with noted() as found:
        constants = backward_gate.constants_of(q, x)
        inputs = (q, z, x, x, bound, key, (S, S), None, A, None, flags, constants)
        states.chunk_states(z, x, bound, key, S, q=None, **shared)
        y = output.chunk_output(q, z, x, bound, key, S, None, None, table, deep=flags, scores=A)
        deep.deep_output(q, z, x, bound, key, S, None, None, y, flags, A, table)
        states.chunk_states(z, x, bound, key, S, q=q, **shared)
        for into in places:
            backward_value.value_gradient(z, x, x, bound, key, A, S, None, None, table, into)
            dbound = backward_gate.gate_gradients(*inputs, table, into)
            deep_backward.deep_gradients(*inputs, dbound, table, into)
        # both directions
        both = (q, z, x, x, bound, key, (S, S), (S, S), A, None, flags, constants)
        output.chunk_output(q, z, x, bound, key, S, S, None, table, deep=flags, scores=A)
        deep.deep_output(q, z, x, bound, key, S, S, None, y, flags, A, table)
        for into in (places[0], places[-1]):
            backward_value.value_gradient(z, x, x, bound, key, A, S, S, None, table, into)
            dbound = backward_gate.gate_gradients(*both, table, into)
            deep_backward.deep_gradients(*both, dbound, table, into)
        one = None if key is None else with_strides(q[:, 0])
        decode.step(q[:, 0], z[:, 0], x[:, 0], bound, one, state)
    return found


def compile_for(launched: Enqueued, architecture: int) -> Resources:
    """The compiled kernel's resources, as its cubin states them."""
    parameters = launched.kernel.params
    values = dict(zip([p.name for p in parameters], launched.args, strict=False))
    signature, constants, hints = {}, {}, {}
    for index, parameter in enumerate(parameters):
        name = parameter.name
        if parameter.is_constexpr:
            signature[name], constants[name] = "constexpr", launched.options[name]
            continue
        value = values[name]
        if value is None:
            signature[name], constants[name] = "constexpr", None
        elif isinstance(value, tuple):
            signature[name] = tuple(_type_of(part) for part in value)
        else:
            signature[name] = _type_of(value)
        if parameter.do_not_specialize or parameter.do_not_specialize_on_alignment:
            continue
        if isinstance(value, tuple):
            aligned = [(index, place) for place, part in enumerate(value) if _is_aligned(part)]
        else:
            aligned = [(index,)] if _is_aligned(value) else []
        hints |= {path: [["tt.divisibility", 16]] for path in aligned}
    compiled = triton.compile(
        ASTSource(launched.kernel, signature, constexprs=constants, attrs=hints),
        target=GPUTarget("cuda", architecture, 32),
        options={
            name: launched.options[name]
            for name in ("num_warps", "num_stages", "maxnreg")
            if name in launched.options
        },
    )
    registers, stack = _resources(compiled.asm["cubin"])
    return Resources(registers, stack, compiled.metadata.shared)


def _type_of(value: torch.Tensor | int) -> str:
    if isinstance(value, torch.Tensor):
        return "*" + NAMES[value.dtype]
    return "i32" if value < 2**31 else "i64"


def _is_aligned(value: torch.Tensor | int | None) -> bool:
    return value is not None and (isinstance(value, torch.Tensor) or value % 16 == 0)


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers a thread, and bytes of stack a thread, which only spills use here."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        report = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", report)
    assert found is not None, report
    return int(found[1]), int(found[2])
