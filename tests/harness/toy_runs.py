"""Runs of the toy grids: where these are, and the rows that a run has left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from harness.records import Record, Records
from harness.runner import Summary

TOYS = Path(__file__).parent / "toy_grids.py"
ROOT = TOYS.parent.parent.parent

Run = Callable[..., Summary]


def rows(results: Path, grid: str) -> list[Record]:
    return Records(results / grid).rows()
