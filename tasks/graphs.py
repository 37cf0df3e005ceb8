"""Functions of tensors replayed from CUDA graphs, one launch whatever they launch; or compiled."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tasks.combining import keep_rows_apart

WARM_UP_CALLS = 2
"""Of a shape, eager: what is allocated, compiled or tuned at a first call must not be captured, and
a compiler may compile once more for what the first call has made."""

MOST_COMPILATIONS = 1000
"""Of one function in a process: one for each width, length and mixer that a worker trains in its
life. It guards against a function that is compiled anew at each call."""

COMPILER: dict[str, str | int | bool | Callable[..., Any]] = {
    # Reductions over rows and over columns of one tensor by one kernel: fewer bytes, more time.
    "triton.mix_order_reduction": False,
    # Small kernels that need nothing of one another launched as one, each with tiles of its own.
    "combo_kernels": True,
    "combo_kernel_per_subkernel_blocks": True,
}
"""Of torch's compiler, other than its defaults: what training steps gain by (LOG.md)."""

Function = Callable[..., Tensor]


class Graphs:
    """What one model's graphs share: a stream and a pool of memory.

    Two of them may be replayed at once, each on its stream; the graphs of one never are.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    def capture(self, call: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """The graph of a call, which is not run, and the tensor that each replay leaves the
        result in. Waits for the device."""
        graph = torch.cuda.CUDAGraph()
        # The graphs of a model that is gone are not to be freed in the middle of a capture.
        gc.collect()
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            output = call()
        return graph, output


class Replayed:
    """A function of tensors, replayed from a graph of its own for each shape of its inputs.

    A call runs the function once, the first ones of a shape eagerly. It may change tensors that
    stay where they are; on the host it may decide nothing that is not the same at each call. What
    it returns is good until the next call.
    """

    def __init__(self, function: Function, graphs: Graphs) -> None:
        self.function, self.graphs = function, graphs
        self._places: dict[Any, _Place] = {}

    def __call__(self, *inputs: Tensor) -> Tensor:
        shape = tuple((x.shape, x.dtype) for x in inputs)
        place = self._places.get(shape)
        if place is None:
            place = self._places[shape] = _Place([x.clone() for x in inputs])
        else:
            copy = torch._foreach_copy_  # pyright: ignore[reportPrivateImportUsage]
            copy(place.inputs, list(inputs))
        place.calls += 1
        if place.calls <= WARM_UP_CALLS:
            # On the static inputs: kernels are compiled for the alignment of what they read.
            return self.function(*place.inputs)
        if place.replay is None:
            place.replay = self.graphs.capture(lambda: self.function(*place.inputs))
        graph, output = place.replay
        graph.replay()
        return output


@dataclass
class _Place:
    """Where the inputs of one shape are put before each replay."""

    inputs: list[Tensor]
    calls: int = 0
    replay: tuple[torch.cuda.CUDAGraph, Tensor] | None = None


def compiled(function: Function, backend: str = "inductor") -> Function:
    """By torch.compile, for static shapes; an error where it would give up and run eagerly. What is
    `mixers.peers.not_compiled` runs as it is, between compiled parts."""
    options = None
    if backend == "inductor":
        options = COMPILER
        keep_rows_apart()
    fast = torch.compile(function, dynamic=False, backend=backend, options=options)
    limits = {
        "recompile_limit": MOST_COMPILATIONS,
        "accumulated_recompile_limit": MOST_COMPILATIONS,
        "fail_on_recompile_limit_hit": True,
    }
    # fp32 without TF32 is a choice, and what a softmax is compiled to is the compiler's. Ignored
    # for good: a backward pass is compiled when it is first run.
    warnings.filterwarnings("ignore", "TensorFloat32 tensor cores")
    warnings.filterwarnings("ignore", r"\s*Online softmax is disabled")
    # The compiler itself looks at what one part hands to the next.
    warnings.filterwarnings("ignore", r"The \.grad attribute of a Tensor that is not a leaf")

    def call(*args: Any) -> Tensor:
        with torch._dynamo.config.patch(limits):
            return fast(*args)

    return call
