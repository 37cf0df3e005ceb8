"""Grids of toy cells. Their tasks are in a file beside them, as a user's may be."""

from __future__ import annotations

import torch
from toy_tasks import Needy, OnGpu, OnGpuInTurns, Steps, Timed, Toy, ToyMixer, Turns

from mixers import Attention
from tasks.backbone import Backbone
from tasks.base import Task
from tasks.mqar.task import MQAR, Segment
from tasks.recipe import Training

ENDS = ["raises", "killed", "exits", "oom", "cpu_oom", "unsupported", "wrong", "bad_metrics", "ok"]


def fine(device: torch.device) -> list[Task]:
    """Six cells that are done at once."""
    del device
    return [Toy(seed=seed) for seed in range(6)]


def every_end(device: torch.device) -> list[Task]:
    """One cell for every way to end but to hang."""
    del device
    return [Toy(ends=ends) for ends in ENDS]


def outlived(device: torch.device) -> list[Task]:
    """Cells whose process dies once they have their records, each before one that is well."""
    del device
    return [Toy(ends="ok" if seed % 2 else "dies_after", seed=seed) for seed in range(4)]


def progress_bar(device: torch.device) -> list[Task]:
    """A cell that makes a progress bar, as torch's compiler does."""
    del device
    return [Toy(ends="makes_a_bar")]


def hanging(device: torch.device) -> list[Task]:
    """A cell that never ends between two that do."""
    del device
    return [Toy(seed=0), Toy(ends="hangs"), Toy(seed=1)]


def long(device: torch.device) -> list[Task]:
    """Two cells of half a minute."""
    del device
    return [Steps(steps=3000, seed=seed) for seed in range(2)]


def many(device: torch.device) -> list[Task]:
    """Cells of up to half a second, to be killed at any moment."""
    del device
    return [Steps(steps=10 + 5 * (seed % 9), seed=seed) for seed in range(40)]


def growing(device: torch.device) -> list[Task]:
    """Nine cells, each longer than the one before, and one that kills its worker."""
    del device
    return [*(Steps(steps=10 * seed, seed=seed) for seed in range(1, 10)), Toy(ends="killed")]


def mixed(device: torch.device) -> list[Task]:
    """Timed cells among others."""
    del device
    return [kind(seed=seed) for seed in range(3) for kind in (Timed, Toy)]


def turns(device: torch.device) -> list[Task]:
    """Seven short cells that may run side by side, each longer than the one before."""
    del device
    return [Turns(length=12 + 3 * seed, seed=seed) for seed in range(7)]


def turns_that_end(device: torch.device) -> list[Task]:
    """Cells that may run side by side: one for each of some ways to end, among others."""
    del device
    ends = ("ok", "raises", "ok", "oom", "unsupported", "ok")
    return [Turns.model_validate({"ends": end, "seed": n}) for n, end in enumerate(ends)]


def turns_killed(device: torch.device) -> list[Task]:
    """One of four cells kills the process that they share."""
    del device
    ends = ("ok", "killed", "ok", "ok")
    return [Turns.model_validate({"ends": end, "seed": n}) for n, end in enumerate(ends)]


def turns_hanging(device: torch.device) -> list[Task]:
    """One of three cells never gives the others their turn again."""
    del device
    ends = ("ok", "hangs", "ok")
    return [Turns.model_validate({"ends": end, "seed": n}) for n, end in enumerate(ends)]


def turns_overdue(device: torch.device) -> list[Task]:
    """One of two cells side by side hangs; the third, which follows the other, still has time."""
    del device
    return [Turns(length=110, ends="hangs"), Turns(length=40, seed=1), Turns(length=40, seed=2)]


def many_turns(device: torch.device) -> list[Task]:
    """As `many`, side by side."""
    del device
    return [Turns(length=10 + 5 * (seed % 9), seed=seed) for seed in range(40)]


def recall(device: torch.device) -> list[Task]:
    """Small trainings: one that diverges, one that stops early, three that do neither."""
    del device
    model = Backbone(d_model=16, embed_dropout=0.1)
    rows = (Segment(seq_len=16, kv_pairs=2, examples=96),)
    recipes = (
        {"lr": 1e-3},
        {"lr": 1e30},
        {"lr": 3e-3},
        {"lr": 1e-2, "early_stop": 0.0},
        {"lr": 5e-3},
    )
    return [
        MQAR(
            mixer=Attention(n_heads=2),
            protocol="toy",
            train=rows,
            test=rows,
            vocab_size=40,
            backbone=model,
            training=Training.model_validate({"epochs": 4, "batch": 32} | recipe),
        )
        for recipe in recipes
    ]


def on_gpu(device: torch.device) -> list[Task]:
    """Two cells that go wrong on a GPU among eight that do not."""
    del device
    return [
        OnGpu.model_validate({"ends": ends, "seed": seed})
        for seed, ends in enumerate(["ok", "oom", "ok", "assert", *["ok"] * 6])
    ]


def on_gpu_in_turns(device: torch.device) -> list[Task]:
    """The same cells side by side."""
    return [OnGpuInTurns.model_validate(cell.model_dump()) for cell in on_gpu(device)]


def twice(device: torch.device) -> list[Task]:
    """A cell that is there twice."""
    del device
    return [Toy(seed=0), Toy(seed=1), Toy(seed=0)]


def misspelt(device: torch.device) -> list[Task]:
    """Two fields that are not right."""
    del device
    return [Toy.model_validate({"seed": "three", "sede": 3})]


def mistyped_name(device: torch.device) -> list[Task]:
    """A required field by another name."""
    del device
    return [Needy.model_validate({"widht": 3})]


def unfit(device: torch.device) -> list[Task]:
    """Fields that do not fit each other."""
    del device
    return [Needy(width=3, depth=4)]


def speed_quick(device: torch.device) -> list[Task]:
    """A grid with the name of one of the suite's."""
    return fine(device)


misspelt_too = misspelt


def not_tasks(device: torch.device) -> list[Task]:
    """Mixers where tasks should be."""
    del device
    return [ToyMixer()]  # pyright: ignore[reportReturnType]


def broken(device: torch.device) -> list[Task]:
    """A grid with a bug."""
    del device
    return [Toy(seed=1 // 0)]


def unsendable(device: torch.device) -> list[Task]:
    """A task whose class no worker can find."""
    del device

    class Local(Toy):
        pass

    return [Local()]
