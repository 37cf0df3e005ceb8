"""What the server does for its workers leaves the GPU to them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TOYS = Path(__file__).parent / "toy_grids.py"

CODE = """
from pathlib import Path
Path.exists = lambda path: str(path) == "/dev/nvidiactl" or path.is_file() or path.is_dir()
import torch
import harness.warm
import sys
from triton.runtime.cache import triton_key
assert "torch._dynamo" in sys.modules and triton_key.cache_info().currsize == 1
assert not torch.cuda.is_initialized()
"""


def test_a_server_warms_up_without_a_gpu():
    pytest.importorskip("triton")
    subprocess.run([sys.executable, "-c", CODE], check=True)


def test_a_worker_that_makes_a_bar_leaves_no_lock_behind(tmp_path):
    command = [
        sys.executable,
        "-m",
        "harness.cli",
        "run",
        f"{TOYS}:progress_bar",
        "--device",
        "cpu",
    ]
    done = subprocess.run(
        [*command, "--results", str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "1 ok" in done.stdout
    assert "leaked" not in done.stderr
