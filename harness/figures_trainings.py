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
    """How many trainings a GPU makes an hour, each device by itself, those of packs apart from
    those alone; what failed is told. The frame has `train_s`, a training's seconds, and `pack`,
    how many its process trained at once: each of them took its share of the GPU's time."""
    table = table[table["device_type"] == "cuda"]
    if not {"train_s", "pack"} <= set(table) or not table["train_s"].notna().any():
        return {}
    table = table.assign(
        gpu_s=table["train_s"] / table["pack"],
        # What failed has no pack.
        packing=table["pack"].gt(1).map({True: "in packs", False: "alone"}),
    )
    table = table.assign(trainings_an_hour=3600 / table["gpu_s"])
    table = with_series(table, [*AXES, "precision"], told=["protocol", "packing", "device"])
    return {f"trainings_an_hour{suffix}": _plot(page) for suffix, page in pages(table)}


def _plot(table: pd.DataFrame) -> Plot:
    ran = table[table["train_s"].notna()]
    lines = ran.groupby([*LINE, *KIND, "d_model"], sort=False).agg(
        trainings=("train_s", "size"),
        gpu_s=("gpu_s", "sum"),
        trainings_an_hour_min=("trainings_an_hour", "min"),
        trainings_an_hour_max=("trainings_an_hour", "max"),
    )
    lines = lines.assign(
        trainings_an_hour=3600 * lines["trainings"] / lines["gpu_s"], trials=lines["trainings"]
    ).reset_index()
    sentences = [
        "Trainings that one GPU makes an hour (whether another process had the same GPU is not "
        "looked at): how many there are by the time that they took together, a pack's shared "
        "among its models. Evaluations and what a worker's first one compiles are included, "
        "making data and model is not. Some stop early, so it depends on what is learned, and on "
        "which learning rates have run there. Points: single trainings.",
        *(_total(name, cells) for name, cells in ran.groupby("series", sort=False)),
        "×: out of memory." if "oom" in set(table["status"]) else "",
        setting(table, "protocol", "Protocol {}."),
        setting(table, "epochs", "At most {} epochs."),
        origin(ran),
    ]
    return curves(table, lines, RATE, sentences)


def _total(series: object, cells: pd.DataFrame) -> str:
    hours = cells["gpu_s"].sum() / 3600
    return f"{series}: {len(cells)} in {hours:.3g} GPU-hours, {len(cells) / hours:.3g} an hour."
