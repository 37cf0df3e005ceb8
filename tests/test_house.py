"""The house rules that a machine can read: who imports whom, and how long a file may be."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("hgrn2", "mixers", "tasks", "harness")
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))

# Room or file -> the rooms and files of ours that it may import (the longest prefix counts).
MAY_IMPORT = {
    "hgrn2": {"hgrn2"},
    "mixers": {"mixers", "hgrn2"},
    "mixers.base": set(),
    "mixers.tokens": set(),
    "mixers.layers": {"mixers.tokens"},
    "mixers.directions": {"mixers.base", "mixers.tokens"},
    "tasks": {
        "tasks",
        "mixers.base",
        "mixers.layers",
        "mixers.tokens",
        "mixers.directions",
        "mixers.lookup",
        "mixers.cross_entropy",
        "mixers.cross_entropy_settings",
    },
    "tasks.mqar.data": set(),
    "harness": {"harness", "tasks.base"},
    "harness.grids": {
        *("tasks", "harness.grids_recall", "harness.grids_lra", "harness.grids_speed"),
    },
    "harness.grids_lra": {"mixers", "tasks", "harness.grids_speed"},
    "harness.grids_recall": {"mixers", "tasks", "harness.grids_speed"},
    "harness.cli_data": {"harness", "tasks.lra"},
    "harness.grids_speed": {"mixers", "tasks", "hgrn2"},
    "harness.doctor": {"harness", "mixers"},
}
# Reports build on a laptop without torch.
TORCH_FREE = (
    *("frames", "figures", "style", "sheet", "report", "compare", "records", "cli"),
    *("curves", "crossover", "plot", "series", "selection", "cells", "runner", "processes"),
    *("progress", "placement", "claims", "cluster", "seat", "merge", "slurm", "arguments"),
)
PEERS = {"fla", "mamba_ssm", "causal_conv1d", "ray", "submitit"}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path, *, top_level: bool = False) -> set[str]:
    """The modules that a file imports; with `top_level`, those that importing it imports."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level else ast.walk(tree)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def allowed(module: str) -> set[str]:
    prefixes = [rule for rule in MAY_IMPORT if module == rule or module.startswith(rule + ".")]
    return MAY_IMPORT[max(prefixes, key=len)]


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_go_in_the_directions_of_the_house(path):
    permitted = allowed(module_name(path))
    for name in imports(path):
        if name.split(".")[0] in ROOMS:
            fits = any(
                name == p or name.startswith(p + ".") or p.startswith(name + ".") for p in permitted
            )
            assert fits, f"{module_name(path)} may not import {name}"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_peers_are_imported_by_the_mixer_that_asks_for_them(path):
    at_import = {name.split(".")[0] for name in imports(path, top_level=True)}
    assert not at_import & PEERS


@pytest.mark.parametrize("name", TORCH_FREE)
def test_reports_need_no_torch(name):
    for path in (ROOT / "harness").glob(f"{name}*.py"):
        at_import = {module.split(".")[0] for module in imports(path, top_level=True)}
        assert not at_import & {"torch", "mixers", "tasks", "hgrn2"}, path.name


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_files_stay_readable(path):
    limit = 400 if "kernels" in path.parts else 300
    assert len(path.read_text().splitlines()) <= limit
