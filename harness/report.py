"""A grid's records as a report: report.md, table.csv, and figures with a table each.

Everything is a function of the records: the same records give the same bytes.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from harness.figures import draw
from harness.frames import cautions, frame, settings
from harness.plot import Plot
from harness.records import room
from harness.series import listed
from harness.sheet import save
from harness.style import significant


def write_report(
    grid: str, results: Path, *, any_device: bool = False, only_device: str | None = None
) -> Path:
    """Write the report of `grid` into <results>/<grid>/, next to its records; return report.md.

    Raises ValueError as `frames.frame` does, and where nothing can be written. What a reader should
    beware of is in the report, and said on stderr.
    """
    table = frame(grid, results, any_device=any_device, only_device=only_device)
    plots = draw(table)
    for line in cautions(table):
        print(f"{grid}: {line}", file=sys.stderr)
    try:
        return _write(grid, results / grid, table, plots)
    except OSError as error:
        raise ValueError(
            f"cannot write {error.filename or results / grid}: {error.strerror or error}; "
            f"{room(error)}copy the records to another folder and name it with --results"
        ) from error


def _write(grid: str, folder: Path, table: pd.DataFrame, plots: Mapping[str, Plot]) -> Path:
    """All of it or nothing: what is there is replaced by what has been written whole."""
    with TemporaryDirectory(dir=folder, prefix=".report-") as there:
        _write_new(grid, Path(there), table, plots)
        for path in sorted(Path(there).iterdir()):
            os.replace(path, folder / path.name)
    return folder / "report.md"


def _write_new(grid: str, folder: Path, table: pd.DataFrame, plots: Mapping[str, Plot]) -> None:
    for name, plot in plots.items():
        save(plot.figure, folder / name)
        plot.table.to_csv(folder / f"{name}.csv", index=False)
        (folder / f"{name}.md").write_text(f"{plot.caption}\n\n{_summary(plot)}\n")
    scalars = [name for name in table if not table[name].map(_is_container).any()]
    table[scalars].to_csv(folder / "table.csv", index=False)
    (folder / "report.md").write_text("\n\n".join(_sections(grid, table, plots)) + "\n")


def _is_container(value: object) -> bool:
    return isinstance(value, list | dict)


def _sections(grid: str, table: pd.DataFrame, plots: Mapping[str, Plot]) -> Iterable[str]:
    counts = ", ".join(f"{n} {status}" for status, n in sorted(Counter(table["status"]).items()))
    yield f"# {grid}"
    yield f"{len(table)} cells: {counts}. One row a cell: [table.csv](table.csv)."
    yield from (f"**Note.** {line}" for line in cautions(table))
    for name, plot in plots.items():
        words = name.replace("_", " ")
        yield f"## {words[0].upper()}{words[1:]}"
        yield f"![{words}]({name}.svg)"
        yield plot.caption
        yield _summary(plot)
        yield f"Every number drawn: [{name}.csv]({name}.csv). Bitmap: [{name}.png]({name}.png)."
    for task in sorted(set(table["task"])):
        if not plots:
            yield f"No figure is drawn for task {task}."
    yield "## Cells"
    yield markdown(coverage(table))
    yield "## Cells without a result"
    yield markdown(failures(table)) if (table["status"] != "ok").any() else "None."
    yield "## Settings"
    yield "The same in all cells:"
    yield markdown(_pairs(_shared(table)))
    yield "The others, every value that a mixer has:"
    yield markdown(differing(table))
    yield "## Provenance"
    yield markdown(_pairs(provenance(table)))


def _summary(plot: Plot) -> str:
    text = markdown(plot.summary)
    star = "\n\n\\*: some of the cells behind this number gave no result." if " *" in text else ""
    return text + star


def coverage(table: pd.DataFrame) -> pd.DataFrame:
    """How many cells of each (mixer, implementation) ended how, a column a task."""
    rows = table.groupby(["mixer", "impl", "task"], sort=True)["status"]
    told = rows.agg(lambda x: ", ".join(f"{n} {s}" for s, n in sorted(Counter(x).items())))
    return told.unstack("task").fillna("–").reset_index()


def failures(table: pd.DataFrame) -> pd.DataFrame:
    """The cells that gave no result, in the table's order, by the settings that differ in the
    grid, with the reason's first line."""
    failed = table[table["status"] != "ok"]
    columns = [name for name in _differing(table) if failed[name].notna().any()]
    reasons = [str(error).partition("\n")[0] for error in failed["error"]]
    return failed[[*columns, "status"]].assign(reason=reasons)


def differing(table: pd.DataFrame) -> pd.DataFrame:
    """Rows: the settings that differ in the grid; columns: each (mixer, implementation)."""
    names = [name for name in _differing(table) if name not in ("mixer", "impl")]
    rows: dict[str, list[str]] = {"setting": names}
    for (mixer, impl), cells in table.groupby(["mixer", "impl"]):
        rows[f"{mixer} {impl}"] = [", ".join(listed(cells[name])) or "–" for name in names]
    return pd.DataFrame(rows)


def _differing(table: pd.DataFrame) -> list[str]:
    """The settings that differ, less lists that others already tell apart (a grid's segments
    beside its seq_len)."""
    names = [name for name in settings(table) if name not in _shared(table)]
    plain = [name for name in names if not table[name].map(_is_list_text).any()]
    told_apart = len(table[plain].drop_duplicates()) == len(table[names].drop_duplicates())
    return plain if told_apart else names


def _is_list_text(value: object) -> bool:
    return isinstance(value, str) and value.startswith("[")


def provenance(table: pd.DataFrame) -> dict[str, str]:
    """What the cells' environments say: one value where they agree, a range of numbers, or each
    value with the number of cells that have it. Also the seeds."""
    names = dict.fromkeys(name for env in table["env"] for name in env)
    told = {
        name: _told([env[name] for env in table["env"] if env.get(name) is not None])
        for name in names
    }
    for name in ("seed", "data_seed", "trial"):
        if name in table:
            told[name] = ", ".join(listed(table[name]))
    return {name: value for name, value in told.items() if value}


def _told(values: list[Any]) -> str:
    texts = Counter(value if isinstance(value, str) else json.dumps(value) for value in values)
    if len(texts) < 2:
        return "".join(texts)
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return f"{significant(min(values))} to {significant(max(values))}"
    return ", ".join(f"{text} ({count} cells)" for text, count in sorted(texts.items()))


def _shared(table: pd.DataFrame) -> dict[str, str]:
    """The settings that have one value in all cells."""
    names = [name for name in settings(table) if table[name].nunique(dropna=False) == 1]
    return {name: significant(table[name].iloc[0]) for name in names}


def _pairs(values: Mapping[str, str]) -> pd.DataFrame:
    return pd.DataFrame(list(values.items()), columns=pd.Index(["name", "value"]))


def markdown(table: pd.DataFrame) -> str:
    """A Markdown table: numbers to four significant digits and to the right."""
    rows = [
        [significant(value).replace("|", "\\|") for value in row]
        for row in table.itertuples(index=False, name=None)
    ]
    text = pd.DataFrame(rows, columns=table.columns)
    align = ["right" if pd.api.types.is_numeric_dtype(kind) else "left" for kind in table.dtypes]
    return str(text.to_markdown(index=False, disable_numparse=True, colalign=align))
