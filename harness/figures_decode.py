"""Figures of decode grids: the time of one more token, and the state held for it, over context."""

from __future__ import annotations

import pandas as pd

from harness.curves import Cost, curves, medians
from harness.figures_speed import (
    BAND,
    BAND_SENTENCE,
    by_page,
    common,
    faster,
    noise,
    trials,
)
from harness.plot import Plot

WHAT = {"layer": "layer", "op": "layer's bare operator"}


def decode(table: pd.DataFrame) -> dict[str, Plot]:
    """The cost of one more token over the context before it, and the state held for it: of the
    layer and of the bare operator apart."""
    plots: dict[str, Plot] = {}
    levels = [level for level in WHAT if level in set(table["level"])]
    for level in levels:
        part = table[table["level"] == level]
        where = "" if level == "layer" else f"_{level}"
        axes = ["context", "batch", "level", "replay", "trial", "seed"]
        for suffix, page, attention in by_page(part, axes):
            plots[f"decode_latency{where}{suffix}"] = decode_latency(page, attention, level)
            if level == levels[0]:
                plots[f"decode_state{suffix}"] = decode_state(page)
    return plots


def decode_latency(table: pd.DataFrame, attention: pd.DataFrame, level: str = "layer") -> Plot:
    """Milliseconds a token after a context, a panel for each batch and way of launching."""
    replayed = "graph" in set(table["replay"])
    floor = "bytes_floor_ms" if "bytes_floor_ms" in table else None
    cost = Cost(
        ["batch", "replay"] if replayed else ["batch"],
        "context",
        "Context (tokens)",
        "time_ms",
        "Time per step (ms)",
        BAND,
        floor=floor,
    )
    lines = medians(table, cost)
    parts = [
        f"Time of one decode step of one {WHAT[level]} over the context before it.",
        "Eager: launched from Python; from a CUDA graph: one replay of it." * replayed,
        trials(table),
        BAND_SENTENCE,
        "Dotted: what reading state and weights and writing what changes of the state takes at "
        "this machine's measured copy bandwidth." * (floor is not None),
        noise(table),
        faster(lines, attention, cost, table),
    ]
    return curves(table, lines, cost, [*parts, *common(table)])


def decode_state(table: pd.DataFrame) -> Plot:
    """Bytes held to go on decoding one sequence, over the context before."""
    cost = Cost([], "context", "Context (tokens)", "state_bytes", "State (bytes)")
    parts = [
        "State that one layer holds to decode one sequence, over the context before it (k = 1024)."
    ]
    # The same for every batch, however it is launched.
    table = table[table["batch"] == table["batch"].min()]
    table = table[table["replay"] == table["replay"].iloc[0]]
    return curves(table, medians(table, cost), cost, [*parts, *common(table)])
