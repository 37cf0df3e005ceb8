"""Which reductions torch's compiler may launch as one (`graphs.COMPILER`'s `combo_kernels`).

Before 2.13 all of a launch are tiled for what the first one's memory looks like. A reduction along
rows whose layout the compiler does not know (it looks rows up in a table, say) would be tiled as
one over columns beside which it runs: each thread then reads a row of its own, and 134 MB took 2.1
ms on an H200.
"""

from __future__ import annotations

from typing import Any

import torch


def by_direction(nodes: list[Any], scheduling: Any, info: dict[Any, Any]) -> list[list[Any]]:
    """The compiler's own groups of nodes, those of unknown layout apart from the others.

    Arguments and result as `torch._inductor.codegen.triton_combo_kernel` has them.
    """
    from torch._inductor.codegen import triton_combo_kernel
    from torch._inductor.runtime.hints import ReductionHint

    def is_unknown(node: Any) -> bool:
        features = info[node].features
        return features.is_reduction() and features.get_reduction_hint() == ReductionHint.DEFAULT

    groups = triton_combo_kernel._default_custom_combo_kernel_horizontal_partition(
        nodes, scheduling, info
    )
    apart = ([n for n in group if is_unknown(n) == u] for group in groups for u in (False, True))
    return [group for group in apart if group]


def combine_reductions_by_direction() -> None:
    """Has the compiler group by `by_direction` from now on, in this process."""
    if torch.__version__ < "2.13":
        from torch._inductor.codegen import triton_combo_kernel

        triton_combo_kernel.set_custom_combo_kernel_horizontal_partition(by_direction)
