"""Runs the interpreted_*.py files in processes of their own: triton reads TRITON_INTERPRET on
import."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.apart import expect_passes

pytest.importorskip("triton")


@pytest.mark.parametrize(
    "name", ["interpreted_kernels", "interpreted_projection", "interpreted_gla", "interpreted_scan"]
)
def test_the_interpreted_kernels_agree_with_the_oracle(name):
    expect_passes(Path(__file__).with_name(f"{name}.py"))
