"""Records of several machines in one file: a union, since each line stands for itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from harness.records import Record, Records


def merge(grid: str, files: Iterable[Path], results: Path) -> Iterator[str]:
    """Append to the grid's records those of `files` that it lacks; give a line for each file.

    A torn last line is skipped and told. Raises ValueError, before anything is written, for a file
    that is not there or holds another grid's records, and for a damaged line, which it names.
    """
    target = Records(results / grid)
    there = {record.line() for record in target.rows()}
    new: dict[bytes, Record] = {}
    told = []
    for file in files:
        source = Records(file.parent, file.name)
        rows = _rows(grid, source)
        lines = {row.line(): row for row in rows}
        added = {line: row for line, row in lines.items() if line not in there | new.keys()}
        new |= added
        torn = "; its last line is torn and was skipped" if source.torn() else ""
        told.append(f"{file}: {len(added)} of {len(rows)} records are new{torn}")
    if new:
        target.append(*new.values())
    yield from told
    yield f"{target.path}: {len(target.rows())} records"


def _rows(grid: str, source: Records) -> list[Record]:
    if not source.path.is_file():
        raise ValueError(f"there is no file {source.path}: name a records.jsonl of another run")
    rows = source.rows()
    others = sorted({row.grid for row in rows} - {grid})
    if others:
        raise ValueError(f"{source.path} holds records of {', '.join(others)}, not of {grid}")
    return rows
