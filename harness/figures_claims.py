"""What is published on MQAR next to what we measured: claims cell by cell, and others' points."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pandas as pd

from harness import figures_recall
from harness.plot import Plot, at
from harness.published import published
from harness.recall_frames import AXES, rates_told, selected
from harness.series import origin, pages, setting, with_series
from harness.sheet import Sheet, log_limits, value_ticks
from harness.style import GREY, mark, styled

HGRN2_PAPER, ICLR2024, MIXED = "hgrn2-paper", "iclr2024", "mixed"
"""Protocols, as `tasks.mqar.protocols` labels them."""
CELLS = ((64, 4), (128, 8), (256, 16), (512, 64))
WIDTHS = (64, 128, 256, 512)
"""Of the HGRN2 paper's Figure 3 and of zoology's Figure 2."""
PAPER_RATES = 7
SOLVED = 0.99
"""Training stops above it: two runs above it are not told apart."""
THEIRS = "zoology"
NOT_RUN, IN_PART = "not yet run", "rates missing"
"""No verdict: without a result, or where learning rates without one could still change it."""


def claims(table: pd.DataFrame) -> dict[str, Plot]:
    """The figures that a grid of a published protocol has."""
    plots: dict[str, Plot] = {}
    paper, iclr = (table[table["protocol"] == name] for name in (HGRN2_PAPER, ICLR2024))
    if {"hgrn1", "hgrn2"} <= set(paper["mixer"]):
        plots["claim_hgrn2_above_hgrn1"] = hgrn2_above_hgrn1(paper)
    for ours in (paper, iclr):
        # Those that either figure is about: with GLA and Mamba too, the lines are too many.
        ours = ours[ours["mixer"].isin(["hgrn2", "hgrn1", "attention"])]
        if ours["accuracy"].notna().any():
            for suffix, page in _beside(ours, _figure2(ours)):
                plots[f"next_to_zoology{suffix}"] = next_to_zoology(page)
    mixed = table[table["protocol"] == MIXED]
    if mixed["accuracy"].notna().any():
        for suffix, page in _beside(mixed, _capacity(mixed)):
            plots[f"state_next_to_zoology{suffix}"] = state_next_to_zoology(page)
    return plots


def hgrn2_above_hgrn1(table: pd.DataFrame) -> Plot:
    """The claim of the HGRN2 paper's Figure 3, and that attention solves the task."""
    rows = verdicts(table)
    judged = rows[~rows["HGRN2 above HGRN1"].isin([NOT_RUN, IN_PART])]
    told = Counter(rows["HGRN2 above HGRN1"])
    solved = Counter(rows["attention at 1"])
    with styled():
        sheet = Sheet(len(CELLS), height_in=1.85, share=True)
        for i, (ax, (seq_len, kv_pairs)) in enumerate(zip(sheet.axes, CELLS, strict=True)):
            line = at(judged, {"seq_len": seq_len})
            ax.axhline(0, color=GREY, linestyle=(0, (1, 2)), linewidth=0.9)
            ax.plot(line["d_model"], line["difference"], **mark("hgrn2", "triton").line())
            ax.set(title=f"{seq_len} tokens, {kv_pairs} pairs", xscale="log", ylim=(-1.03, 1.03))
            ax.set_xlim(log_limits(WIDTHS))
            value_ticks(ax.xaxis, WIDTHS)
            sheet.axis_names(i, x="Model width", y="HGRN2 - HGRN1")
        figure = sheet.finish()
    caption = (
        "Accuracy of HGRN2 less that of HGRN1 over model width, each the best of the learning "
        "rates that have a result. The paper's claim (arXiv 2404.07904, Figure 3, no numbers "
        f"printed): HGRN2 is above HGRN1 in every cell. Of {len(rows)} cells: {_counts(told)}. "
        f"A tie: both above {SOLVED}, where training stops. Attention at 1, as in zoology's "
        f"Figure 2: {_counts(solved)}. `rates` counts learning rates with a result, of "
        f"{PAPER_RATES}, HGRN2's and HGRN1's. Others could only raise what is there: with fewer, a "
        "verdict stands where that could not change it (the difference is a bound then, but for a "
        "tie), and else there is none and no point in the figure. "
        f"{setting(table, 'seed', 'Seed {}.')} {origin(table)}"
    )
    return Plot(figure, caption, rows, rows)


def verdicts(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each of the paper's 16 cells, run or not."""
    best = selected(with_series(table, AXES, devices="device_type"))
    by = ["mixer", "seq_len", "kv_pairs", "d_model"]
    found = best.groupby(by).agg(accuracy=("accuracy", "mean"), lrs=("lrs", "min"))
    rows = []
    for (seq_len, kv_pairs), d_model in product(CELLS, WIDTHS):
        place = (seq_len, kv_pairs, d_model)
        accuracy, rates = (
            {m: found[name].get((m, *place)) for m in ("hgrn2", "hgrn1", "attention")}
            for name in ("accuracy", "lrs")
        )
        two, one, attention = accuracy.values()
        whole = {mixer: rates[mixer] == PAPER_RATES for mixer in rates}
        rows.append(
            {
                "seq_len": seq_len,
                "kv_pairs": kv_pairs,
                "d_model": d_model,
                "HGRN2": two,
                "HGRN1": one,
                "difference": None if two is None or one is None else two - one,
                "rates": f"{rates['hgrn2'] or 0:.0f}, {rates['hgrn1'] or 0:.0f}",
                "HGRN2 above HGRN1": _above(two, one, whole["hgrn2"], whole["hgrn1"]),
                "attention": attention,
                "attention at 1": _solved(attention, whole=whole["attention"]),
            }
        )
    numbers = ["HGRN2", "HGRN1", "difference", "attention"]
    return pd.DataFrame(rows).astype(dict.fromkeys(numbers, float))


def _above(two: float | None, one: float | None, two_whole: bool, one_whole: bool) -> str:
    """Of the best rates so far, HGRN2's and HGRN1's, which those missing could only raise."""
    if two is None or one is None:
        return NOT_RUN
    if min(two, one) > SOLVED:
        return "tie"
    above = two > one
    if not (one_whole if above else two_whole):
        return IN_PART
    return "reproduced" if above else "not reproduced"


def _solved(attention: float | None, *, whole: bool) -> str:
    if attention is None:
        return NOT_RUN
    if attention <= SOLVED and not whole:
        return IN_PART
    return "reproduced" if attention > SOLVED else "not reproduced"


def _counts(told: Counter[str]) -> str:
    order = ("reproduced", "not reproduced", "tie", IN_PART, NOT_RUN)
    return ", ".join(f"{told[name]} {name}" for name in order if told[name])


def next_to_zoology(table: pd.DataFrame) -> Plot:
    """Accuracy over width with the points of zoology's Figure 2."""
    caption = (
        "MQAR accuracy over model width, ours next to zoology's Figure 2 (arXiv 2312.04927), read "
        "by eye, +-0.04 (results/published): the best of four learning rates there. "
        f"{_ours(table)}"
    )
    with styled():
        return replace(figures_recall.over_width(table), caption=caption)


def state_next_to_zoology(table: pd.DataFrame) -> Plot:
    """Accuracy over bytes of state with the points of zoology's README."""
    caption = (
        "MQAR accuracy, the mean over seven test segments, over bytes of state (k = 1024), ours "
        "next to zoology's README, read by eye, +-0.01 (results/published). There the state of the "
        "short convolution counts its newest token too. The grey front is the best within a size. "
        f"{_ours(table)}"
    )
    with styled():
        plot = figures_recall.over_state(table)
    return replace(plot, caption=caption, summary=plot.summary.drop(columns="d_model"))


def _ours(table: pd.DataFrame) -> str:
    ours = table[table["impl"] != THEIRS]
    if ours.empty:
        return ""
    return f"Ours: the best of {rates_told(ours)}. {origin(ours)}"


def _beside(ours: pd.DataFrame, theirs: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Pages of both."""
    same = {name: ours[name].iloc[0] for name in ("device", "device_type", "seed")}
    theirs = theirs.assign(impl=THEIRS, status="ok", **same)
    both = pd.concat([ours, theirs], ignore_index=True)
    yield from pages(with_series(both, AXES, devices="device_type"))


def _figure2(ours: pd.DataFrame) -> pd.DataFrame:
    """At the shapes and widths that we have."""
    places = ours[["seq_len", "kv_pairs", "d_model"]].drop_duplicates()
    return published("zoology_figure2").merge(places)


def _capacity(ours: pd.DataFrame) -> pd.DataFrame:
    rows = published("zoology_capacity")
    # Widths are not published: the points of one mixer are told apart by their place.
    rows["d_model"] = rows.groupby("mixer").cumcount()
    return rows.assign(**{name: ours[name].iloc[0] for name in ("seq_len", "kv_pairs")})
