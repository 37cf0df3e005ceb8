"""What a run shows: a line for every finished cell and, on a terminal, a live bar below them."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

PLAIN_EVERY_S = 15.0
"""How often a log file hears of a cell that is running."""


class Display:
    """Lines for a grid of `total` cells; a bar too, where the console is a terminal."""

    def __init__(self, grid: str, total: int, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._total, self._done = total, 0
        self._working: dict[str, str] = {}
        self._spoke: dict[str, float] = {}
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("elapsed"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
        )
        self._task = self._bar.add_task(grid, total=total)
        self._live = Live(get_renderable=self._render, console=self._console, transient=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def _render(self) -> Group:
        lines = [
            Text(f"  {slot}  {line}", no_wrap=True, overflow="ellipsis")
            for slot, line in sorted(self._working.items())
        ]
        return Group(self._bar, *lines)

    def working(self, slot: str, label: str, line: str) -> None:
        """The cell on that slot is at `line`."""
        self._working[slot] = f"{label}  {line}"
        now = time.monotonic()
        if not self._console.is_terminal and now - self._spoke.get(slot, now) >= PLAIN_EVERY_S:
            self.note(f"    {slot}  {label}  {line}")
            self._spoke[slot] = now
        self._spoke.setdefault(slot, now)

    def idle(self, slot: str) -> None:
        """No cell runs on that slot."""
        self._working.pop(slot, None)
        self._spoke.pop(slot, None)

    def finished(self, label: str, status: str, headline: str, seconds: float) -> None:
        """One more cell has its record."""
        self._done += 1
        self._bar.advance(self._task)
        place = f"[{self._done}/{self._total}]"
        self.note(f"{place} {status:<5} {label}  {headline}  ({duration(seconds)})")

    def note(self, line: str) -> None:
        self._console.print(Text(line))


def duration(seconds: float) -> str:
    """`0.4s`, `42s`, `3m05s`, `1h02m`."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"
    return f"{minutes // 60}h{minutes % 60:02}m"
