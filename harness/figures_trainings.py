"""What MQAR's trainings took of a GPU: how many of them it makes an hour, over model width."""

from __future__ import annotations

import pandas as pd

from harness.curves import Cost, curves
from harness.figures_recall import AXES
from harness.plot import LINE, Plot
from harness.series import origin, pages, setting, with_series

KIND = ["precision", "seq_len", "kv_pairs"]
RATE = Cost(
    KIND, "d_model", "Model width", "trainings_an_hour", "Trainings an hour", frontier=False
)


def trainings_an_hour(table: pd.DataFrame) -> dict[str, Plot]:
    """For trainings on a GPU, those that had it alone and those side by side apart: how many of
    them one GPU makes an hour. The frame has `train_s`, the seconds of a training and of what
    trained beside it in its process, and `pack`, how many began there."""
    plots: dict[str, Plot] = {}
    table = table[table["device_type"] == "cuda"]
    if not {"train_s", "pack"} <= set(table):
        return plots
    for packed, cells in table.groupby(table["pack"] > 1):
        if not cells["train_s"].notna().any():
            continue
        cells = cells.assign(gpu_s=cells["train_s"] / cells["pack"])
        cells = cells.assign(trainings_an_hour=3600 / cells["gpu_s"])
        cells = with_series(cells, AXES, apart=["protocol"], devices="device_type")
        for suffix, page in pages(cells):
            name = f"trainings_an_hour{'_packed' if packed else ''}{suffix}"
            plots[name] = _plot(page, packed=bool(packed))
    return plots


def _plot(table: pd.DataFrame, *, packed: bool) -> Plot:
    ran = table[table["gpu_s"].notna()]
    lines = ran.groupby([*LINE, *KIND, "d_model"], sort=False).agg(
        trainings=("gpu_s", "size"),
        gpu_s=("gpu_s", "sum"),
        trainings_an_hour_min=("trainings_an_hour", "min"),
        trainings_an_hour_max=("trainings_an_hour", "max"),
    )
    lines = lines.assign(
        trainings_an_hour=3600 * lines["trainings"] / lines["gpu_s"], trials=lines["trainings"]
    ).reset_index()
    how, share = "each alone on its GPU", ""
    if packed:
        how = f"{_packs(ran)} side by side in one process"
        share = "Of a training beside others its share counts, as if all had stopped at once."
    sentences = [
        f"Trainings that one GPU makes an hour, {how}: how many there are by the time that they "
        "took together, evaluations, and what a worker's first one compiles, included. Some stop "
        "early, so it depends on what is learned. Points: trainings by themselves.",
        share,
        *(_total(name, cells) for name, cells in ran.groupby("series", sort=False)),
        "×: out of memory." if "oom" in set(table["status"]) else "",
        setting(table, "protocol", "Protocol {}."),
        setting(table, "epochs", "At most {} epochs."),
        origin(ran),
    ]
    return curves(table, lines, RATE, sentences)


def _packs(table: pd.DataFrame) -> str:
    return " or ".join(str(int(pack)) for pack in sorted(table["pack"].unique()))


def _total(series: object, cells: pd.DataFrame) -> str:
    hours = cells["gpu_s"].sum() / 3600
    return f"{series}: {len(cells)} in {hours:.3g} GPU-hours, {len(cells) / hours:.3g} an hour."
