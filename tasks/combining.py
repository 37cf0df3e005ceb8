"""Which reductions torch's compiler may launch as one (`graphs.COMPILER`'s `combo_kernels`).

Torch 2.11 tiles all reductions of a launch for the memory of one of them, that with the most
results (2.13 for its own each). One along rows, beside one over columns, is tiled as that one is:
each thread then reads a row of its own. Two such launches of a training step, each of 65,536 rows
of 512 numbers, took 2.1 and 0.5 ms on an H200.
"""

from __future__ import annotations

from typing import Any

import torch

KEY = "rows apart"
"""Tells kept code of before, in the compiler's cache on disk, from this."""


def rows_apart(nodes: list[Any], scheduling: Any, info: dict[Any, Any]) -> list[list[Any]]:
    """The compiler's own groups of nodes, with reductions along rows apart from the others, but for
    those that a program holds whole: tiles are of whole rows then.

    Arguments and result as `torch._inductor.codegen.triton_combo_kernel` has them.
    """
    from torch._inductor.codegen import triton_combo_kernel
    from torch._inductor.runtime.hints import ReductionHint
    from torch._inductor.virtualized import V

    over_columns = (ReductionHint.OUTER, ReductionHint.OUTER_TINY)

    def is_along_rows(node: Any) -> bool:
        features = info[node].features
        return (
            features.is_reduction()
            and features.get_reduction_hint() not in over_columns
            and not V.choices.should_use_persistent_reduction(features, False)
        )

    groups = triton_combo_kernel._default_custom_combo_kernel_horizontal_partition(
        nodes, scheduling, info
    )
    parts = ([n for n in group if is_along_rows(n) == rows] for group in groups for rows in (0, 1))
    return [part for part in parts if part]


def keep_rows_apart() -> None:
    """Has the compiler group by `rows_apart` from now on, in this process."""
    if torch.__version__ < "2.13":
        from torch._inductor.codegen import triton_combo_kernel

        triton_combo_kernel.set_custom_combo_kernel_horizontal_partition(rows_apart)
        tag = torch.compiler.config.cache_key_tag
        if KEY not in tag:
            torch.compiler.config.cache_key_tag = f"{tag} {KEY}"
