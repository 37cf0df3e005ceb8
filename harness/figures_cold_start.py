"""The figure of cold starts: what a user waits for, part by part, a bar for each series."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from harness.curves import LEVELS
from harness.figures_speed import by_page
from harness.plot import LINE, Plot, summary
from harness.series import joined, marks, not_drawn, origin, setting
from harness.sheet import Sheet
from harness.style import significant, styled

PARTS = {
    "interpreter_s": ("Python and torch", "#d9d9d9"),
    "import_s": ("the implementation's imports", "#969696"),
    "device_s": ("the GPU's start", "#525252"),
    "forward_s": ("first forward", ""),
    "backward_s": ("first backward", ""),
}
"""Column -> its name and colour; the last two have their series' colour, the forward paler."""
ALPHA = {"forward_s": 0.5}
BAR_IN, AROUND_IN = 0.22, 0.75


def cold_start(table: pd.DataFrame) -> dict[str, Plot]:
    """Seconds from a fresh process to the first forward and backward."""
    pages = by_page(table, ["level", "mode", "trial", "seed"])
    return {f"cold_start{suffix}": _bars(page) for suffix, page, _ in pages}


def _bars(table: pd.DataFrame) -> Plot:
    ran = table[table["status"] == "ok"]
    groups = ran.groupby([*LINE, "level"], sort=False)
    found = groups[["cold_start_s", *PARTS]].median()
    found["cold_start_s_min"] = groups["cold_start_s"].min()
    found["cold_start_s_max"] = groups["cold_start_s"].max()
    found["trials"] = groups.size()
    found = found.reset_index()
    levels = [level for level in LEVELS if level in set(found["level"])]
    labels = list(marks(table))
    with styled():
        sheet = Sheet(
            len(levels),
            height_in=AROUND_IN + BAR_IN * len(labels),
            columns=1,
            note=not_drawn(table, ["level", "trial"]),
        )
        for i, (ax, level) in enumerate(zip(sheet.axes, levels, strict=True)):
            _panel(ax, found[found["level"] == level], table)
            ax.set_title(LEVELS[level])
            sheet.axis_names(i, x="Seconds from a fresh process", y="")
        figure = sheet.finish()
    said = [
        "Time from the start of a fresh process with empty kernel caches to the end of the first "
        "forward and backward.",
        _repeated(found),
        "Parts, from the left: " + ", ".join(name for name, _ in PARTS.values()) + " (the first "
        "forward compiles and tunes its kernels; the backward has one more forward in it).",
        setting(table, "batch", "Batch {}."),
        setting(table, "seq_len", "Length {}."),
        setting(table, "d_model", "Width {}."),
        origin(table),
    ]
    rows = summary(found, table, ["level"], "cold_start_s", rank=list(LEVELS).index)
    return Plot(figure, joined(said), found, rows)


def _panel(ax: Axes, bars: pd.DataFrame, table: pd.DataFrame) -> None:
    looks = marks(table)
    for place, (label, look) in enumerate(looks.items()):
        row = bars[bars["series"] == label]
        if row.empty:
            continue
        left = 0.0
        for part, (_, colour) in PARTS.items():
            seconds = float(row[part].iloc[0])
            ax.barh(
                place,
                seconds,
                left=left,
                height=0.7,
                color=colour or look.colour,
                alpha=ALPHA.get(part, 1.0),
                edgecolor="white",
                linewidth=0.3,
            )
            left += seconds
        ax.text(left, place, f" {significant(left, 3)} s", va="center")
    ax.set_yticks(range(len(looks)), list(looks))
    ax.set_ylim(len(looks) - 0.4, -0.6)
    longest = 1.18 * float(bars["cold_start_s"].max())
    ax.set_xlim(0, longest)
    ax.set_xticks([tick for tick in ax.get_xticks() if tick <= longest])
    ax.grid(visible=False, axis="y")


def _repeated(found: pd.DataFrame) -> str:
    low, high = found["trials"].min(), found["trials"].max()
    if high == 1:
        return "One process each."
    return f"Medians of {low if low == high else f'{low} to {high}'} processes, part by part."
