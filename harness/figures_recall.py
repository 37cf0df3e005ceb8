"""Figures of MQAR grids: accuracy over width, over learning rate, over state size, as a map."""

from __future__ import annotations

import re
from typing import Any

import pandas as pd
import seaborn
from matplotlib.axes import Axes

from harness.plot import LINE, Plot, at, draw_lines, summary
from harness.series import joined, marks, not_drawn, origin, pages, setting, spoken, with_series
from harness.sheet import Sheet, binary_ticks, log_limits, rate_ticks, value_ticks
from harness.style import GREY, styled

LEARNED = 0.9
"""A run above this accuracy counts as one that learned."""
CONDITION = ["seq_len", "kv_pairs"]
AXES = [*CONDITION, "d_model", "lr", "seed"]
MOST_IN_NARROW_MAP = 4
"""Numbers in a row of a map that a quarter of a page has room for."""


def mqar(table: pd.DataFrame) -> dict[str, Plot]:
    """Every figure that the frame of an MQAR grid has the numbers for."""
    plots: dict[str, Plot] = {}
    if "accuracy" not in table or not table["accuracy"].notna().any():
        return plots
    # Our variants are lines of their own, by the label of their protocol.
    table = with_series(table, AXES, apart=["protocol"], devices="device_type")
    for suffix, page in pages(table):
        with styled():
            plots[f"accuracy_over_width{suffix}"] = over_width(page)
            if page["lr"].nunique() > 1:
                plots[f"accuracy_over_lr{suffix}"] = over_lr(page)
            plots[f"accuracy_over_state{suffix}"] = over_state(page)
            cells = by_difficulty(page)
            if len(cells[CONDITION].drop_duplicates()) > 1:
                plots[f"accuracy_map{suffix}"] = accuracy_map(page, cells)
    return plots


def selected(table: pd.DataFrame) -> pd.DataFrame:
    """One row for each series, condition, width and seed: the run with the highest accuracy over
    learning rates, and `lrs`, how many of them gave a result. Where the setting `over_lr` is
    "mean", `accuracy` is the mean over them and `lr` is empty."""
    ran = table[table["accuracy"].notna()]
    groups = ran.groupby([*LINE, *CONDITION, "d_model", "seed"], sort=False)
    best = ran.loc[groups["accuracy"].idxmax()].reset_index(drop=True)
    best["lrs"] = groups["lr"].nunique().to_numpy()
    if "over_lr" in table:
        mean = best["over_lr"] == "mean"
        best["accuracy"] = best["accuracy"].mask(mean, groups["accuracy"].mean().to_numpy())
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


def over_width(table: pd.DataFrame) -> Plot:
    """Accuracy over model width, a panel for each (seq_len, kv_pairs)."""
    chosen = selected(table)
    means = over_seeds(chosen, [*CONDITION, "d_model"])
    rates = chosen.groupby([*LINE, *CONDITION, "d_model"])["lr"].agg(_rates).rename("lr_chosen")
    means = means.merge(rates.reset_index(), sort=False)
    whole = _of_all_rates(means)
    places, widths = conditions(table), table["d_model"].unique()
    sheet = _sheet(table, len(places), height_in=1.85)
    for i, (ax, place) in enumerate(zip(sheet.axes, places, strict=True)):
        lines, runs = at(means, place), (at(chosen, place), "accuracy")
        looks = marks(table)
        ends = draw_lines(ax, looks, lines, "d_model", "accuracy_mean", points=runs, whole=whole)
        _accuracy_axis(ax, table, place)
        ax.set(title=_title(table, place), xscale="log", xlim=log_limits(widths))
        value_ticks(ax.xaxis, widths)
        sheet.axis_names(i, x="Model width", y="Accuracy")
        if sheet.last_of_row(i):
            sheet.label(ax, ends)
    caption = (
        f"MQAR accuracy over model width. {_selection(table)} {_lines(table)} {_hollow(whole)}"
        f"{_common(table)}"
    )
    rows = summary(means, table, [*CONDITION, "d_model"], "accuracy_mean", write=_accuracy)
    return Plot(sheet.finish(), caption, means, rows)


def over_lr(table: pd.DataFrame) -> Plot:
    """Accuracy over the learning rate: rows of panels by (seq_len, kv_pairs), columns by width."""
    ran = table[table["accuracy"].notna()]
    means = over_seeds(ran, [*CONDITION, "d_model", "lr"])
    widths = sorted(table["d_model"].unique())
    places = [place | {"d_model": width} for place in conditions(table) for width in widths]
    sheet = _sheet(table, len(places), height_in=1.5, columns=len(widths))
    for i, (ax, place) in enumerate(zip(sheet.axes, places, strict=True)):
        runs = at(ran, place), "accuracy"
        ends = draw_lines(ax, marks(table), at(means, place), "lr", "accuracy_mean", points=runs)
        _accuracy_axis(ax, table, place)
        ax.set(xscale="log", xlim=log_limits(table["lr"].unique()))
        rate_ticks(ax.xaxis, table["lr"].unique())
        if i < len(widths):
            ax.set_title(f"Width {place['d_model']}")
        name = _title(table, place).replace(", ", "\n")
        sheet.axis_names(i, x="Learning rate", y=f"{name}\nAccuracy")
        if sheet.last_of_row(i):
            sheet.label(ax, ends)
    caption = f"MQAR accuracy over the learning rate. {_lines(table)} {_common(table)}"
    rows = summary(means, table, [*CONDITION, "d_model", "lr"], "accuracy_mean", write=_accuracy)
    return Plot(sheet.finish(), caption, means, rows)


def over_state(table: pd.DataFrame) -> Plot:
    """Accuracy over the bytes held to decode one sequence; the front is the best within a size."""
    chosen = selected(table)
    means = over_seeds(chosen, [*CONDITION, "d_model"])
    whole = _of_all_rates(means)
    places = conditions(table)
    sheet = _sheet(table, len(places), height_in=1.85)
    for i, (ax, place) in enumerate(zip(sheet.axes, places, strict=True)):
        lines, runs = at(means, place), (at(chosen, place), "accuracy")
        front = lines.sort_values(["state_bytes", "accuracy_mean"])
        ax.plot(
            front["state_bytes"],
            front["accuracy_mean"].cummax(),
            drawstyle="steps-post",
            color="#d0d0d0",
            linewidth=3.5,
            zorder=1,
        )
        looks = marks(table)
        ends = draw_lines(
            ax, looks, lines, "state_bytes", "accuracy_mean", points=runs, whole=whole
        )
        _accuracy_axis(ax, table, place)
        ax.set(title=_title(table, place), xscale="log", xlim=log_limits(means["state_bytes"]))
        binary_ticks(ax.xaxis)
        sheet.axis_names(i, x="State (bytes)", y="Accuracy")
        if sheet.last_of_row(i):
            sheet.label(ax, ends)
    caption = (
        "MQAR accuracy over state size: what all layers hold to decode one sequence, in fp32 "
        "(k = 1024). "
        f"A line joins the widths of one mixer ({spoken(table['d_model'])}); the grey front is "
        f"the best mean accuracy within a size. {_selection(table)} {_lines(table)} "
        f"{_hollow(whole)}{_common(table)}"
    )
    rows = means[["series", *CONDITION, "d_model", "state_bytes", "accuracy_mean"]]
    return Plot(sheet.finish(), caption, means, rows)


def by_difficulty(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy by series, width, seq_len and kv_pairs, which are a grid's cells or the segments of
    one test (`accuracy_<seq_len>_<kv_pairs>`)."""
    chosen = selected(table)
    if segments := _segments(table):
        parts = [
            chosen.assign(seq_len=seq_len, kv_pairs=kv_pairs, accuracy=chosen[column])
            for column, seq_len, kv_pairs in segments
        ]
        chosen = pd.concat(parts).dropna(subset=["accuracy"])
    return over_seeds(chosen, [*CONDITION, "d_model"])


def accuracy_map(table: pd.DataFrame, cells: pd.DataFrame) -> Plot:
    """A heat map of accuracy, series by (seq_len, kv_pairs), a panel for each width."""
    looks, places = marks(table), conditions(cells)
    widths = sorted(cells["d_model"].unique())
    columns = 2 if len(places) > MOST_IN_NARROW_MAP and len(widths) > 1 else None
    height_in = 0.65 + 0.17 * len(looks)
    sheet = _sheet(table, len(widths), height_in=height_in, columns=columns, share=False)
    for i, (ax, width) in enumerate(zip(sheet.axes, widths, strict=True)):
        grid = at(cells, {"d_model": width}).pivot(
            index="series", columns=CONDITION, values="accuracy_mean"
        )
        seaborn.heatmap(
            grid.reindex(index=list(looks), columns=[tuple(place.values()) for place in places]),
            ax=ax,
            vmin=0,
            vmax=1,
            cmap="cividis",
            annot=True,
            fmt=".2f",
            annot_kws={"fontsize": 7},
            cbar=False,
            linewidths=0.5,
            xticklabels=["\n".join(map(str, place.values())) for place in places],
            yticklabels=list(looks) if i % sheet.columns == 0 else False,
        )
        ax.grid(visible=False)
        ax.set(title=f"Width {width}", xlabel="", ylabel="")
        ax.tick_params(length=0, labelrotation=0)
        sheet.axis_names(i, x="Tokens, pairs", y="")
    caption = (
        "MQAR accuracy by sequence length and number of key-value pairs, a panel for each width; "
        "the number in a cell is the mean over seeds, an empty one has no result. "
        f"{_selection(table)} {_common(table)}"
    )
    by = [*CONDITION, "d_model"]
    rows = summary(cells, cells.assign(status="ok"), by, "accuracy_mean", write=_accuracy)
    return Plot(sheet.finish(), caption, cells, rows)


def conditions(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Every (seq_len, kv_pairs) of the grid, in order."""
    places = table[CONDITION].drop_duplicates().sort_values(CONDITION)
    return [dict(zip(CONDITION, row, strict=True)) for row in places.itertuples(index=False)]


def _segments(table: pd.DataFrame) -> list[tuple[str, int, int]]:
    found = [(name, re.fullmatch(r"accuracy_(\d+)_(\d+)", str(name))) for name in table.columns]
    return [(name, int(match[1]), int(match[2])) for name, match in found if match]


def _sheet(
    table: pd.DataFrame,
    count: int,
    *,
    height_in: float,
    columns: int | None = None,
    share: bool = True,
) -> Sheet:
    note = not_drawn(table, AXES)
    return Sheet(count, height_in=height_in, columns=columns, note=note, share=share)


def _accuracy_axis(ax: Axes, table: pd.DataFrame, place: dict[str, Any]) -> None:
    ax.set(ylim=(-0.03, 1.03), yticks=(0, 0.25, 0.5, 0.75, 1))
    # Over several test segments chance is no one number.
    if not _segments(table):
        ax.axhline(1 / place["kv_pairs"], color=GREY, linestyle=(0, (1, 2)), linewidth=0.9)


def _title(table: pd.DataFrame, place: dict[str, Any]) -> str:
    if segments := _segments(table):
        return f"{len(segments)} test segments"
    return f"{place['seq_len']} tokens, {place['kv_pairs']} pairs"


def _accuracy(value: float) -> str:
    return f"{value:.3f}"


def _rates(rates: pd.Series) -> str:
    return ", ".join(f"{rate:.3g}" for rate in sorted(rates.dropna().unique()))


def _lines(table: pd.DataFrame) -> str:
    """How runs, means and chance are drawn over a scale."""
    chance = "" if _segments(table) else " Dotted: chance, 1 / pairs."
    return f"Small points: runs; line: their mean.{chance}"


def _selection(table: pd.DataFrame) -> str:
    rule = setting(table, "over_lr", "{}") or "max"
    return f"For every seed the {rule} over {rates_told(table)}."


def _of_all_rates(means: pd.DataFrame) -> pd.Series:
    """Which points no other of their series was chosen from more learning rates than."""
    return means["lrs"] == means.groupby("series")["lrs"].transform("max")


def _hollow(whole: pd.Series) -> str:
    return "Hollow and pale: fewer learning rates than others of a line. " * (not whole.all())


def rates_told(table: pd.DataFrame) -> str:
    """The learning rates that accuracies are chosen from, and where some are missing, that."""
    rates = ", ".join(f"{rate:.3g}" for rate in sorted(table["lr"].unique()))
    fewest = selected(table)["lrs"].min()
    if fewest == table["lr"].nunique():
        return f"learning rates {rates}"
    return f"those of learning rates {rates} that have a result, at some points {fewest} (`lrs`)"


def _common(table: pd.DataFrame) -> str:
    parts = [
        setting(table, "report", "Accuracy of the {} epoch."),
        f"Runs with seeds {spoken(table['seed'])}.",
        setting(table, "protocol", "Protocol {}."),
        setting(table, "n_layers", "{} layers."),
        setting(table, "vocab_size", "Vocabulary {}."),
        origin(table),
    ]
    return joined(parts)
