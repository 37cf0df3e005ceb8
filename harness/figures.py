"""Every figure function by the name of its task. To add one: a function from the
tidy frame to named plots, and its name here."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from harness.figures_accuracy import accuracy
from harness.figures_claims import claims
from harness.figures_cold_start import cold_start
from harness.figures_decode import decode
from harness.figures_lra import lra, lra_step
from harness.figures_recall import mqar
from harness.figures_speed import memory, speed
from harness.figures_step import mqar_step
from harness.figures_trainings import trainings_an_hour
from harness.frames import settings
from harness.plot import Plot


def recall(table: pd.DataFrame) -> dict[str, Plot]:
    """Of MQAR: what is claimed first, then all that was measured, then what it took."""
    plots = mqar(table)
    return claims(table) | plots | trainings_an_hour(table) if plots else plots


FIGURES: dict[str, Callable[[pd.DataFrame], dict[str, Plot]]] = {
    "mqar": recall,
    "mqar_step": mqar_step,
    "speed": speed,
    "memory": memory,
    "decode": decode,
    "cold_start": cold_start,
    "accuracy": accuracy,
    "lra": lra,
    "lra_step": lra_step,
}


def draw(table: pd.DataFrame) -> dict[str, Plot]:
    """The figures of a grid: those of each of its tasks. A task without figures has its table
    alone."""
    plots: dict[str, Plot] = {}
    for task in sorted(set(table["task"]) & set(FIGURES)):
        found = FIGURES[task](_alone(table, task))
        plots |= {f"{task}_{name}" if name in plots else name: p for name, p in found.items()}
    return plots


def _alone(table: pd.DataFrame, task: str) -> pd.DataFrame:
    """The cells of one task without the columns of others, whose gaps made whole numbers floats."""
    cells = table[table["task"] == task].dropna(axis="columns", how="all")
    whole = [
        name
        for name in settings(cells)
        if pd.api.types.is_float_dtype(cells[name]) and (cells[name] % 1 == 0).all()
    ]
    return cells.astype(dict.fromkeys(whole, int))
