"""Every grid builds; a GPU's grids begin with what tells most and never run away."""

from __future__ import annotations

import json
from itertools import groupby, product
from pathlib import Path

import pytest
import torch

from harness import grids_recall, grids_speed
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


def test_on_a_gpu_recall_is_trained_from_graphs_and_each_mixer_by_its_kernels():
    cells = grids_recall.mqar_fig3(GPU)
    assert len(cells) == 16 * 7 * 5
    assert {cell.training.engine for cell in cells} == {"graph"}
    assert {cell.training.engine for cell in grids_recall.mqar_fig3(CPU)} == {"eager"}
    impls = {(cell.mixer.name, cell.mixer.impl) for cell in cells}
    assert impls == {
        ("hgrn2", "triton"),
        ("hgrn1", "triton"),
        ("gla", "triton"),
        ("mamba", "triton"),
        ("attention", "triton"),
        # Its one head is as wide as the model, and our kernels take 128 channels.
        ("attention", "reference"),
    }
    attention = [cell for cell in cells if cell.mixer.name == "attention"]
    widths = {(cell.mixer.impl, cell.backbone.d_model) for cell in attention}
    assert widths == {*product(["triton"], (64, 128)), *product(["reference"], (256, 512))}
    on_a_cpu = {cell.mixer.impl for cell in grids_recall.mqar_fig3(CPU)}
    assert on_a_cpu == {"reference"}
    assert {cell.protocol for cell in cells} == {"hgrn2-paper"}


def test_variants_of_ours_never_have_the_papers_label():
    cells = grids_recall.mqar_variants(GPU)
    paper = {cell.key for cell in cells if cell.protocol == "hgrn2-paper"}
    assert paper <= {cell.key for cell in grids_recall.mqar_fig3(GPU)}
    labels = {(cell.mixer.name, cell.protocol) for cell in cells}
    ours = {"lower bound", "expand 16", "expand 32", "expand 64", "short conv first"}
    assert {label for name, label in labels if name == "hgrn2"} == ours | {"hgrn2-paper"}
    assert ("gla", "short conv first") in labels
    for cell in cells:
        assert (cell.backbone.first is not None) == (cell.protocol == "short conv first")
        assert (cell.protocol == "hgrn2-paper") == (cell.key in paper)


def test_the_published_capacity_has_the_short_convolution_but_for_mamba():
    for cell in grids_recall.mqar_capacity(CPU):
        plain = cell.mixer.name == "mamba" or cell.protocol != "mixed"
        assert (cell.backbone.first is None) == plain
    attention = next(
        cell
        for cell in grids_recall.mqar_capacity(CPU)
        if cell.mixer.name == "attention" and cell.backbone.d_model == 64
    )
    # zoology's 525,056 bytes count one more token of the convolution, 256 bytes.
    state = attention.backbone.state_size(attention.mixer, attention.seq_len)
    assert 4 * state == 525_056 - 4 * 64


def test_steps_are_timed_at_the_published_shapes():
    cells = grids_recall.mqar_step(GPU)
    shapes = {(cell.seq_len, cell.kv_pairs, cell.training.batch) for cell in cells}
    assert shapes == {(64, 4, 512), (256, 16, 256), (512, 64, 128)}
    assert {cell.pack for cell in cells} == {1, 4, 7}
    assert {cell.training.precision for cell in cells} == {"fp32", "tf32", "bf16_autocast"}
    assert all(cell.timed and not cell.packs for cell in cells)
    attention = [cell for cell in cells if cell.mixer.name == "attention"]
    widths = {(cell.mixer.impl, cell.backbone.d_model) for cell in attention}
    assert widths == {("triton", 64), ("products", 256), ("products", 512)}
    fused = [cell for cell in cells if cell.fused_loss]
    assert {cell.backbone.d_model for cell in fused} == {64}
    assert all(cell.training.compiled for cell in fused)
