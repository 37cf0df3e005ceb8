"""Records as a tidy pandas frame: one row a cell, the newest row per (key, device) wins.

Imports no torch: a report builds on a laptop.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from harness.records import Record, Records
from harness.throttling import slowed

Leaf = str | int | float | bool | None

RENAMED = {("name",): "task", ("mixer", "name"): "mixer", ("mixer", "impl"): "impl"}
"""Paths whose column is not the leaf's own name."""

STEADY = 0.25
"""By how much a time may differ when it is measured again at once."""

LATER: dict[str, dict[str, Leaf]] = {
    "decode": {"level": "layer", "replay": "eager"},
    "training": {
        "engine": "eager",
        "compiled": False,
        "schedule_steps": None,
        "rates_lr": None,
        "steps_together": 1,
    },
    "backbone": {"first": None, "branch_dropout": 0.0, "embed_std": None},
    "mqar": {"fused_loss": False},
    "mqar_step": {"fused_loss": False},
    "lra": {"sort_pool": 64},
    "lra_step": {"sort_pool": 64},
    "data": {"version": 1},
    "hgrn1": {"scan": "1d"},
    "hgrn2": {"scan": "1d"},
}
"""Task, part of one or mixer -> fields that came after records had been made, as those records had
them. The JSON leaves them out at that value (`Frozen.later`)."""

TRAINED = ("mqar", "lra")
"""Tasks whose outcome is the model's: those with `Task.any_device`, by name."""

PROVENANCE = ("device", "device_type", "commit", "dirty", "key", "env")
"""A frame's last columns; `env` holds the whole environment of the record."""

TORN = "torn"
"""In a frame's `attrs`: whether the last line of its records was torn."""


def flatten(task: Mapping[str, Any]) -> dict[str, Leaf]:
    """The table columns of one task, given as its JSON dump.

    `name` becomes `task`, `mixer.name` becomes `mixer`, `mixer.impl` becomes `impl`. Every other
    leaf keeps its own name where no other leaf of this task has it, else its path joined with
    underscores (`backbone_dropout`, `mixer_dropout`). A list is a leaf, written as compact JSON:
    so every value can be grouped by, queried and stored in a CSV. Raises ValueError where two
    fields would still share a column.
    """
    task = _with_later(task, task.get("name", ""))
    for part in LATER.keys() & task.keys():
        if isinstance(task[part], Mapping):
            task = {**task, part: _with_later(task[part], part)}
    if "mixer" in task:
        task = {**task, "mixer": _with_later(task["mixer"], task["mixer"]["name"])}
    leaves = dict(_leaves(task, ()))
    names = Counter(path[-1] for path in leaves)
    taken = set(RENAMED.values())
    row: dict[str, Leaf] = {}
    for path, value in leaves.items():
        unique = names[path[-1]] == 1 and path[-1] not in taken
        column = RENAMED.get(path) or (path[-1] if unique else "_".join(path))
        if column in row:
            raise ValueError(f"task {task.get('name')!r}: two fields would share column {column!r}")
        row[column] = value
    return row


def _with_later(given: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Those that came later stand last."""
    return {**given, **LATER.get(name, {}), **given}


def _leaves(
    node: Mapping[str, Any], path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Leaf]]:
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, name))
        elif isinstance(value, list | tuple):
            yield (*path, name), json.dumps(value, sort_keys=True, separators=(",", ":"))
        else:
            yield (*path, name), value


def frame(
    grid: str, results: Path, *, any_device: bool = False, only_device: str | None = None
) -> pd.DataFrame:
    """The cells of `grid` recorded under the folder `results`, as `tidy` makes them.

    `only_device` keeps the records of the devices with that in their name ("H100"). Raises
    ValueError where there is nothing to read or another grid's records, and where the records come
    from several devices unless `any_device` asks for that: times are not comparable, and what is
    trained has one row a cell then.
    """
    file = Records(results / grid)
    records = file.rows()
    if not records:
        files = results.glob("*/records.jsonl")
        found = sorted(path.parent.name for path in files if path.stat().st_size)
        raise ValueError(
            f"grid {grid!r} has no records in {results}: if `mixerbench grids` lists it, "
            f"`mixerbench run {grid} --results {results}` makes them; "
            f"grids with records there: {', '.join(found) or 'none'}"
        )
    if others := sorted({record.grid for record in records} - {grid}):
        raise ValueError(
            f"{file.path} holds records of {', '.join(others)}, not of {grid} alone: "
            "each grid's are in a folder of its name"
        )
    table = tidy(records, pool=any_device)
    if only_device is not None:
        chosen = [record for record in records if only_device in record.device]
        if not chosen:
            raise ValueError(
                f"grid {grid!r} has no records of a device called {only_device!r}; "
                f"it has those of {_devices(table)}"
            )
        table = tidy(chosen, pool=any_device)
    if table["device"].nunique() > 1 and not any_device:
        raise ValueError(
            f"grid {grid!r} has records of {table['device'].nunique()} devices: {_devices(table)}. "
            "Choose one with --only-device NAME, or ask for all of them with --any-device"
        )
    table.attrs[TORN] = file.torn()
    return table


def _devices(table: pd.DataFrame) -> str:
    cells = sorted(Counter(table["device"]).items())
    return ", ".join(f"{device} ({count} cells)" for device, count in cells)


def tidy(records: Iterable[Record], *, pool: bool = False) -> pd.DataFrame:
    """One row a cell and device: the newest of its records, in the order they first appear. With
    `pool`, of tasks in TRAINED one row a cell and kind of device: the newest ok record, else the
    newest.

    Columns: the settings (see `flatten`), then `status` and `error`, then the metrics (lists stay
    lists; NaN where the cell failed), then `PROVENANCE`. A metric that shares its name with a
    setting becomes `measured_<name>`.
    """
    newest: dict[tuple[str, str], Record] = {}
    for record in records:
        pooled = pool and record.task.get("name") in TRAINED
        device = str(record.env.get("device_type")) if pooled else record.device
        cell = record.key, device
        if cell not in newest or _rank(newest[cell], pooled) <= _rank(record, pooled):
            newest[cell] = record
    rows = [(flatten(record.task), record) for record in newest.values()]
    columns = list(dict.fromkeys(name for row, _ in rows for name in row))
    metrics = dict.fromkeys(name for _, record in rows for name in record.metrics)
    named = {name: f"measured_{name}" if name in columns else name for name in metrics}
    cells = [
        row
        | {"status": record.status, "error": record.error}
        | {named[name]: value for name, value in record.metrics.items()}
        | {name: record.env.get(name) for name in PROVENANCE[:4]}
        | {"key": record.key, "env": record.env}
        for row, record in rows
    ]
    order = [*columns, "status", "error", *named.values(), *PROVENANCE]
    return pd.DataFrame(cells, columns=pd.Index(order))


def _rank(record: Record, pooled: bool) -> tuple[bool, str]:
    """Another device's failure does not undo a result."""
    return pooled and record.status == "ok", record.ended


def settings(table: pd.DataFrame) -> list[str]:
    """The columns of a tidy frame that say what was measured: all those before `status`."""
    columns = list(table.columns)
    return columns[: columns.index("status")]


def null_differences(table: pd.DataFrame) -> pd.Series:
    """By how much of itself a cell's time, measured twice in a row, differed."""
    return (table["null_ms"] / table["time_ms"] - 1).abs()


def unsteady(table: pd.DataFrame) -> pd.Series:
    """Which cells' times differed by more than STEADY."""
    if not {"null_ms", "time_ms"}.issubset(table):
        return pd.Series(False, index=table.index)
    return null_differences(table) > STEADY


def cautions(table: pd.DataFrame) -> list[str]:
    """What a reader of this frame should know before comparing its rows, a sentence each."""
    lines: list[str] = []
    if table.attrs.get(TORN):
        lines.append(
            "The last line of the records is torn, by a process that was killed or a full disk: "
            "its cell is left out, and the next run cuts the line off."
        )
    commits = Counter(commit[:10] for commit in table["commit"].dropna())
    unknown = len(table) - commits.total()
    if len(commits) + bool(unknown) > 1:
        listed = [f"{commit} ({count})" for commit, count in sorted(commits.items())]
        listed += [f"unknown ones ({unknown})"] if unknown else []
        lines.append(f"The cells come from {len(commits)} commits: {', '.join(listed)}.")
    if dirty := sum(bool(dirty) for dirty in table["dirty"]):
        lines.append(f"{dirty} of {len(table)} cells ran with uncommitted changes.")
    if hot := sum(map(slowed, table["env"])):
        lines.append(
            f"{hot} of {len(table)} cells ended on a GPU that its heat or its power supply had "
            "slowed down (`throttle_bits`): their times are too long."
        )
    if restless := int(unsteady(table).sum()):
        lines.append(
            f"{restless} of {len(table)} cells took over {STEADY:.0%} more or less time when they "
            "were measured twice in a row (`null_ms`): other programs ran beside them. "
            "`mixerbench run --fresh` measures anew."
        )
    if len(devices := set(table["device"])) > 1:
        lines.append(f"The cells come from {len(devices)} devices.")
    return lines
