"""Toy cells that end in every way a cell can end, and grids of them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Generator
from typing import ClassVar, Literal, Self

import torch
from pydantic import model_validator

from mixers import Attention
from mixers.base import Mixer
from tasks.backbone import Backbone
from tasks.base import Context, Metrics, Paused, Task, Unsupported, Wrong, to_the_end
from tasks.mqar.task import MQAR, Segment
from tasks.recipe import Training


class ToyMixer(Mixer):
    name: Literal["toy"] = "toy"
    impl: Literal["plain", "fancy"] = "plain"


class Toy(Task):
    """A cell that ends as `ends` says."""

    name: Literal["toy"] = "toy"
    mixer: ToyMixer = ToyMixer()
    ends: str = "ok"
    seed: int = 0

    def run(self, context: Context) -> Metrics:
        context.progress("at work")
        match self.ends:
            case "ok":
                print(f"cell {self.seed} is at work")
                return {"accuracy": self.seed / 10, "pid": os.getpid()}
            case "raises":
                raise KeyError("no such thing")
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "exits":
                os._exit(3)
            case "oom":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB")
            case "cpu_oom":
                torch.empty(2**58)
            case "unsupported":
                raise Unsupported("needs a GPU: use --device cuda")
            case "wrong":
                raise Wrong("differs from the reference by 0.5")
            case "bad_metrics":
                return {"accuracy": {"mean": 0.5}}  # pyright: ignore[reportReturnType]
            case "hangs":
                time.sleep(600)
        raise AssertionError(self.ends)


class Needy(Toy):
    """A cell with a field that has to be given, and a rule for two of them."""

    width: int
    depth: int = 1

    @model_validator(mode="after")
    def _square(self) -> Self:
        if self.depth > self.width:
            raise ValueError("depth must not be above width")
        return self


class Steps(Task):
    """A long cell: `steps` of 10 ms, each of which is checkpointed."""

    name: Literal["steps"] = "steps"
    mixer: ToyMixer = ToyMixer()
    steps: int = 40
    seed: int = 0

    @property
    def cost(self) -> float:
        return float(self.steps)

    def run(self, context: Context) -> Metrics:
        assert context.checkpoint
        done = int(context.checkpoint.read_text()) if context.checkpoint.exists() else 0
        resumed_at = done
        while done < self.steps:
            time.sleep(0.01)
            done += 1
            context.checkpoint.parent.mkdir(parents=True, exist_ok=True)
            part = context.checkpoint.with_suffix(".part")
            part.write_text(str(done))
            part.replace(context.checkpoint)
            context.progress(f"step {done}")
            if context.should_stop():
                raise Paused
        return {"steps": done, "resumed_at": resumed_at, "place": str(context.device)}


class Turns(Task):
    """A cell of 10 ms steps that others may have between its own, and that ends as `ends` says
    in the middle."""

    name: Literal["turns"] = "turns"
    mixer: ToyMixer = ToyMixer()
    length: int = 30
    ends: Literal["ok", "raises", "oom", "killed", "hangs", "unsupported"] = "ok"
    seed: int = 0
    packs: ClassVar[bool] = True

    @property
    def cost(self) -> float:
        return float(self.length)

    def run(self, context: Context) -> Metrics:
        return to_the_end(self.turns(context))

    def turns(self, context: Context) -> Generator[None, None, Metrics]:
        assert context.checkpoint
        path, done = context.checkpoint, 0
        if path.exists():
            done = int(path.read_text())
        resumed_at = done
        while done < self.length:
            time.sleep(0.01)
            done += 1
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            part.write_text(str(done))
            part.replace(path)
            context.progress(f"turn {done}")
            if done >= self.length // 2 and self.ends != "ok":
                Toy(ends=self.ends).run(context)
            if context.should_stop():
                raise Paused
            yield
        return {
            "resumed_at": resumed_at,
            "pid": os.getpid(),
            "pack": context.pack,
            "place": str(context.device),
        }


class Timed(Task):
    """A cell that must be alone."""

    name: Literal["timed"] = "timed"
    mixer: ToyMixer = ToyMixer()
    seed: int = 0
    timed: ClassVar[bool] = True

    def run(self, context: Context) -> Metrics:
        del context
        time.sleep(0.02)
        return {"pid": os.getpid(), "threads": torch.get_num_threads()}


class OnGpu(Task):
    """A cell that needs a GPU, and may break its process's use of it."""

    name: Literal["on_gpu"] = "on_gpu"
    mixer: ToyMixer = ToyMixer()
    ends: Literal["ok", "oom", "assert"] = "ok"
    seed: int = 0

    def run(self, context: Context) -> Metrics:
        if self.ends == "oom":
            torch.empty(2**46, device=context.device)
        index = torch.tensor([9 if self.ends == "assert" else 1], device=context.device)
        value = torch.ones(2, device=context.device)[index].item()
        time.sleep(0.5)
        return {"value": value}


class OnGpuInTurns(OnGpu):
    """As OnGpu, with others in between."""

    packs: ClassVar[bool] = True

    def turns(self, context: Context) -> Generator[None, None, Metrics]:
        for _ in range(5):
            torch.ones(1000, device=context.device).sum().item()
            yield
        return self.run(context)


ENDS = ["raises", "killed", "exits", "oom", "cpu_oom", "unsupported", "wrong", "bad_metrics", "ok"]


def fine(device: torch.device) -> list[Task]:
    """Six cells that are done at once."""
    del device
    return [Toy(seed=seed) for seed in range(6)]


def every_end(device: torch.device) -> list[Task]:
    """One cell for every way to end but to hang."""
    del device
    return [Toy(ends=ends) for ends in ENDS]


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
