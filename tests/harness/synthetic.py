"""Synthetic records: those that a real run would leave, and the file that holds them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from harness.records import Record, Records

MIXERS = (
    ("hgrn2", "triton"),
    ("hgrn1", "triton"),
    ("gla", "fla"),
    ("mamba", "mamba_ssm"),
    ("attention", "sdpa"),
)
GPU, CPU = "NVIDIA H200", "Example CPU @ 2.0GHz"


def record(
    task: dict[str, Any],
    metrics: dict[str, Any] | None = None,
    *,
    grid: str = "grid",
    status: str = "ok",
    error: str | None = None,
    device: str = GPU,
    commit: str = "a" * 40,
    dirty: bool = False,
    ended: str = "2024-04-11T09:00:00.000Z",
) -> Record:
    """One record; its key is a function of its task."""
    key = hashlib.sha256(json.dumps(task, sort_keys=True).encode()).hexdigest()[:12]
    env = {
        "python": "3.11.9",
        "torch": "2.13.0",
        "device": device,
        "device_type": "cpu" if device == CPU else "cuda",
        "threads": 2,
        "commit": commit,
        "dirty": dirty,
    }
    return Record.model_validate(
        {
            "key": key,
            "grid": grid,
            "task": task,
            "status": status,
            "metrics": metrics or {},
            "env": env,
            "started": ended,
            "ended": ended,
            "error": error,
        }
    )


def write(results: Path, grid: str, records: list[Record]) -> None:
    """Append them to the grid's file in one go, as its own."""
    path = Records(results / grid).path
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.writelines(record.model_copy(update={"grid": grid}).line() for record in records)
