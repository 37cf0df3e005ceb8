"""Kernels of other libraries under torch.compile: they run as they are, what is around is compiled.

Tracing into them fails, and they are no custom operators. A graph breaks at each, in the forward
pass and in the backward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from torch._compile import _disable_dynamo

P = ParamSpec("P")
T = TypeVar("T")


def not_compiled(function: Callable[P, T]) -> Callable[P, T]:
    """`function`, and all that it calls, as it is, where torch.compile comes to it.

    `torch.compiler.disable` in effect, which however imports the compiler at once: 1.2 s for
    whoever imports a mixer. Here the first call does.
    """
    return _disable_dynamo(function)
