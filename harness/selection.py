"""Which of a grid's cells, and what to call them: by the same columns as the report's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import pandas as pd
from pandas.errors import UndefinedVariableError

from harness.cells import Cell, Options
from harness.claims import settled
from harness.frames import flatten
from harness.records import Records
from harness.series import listed

SHOWN = 8
"""Values of a column that an error tells, at most."""


def columns(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """The table columns of each cell: key, grid, and the task's own."""
    return [{"key": cell.key, "grid": cell.grid, **flatten(cell.task)} for cell in cells]


def select(cells: Sequence[Cell], where: str) -> list[Cell]:
    """The cells for which the pandas query `where` is true.

    Raises ValueError, with what there is to choose by, for a query that pandas cannot answer or
    that chooses none.
    """
    frame = pd.DataFrame(columns(cells))
    try:
        chosen = frame.eval(where)
        problem = "it is neither true nor false"
        if isinstance(chosen, pd.DataFrame):
            problem = "it assigns; == compares"
    except UndefinedVariableError as error:
        chosen, name = None, str(error).split("'")[1]
        near = get_close_matches(name, [*frame.columns], 1)
        hint = f": did you mean {near[0]}?" if near else "; text stands in quotes"
        problem = f"{name!r} is no column{hint}"
    # The query is the user's program: whatever it raises is the answer.
    except Exception as error:
        chosen, problem = None, str(error).splitlines()[0]
    if not isinstance(chosen, pd.Series) or chosen.dtype != bool:
        raise ValueError(f"--where {where!r}: {problem}\n{_choices(frame)}")
    found = [cell for cell, wanted in zip(cells, chosen, strict=True) if wanted]
    if not found:
        raise ValueError(f"--where {where!r} chooses none of the cells\n{_choices(frame)}")
    return found


def _choices(frame: pd.DataFrame) -> str:
    """The columns in which the cells differ with their values, and the other columns' names."""
    lines: list[str] = []
    others: list[str] = []
    for name in frame.columns.drop("key"):
        values = listed(frame[name])
        if len(values) > 1:
            more = ", .." if len(values) > SHOWN else ""
            lines.append(f"  {name}: {', '.join(values[:SHOWN])}{more}")
        else:
            others.append(str(name))
    return "\n".join(["What the cells differ in:", *lines, f"One value each: {', '.join(others)}"])


def labels(cells: Sequence[Cell]) -> dict[str, str]:
    """A short name for each cell's key: its mixer, its implementation, and what else varies among
    the cells of the two."""
    rows = columns(cells)
    by_mixer: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_mixer[f"{row['mixer']}/{row['impl']}"].append(row)
    named: dict[str, str] = {}
    for mixer, alike in by_mixer.items():
        names = dict.fromkeys(name for row in alike for name in row if name not in ("key", "grid"))
        varying = [name for name in names if len({str(row.get(name)) for row in alike}) > 1]
        for row in alike:
            settings = [f"{name}={row[name]}" for name in varying if name in row]
            named[row["key"]] = " ".join([mixer, *settings])
    return named


def pending(cells: Sequence[Cell], options: Options) -> list[Cell]:
    """The cells that a run would measure: those without an ok record that counts."""
    if not cells:
        return []
    records = Records(options.results / cells[0].grid)
    return [cell for cell in cells if not settled(cell, records, options)]


def failed(cells: Sequence[Cell], options: Options) -> set[str]:
    """The keys of those whose newest record on this device, of those that count, is not ok."""
    if not cells:
        return set()
    records, device = Records(options.results / cells[0].grid), options.machine.device_name
    newest = [records.newest(cell.key, device) for cell in cells]
    since = options.fresh_since or ""
    return {r.key for r in newest if r and r.status != "ok" and r.started >= since}


def drop_stale_checkpoints(cells: Sequence[Cell], options: Options) -> None:
    """Delete what cells that need no run had saved before their records."""
    if not cells:
        return
    records = Records(options.results / cells[0].grid)
    for cell in cells:
        if record := settled(cell, records, options):
            records.drop_stale_checkpoint(record, options.machine.device_name)
