"""Figures of accuracy grids: the error against fp64 over gate regimes, a panel for each bound."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.axes import Axes

from harness.figures_speed import by_page
from harness.plot import LINE, Plot, summary
from harness.series import joined, marks, not_drawn, origin, setting
from harness.sheet import End, Sheet, log_limits, plain_ticks
from harness.style import GREY, significant, styled

REGIMES = ("closed", "mixed", "spread", "ordinary", "resets", "open")
"""From the shortest memory to the longest."""
QUANTITIES = {"y": "the output", "z": "the forget logit", "bound": "the lower bound"}


def accuracy(table: pd.DataFrame) -> dict[str, Plot]:
    """One figure for the output, and one for the gradient of each input."""
    plots: dict[str, Plot] = {}
    bound = table["bound"].fillna(-1.0) if "bound" in table else -1.0
    table = table.assign(bound=bound)
    for column in [name for name in map(str, table) if name.startswith("error_")]:
        # Also where the result is not finite the reference's is.
        has = set(table.loc[table[f"reference_{column}"].notna(), "mixer"])
        cells = table[table["mixer"].isin(has)]
        for suffix, page, _ in by_page(cells, ["regime", "bound", "seed"]):
            plots[f"{column}{suffix}"] = _errors(page, column)
    return plots


def _errors(table: pd.DataFrame, column: str) -> Plot:
    own = f"reference_{column}"
    ran = table[table["status"] == "ok"]
    groups = ran.groupby([*LINE, "bound", "regime"], sort=False)
    found = groups[[column, own]].median()
    found["nonfinite"] = groups["nonfinite"].max()
    found = found.reset_index()
    bounds = sorted(found["bound"].unique(), key=_rank)
    limits = log_limits(found[[column, own]].to_numpy().ravel())
    with styled():
        note = not_drawn(table, ["regime", "bound"])
        sheet = Sheet(len(bounds), height_in=2.5, columns=min(2, len(bounds)), note=note)
        for i, (ax, bound) in enumerate(zip(sheet.axes, bounds, strict=True)):
            ax.set(yscale="log", ylim=limits, title=_title(bound), xlim=(-0.6, len(REGIMES) - 0.4))
            sheet.label(ax, _panel(ax, found[found["bound"] == bound], table, column))
            ax.set_xticks(range(len(REGIMES)), REGIMES, rotation=90)
            ax.grid(visible=False, axis="x")
            plain_ticks(ax.yaxis)
            sheet.axis_names(i, x="Forget gates", y="Error")
        figure = sheet.finish()
    rows = summary(found, table, ["bound", "regime"], column, write=_written, rank=_rank)
    rows["bound"] = [_title(bound) for bound in rows["bound"]]
    found = found.assign(bound=found["bound"].replace(-1.0, math.nan))
    broken = int((found["nonfinite"] > 0).sum())
    said = [
        f"Error of {_quantity(column)} against the reference in fp64 on the same inputs, |x - "
        "truth| / |truth| over whole tensors, by forget gates and lower bound.",
        "Grey: the error of the eager reference in the same precision.",
        f"×: {broken} results are not finite." if broken else "",
        setting(table, "seq_len", "Length {}."),
        setting(table, "d_model", "Width {}."),
        origin(table),
    ]
    return Plot(figure, joined(said), found, rows)


def _panel(ax: Axes, points: pd.DataFrame, table: pd.DataFrame, column: str) -> list[End]:
    looks = marks(table)
    ends: list[End] = []
    for place, (label, look) in enumerate(looks.items()):
        shift = 0.7 * ((place + 0.5) / len(looks) - 0.5)
        line = points[points["series"] == label].sort_values("regime", key=lambda x: x.map(_rank))
        x = [REGIMES.index(regime) + shift for regime in line["regime"]]
        own = line[f"reference_{column}"]
        ax.plot(x, own, color=GREY, marker="_", markersize=7, linestyle="none")
        # Regimes are no scale: the thin line only tells which points are of one series.
        ax.plot(x, line[column], **look.line())[0].set_linewidth(0.7)
        for at, value in zip(x, line["nonfinite"], strict=True):
            if value > 0:
                edge = ax.get_xaxis_transform()
                ax.plot([at], [0.95], color=look.colour, marker="x", transform=edge)
        drawn = sorted(zip(x, line[column], strict=True))
        drawn = [(at, error) for at, error in drawn if error > 0]
        if len(line):
            ends.append(End(label, look, drawn[-1] if drawn else None))
    return ends


def _quantity(column: str) -> str:
    name = column.removeprefix("error_")
    if name == "y":
        return "the output"
    name = name.removeprefix("d")
    return f"the gradient of {QUANTITIES.get(name, name)}"


def _title(bound: float) -> str:
    return "No lower bound" if bound < 0 else f"Lower bound {significant(bound)}"


def _rank(value: str | float) -> float:
    if isinstance(value, str):
        return REGIMES.index(value)
    return value if value >= 0 else math.inf


def _written(value: float) -> str:
    return "not finite" if math.isnan(value) else f"{value:.2e}"
