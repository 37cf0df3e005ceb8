"""Which lines a figure has, which cells it could not draw, and what its caption must say."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import pandas as pd

from harness.frames import settings
from harness.style import MARKS, Mark, length, mark, mixer_name, significant

MOST_LINES = 8
"""In one panel; more are drawn on further pages."""


def with_series(
    table: pd.DataFrame,
    axes: Sequence[str],
    *,
    apart: Sequence[str] = (),
    told: Sequence[str] = (),
    devices: Literal["device", "device_type"] = "device",
) -> pd.DataFrame:
    """The frame with two more columns: `series`, a line's label, and `variant`, its number among
    the lines of the same (mixer, impl). Sorted by series, then as before.

    `axes` are the columns that the figure shows, pools or selects by. Whatever else differs between
    cells of one mixer that agree in all of them makes lines of their own, as do the columns in
    `apart` wherever they differ: cells that are not alike are never drawn over one another.
    Those in `told` do too, and every label has them where the frame has more than one value of
    them: a lone hybrid must not read as the plain mixer.
    `devices`: the column that tells devices apart: each, or a CPU from a GPU alone.
    """
    known, apart = ["mixer", "impl"], [*apart, *told]
    shown = [name for name in axes if name in table]
    others = [
        name for name in (*settings(table), devices) if name not in ("task", *known, *shown, *apart)
    ]
    alike = table.groupby([*known, *shown, *apart], dropna=False)
    varied = [name for name in others if alike[name].nunique(dropna=False).gt(1).any()]
    names = _enough(table, known, [*apart, *varied])
    several = [x for x in told if table[x].nunique() > 1]
    names += [x for x in several if x not in names]
    lines = table[[*known, *names]].drop_duplicates().sort_values([*known, *names])
    pairs = list(lines[known].drop_duplicates().itertuples(index=False, name=None))
    impls = Counter(mixer for mixer, _ in pairs)
    labels: dict[tuple[object, ...], tuple[int, str, int]] = {}
    order = {mixer: i for i, mixer in enumerate(MARKS)}
    for mixer, impl in pairs:
        variants = lines[(lines["mixer"] == mixer) & (lines["impl"] == impl)]
        own = [x for x in names if x in several or variants[x].nunique(dropna=False) > 1]
        for variant, row in enumerate(variants.itertuples(index=False, name=None)):
            values = dict(zip(lines.columns, row, strict=True))
            parts = [f"{mixer_name(mixer)} ({impl})" if impls[mixer] > 1 else mixer_name(mixer)]
            parts += [_setting(name, values[name]) for name in own]
            labels[_line(row)] = order.get(mixer, len(order)), ", ".join(parts), variant
    rows = table[[*known, *names]].itertuples(index=False, name=None)
    found = [labels[_line(row)] for row in rows]
    result = table.assign(
        series=[label for _, label, _ in found],
        variant=[variant for _, _, variant in found],
        _order=[place for place, _, _ in found],
    )
    result = result.sort_values(["_order", "mixer", "impl", "variant"], kind="stable")
    return result.drop(columns="_order").reset_index(drop=True)


def _enough(table: pd.DataFrame, known: list[str], candidates: list[str]) -> list[str]:
    """Those candidates that tell lines apart which the ones before them do not."""
    chosen: list[str] = []
    count = len(table[known].drop_duplicates())
    for name in candidates:
        finer = len(table[[*known, *chosen, name]].drop_duplicates())
        if finer > count:
            chosen, count = [*chosen, name], finer
    return chosen


def _line(row: Iterable[object]) -> tuple[object, ...]:
    """A key that a missing value equals itself in."""
    return tuple(None if isinstance(x, float) and math.isnan(x) else x for x in row)


def _setting(name: str, value: object) -> str:
    if name in ("device", "device_type", "protocol", "packing"):
        return str(value)
    return f"{name} {value}" if isinstance(value, str | bool) else f"{name} {significant(value)}"


def head_sizes(table: pd.DataFrame) -> pd.Series:
    """Channels of a head of each row; NaN for a mixer without heads."""
    size = pd.Series(float("nan"), index=table.index)
    if "n_heads" in table:
        size = table["d_model"] / table["n_heads"]
    return table["expand_ratio"].fillna(size) if "expand_ratio" in table else size


def marks(table: pd.DataFrame) -> dict[str, Mark]:
    """Label -> mark of every series, in their order."""
    lines = table[["series", "mixer", "impl", "variant"]].drop_duplicates()
    rows = lines.itertuples(index=False, name=None)
    return {label: mark(mixer, impl, variant) for label, mixer, impl, variant in rows}


def pages(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The frame in parts of at most `MOST_LINES` series, each with the suffix of its figure."""
    labels = list(marks(table))
    count = math.ceil(len(labels) / MOST_LINES)
    size = math.ceil(len(labels) / count)
    for page in range(count):
        part = labels[page * size : (page + 1) * size]
        yield f"_{page + 1}" if page else "", table[table["series"].isin(part)]


def not_drawn(table: pd.DataFrame, axes: Sequence[str]) -> str:
    """The failed cells in a sentence or two: which series, what happened, where and how many."""
    failed = table[table["status"] != "ok"]
    differing = [name for name in axes if name in table and table[name].nunique() > 1]
    notes: list[str] = []
    for (series, status), cells in failed.groupby(["series", "status"], sort=False):
        where = "; ".join(
            f"{name} {', '.join(_short(value) for value in sorted(cells[name].unique()))}"
            for name in differing
        )
        plural = "cell" if len(cells) == 1 else "cells"
        notes.append(f"{series} {status} in {len(cells)} {plural} ({where})")
    return f"No result: {'. '.join(notes)}." if notes else ""


def _short(value: object) -> str:
    return str(value) if isinstance(value, str | bool) else length(float(str(value)))


def listed(values: Iterable[object]) -> list[str]:
    """The different values, missing ones left out, sorted and as a table writes them."""
    known = {value for value in values if value is not None and value == value}
    return [significant(value) for value in sorted(known, key=lambda v: (isinstance(v, str), v))]


def spoken(values: Iterable[object]) -> str:
    """`1`, `1 and 2`, `1, 2 and 3`, sorted."""
    *rest, last = listed(values)
    return f"{', '.join(rest)} and {last}" if rest else last


def setting(table: pd.DataFrame, name: str, words: str) -> str:
    """`words` with the values of column `name` put in for {}; empty where there are none."""
    values = table[name].dropna() if name in table else []
    return words.format(spoken(values)) if len(values) else ""


def joined(sentences: Iterable[str]) -> str:
    """A caption of those that are not empty."""
    return " ".join(sentence for sentence in sentences if sentence)


def origin(table: pd.DataFrame) -> str:
    """The caption's last sentences: implementations, precision, device."""
    lines = table[["mixer", "impl"]].drop_duplicates().itertuples(index=False, name=None)
    impls = ", ".join(f"{mixer_name(mixer)} {impl}" for mixer, impl in lines)
    column = "dtype" if "dtype" in table else "precision"
    parts = [
        f"Implementations: {impls}.",
        setting(table, column, "Precision: {}."),
        setting(table, "device", "Device: {}."),
    ]
    return joined(parts)
