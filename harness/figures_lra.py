"""Figures of the Long Range Arena: accuracy and loss by epoch, accuracy next to what is published
and by ListOps' root operator; the time and memory of a training step."""

from __future__ import annotations

from math import log
from typing import Any, Literal

import pandas as pd
from matplotlib.axes import Axes

from harness.lra_published import TITLES, averages, compared, readable, recipe_words
from harness.plot import LINE, Plot, at, summary
from harness.series import joined, marks, not_drawn, origin, setting, spoken, with_series
from harness.sheet import End, Sheet, log_limits, plain_ticks, value_ticks
from harness.style import GREY, Mark, mixer_name, styled

AXES = ["arena", "seed", "trial"]
APART = ["recipe", "source", "version"]
YARDSTICKS = {
    "commonest digit": 0.170,
    "root's operator": 0.365,
    "one level": 0.513,
    "two levels": 0.695,
}
"""Accuracy on ListOps of whoever knows no more than that."""
NAMES = {"accuracy": "Test accuracy", "loss": "Training loss"}
DOTTED = {
    "accuracy": "Dotted on ListOps: what knowing the commonest digit, the root's operator, one "
    "level or two levels of the expression gives (17.0, 36.5, 51.3, 69.5 %); elsewhere chance.",
    "loss": "Dotted: that of a guess among all answers alike.",
}
YARDSTICK = Mark(GREY, "", (0, (1, 2)), "full")
NARROWEST = 0.1
"""Range of an axis of accuracies or losses by epoch."""
OPERATORS = ("min", "max", "med", "sm")


def lra(table: pd.DataFrame) -> dict[str, Plot]:
    """Every figure that the frame of a grid of the arena has the numbers for."""
    if "accuracy" not in table or not table["accuracy"].notna().any():
        return {}
    # What only goes with the task parts no line: a generator's version, whether there is one.
    differ = table.groupby("arena")[APART].nunique().gt(1).any()
    apart = [name for name in APART if differ[name]]
    table = with_series(_plain(table), AXES, apart=apart, devices="device_type")
    with styled():
        plots = {
            "accuracy_by_epoch": by_epoch(table, "accuracy"),
            "next_to_published": next_to_published(table),
        }
        if "loss_by_epoch" in table:
            plots["loss_by_epoch"] = by_epoch(table, "loss")
        listops = table[table["arena"] == "listops"]
        if _operators(listops):
            plots["accuracy_by_operator"] = by_operator(listops)
    return plots


def lra_step(table: pd.DataFrame) -> dict[str, Plot]:
    """Tokens a second, and on a GPU peak memory, of a whole model's training step."""
    if not table["status"].eq("ok").any():
        return {}
    table = with_series(_plain(table), AXES)
    ran = table[table["status"] == "ok"]
    costs = [name for name in ("tokens_per_s", "step_ms", "peak_mib") if name in ran]
    names = {
        "tokens_per_s": "Tokens per second",
        "step_ms": "Step (ms)",
        "peak_mib": "Peak memory (MiB)",
    }
    groups = ran.groupby([*LINE, "arena"], sort=False)
    lines = groups[costs].median().assign(trials=groups.size()).reset_index()
    with styled():
        sheet = Sheet(len(costs), height_in=2.0, columns=1, note=not_drawn(table, ["trial"]))
        for i, (ax, cost) in enumerate(zip(sheet.axes, costs, strict=True)):
            _dots(ax, table, ran, cost)
            ax.set(title=names[cost], xscale="log", xlim=log_limits(ran[cost]))
            plain_ticks(ax.xaxis)
            sheet.axis_names(i, x="", y="")
        figure = sheet.finish()
    caption = joined(
        [
            "A training step of the whole model by the wall, forward to optimiser, on noise.",
            f"Points: processes ({spoken(lines['trials'])} a row), each a median of repetitions.",
            *_common(table),
            setting(table, "engine", "Engine {}."),
            setting(table, "batch", "Batch {}."),
        ]
    )
    rows = lines[["series", *costs, "trials"]]
    failed = table[table["status"] != "ok"][["series", "status"]].drop_duplicates()
    return {"training_step": Plot(figure, caption, lines, pd.concat([rows, failed]))}


def by_epoch(table: pd.DataFrame, measure: Literal["accuracy", "loss"]) -> Plot:
    """Test accuracy, or training loss, by epoch, a panel a task: thin lines are runs, thick ones
    their mean."""
    table = table.rename(columns={f"{measure}_by_epoch": "curve"})
    ran = table[table["accuracy"].notna() & table["curve"].notna()]
    ran = ran.assign(curve=pd.Series(_to_the_longest(ran), index=ran.index))
    runs = ran[[*LINE, "arena", "seed", "curve"]].explode("curve")
    runs = runs.assign(**{measure: runs.pop("curve").astype(float)})
    runs["epoch"] = runs.groupby([*LINE, "arena", "seed"], sort=False).cumcount() + 1
    groups = runs.groupby([*LINE, "arena", "epoch"], sort=False)[measure]
    means = groups.agg(["mean", "min", "max"]).add_prefix(f"{measure}_")
    means = means.assign(seeds=groups.size()).reset_index()
    places = _arenas(table)
    sheet = Sheet(len(places), height_in=2.4, columns=min(2, len(places)), note=_note(table))
    for i, (ax, arena) in enumerate(zip(sheet.axes, places, strict=True)):
        ends = _curves(ax, at(runs, {"arena": arena}), at(means, {"arena": arena}), table, measure)
        here = at(ran, {"arena": arena})
        if len(here):
            ends += _yardsticks(ax, arena, float(here["chance"].iloc[0]), measure)
        _coarse(ax)
        value_ticks(ax.xaxis, means.loc[means["arena"] == arena, "epoch"].unique())
        ax.set(title=TITLES[arena])
        sheet.label(ax, ends)
        sheet.axis_names(i, x="Epoch", y=NAMES[measure])
    caption = joined(
        [
            f"{NAMES[measure]} by epoch: the mean over seeds, and thin the runs; one that ended "
            "early keeps its last.",
            f"{int(ran['diverged'].sum())} of {len(ran)} runs diverged.",
            DOTTED[measure],
            *_common(table),
        ]
    )
    last = means.loc[means.groupby([*LINE, "arena"], sort=False)["epoch"].idxmax()]
    write = _percent if measure == "accuracy" else "{:.3f}".format
    rows = summary(last, table, ["arena"], f"{measure}_mean", write=write)
    return Plot(sheet.finish(), caption, means, rows)


def _to_the_longest(ran: pd.DataFrame) -> list[list[float]]:
    """Each run's curve, its last number repeated up to the longest run of its line and task: else a
    seed that diverged would drop out of the mean. The loss that it ended with is no number."""
    epochs = ran["curve"].map(len)
    lines = [ran[name] for name in (*LINE, "arena")]
    longest = epochs.groupby(lines, sort=False).transform("max")
    return [
        pd.Series(run, range(len(run)), float).reindex(range(most)).ffill().to_list()
        for run, most in zip(ran["curve"], longest, strict=True)
    ]


def next_to_published(table: pd.DataFrame) -> Plot:
    """Accuracy of the epoch that the recipe reports, beside the HGRN2 paper's Table 7."""
    rows = compared(table)
    places = _arenas(table)
    ran = table[table["accuracy"].notna()].assign(percent=lambda t: 100 * t["accuracy"])
    height = 0.6 + 0.2 * len(marks(table))
    sheet = Sheet(len(places), height_in=height, columns=1, note=_note(table))
    for i, (ax, arena) in enumerate(zip(sheet.axes, places, strict=True)):
        _dots(ax, table, at(ran, {"arena": arena}), "percent")
        for height, label in enumerate(marks(table)):
            for _, row in at(rows, {"arena": arena, "series": label}).iterrows():
                kind = "|" if row["alike"] else "x"
                # Behind the points of runs, whose order is 2.
                style = {"marker": kind, "markersize": 7, "color": GREY, "zorder": 1.9}
                ax.plot([row["published"]], [height], **style)
        ax.set(title=TITLES[arena], xlim=(0, 100))
        sheet.axis_names(i, x="Accuracy (%)", y="")
    caption = joined(
        [
            "Test accuracy: points are runs; grey: Table 7 of the HGRN2 paper (arXiv 2404.07904), "
            "one run each, × where the two rows are not alike. `ours is` and `published is` say "
            "what keeps a number from standing beside plain ones of a mixer's own recipe; † marks "
            "a difference of unlike rows.",
            "At best val: test accuracy at the epoch of the best validation accuracy, in percent; "
            "where a training collapsed later it is far above the accuracy of the last. On Text "
            "that is an epoch chosen on the test set, unless a tenth is held out.",
            "Learned: the share of seeds whose validation accuracy is above 36.5 % (ListOps) or "
            "55 % (Pathfinder, Path-X).",
            "Published evaluations of S4's descendants, HGRN1's and HGRN2's among them, left out "
            "the last, smaller batch, and their Text epochs were chosen on the test set; ours "
            "score every example.",
            "Training's times are of the wall, a pack's other models included: compare them at one "
            "pack.",
            averages(rows),
            setting(table, "report", "Accuracy of the {} epoch (best: by validation)."),
            *_common(table),
        ]
    )
    return Plot(sheet.finish(), caption, rows, readable(rows))


def by_operator(table: pd.DataFrame) -> Plot:
    """Test accuracy on the expressions of each root operator."""
    operators = _operators(table)
    names = [f"accuracy_{name.lower()}" for name in operators]
    ran = table[table["accuracy"].notna()]
    long = ran.melt([*LINE, "arena", "seed"], names, "operator", "percent")
    long["operator"] = long["operator"].str.removeprefix("accuracy_").str.upper()
    long["percent"] *= 100
    groups = long.groupby([*LINE, "operator"], sort=False)["percent"]
    means = groups.agg(["mean", "min", "max"]).add_prefix("percent_").reset_index()
    sheet = Sheet(len(names), height_in=0.6 + 0.2 * len(marks(table)), columns=2, note=_note(table))
    for i, (ax, operator) in enumerate(zip(sheet.axes, operators, strict=True)):
        _dots(ax, table, at(long, {"operator": operator}), "percent")
        ax.set(title=operator, xlim=(0, 100))
        sheet.axis_names(i, x="Accuracy (%)", y="")
    caption = joined(
        ["ListOps: test accuracy by the operator at the root of an expression.", *_common(table)]
    )
    failed = pd.concat([table.assign(operator=name) for name in operators])
    rows = summary(
        means,
        failed,
        ["operator"],
        "percent_mean",
        write=lambda value: f"{value:.1f}",
        rank=operators.index,
    )
    return Plot(sheet.finish(), caption, means, rows)


def _operators(table: pd.DataFrame) -> list[str]:
    """Those with a result: a small test set may lack one."""
    found = [name for name in OPERATORS if f"accuracy_{name}" in table]
    return [name.upper() for name in found if table[f"accuracy_{name}"].notna().any()]


def _plain(table: pd.DataFrame) -> pd.DataFrame:
    """A mixer that scans nothing but the sequence says so too."""
    return table.assign(scan=table["scan"].fillna("1d")) if "scan" in table else table


def _arenas(table: pd.DataFrame) -> list[str]:
    return [arena for arena in TITLES if arena in set(table["arena"])]


def _curves(
    ax: Axes, runs: pd.DataFrame, means: pd.DataFrame, table: pd.DataFrame, measure: str
) -> list[End]:
    ends: list[End] = []
    for label, look in marks(table).items():
        line = means[means["series"] == label].sort_values("epoch")
        for _, run in runs[runs["series"] == label].groupby("seed"):
            ax.plot(run["epoch"], run[measure], color=look.colour, linewidth=0.5, alpha=0.5)
        style: dict[str, Any] = {**look.line(), "markersize": 3.5}
        style["markevery"] = max(1, len(line) // 8)
        ax.plot(line["epoch"], line[f"{measure}_mean"], **style)
        last = line.iloc[-1] if len(line) else None
        place = None if last is None else (float(last["epoch"]), float(last[f"{measure}_mean"]))
        ends.append(End(label, look, place))
    return ends


def _yardsticks(ax: Axes, arena: str, chance: float, measure: str) -> list[End]:
    heights = YARDSTICKS if arena == "listops" else {"chance": chance}
    written = {f"{words} {100 * height:.1f} %": height for words, height in heights.items()}
    if measure == "loss":
        written = {f"a guess {-log(chance):.3f}": -log(chance)}
    for height in written.values():
        ax.axhline(height, color=GREY, linestyle=YARDSTICK.dash, linewidth=0.9)
    _, right = ax.get_xlim()
    return [End(words, YARDSTICK, (right, height), GREY) for words, height in written.items()]


def _coarse(ax: Axes) -> None:
    """Widen the range of y where it is so narrow that chance alone would fill it."""
    low, high = ax.get_ylim()
    more = max(0.0, NARROWEST - (high - low)) / 2
    ax.set_ylim(low - more, high + more)


def _dots(ax: Axes, table: pd.DataFrame, runs: pd.DataFrame, column: str) -> None:
    """A row for each series, its runs as points."""
    looks = marks(table)
    for height, (label, look) in enumerate(looks.items()):
        values = runs.loc[runs["series"] == label, column]
        style: dict[str, Any] = {**look.line(), "linestyle": "none"}
        ax.plot(values.to_numpy(), [height] * len(values), **style)
    ax.set(yticks=range(len(looks)), yticklabels=list(looks), ylim=(len(looks) - 0.5, -0.5))


def _note(table: pd.DataFrame) -> str:
    return not_drawn(table, AXES)


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _common(table: pd.DataFrame) -> list[str]:
    def said(directions: str, words: str) -> str:
        mixers = table[table.get("directions", "") == directions]["mixer"].unique()
        names = ", ".join(mixer_name(mixer) for mixer in mixers)
        return f"{names}: {words}" if names else ""

    return [
        said("flip_sum", "a causal layer run both ways and summed."),
        said("apart_sum", "where directions are apart, a causal layer each way, summed."),
        recipe_words(table),
        setting(table, "n_layers", "{} layers."),
        setting(table, "d_model", "Width {}."),
        setting(table, "provenance", "Data: {}."),
        origin(table),
    ]
