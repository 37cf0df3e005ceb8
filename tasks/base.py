"""The one interface of a task: a cell of a grid, its own configuration, key and table row."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import SerializeAsAny, field_validator

from mixers.base import Frozen, Mixer

Metrics = dict[str, float | str | list[float]]
"""Names carry their units: accuracy, fwd_ms, peak_mib, tokens_per_s."""


class Paused(Exception):
    """The cell was asked to stop before its end and has saved what it needs to go on."""


class Wrong(Exception):
    """The cell's implementation failed its check against the reference: it gets no numbers."""


class Unsupported(Exception):
    """The cell cannot run here; the message says why and what would make it so."""


def to_the_end(turns: Generator[None, None, Metrics]) -> Metrics:
    """Take every turn; what the last one returns."""
    while True:
        try:
            next(turns)
        except StopIteration as end:
            return end.value


def silent(line: str) -> None:
    """Progress that nobody reads."""
    del line


@dataclass(frozen=True)
class Context:
    """What the runner lends a cell."""

    device: torch.device
    checkpoint: Path | None = None
    """Where a long cell keeps what it needs to resume; None: it keeps nothing."""
    progress: Callable[[str], None] = silent
    should_stop: Callable[[], bool] = field(default=lambda: False)
    """Polled every few steps: when true, save the checkpoint and raise Paused."""
    pack: int = 1
    """Most cells that run side by side in this process, this one included."""


class Task(Frozen):
    """What is measured, holding the mixer that it is measured on.

    A subclass adds `name: Literal["..."]` and every setting, its seed or trial included, and
    implements `run`, or `turns`.
    """

    name: str
    mixer: SerializeAsAny[Mixer]

    @field_validator("mixer")
    @classmethod
    def _is_a_real_mixer(cls, mixer: Mixer) -> Mixer:
        if type(mixer) is Mixer:
            raise ValueError(f"mixer is {mixer!r}; it should be built, such as HGRN2(...)")
        return mixer

    timed: ClassVar[bool] = False
    """True: run alone on the device, in a fresh process."""
    any_device: ClassVar[bool] = False
    """True: the outcome is the model's, whichever device of a kind (CPU, GPU) has trained it."""
    packs: ClassVar[bool] = False
    """True: may run side by side with others in one process, by `turns`."""

    @property
    def cost(self) -> float:
        """How long the cell takes, in any unit that its task's cells share: the longest of a grid
        are begun first where several run side by side."""
        return 0.0

    def run(self, context: Context) -> Metrics:
        """Measure. Raise Unsupported, Wrong or Paused where that is the outcome."""
        return to_the_end(self.turns(context))

    def turns(self, context: Context) -> Generator[None, None, Metrics]:
        """`run`, interrupted wherever another cell may have its turn, where `packs` says so."""
        raise NotImplementedError

    @property
    def compute_dtype(self) -> torch.dtype:
        """The type that the mixer's operator sees."""
        raise NotImplementedError

    def refuse_unsupported(self, device: torch.device) -> None:
        """Raise Unsupported with the mixer's reason, where it has one."""
        reason = self.mixer.unsupported(device, self.compute_dtype)
        if reason is not None:
            raise Unsupported(reason)

    def repeated(self, device: torch.device) -> Callable[[], int]:
        """What a profiler repeats: a call of what is timed, or the next training steps; it returns
        how many. Raises Unsupported where the task has nothing for it or cannot run there."""
        raise Unsupported(f"task {self.name!r} gives a profiler nothing to repeat")

    def canonical(self) -> str:
        """Canonical JSON of every field (less `later` ones at their default), sorted, without
        spaces."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    @property
    def key(self) -> str:
        """Twelve hex digits that name this cell and no other."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()[:12]
