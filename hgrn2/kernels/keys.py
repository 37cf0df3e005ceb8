"""Whose key: tied to the gate, or a tensor of its own.

    tied (HGRN2):  f = bound + (1 - bound) sigmoid(z)     key = 1 - f
    free (GLA):    f = sigmoid(z)^(1/16)                  key: a tensor of its own

Kernels take `bound`, None where the key is free, and `free_key`, a tuple of its pointer and its
strides of batch, time and heads, None where it is tied. What is None is no parameter of the
compiled kernel, and costs a launch next to nothing.
"""

from __future__ import annotations

from torch import Tensor

FreeKey = tuple[Tensor | int, ...]


def with_strides(key: Tensor) -> FreeKey:
    """A free key [b t h k], or [b h k], as kernels take it."""
    return key, *key.stride()[:-1]
