"""Speed against a baseline, with an interval, the noise floor and a verdict."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import bootstrap
from tabulate import tabulate

from harness.frames import frame
from harness.series import head_sizes, with_series
from harness.style import significant

TIMED = ("speed", "decode")
MATCHED = (
    *("task", "level", "mode", "seq_len", "context", "batch", "d_model", "dtype"),
    *("head_size", "glu_width", "replay", "device"),
)
"""What a cell and its baseline agree in."""
COLUMNS = (
    *("series", "mixer", "impl", "baseline", "time_ms", "baseline_ms", "speedup", "low", "high"),
    *("trials", "resampled", "noise_floor", "verdict"),
)
"""What a row says of a series, after the columns that its cells agree in."""
FEWEST_TRIALS = 3
CONFIDENCE = 0.95
RESAMPLES = 2000


def compare(
    grid: str,
    results: Path,
    *,
    baseline: str,
    any_device: bool = False,
    only_device: str | None = None,
) -> pd.DataFrame:
    """The throughput of every series over the baseline's, for each size that the grid timed.

    `baseline` is a mixer ("attention"), a mixer and an implementation ("gla/fla"), or a series as
    the figures label it. Columns: what a row's cells agree in; `series`, `mixer`, `impl`;
    `time_ms` and `baseline_ms`, medians over trials; `speedup`, their ratio (above 1: faster than
    the baseline, and the throughput's ratio too); `low` and `high`, its 95 % interval; `trials`;
    `resampled`; `noise_floor`; `verdict`.

    The interval is a percentile bootstrap of the ratio of medians. What is resampled are the
    medians of the trials, each a process of its own, because repetitions in one process share its
    clocks, its memory layout and its tuned kernels: pooled as if they were independent, they
    promise more than a second run keeps. With three trials the interval is their whole range,
    which covers less often than 95 % suggests; take five or more for a claim. Where one side has
    fewer than three, the repetitions are resampled for want of better, `resampled` says so, and
    there is no verdict.

    `noise_floor` is the largest |null / time - 1| of the A/A null runs among all cells of the same
    size. The verdict is "no difference" when the interval or the noise floor covers 1, else
    "faster" or "slower"; "no verdict (1 trial)" below three trials on a side; the status of a cell
    that gave no time; "no baseline" where that is what is missing.

    Raises ValueError for a baseline that is not there, for a grid without timed cells, and as
    `frames.frame` does.
    """
    table = frame(grid, results, any_device=any_device, only_device=only_device)
    tasks = sorted(set(table["task"]))
    table = table[table["task"].isin(TIMED)]
    if table.empty:
        raise ValueError(
            f"grid {grid!r} has no times to compare, its task is {', '.join(tasks)}: compare is "
            f"for grids of {' or '.join(TIMED)} cells; `mixerbench report {grid}` tabulates others"
        )
    heads = head_sizes(table)
    if heads.nunique() > 1:
        # What has no heads is compared with those of the most common size.
        table = table.assign(head_size=heads.fillna(heads.mode()[0]))
    matched = [name for name in MATCHED if name in table and table[name].notna().any()]
    table = with_series(table, [*matched, "trial", "seed", "budget_s"])
    chosen = find_series(table, baseline)
    rows: list[dict[str, Any]] = []
    for place, cells in table.groupby(matched, dropna=False, sort=False):
        size = dict(zip(matched, place, strict=True))
        rows += [size | row for row in _against(chosen, cells)]
    return pd.DataFrame(rows, columns=pd.Index([*matched, *COLUMNS]))


def find_series(table: pd.DataFrame, name: str) -> str:
    """The label of the one series that `name` means; ValueError, listing them, where it is none
    or several."""
    columns = table[["series", "mixer", "impl"]].drop_duplicates()
    lines = list(columns.itertuples(index=False, name=None))
    found = [label for label, mixer, impl in lines if name in (label, mixer, f"{mixer}/{impl}")]
    if len(found) == 1:
        return found[0]
    pairs = Counter((mixer, impl) for _, mixer, impl in lines)
    there = [f"{m}/{i}" if pairs[m, i] == 1 else label for label, m, i in lines]
    what = f"means several series ({'; '.join(found)})" if found else "is not in the grid"
    raise ValueError(f"baseline {name!r} {what}; name one of: {'; '.join(there)}")


def _against(baseline: str, cells: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """A row for every other series among the cells of one size."""
    ran = cells[cells["status"] == "ok"]
    floor = float((ran["null_ms"] / ran["time_ms"] - 1).abs().max())
    base = ran[ran["series"] == baseline]
    for label, all_ours in cells[cells["series"] != baseline].groupby("series", sort=False):
        ours = ran[ran["series"] == label]
        row = {name: all_ours[name].iloc[0] for name in ("series", "mixer", "impl")}
        row |= {"baseline": baseline, "trials": len(ours), "noise_floor": floor}
        if ours.empty:
            yield row | {"verdict": ", ".join(sorted(set(all_ours["status"])))}
        elif base.empty:
            yield row | {"time_ms": ours["time_ms"].median(), "verdict": "no baseline"}
        else:
            yield row | _speedup(base, ours, floor)


def _speedup(base: pd.DataFrame, ours: pd.DataFrame, floor: float) -> dict[str, Any]:
    fewest = min(len(base), len(ours))
    trials = fewest >= FEWEST_TRIALS
    samples = [_milliseconds(cells, trials=trials) for cells in (base, ours)]
    baseline_ms, time_ms = (float(np.median(sample)) for sample in samples)
    low, high = interval(*samples)
    speedup = baseline_ms / time_ms
    verdict = "no difference"
    if low > 1 and speedup > 1 + floor:
        verdict = "faster"
    if high < 1 and 1 / speedup > 1 + floor:
        verdict = "slower"
    if not trials:
        verdict = f"no verdict ({fewest} trial{'s' if fewest > 1 else ''})"
    return {
        "time_ms": time_ms,
        "baseline_ms": baseline_ms,
        "speedup": speedup,
        "low": low,
        "high": high,
        "resampled": "trials" if trials else "repetitions",
        "verdict": verdict,
    }


def _milliseconds(cells: pd.DataFrame, *, trials: bool) -> np.ndarray:
    """Each trial's median, or every repetition of them all."""
    return np.asarray(cells["time_ms"] if trials else np.concatenate(list(cells["times_ms"])))


def interval(base: np.ndarray, ours: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of median(base) / median(ours), the same for the same numbers."""
    if min(len(base), len(ours)) < 2:
        return math.nan, math.nan
    found = bootstrap(
        (base, ours),
        lambda x, y, axis: np.median(x, axis=axis) / np.median(y, axis=axis),
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=100,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def show(comparison: pd.DataFrame) -> None:
    """Print a comparison: what all its rows share as a title, the rest as a table."""
    places = list(comparison.columns[: list(comparison.columns).index("series")])
    shared = [name for name in places if comparison[name].nunique(dropna=False) == 1]
    words = [f"{name} {significant(comparison[name].iloc[0])}" for name in shared]
    print(f"Speed-up over {comparison['baseline'].iloc[0]} ({', '.join(words)})")
    columns = [name for name in places if name not in shared]
    columns += ["series", "time_ms", "baseline_ms", "speedup", "low", "high", "trials"]
    rows = [
        [significant(value, 3) for value in row]
        for row in comparison[columns].itertuples(index=False, name=None)
    ]
    floors = [f"{100 * floor:.1f} %" for floor in comparison["noise_floor"]]
    rows = [
        [*row, floor, verdict]
        for row, floor, verdict in zip(rows, floors, comparison["verdict"], strict=True)
    ]
    headers = [*columns, "noise floor", "verdict"]
    align = ["left" if name in ("series", "verdict") else "right" for name in headers]
    print(tabulate(rows, headers=headers, colalign=align, disable_numparse=True))
