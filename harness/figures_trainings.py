"""What MQAR's trainings took of a GPU: how many of them it makes an hour, over model width."""

from __future__ import annotations

import pandas as pd

from harness.curves import Cost, curves
from harness.plot import LINE, Plot
from harness.recall_frames import AXES
from harness.series import origin, pages, setting, with_series

KIND = ["precision", "seq_len", "kv_pairs"]
RATE = Cost(
    KIND, "d_model", "Model width", "trainings_an_hour", "Trainings an hour", frontier=False
)


def trainings_an_hour(table: pd.DataFrame) -> dict[str, Plot]:
    """How many trainings a GPU makes an hour, each device by itself, of those that had a process
    to themselves; what failed is told. The frame has `train_s`, a training's seconds, and `pack`,
    how many its process trained at once."""
    table = table[table["device_type"] == "cuda"]
    if not {"train_s", "pack"} <= set(table):
        return {}
    # What failed has no pack.
    table = table[table["pack"].isna() | (table["pack"] == 1)]
    if not table["train_s"].notna().any():
        return {}
    table = table.assign(trainings_an_hour=3600 / table["train_s"])
    table = with_series(table, [*AXES, "precision"], told=["protocol", "device"])
    return {f"trainings_an_hour{suffix}": _plot(page) for suffix, page in pages(table)}


def _plot(table: pd.DataFrame) -> Plot:
    ran = table[table["train_s"].notna()]
    lines = ran.groupby([*LINE, *KIND, "d_model"], sort=False).agg(
        trainings=("train_s", "size"),
        train_s=("train_s", "sum"),
        trainings_an_hour_min=("trainings_an_hour", "min"),
        trainings_an_hour_max=("trainings_an_hour", "max"),
    )
    lines = lines.assign(
        trainings_an_hour=3600 * lines["trainings"] / lines["train_s"], trials=lines["trainings"]
    ).reset_index()
    sentences = [
        "Trainings that one GPU makes an hour, of those that had a process to themselves (whether "
        "another process had the same GPU is not looked at): how many there are by the time "
        "that they took together. Evaluations and what a worker's first one compiles are "
        "included, making data and model is not. Some stop early, so it depends on what is "
        "learned, and on which learning rates have run there. Points: trainings by themselves.",
        *(_total(name, cells) for name, cells in ran.groupby("series", sort=False)),
        "×: out of memory." if "oom" in set(table["status"]) else "",
        setting(table, "protocol", "Protocol {}."),
        setting(table, "epochs", "At most {} epochs."),
        origin(ran),
    ]
    return curves(table, lines, RATE, sentences)


def _total(series: object, cells: pd.DataFrame) -> str:
    hours = cells["train_s"].sum() / 3600
    return f"{series}: {len(cells)} in {hours:.3g} GPU-hours, {len(cells) / hours:.3g} an hour."
