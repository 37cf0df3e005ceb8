"""Records of several machines in one file: a union, since each line stands for itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from harness.records import Record, Records


def merge(grid: str, files: Iterable[Path], results: Path) -> Iterator[str]:
    """Append to the grid's records those of `files` that it lacks; give a line for each file.

    Of another grid's records those count whose cells are this grid's too, and become its own. A
    torn last line is skipped and told. Raises ValueError, before anything is written, for a file
    that is not there or holds other grids' records alone, of other cells, and for a damaged line,
    which it names.
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
    if not rows:
        raise ValueError(f"{source.path} holds no record: name a records.jsonl of another run")
    others = sorted({row.grid for row in rows} - {grid})
    if not others:
        return rows
    shared = _keys(grid)
    own = [
        row.model_copy(update={"grid": grid})
        for row in rows
        if row.grid == grid or row.key in shared
    ]
    if not own:
        raise ValueError(
            f"{source.path} holds records of {', '.join(others)}, none of a cell that {grid} has"
            f"{_meant(grid)}"
        )
    return own


def _meant(grid: str) -> str:
    from harness.plan import built_in, meant

    return "" if grid in built_in() else f"; no grid of the suite is called so.{meant(grid)}"


def _keys(grid: str) -> set[str]:
    """Of the grid's cells on a CPU and on a GPU; none of a grid that the suite does not have."""
    # Tasks import torch, which most merges do without.
    import torch

    from harness.plan import built_in

    make = built_in().get(grid)
    if make is None:
        return set()
    return {task.key for kind in ("cpu", "cuda") for task in make(torch.device(kind))}
