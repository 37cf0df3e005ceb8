"""Records as a tidy pandas frame: one row a cell, the newest row per (key, device) wins.

Imports no torch: a report builds on a laptop.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

Leaf = str | int | float | bool | None

RENAMED = {("name",): "task", ("mixer", "name"): "mixer", ("mixer", "impl"): "impl"}
"""Paths whose column is not the leaf's own name."""


def flatten(task: Mapping[str, Any]) -> dict[str, Leaf]:
    """The table columns of one task, given as its JSON dump.

    `name` becomes `task`, `mixer.name` becomes `mixer`, `mixer.impl` becomes `impl`. Every other
    leaf keeps its own name where no other leaf of this task has it, else its path joined with
    underscores (`backbone_dropout`, `mixer_dropout`). A list is a leaf, written as compact JSON:
    so every value can be grouped by, queried and stored in a CSV. Raises ValueError where two
    fields would still share a column.
    """
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
