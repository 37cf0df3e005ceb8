"""Toy cells that end in every way a cell can end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Generator
from importlib import import_module
from typing import ClassVar, Literal, Self

import torch
from pydantic import model_validator

from mixers.base import Mixer
from tasks.base import Context, Metrics, Paused, Task, Unsupported, Wrong, to_the_end


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
            case "makes_a_bar":
                import_module("tqdm").tqdm(disable=True)
                return {"accuracy": 1.0}
            case "dies_after":
                _Deadly.cycle()
                return {"accuracy": 1.0}
            case "raises":
                raise KeyError("no such thing")
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "exits":
                os._exit(3)
            case "oom":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB")
            case "crowded_oom":
                raise _full_gpu("this process has 2.11 GiB", "7 has 2.35 GiB", "8 has 512.00 MiB")
            case "desktop_oom":
                raise _full_gpu("this process has 2.11 GiB", "7 has 359.00 MiB")
            case "contained_oom":
                raise _full_gpu("7 has 14.83 GiB")
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


class _Deadly:
    """Its collection ends the process."""

    itself: object

    @classmethod
    def cycle(cls) -> None:
        deadly = cls()
        deadly.itself = deadly

    def __del__(self) -> None:
        os._exit(3)


def _full_gpu(*holders: str) -> torch.OutOfMemoryError:
    """As torch words it."""
    said = [who if who.startswith("this") else f"Process {who}" for who in holders]
    return torch.OutOfMemoryError(
        f"CUDA out of memory. {' '.join(f'{who} memory in use.' for who in said)}"
    )


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
