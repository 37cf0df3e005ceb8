"""Synthetic records of MQAR and of its training step: five mixers, some failed cells."""

from __future__ import annotations

import math
import random
from itertools import product
from typing import Any

from harness.records import Record
from tests.harness.synthetic import MIXERS, record

RECALL = {"hgrn2": 1.0, "hgrn1": 0.35, "gla": 0.8, "mamba": 0.75, "attention": 8.0}
STATE = {"hgrn2": 64, "hgrn1": 2, "gla": 32, "mamba": 32, "attention": 0}

AXES = ["seq_len", "kv_pairs", "d_model", "lr", "seed"]
"""Those of MQAR's figures: what differs along them makes no line of its own."""


def mqar_task(
    mixer: str, impl: str, *, cell: tuple[int, int], d_model: int, lr: float, seed: int
) -> dict[str, Any]:
    """A task of the shape that MQAR's dump has."""
    seq_len, kv_pairs = cell
    segment = {"seq_len": seq_len, "kv_pairs": kv_pairs}
    return {
        "name": "mqar",
        "mixer": {"name": mixer, "impl": impl, "init": "zoology"},
        "protocol": "iclr2024",
        "train": [segment | {"examples": 100_000}],
        "test": [segment | {"examples": 3_000}],
        "vocab_size": 8192,
        "backbone": {"d_model": d_model, "n_layers": 2, "init": "zoology"},
        "training": {"lr": lr, "batch": 512, "precision": "fp32", "report": "last"},
        "seed": seed,
        "over_lr": "max",
        "seq_len": seq_len,
        "kv_pairs": kv_pairs,
    }


def recall(mixer: str, cell: tuple[int, int], d_model: int, lr: float, seed: int) -> float:
    """A plausible accuracy: it falls with the number of pairs, rises with width, peaks in lr."""
    noise = random.Random(f"{mixer}{cell}{d_model}{lr}{seed}").gauss(0, 0.03)
    strength = math.log(RECALL[mixer] * d_model / (4 * cell[1])) - abs(math.log10(lr) + 2.7)
    return min(1.0, max(0.0, 1 / (1 + math.exp(-1.6 * strength)) + noise))


def mqar_records(
    *,
    grid: str = "mqar_synthetic",
    cells: tuple[tuple[int, int], ...] = ((64, 4), (128, 8), (256, 16), (512, 64)),
    widths: tuple[int, ...] = (64, 128),
    lrs: tuple[float, ...] = (1e-4, 1e-3, 1e-2),
    seeds: tuple[int, ...] = (0, 1),
) -> list[Record]:
    """A grid; attention at 512 tokens and the larger width runs out of memory, HGRN1 at lr 1e-2
    and 256 tokens fails for seed 1."""
    records: list[Record] = []
    for (mixer, impl), cell, width, lr, seed in product(MIXERS, cells, widths, lrs, seeds):
        task = mqar_task(mixer, impl, cell=cell, d_model=width, lr=lr, seed=seed)
        if mixer == "attention" and cell[0] == 512 and width == max(widths):
            made = record(task, grid=grid, status="oom", error="CUDA out of memory")
        elif mixer == "hgrn1" and cell[0] == 256 and lr == 1e-2 and seed == 1:
            made = record(task, grid=grid, status="timeout", error="stopped after 3600 s")
        else:
            accuracy = recall(mixer, cell, width, lr, seed)
            state = 2 * width * (STATE[mixer] or 2 * cell[0])
            metrics = {
                "accuracy": accuracy,
                "best_accuracy": accuracy,
                "last_accuracy": accuracy,
                "epochs_run": 64,
                "steps": 12_544,
                "train_s": 100.0,
                "step_ms": 8.0,
                "parameters": 600_000,
                "accuracy_by_epoch": [accuracy / 2, accuracy],
                "loss_by_epoch": [5.0, 1.0],
                "state_bytes": 4 * state,
            }
            made = record(task, metrics, grid=grid)
        records.append(made)
    return records


def step_records(*, grid: str = "mqar_step_synthetic") -> list[Record]:
    """A grid; seven wide attentions side by side run out of memory."""
    shapes = (((64, 4), 512), ((256, 16), 256))
    records: list[Record] = []
    for pack, precision, (cell, batch), width, (mixer, impl) in product(
        (1, 7), ("fp32", "bf16_autocast"), shapes, (64, 256), MIXERS
    ):
        task = mqar_task(mixer, impl, cell=cell, d_model=width, lr=1e-3, seed=123)
        training = task["training"] | {"batch": batch, "precision": precision, "engine": "graph"}
        task |= {"name": "mqar_step", "training": training, "pack": pack, "trial": 0}
        if mixer == "attention" and pack == 7 and width == 256:
            made = record(task, grid=grid, status="oom", error="CUDA out of memory")
        else:
            ms = (1 + width / 64) * (1 + 0.5 * (pack - 1)) * (0.7 if "bf16" in precision else 1)
            metrics = {"step_ms": ms, "step_ms_per_model": ms / pack, "peak_mib": 900.0 * pack}
            metrics |= {"runs_per_hour": 3.6e6 * pack / (64 * 196 * ms)}
            made = record(task, metrics, grid=grid)
        records.append(made)
    return records
