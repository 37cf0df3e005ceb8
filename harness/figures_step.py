"""Figures of MQAR's training step: its time, whole trainings an hour and memory, over width, next
to those of zoology's own trainer."""

from __future__ import annotations

import pandas as pd

from harness.curves import Cost, curves, medians
from harness.figures_speed import by_page
from harness.plot import Plot
from harness.published import published
from harness.series import origin, spoken

KIND = ["precision", "seq_len", "kv_pairs"]
WAY = ["engine", "pack", "compiled", "steps_together", "fused_loss"]
AXES = [*KIND, *WAY, "batch", "test_batch", "d_model", "expand_ratio", "seed", "trial"]
THEIRS = "zoology"
COSTS = {
    "step_time": Cost(KIND, "d_model", "Model width", "step_ms_per_model", "Step, a model (ms)"),
    "runs_an_hour": Cost(
        KIND, "d_model", "Model width", "runs_per_hour", "Trainings an hour", frontier=False
    ),
    "peak_memory": Cost(KIND, "d_model", "Model width", "peak_mib", "Peak memory (MiB)"),
}


def mqar_step(table: pd.DataFrame) -> dict[str, Plot]:
    """For each way to train (engine, models side by side, compiled, fused loss, steps launched at
    once) every cost that was measured."""
    plots: dict[str, Plot] = {}
    for (engine, pack, compiled, together, fused), cells in table.groupby(WAY):
        way = f"{engine}_{pack}{'_compiled' if compiled else ''}"
        way += "" if together == 1 else f"_{together}_steps"
        way += "_fused_loss" if fused else ""
        if not cells["status"].eq("ok").any():
            continue
        beside = pd.concat([cells, _theirs(cells)], ignore_index=True)
        for suffix, page, _ in by_page(beside, AXES):
            for name, cost in COSTS.items():
                if cost.y in page and page[cost.y].notna().any():
                    drawn = page[page[cost.y].notna() | (page["status"] != "ok")]
                    plots[f"{name}_{way}{suffix}"] = _plot(drawn, cost)
    return plots


def _plot(table: pd.DataFrame, cost: Cost) -> Plot:
    lines = medians(table, cost)
    ours = table[table["impl"] != THEIRS]
    engine, pack = ours["engine"].iloc[0], int(ours["pack"].iloc[0])
    alone = "one model alone" if pack == 1 else f"{pack} models side by side"
    compiled = ", the loss compiled" if ours["compiled"].iloc[0] else ""
    fused = ", head and cross-entropy fused" if ours["fused_loss"].iloc[0] else ""
    together = int(ours["steps_together"].iloc[0])
    together = f", {together} steps launched at once" if together > 1 else ""
    sentences = [
        f"{cost.y_name} over model width, engine {engine}{compiled}{fused}{together}, {alone}.",
        f"Batch by length: {_batches(ours)}. Two layers, vocabulary 8192; a training is 64 epochs "
        "of 100,000 rows, evaluations included, none stopped early.",
        _faster(lines) if cost.y == "step_ms_per_model" else "",
        "zoology, and Based: zoology's own trainer, one model alone in fp32 on one H100 80GB with "
        "torch 2.11 (results/published).",
        "×: out of memory." if "oom" in set(table["status"]) else "",
        origin(ours),
    ]
    return curves(table, lines, cost, sentences)


def _theirs(cells: pd.DataFrame) -> pd.DataFrame:
    """zoology's numbers as rows of this frame, at the shapes that it has in fp32."""
    rows = published("zoology_speed").rename(columns={"step_ms": "step_ms_per_model"})
    rows["runs_per_hour"] = 3600 / rows.pop("run_s")
    rows["peak_mib"] = rows.pop("peak_gb") * 1e9 / 2**20
    same = ["seq_len", "kv_pairs", "d_model"]
    measured = cells.loc[cells["precision"] == "fp32", same].drop_duplicates()
    alike = {name: cells[name].iloc[0] for name in ("device", "device_type", *WAY)}
    return rows.merge(measured, on=same).assign(
        impl=THEIRS, precision="fp32", status="ok", trial=cells["trial"].iloc[0], **alike
    )


def _batches(table: pd.DataFrame) -> str:
    sizes = table[["seq_len", "batch"]].drop_duplicates().sort_values("seq_len")
    return ", ".join(f"{batch} at {seq_len}" for seq_len, batch in sizes.itertuples(index=False))


def _faster(lines: pd.DataFrame) -> str:
    """How many times less time attention takes here than there, at the shapes that both have."""
    place = [*KIND, "d_model"]
    both = lines[lines["mixer"] == "attention"]
    ours, theirs = (
        both[(both["impl"] == THEIRS) == is_theirs].set_index(place)["step_ms_per_model"]
        for is_theirs in (False, True)
    )
    ratio = (theirs / ours).dropna()
    if ratio.empty:
        return ""
    times = f"{ratio.min():.3g} to {ratio.max():.3g}" if len(ratio) > 1 else f"{ratio.min():.3g}"
    shapes = f"{len(ratio)} shapes, widths" if len(ratio) > 1 else "1 shape, width"
    return (
        f"Attention's step takes {times} times less time than zoology's in fp32 "
        f"({shapes} {spoken(ratio.reset_index()['d_model'])})."
    )
