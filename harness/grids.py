"""Every grid: a function from a device to a list of tasks, one figure's worth of cells.

The docstring says what its figures show. To add a grid: a function in `grids_recall`, `grids_lra`
or, of speed, memory, decoding and accuracy, in `grids_speed`, and its name here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from harness.grids_lra import (
    lra_listops,
    lra_pathfinder,
    lra_pathfinder_paper,
    lra_pathfinder_step,
    lra_pathx,
    lra_pathx_step,
    lra_smoke,
)
from harness.grids_recall import (
    mqar_capacity,
    mqar_fig3,
    mqar_iclr2024,
    mqar_lr,
    mqar_quick,
    mqar_step,
    mqar_variants,
)
from harness.grids_speed import (
    accuracy_vs_fp64,
    cold_start,
    decode_vs_context,
    memory_vs_length,
    speed_quick,
    speed_vs_length,
)
from tasks.base import Task

Grid = Callable[[torch.device], list[Task]]

GRIDS: tuple[Grid, ...] = (
    mqar_quick,
    speed_quick,
    speed_vs_length,
    memory_vs_length,
    decode_vs_context,
    cold_start,
    accuracy_vs_fp64,
    mqar_iclr2024,
    mqar_fig3,
    mqar_variants,
    mqar_lr,
    mqar_capacity,
    mqar_step,
    lra_smoke,
    lra_listops,
    lra_pathfinder,
    lra_pathfinder_paper,
    lra_pathfinder_step,
    lra_pathx,
    lra_pathx_step,
)
