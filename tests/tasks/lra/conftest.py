"""Fixtures for the arena's cells, whose data are generated into a folder of the module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """An empty folder for a module's data."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def _generated(root: Path, monkeypatch) -> Iterator[None]:
    """Cells generate their data there."""
    monkeypatch.setenv("MIXERBENCH_DATA", str(root))
    # One process draws: a pool of them takes longer to start than so little takes to draw.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
