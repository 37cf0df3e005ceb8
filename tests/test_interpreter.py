"""The interpreter that kernels are tested by tells of loads and stores outside their arguments."""

from __future__ import annotations

from pathlib import Path

from tests.apart import expect_passes


def test_memory():
    expect_passes(Path(__file__).with_name("interpreted_memory.py"))
