"""What figures of MQAR grids share: runs chosen over learning rates, means over seeds, what
captions tell of both, and a sheet that tells what could not be drawn."""

from __future__ import annotations

import re
from typing import Any

import pandas as pd

from harness.plot import LINE
from harness.series import joined, not_drawn, origin, setting, spoken
from harness.sheet import Sheet

LEARNED = 0.9
"""A run above this accuracy counts as one that learned."""
CONDITION = ["seq_len", "kv_pairs"]
AXES = [*CONDITION, "d_model", "lr", "seed"]


def selected(table: pd.DataFrame) -> pd.DataFrame:
    """One row for each series, condition, width and seed: the run with the highest accuracy over
    learning rates, and `lrs`, how many of them gave a result. Where the setting `over_lr` is
    "mean", `accuracy`, of every segment too, is the mean over them and `lr` is empty."""
    ran = table[table["accuracy"].notna()]
    groups = ran.groupby([*LINE, *CONDITION, "d_model", "seed"], sort=False)
    best = ran.loc[groups["accuracy"].idxmax()].reset_index(drop=True)
    best["lrs"] = groups["lr"].nunique().to_numpy()
    if "over_lr" in table:
        mean = best["over_lr"] == "mean"
        for column in ["accuracy", *(column for column, _, _ in segments_of(table))]:
            best[column] = best[column].mask(mean, groups[column].mean().to_numpy())
        best["lr"] = best["lr"].mask(mean)
    return best


def over_seeds(runs: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Mean and range of `accuracy` over seeds, the fraction of runs that learned, and the least
    number of learning rates that any seed chose from."""
    groups = runs.groupby([*LINE, *by], sort=False)
    result = groups["accuracy"].agg(["mean", "min", "max"]).add_prefix("accuracy_")
    result["seeds"] = groups["seed"].nunique()
    if "lrs" in runs:
        result["lrs"] = groups["lrs"].min()
    result[f"fraction_above_{LEARNED}"] = groups["accuracy"].agg(lambda x: (x > LEARNED).mean())
    result["state_bytes"] = groups["state_bytes"].first()
    return result.reset_index()


def conditions(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Every (seq_len, kv_pairs) of the grid, in order."""
    places = table[CONDITION].drop_duplicates().sort_values(CONDITION)
    return [dict(zip(CONDITION, row, strict=True)) for row in places.itertuples(index=False)]


def segments_of(table: pd.DataFrame) -> list[tuple[str, int, int]]:
    """Of a test's segments the accuracies' columns, seq_len and kv_pairs; none where a test has
    one."""
    found = [(name, re.fullmatch(r"accuracy_(\d+)_(\d+)", str(name))) for name in table.columns]
    return [(name, int(match[1]), int(match[2])) for name, match in found if match]


def of_all_rates(means: pd.DataFrame) -> pd.Series:
    """Which points no other of their series was chosen from more learning rates than."""
    return means["lrs"] == means.groupby("series")["lrs"].transform("max")


def sheet_of(
    table: pd.DataFrame,
    count: int,
    *,
    height_in: float,
    columns: int | None = None,
    share: bool = True,
) -> Sheet:
    """Of `count` panels, with what could not be drawn below them."""
    note = not_drawn(table, AXES)
    return Sheet(count, height_in=height_in, columns=columns, note=note, share=share)


def accuracy_text(value: float) -> str:
    """As tables have it."""
    return f"{value:.3f}"


def selection(table: pd.DataFrame) -> str:
    """The caption's sentence on how a run was chosen."""
    rule = setting(table, "over_lr", "{}") or "max"
    return f"For every seed the {rule} over {rates_told(table)}."


def rates_told(table: pd.DataFrame) -> str:
    """The learning rates that accuracies are chosen from, and where some are missing, that."""
    rates = ", ".join(f"{rate:.3g}" for rate in sorted(table["lr"].unique()))
    fewest = selected(table)["lrs"].min()
    if fewest == table["lr"].nunique():
        return f"learning rates {rates}"
    return f"those of learning rates {rates} that have a result, at some points {fewest} (`lrs`)"


def common(table: pd.DataFrame) -> str:
    """The caption's last sentences: what all runs share."""
    parts = [
        setting(table, "report", "Accuracy of the {} epoch."),
        f"Runs with seeds {spoken(table['seed'])}.",
        setting(table, "protocol", "Protocol {}."),
        setting(table, "n_layers", "{} layers."),
        setting(table, "vocab_size", "Vocabulary {}."),
        origin(table),
    ]
    return joined(parts)
