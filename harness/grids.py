"""Every grid: a function from a device to a list of tasks, one figure's worth of cells.

The docstring says what its figures show. To add a grid: a function in `grids_recall`, `grids_lra`
or, of speed, memory, decoding and accuracy, in `grids_speed`, and its name here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from harness import grids_lra, grids_recall, grids_speed
from tasks.base import Task

Grid = Callable[[torch.device], list[Task]]

GRIDS: tuple[Grid, ...] = (
    grids_recall.mqar_quick,
    grids_speed.speed_quick,
    grids_speed.speed_vs_length,
    grids_speed.memory_vs_length,
    grids_speed.decode_vs_context,
    grids_speed.cold_start,
    grids_speed.accuracy_vs_fp64,
    grids_recall.mqar_iclr2024,
    grids_recall.mqar_fig3,
    grids_recall.mqar_variants,
    grids_recall.mqar_lr,
    grids_recall.mqar_capacity,
    grids_recall.mqar_step,
    grids_lra.lra_smoke,
    grids_lra.lra,
    grids_lra.lra_s4_shape,
    grids_lra.lra_listops,
    grids_lra.lra_pathfinder,
    grids_lra.lra_pathfinder_paper,
    grids_lra.lra_pathfinder_step,
    grids_lra.lra_pathx,
    grids_lra.lra_pathx_step,
)
