"""Figures of speed and memory grids: time, throughput, roofline and peak memory over length."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from harness.crossover import crossovers
from harness.curves import Cost, curves, medians, panels, title
from harness.frames import null_differences, unsteady
from harness.plot import Plot, at
from harness.series import head_sizes, origin, pages, setting, with_series
from harness.style import length

KIND = ["level", "mode"]
BAND = ("time_ms_p20", "time_ms_p80")
BAND_SENTENCE = "Band: 20th to 80th percentile of the repetitions."


def speed(table: pd.DataFrame) -> dict[str, Plot]:
    """Latency, throughput and, where floors were recorded, the roofline; peak memory where the
    same cells measured it."""
    plots: dict[str, Plot] = {}
    for heads, part in by_head_size(table):
        for suffix, page, attention in by_page(part, [*KIND, "seq_len", "trial", "seed"]):
            plots[f"latency{heads}{suffix}"] = latency(page, attention)
            plots[f"throughput{heads}{suffix}"] = throughput(page)
            if "bytes_floor_ms" in page:
                plots[f"roofline{heads}{suffix}"] = roofline(page)
            if "peak_mib" in page:
                plots[f"peak_memory{heads}{suffix}"] = peak_memory(page)
    return plots


def memory(table: pd.DataFrame) -> dict[str, Plot]:
    """Peak memory over length."""
    sheets = by_page(table, [*KIND, "seq_len", "seed"])
    return {f"peak_memory{suffix}": peak_memory(page) for suffix, page, _ in sheets}


def latency(table: pd.DataFrame, attention: pd.DataFrame) -> Plot:
    """Milliseconds a call over length, and from which length on attention is slower."""
    cost = Cost(KIND, "seq_len", "Sequence length", "time_ms", "Time (ms)", BAND)
    lines = medians(table, cost)
    parts = [
        "Time of one call over sequence length.",
        trials(table),
        BAND_SENTENCE,
        noise(table),
        faster(lines, attention, cost, table),
    ]
    return curves(table, lines, cost, [*parts, *common(table)])


def throughput(table: pd.DataFrame) -> Plot:
    """Tokens a second over length."""
    cost = Cost(
        KIND, "seq_len", "Sequence length", "tokens_per_s", "Tokens per second", frontier=False
    )
    parts = ["Throughput over sequence length.", trials(table), noise(table)]
    return curves(table, medians(table, cost), cost, [*parts, *common(table)])


def roofline(table: pd.DataFrame) -> Plot:
    """The share of the time measured that bytes and FLOPs alone would take."""
    floors = [name for name in ("bytes_floor_ms", "flops_floor_ms") if name in table]
    share = 100 * table[floors].max(axis=1) / table["time_ms"]
    table = table.assign(roofline_percent=share)
    name = "Share of roofline (%)"
    cost = Cost(KIND, "seq_len", "Sequence length", "roofline_percent", name, frontier=False)
    parts = [
        "Share of the roofline that is reached: the longer of the times that the bytes (each "
        "input read once, each output written once) and, where a formula counts them, the FLOPs "
        "take at this machine's measured copy bandwidth and matmul rate, over the time measured.",
        trials(table),
    ]
    return curves(table, medians(table, cost), cost, [*parts, *common(table)])


def peak_memory(table: pd.DataFrame) -> Plot:
    """MiB at the peak of one call, less its inputs, over length."""
    cost = Cost(KIND, "seq_len", "Sequence length", "peak_mib", "Peak memory (MiB)")
    parts = ["Memory at the peak of one call, inputs not counted, over sequence length."]
    return curves(table, medians(table, cost), cost, [*parts, *common(table)])


def by_head_size(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Parts of one size of heads, with the suffix of their figures: first the size of most cells,
    beside what has no heads; the others after it. With column `head_size` where they differ."""
    size = head_sizes(table)
    sizes = list(size.value_counts().index)
    if len(sizes) < 2:
        yield "", table
        return
    table = table.assign(head_size=size)
    yield "", table[(size == sizes[0]) | size.isna()]
    for other in sorted(sizes[1:]):
        yield f"_heads_{other:.0f}", table[size == other]


def by_page(
    table: pd.DataFrame, axes: list[str]
) -> Iterator[tuple[str, pd.DataFrame, pd.DataFrame]]:
    """Parts that fit a figure, with their suffix and all of attention's rows of that device type:
    CPU and GPU never share a figure."""
    types = table["device_type"].unique()
    for device_type in types:
        part = table[table["device_type"] == device_type]
        part = with_series(part, axes, told=["device"])
        if not part["status"].eq("ok").any():
            continue
        for suffix, page in pages(part):
            where = f"_{device_type}" if len(types) > 1 else ""
            if page["status"].eq("ok").any():
                yield f"{where}{suffix}", page, part[part["mixer"] == "attention"]


def trials(table: pd.DataFrame) -> str:
    ran = table[table["status"] == "ok"]
    count = ran["trial"].nunique() if "trial" in ran else 1
    repetitions = ran["repetitions"].astype(int)
    low, high = repetitions.min(), repetitions.max()
    many = f"{low}" if low == high else f"{low} to {high}"
    if count == 1:
        return f"Median of {many} repetitions in one process."
    return (
        f"Line: median of {count} processes (small points), each the median of {many} repetitions."
    )


def noise(table: pd.DataFrame) -> str:
    """The noise floor: what the same call differs from itself by."""
    null = null_differences(table[table["status"] == "ok"])
    return (
        f"A/A null runs differ by {100 * null.median():.1f} % in the median and "
        f"{100 * null.max():.1f} % at most."
    )


def faster(lines: pd.DataFrame, attention: pd.DataFrame, cost: Cost, table: pd.DataFrame) -> str:
    """From which length on each mixer is faster than the fastest attention, where the times of
    `table` and of attention's rows are steady enough to say so."""
    if unsteady(table).any() or unsteady(attention).any():
        return "Which is faster than attention is not told: times differ too much from themselves."
    rivals = medians(attention, cost)
    told: list[str] = []
    for place in panels(lines, cost):
        found = crossovers(at(lines, place), at(rivals, place), cost.x, cost.y)
        if found:
            told.append(f"{title(place)}: {', '.join(f'{k} {v}' for k, v in found.items())}")
    return f"Faster than attention, of the lengths that both ran: {'; '.join(told)}." * bool(told)


def common(table: pd.DataFrame) -> list[str]:
    oom = "×: out of memory." if "oom" in set(table["status"]) else ""
    return [oom, _size(table), *_widths(table), origin(table)]


def _widths(table: pd.DataFrame) -> list[str]:
    return [setting(table, "d_model", "Width {}."), setting(table, "head_size", "Heads of {}.")]


def _size(table: pd.DataFrame) -> str:
    if "seq_len" not in table:
        return ""
    sizes = table[["batch", "seq_len"]].drop_duplicates().sort_values("seq_len")
    tokens, batches = (sizes["batch"] * sizes["seq_len"]).unique(), sizes["batch"].unique()
    if len(batches) == 1:
        return f"Batch {batches[0]}."
    if len(tokens) == 1:
        return f"{tokens[0]:,} tokens a call: batch {batches[0]} to {batches[-1]}."
    pairs = ", ".join(
        f"{batch} × {length(seq_len)}"
        for batch, seq_len in sizes.itertuples(index=False, name=None)
    )
    return f"Batch × length: {pairs}."
