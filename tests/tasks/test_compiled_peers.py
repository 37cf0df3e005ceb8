"""compiled_peers.py in a process of its own."""

from __future__ import annotations

from pathlib import Path

from tests.apart import expect_passes


def test_a_loss_is_compiled_around_other_libraries_kernels():
    expect_passes(Path(__file__).with_name("compiled_peers.py"), interpreted=False)
