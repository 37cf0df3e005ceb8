"""Every grid builds; a GPU's grids begin with what tells most and never run away."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path

import pytest
import torch

from harness import grids_speed
from harness.grids import GRIDS
from harness.plan import build
from tasks.base import Context, Unsupported

ROOT = Path(__file__).parents[2]
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.__name__)
def test_every_grid_builds_into_different_cells(grid, device):
    cells = build(grid.__name__, grid, device)
    assert len({cell.key for cell in cells}) == len(cells) > 0
    assert (grid.__doc__ or "").partition("\n")[0].endswith(".")


def test_speed_lists_trials_outermost_and_the_rivals_first():
    cells = grids_speed.speed_vs_length(GPU)
    assert [trial for trial, _ in groupby(cell.trial for cell in cells)] == [0, 1, 2]
    first = cells[: 2 * 2 * len(grids_speed.LENGTHS)]
    assert {cell.mixer.name for cell in first} == {"hgrn2", "attention"}
    assert {(cell.level, cell.mixer.state_size(2048, 1)) for cell in first} == {
        ("op", 2048 * 128),
        ("op", 2 * 2048),
    }
    assert all(cell.batch * cell.seq_len == max(32_768, cell.seq_len) for cell in cells)
    steps = [cell for cell in cells if cell.level == "training_step"]
    assert {(cell.d_model, cell.glu_width) for cell in steps} == {(1024, 2816)}
    bounded = [cell.mixer.lower_bound for cell in cells if cell.mixer.name == "hgrn2"]
    assert set(bounded) == {"cumsum"}


def test_our_kernels_say_on_a_cpu_that_they_need_a_gpu():
    first = next(c for c in grids_speed.cold_start(CPU) if c.mixer.impl == "triton")
    with pytest.raises(Unsupported, match="needs a CUDA device"):
        first.run(Context(CPU))


def test_a_recurrence_is_decoded_at_two_contexts_and_attention_at_all():
    cells = grids_speed.decode_vs_context(GPU)
    contexts = {
        name: {cell.context for cell in cells if cell.mixer.name == name}
        for name in ("hgrn2", "attention")
    }
    assert contexts == {"hgrn2": {512, 131_072}, "attention": set(grids_speed.CONTEXTS)}


@pytest.mark.parametrize("name", ["speed_quick", "mqar_quick"])
def test_records_that_were_made_belong_to_cells_that_are_there(name):
    grid = next(grid for grid in GRIDS if grid.__name__ == name)
    lines = (ROOT / "results" / name / "records.jsonl").read_text().splitlines()
    assert {json.loads(line)["key"] for line in lines} == {task.key for task in grid(CPU)}
