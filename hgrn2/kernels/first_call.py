"""How kernels are launched, and how those of a first call are compiled side by side.

Triton compiles a kernel when it is first launched, one after the other: eight for a forward and a
backward of HGRN2. Its compiler holds Python's lock in its front end alone, so threads share the
rest.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import Context, ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction


@dataclass(frozen=True)
class Enqueued:
    """A kernel and the arguments of one launch."""

    kernel: Any
    args: tuple[Any, ...]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        return self.kernel.fn.__name__


_noted: ContextVar[list[Enqueued] | None] = ContextVar("noted", default=None)
_seen: set[tuple[Any, ...]] = set()


def enqueue(kernel: Any, programs: int, /, *args: Any, **options: Any) -> None:
    """Launch `programs` programs of the kernel, or note the launch (`noted`)."""
    launches = _noted.get()
    if launches is None:
        kernel[(programs,)](*args, **options)
    else:
        launches.append(Enqueued(kernel, args, options))


@contextmanager
def noted() -> Iterator[list[Enqueued]]:
    """Launches are noted in the list instead of made: tensors may be on the meta device."""
    launches: list[Enqueued] = []
    token = _noted.set(launches)
    try:
        yield launches
    finally:
        _noted.reset(token)


def compile_before_first(passes: Callable[..., object], *inputs: Any) -> None:
    """Before the first call with inputs of this kind (dtypes, heads and widths, device, what is
    None, flags), compile all that `passes(*inputs)` launches; it is called with the inputs' likes
    on the meta device.

    What it misses, another alignment or a length that needs other kernels, say, is compiled when it
    is launched, as ever. Does nothing without a GPU and while a CUDA graph is captured. Raises what
    a compiler raises.
    """
    kind = (
        passes,
        *((x.dtype, x.shape[2:], x.device) if isinstance(x, Tensor) else x for x in inputs),
    )
    if kind in _seen or _noted.get() is not None:
        return
    like = next(x for x in inputs if isinstance(x, Tensor))
    if not like.is_cuda or torch.cuda.is_current_stream_capturing():
        return
    with torch.cuda.device_of(like):
        with noted() as launches:
            passes(*(_meta(x) if isinstance(x, Tensor) else x for x in inputs))
        compile_together(launches)
    _seen.add(kind)


def compile_together(launches: list[Enqueued]) -> None:
    """Compile the launches' kernels in threads, for the current device.

    Kernels alone. Their launchers in C (Triton 3.6 has one for each signature) are compiled and
    loaded at the first launch: they are modules of one name, which Python mixes up where threads
    load them at once.
    """
    if isinstance(launches[0].kernel, InterpretedFunction):
        return
    collecting = gc.isenabled()
    # Python before 3.11.8 and 3.12.2 counts the depth of all threads' ast.parse in one number, and
    # fails where one enters while a garbage collection interrupts another.
    gc.disable()

    def compile_all() -> None:
        with (
            ThreadPoolExecutor(min(len(launches), os.cpu_count() or 1)) as threads,
            triton.AsyncCompileMode(threads),
        ):
            for launch in launches:
                launch.kernel.warmup(*launch.args, grid=(1,), **launch.options)

    try:
        # After a compiler's error the mode would stay on, for every later kernel of the program.
        Context().run(compile_all)
    except BaseException:
        # Triton 3.7 keeps the failed future where it looks for the kernel.
        for launch in launches:
            for kernels, *_ in launch.kernel.device_caches.values():
                for key in [key for key, kernel in kernels.items() if hasattr(kernel, "result")]:
                    del kernels[key]
        raise
    finally:
        if collecting:
            gc.enable()


def total(parts: Tensor, *axes: int) -> Tensor:
    """The sum over these axes. Of parts on meta only its likeness: torch's own sum there would
    import sympy, and a first call would wait for it."""
    if parts.is_meta:
        return parts.new_empty([n for axis, n in enumerate(parts.shape) if axis not in axes])
    return parts.sum(axes)


def _meta(x: Tensor) -> Tensor:
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
