"""A figure with its caption and its table, and the lines that most figures consist of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.sheet import End
from harness.style import Mark, significant

LINE = ["series", "mixer", "impl", "variant"]
"""The columns that name a line in a figure's table."""


@dataclass(frozen=True)
class Plot:
    """What is published together."""

    figure: Figure
    caption: str
    table: pd.DataFrame
    """The numbers drawn, one row a point."""
    summary: pd.DataFrame
    """The same for a reader: rows by place, a column a series, what failed in its place."""


def summary(
    table: pd.DataFrame,
    cells: pd.DataFrame,
    rows: Sequence[str],
    value: str,
    *,
    write: Callable[[float], str] = significant,
    rank: Callable[[Any], Any] = lambda x: x,
) -> pd.DataFrame:
    """Column `value` of the figure's `table`, as `write` puts it, by `rows` (sorted by the `rank`
    of their values) and series. A star marks a number that some failed cells have no part in;
    where `cells` gave no number, their statuses stand instead."""
    by = [*rows, "series"]
    numbers = {
        tuple(key): write(number)
        for *key, number in table[[*by, value]].itertuples(index=False, name=None)
    }
    failed: dict[tuple[Any, ...], set[str]] = defaultdict(set)
    for *key, status in cells[[*by, "status"]].itertuples(index=False, name=None):
        failed[tuple(key)] |= {status} - {"ok"}
    labels = list(cells["series"].drop_duplicates())
    lines = []
    for place in sorted(
        {key[:-1] for key in failed}, key=lambda place: [rank(value) for value in place]
    ):
        line = list(place)
        for label in labels:
            statuses = failed.get((*place, label), set())
            number = numbers.get((*place, label))
            told = ", ".join(sorted(statuses)) or "–"
            line.append(told if number is None else number + " *" * bool(statuses))
        lines.append(line)
    return pd.DataFrame(lines, columns=pd.Index([*rows, *labels]))


def at(table: pd.DataFrame, place: Mapping[str, Any]) -> pd.DataFrame:
    """The rows whose columns have these values."""
    for name, value in place.items():
        table = table[table[name] == value]
    return table


def draw_lines(
    ax: Axes,
    looks: Mapping[str, Mark],
    lines: pd.DataFrame,
    x: str,
    y: str,
    *,
    points: tuple[pd.DataFrame, str] | None = None,
    band: tuple[str, str] | None = None,
    whole: pd.Series | None = None,
) -> list[End]:
    """One line a series over column `x`, with single runs (`points`: a frame and its column) as
    small marks and a band between two columns of `lines`. Where `whole` says False of a row, its
    point is hollow, and no line joins it. Returns where each series ends."""
    ends: list[End] = []
    for label, look in looks.items():
        line = lines[lines["series"] == label].dropna(subset=[x, y]).sort_values(x)
        if band is not None:
            low, high = (line[name] for name in band)
            ax.fill_between(line[x], low, high, color=look.colour, alpha=0.18, linewidth=0)
        if points is not None:
            runs, column = points
            runs = runs[runs["series"] == label]
            ax.plot(runs[x], runs[column], **look.point())
        joined = line if whole is None else line[whole[line.index]]
        apart = line.drop(joined.index)
        ax.plot(joined[x], joined[y], **look.line())
        if len(apart):
            ax.plot(apart[x], apart[y], **look.hollow())
        last = (float(line[x].iloc[-1]), float(line[y].iloc[-1])) if len(line) else None
        ends.append(End(label, look, last))
    return ends
