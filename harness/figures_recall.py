"""Figures of MQAR grids: accuracy over width, over learning rate, over state size."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from harness.figures_map import accuracy_map, by_difficulty
from harness.plot import LINE, Plot, at, draw_lines, summary
from harness.recall_frames import (
    AXES,
    CONDITION,
    accuracy_text,
    common,
    conditions,
    of_all_rates,
    over_seeds,
    segments_of,
    selected,
    selection,
    sheet_of,
)
from harness.series import marks, pages, spoken, with_series
from harness.sheet import binary_ticks, log_limits, rate_ticks, value_ticks
from harness.style import GREY, styled


def mqar(table: pd.DataFrame) -> dict[str, Plot]:
    """Every figure that the frame of an MQAR grid has the numbers for."""
    plots: dict[str, Plot] = {}
    if "accuracy" not in table or not table["accuracy"].notna().any():
        return plots
    # Our variants are lines of their own, by the label of their protocol.
    table = with_series(table, AXES, told=["protocol"], devices="device_type")
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


def over_width(table: pd.DataFrame) -> Plot:
    """Accuracy over model width, a panel for each (seq_len, kv_pairs)."""
    chosen = selected(table)
    means = over_seeds(chosen, [*CONDITION, "d_model"])
    rates = chosen.groupby([*LINE, *CONDITION, "d_model"])["lr"].agg(_rates).rename("lr_chosen")
    means = means.merge(rates.reset_index(), sort=False)
    whole = of_all_rates(means)
    places, widths = conditions(table), table["d_model"].unique()
    sheet = sheet_of(table, len(places), height_in=1.85)
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
        f"MQAR accuracy over model width. {selection(table)} {_lines(table)} {_hollow(whole)}"
        f"{common(table)}"
    )
    rows = summary(means, table, [*CONDITION, "d_model"], "accuracy_mean", write=accuracy_text)
    return Plot(sheet.finish(), caption, means, rows)


def over_lr(table: pd.DataFrame) -> Plot:
    """Accuracy over the learning rate: rows of panels by (seq_len, kv_pairs), columns by width."""
    ran = table[table["accuracy"].notna()]
    means = over_seeds(ran, [*CONDITION, "d_model", "lr"])
    widths = sorted(table["d_model"].unique())
    places = [place | {"d_model": width} for place in conditions(table) for width in widths]
    sheet = sheet_of(table, len(places), height_in=1.5, columns=len(widths))
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
    caption = f"MQAR accuracy over the learning rate. {_lines(table)} {common(table)}"
    rows = summary(
        means, table, [*CONDITION, "d_model", "lr"], "accuracy_mean", write=accuracy_text
    )
    return Plot(sheet.finish(), caption, means, rows)


def over_state(table: pd.DataFrame) -> Plot:
    """Accuracy over the bytes held to decode one sequence; the front is the best within a size."""
    chosen = selected(table)
    means = over_seeds(chosen, [*CONDITION, "d_model"])
    whole = of_all_rates(means)
    places = conditions(table)
    sheet = sheet_of(table, len(places), height_in=1.85)
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
        f"A line joins one mixer's widths ({spoken(table['d_model'])}); grey: the best mean "
        f"accuracy within a size. {selection(table)} {_lines(table)} "
        f"{_hollow(whole)}{common(table)}"
    )
    rows = means[["series", *CONDITION, "d_model", "state_bytes", "accuracy_mean"]]
    return Plot(sheet.finish(), caption, means, rows)


def _accuracy_axis(ax: Axes, table: pd.DataFrame, place: dict[str, Any]) -> None:
    ax.set(ylim=(-0.03, 1.03), yticks=(0, 0.25, 0.5, 0.75, 1))
    # Over several test segments chance is no one number.
    if not segments_of(table):
        ax.axhline(1 / place["kv_pairs"], color=GREY, linestyle=(0, (1, 2)), linewidth=0.9)


def _title(table: pd.DataFrame, place: dict[str, Any]) -> str:
    if segments := segments_of(table):
        return f"{len(segments)} test segments"
    return f"{place['seq_len']} tokens, {place['kv_pairs']} pairs"


def _rates(rates: pd.Series) -> str:
    return ", ".join(f"{rate:.3g}" for rate in sorted(rates.dropna().unique()))


def _lines(table: pd.DataFrame) -> str:
    """How runs, means and chance are drawn."""
    chance = "" if segments_of(table) else " Dotted: chance, 1 / pairs."
    return f"Small points: runs; large ones: their mean.{chance}"


def _hollow(whole: pd.Series) -> str:
    return "Hollow and pale: fewer learning rates than others of a line. " * (not whole.all())
