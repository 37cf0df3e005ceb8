"""Curves over a length in log-log panels, with out-of-memory marks at the frontier."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from harness.plot import LINE, Plot, at, draw_lines, summary
from harness.series import joined, marks, not_drawn
from harness.sheet import Sheet, binary_ticks, log_limits, plain_ticks, value_ticks
from harness.style import styled

LEVELS = {
    "op": "Operator",
    "layer": "Layer",
    "training_step": "Training step",
    "prefill": "Prefill",
    "decode_step": "Decode step",
}
MODES = {"fwd": ", forward", "fwd_bwd": ", forward + backward", "step": ""}
REPLAYS = {"eager": ", eager", "graph": ", from a CUDA graph"}
BAND = ("time_ms_p20", "time_ms_p80")
FLOORS = ("bytes_floor_ms", "flops_floor_ms")
MEDIANS = (
    *("time_ms", *BAND, *FLOORS, "tokens_per_s", "roofline_percent"),
    *("peak_mib", "reserved_mib"),
)


@dataclass(frozen=True)
class Cost:
    """What a figure has on its axes, and which rows its panels and points are."""

    kind: Sequence[str]
    """The columns that tell its panels apart."""
    x: str
    x_name: str
    y: str
    y_name: str
    band: tuple[str, str] | None = None
    frontier: bool = True
    """Whether a cell out of memory is marked at the top (a cost) or at the bottom (a rate)."""
    floor: str | None = None
    """The column of what no implementation can go below, drawn thin and dotted."""


def medians(table: pd.DataFrame, cost: Cost) -> pd.DataFrame:
    """One row a point: medians over the trials of every measurement of the figure's family, their
    number, and the range of the figure's own."""
    ran = table[table["status"] == "ok"]
    by = [*LINE, *cost.kind, cost.x, *(["batch"] if "batch" not in cost.kind else [])]
    groups = ran.groupby(by, sort=False, dropna=False)
    kept = dict.fromkeys([cost.y, *(name for name in MEDIANS if name in ran)])
    result = groups[list(kept)].median()
    result[f"{cost.y}_min"] = groups[cost.y].min()
    result[f"{cost.y}_max"] = groups[cost.y].max()
    result["trials"] = groups.size()
    return result.reset_index()


def curves(table: pd.DataFrame, lines: pd.DataFrame, cost: Cost, sentences: Sequence[str]) -> Plot:
    """The figure of `lines`, which are `medians` of `table`; its caption is made of `sentences`.

    A log axis has no zero: such points are in the tables alone, and the caption says so.
    """
    ran = table[(table["status"] == "ok") & (table[cost.y] > 0)]
    zeros = int((lines[cost.y] <= 0).sum())
    if zeros:
        sentences = [*sentences, f"{zeros} points at 0 are not drawn, see the table."]
    trials = lines["trials"].max() > 1
    with styled():
        places = panels(lines, cost)
        note = not_drawn(table, [*cost.kind, cost.x, "trial"])
        sheet = Sheet(len(places), height_in=2.3, columns=min(2, len(places)), note=note)
        for i, (ax, place) in enumerate(zip(sheet.axes, places, strict=True)):
            cells, here = at(table, place), at(lines[lines[cost.y] > 0], place)
            sizes = cells[cost.x].unique()
            ax.set(xscale="log", yscale="log", title=title(place), xlim=log_limits(sizes))
            runs = (at(ran, place), cost.y) if trials else None
            ends = draw_lines(ax, marks(table), here, cost.x, cost.y, points=runs, band=cost.band)
            _floors(ax, table, here, cost)
            _limits(ax, here, cost, headroom="oom" in set(cells["status"]))
            crosses = _out_of_memory(ax, cells, here, cost)
            value_ticks(ax.xaxis, sizes)
            (binary_ticks if cost.y == "state_bytes" else plain_ticks)(ax.yaxis)
            sheet.axis_names(i, x=cost.x_name, y=cost.y_name)
            ends = [replace(end, at=crosses.get(end.text, end.at)) for end in ends]
            sheet.label(ax, [end for end in ends if end.at is not None])
        figure = sheet.finish()
    rows = summary(lines, table, [*cost.kind, cost.x], cost.y, rank=_rank)
    return Plot(figure, joined(sentences), lines, rows)


def panels(table: pd.DataFrame, cost: Cost) -> list[dict[str, Any]]:
    """What each panel shows, as column -> value, in order."""
    if not cost.kind:
        return [{}]
    rows = table[list(cost.kind)].drop_duplicates().itertuples(index=False, name=None)
    ordered = sorted(rows, key=lambda row: [_rank(value) for value in row])
    return [dict(zip(cost.kind, row, strict=True)) for row in ordered]


def _rank(value: str | int) -> tuple[int, str | int]:
    """Levels and modes from the smallest to the largest, other values as they are."""
    known = [*LEVELS, *MODES, *REPLAYS]
    return (0, known.index(value)) if value in known else (1, value)


def title(place: dict[str, Any]) -> str:
    """What a panel shows: `Layer, forward + backward`, `Batch 64` or `Batch 64, eager`."""
    if "kv_pairs" in place:
        words = str(place["precision"]).replace("_", " ")
        return f"{place['seq_len']} tokens, {place['kv_pairs']} pairs, {words}"
    if "level" not in place:
        return f"Batch {place['batch']}{REPLAYS.get(place.get('replay', ''), '')}" if place else ""
    level, mode = place["level"], place["mode"]
    return LEVELS.get(level, str(level)) + MODES.get(mode, f", {mode}")


def _floors(ax: Axes, table: pd.DataFrame, lines: pd.DataFrame, cost: Cost) -> None:
    if cost.floor is None:
        return
    for label, look in marks(table).items():
        line = lines[lines["series"] == label].dropna(subset=[cost.floor]).sort_values(cost.x)
        ax.plot(
            line[cost.x], line[cost.floor], color=look.colour, linewidth=0.8, linestyle=(0, (1, 2))
        )


def _limits(ax: Axes, lines: pd.DataFrame, cost: Cost, *, headroom: bool) -> None:
    columns = [cost.y, f"{cost.y}_min", f"{cost.y}_max", *(cost.band or ())]
    columns += [cost.floor] if cost.floor else []
    low, high = log_limits(lines[columns].to_numpy().ravel())
    if headroom:
        room = (high / low) ** 0.15
        low, high = (low, high * room) if cost.frontier else (low / room, high)
    ax.set_ylim(low, high)


def _out_of_memory(
    ax: Axes, cells: pd.DataFrame, lines: pd.DataFrame, cost: Cost
) -> dict[str, tuple[float, float]]:
    """A cross where each series first runs out of memory, at the edge of the panel, and a thin
    line to it from the last point before. Returns where the crosses are."""
    low, high = np.log(ax.get_ylim())
    stacked: Counter[float] = Counter()
    crosses: dict[str, tuple[float, float]] = {}
    for label, look in marks(cells).items():
        full = cells[(cells["series"] == label) & (cells["status"] == "oom")]
        if full.empty:
            continue
        x = float(full[cost.x].min())
        depth = 0.04 + 0.07 * stacked[x]
        stacked[x] += 1
        height = high - depth * (high - low) if cost.frontier else low + depth * (high - low)
        y = float(np.exp(height))
        before = lines[(lines["series"] == label) & (lines[cost.x] < x)].sort_values(cost.x)
        if len(before):
            start = before.iloc[-1]
            ax.plot(
                [start[cost.x], x],
                [start[cost.y], y],
                color=look.colour,
                linewidth=0.7,
                linestyle=(0, (1, 1.5)),
            )
        ax.plot([x], [y], color=look.colour, marker="x", markeredgewidth=1.4, linestyle="none")
        crosses[label] = x, y
    return crosses
