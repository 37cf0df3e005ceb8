"""Tests in a process of their own: kernels under Triton's interpreter, since triton reads
TRITON_INTERPRET on import, and what torch compiles in parts, without jaxtyping's checks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def expect_passes(file: Path, *, interpreted: bool = True) -> None:
    """That file's tests pass."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    plugins = ["-p", "no:cacheprovider"]
    if interpreted:
        environment["TRITON_INTERPRET"] = "1"
        plugins += ["-p", "tests.interpreter"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *plugins, str(file)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
