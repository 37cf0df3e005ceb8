"""A heat map of MQAR accuracy over (seq_len, kv_pairs)."""

from __future__ import annotations

import pandas as pd
import seaborn

from harness.plot import Plot, at, summary
from harness.recall_frames import (
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
from harness.series import joined, marks

MOST_IN_NARROW_MAP, LONGEST_BY_NARROW_MAP, MOST_WRITTEN = 4, 24, 8
"""What a map of a quarter of a page has room for, numbers in a row and letters of a label, and how
many numbers one of half a page has."""


def by_difficulty(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy by series, width, seq_len and kv_pairs, which are a grid's cells or the segments of
    one test (`accuracy_<seq_len>_<kv_pairs>`)."""
    chosen = selected(table)
    if segments := segments_of(table):
        parts = [
            chosen.assign(seq_len=seq_len, kv_pairs=kv_pairs, accuracy=chosen[column])
            for column, seq_len, kv_pairs in segments
        ]
        chosen = pd.concat(parts).dropna(subset=["accuracy"])
    return over_seeds(chosen, [*CONDITION, "d_model"])


def accuracy_map(table: pd.DataFrame, cells: pd.DataFrame) -> Plot:
    """A heat map of accuracy, series by (seq_len, kv_pairs), a panel for each width."""
    looks, places = list(marks(table)), conditions(cells)
    widths = sorted(cells["d_model"].unique())
    narrow = len(places) <= MOST_IN_NARROW_MAP and max(map(len, looks)) <= LONGEST_BY_NARROW_MAP
    columns = None if narrow or len(widths) == 1 else 2
    height_in = 0.85 + 0.17 * len(looks)
    sheet = sheet_of(table, len(widths), height_in=height_in, columns=columns, share=False)
    whole = of_all_rates(cells)
    written = cells["accuracy_mean"].map("{:.2f}".format) + whole.map({True: "", False: "°"})
    for i, (ax, width) in enumerate(zip(sheet.axes, widths, strict=True)):
        numbers, texts = (
            at(cells.assign(shown=shown), {"d_model": width})
            .pivot(index="series", columns=CONDITION, values="shown")
            .reindex(index=looks, columns=[tuple(place.values()) for place in places])
            for shown in (cells["accuracy_mean"], written)
        )
        seaborn.heatmap(
            numbers,
            ax=ax,
            vmin=0,
            vmax=1,
            cmap="cividis",
            annot=texts if len(places) <= MOST_WRITTEN else None,
            fmt="",
            annot_kws={"fontsize": 7},
            cbar=False,
            linewidths=0.5,
            xticklabels=["\n".join(map(str, place.values())) for place in places],
            yticklabels=looks if i % sheet.columns == 0 else False,
        )
        ax.grid(visible=False)
        ax.set(title=f"Width {width}", xlabel="", ylabel="")
        ax.tick_params(length=0, labelrotation=0)
        sheet.axis_names(i, x="Tokens, pairs", y="")
    segments = segments_of(table)
    said = [
        "MQAR accuracy by sequence length and number of key-value pairs, a panel for each width; "
        "the mean over seeds, empty where there is no result.",
        selection(table),
        "Segments of the run that is best over all of them." * bool(segments),
        "°: of fewer learning rates than others of its row." * (not whole.all()),
        common(table),
    ]
    ran = cells.assign(status="ok") if segments else table
    rows = summary(cells, ran, [*CONDITION, "d_model"], "accuracy_mean", write=accuracy_text)
    return Plot(sheet.finish(), joined(said), cells, rows)
