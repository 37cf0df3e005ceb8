"""What a user waits for: from a fresh process with empty kernel caches to the first results."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal

from pydantic import PositiveFloat, model_validator

from tasks.base import Context, Metrics, Paused
from tasks.workload import WorkloadTask

POLL_S = 0.2
LONGEST_ERROR = 1500


class ColdStart(WorkloadTask):
    """Seconds from the start of a Python process, in parts that add up to `cold_start_s`.

    `interpreter_s`: Python, torch and this package. `import_s`: triton, fla or mamba_ssm, where the
    implementation is one of them. `device_s`: the GPU's first kernel. `forward_s`: inputs drawn,
    kernels compiled and tuned, one forward. `backward_s`: the same again, and a backward.
    Nothing is checked here: the speed grids do.
    """

    name: Literal["cold_start"] = "cold_start"
    trial: int = 0
    timeout_s: PositiveFloat = 900.0
    """After which the process is ended and the cell is an error."""

    timed: ClassVar[bool] = True

    @model_validator(mode="after")
    def _has_a_backward(self) -> ColdStart:
        if self.mode != "fwd_bwd":
            raise ValueError(
                f"mode = {self.mode!r}: a cold start measures forward and backward in one process; "
                "use mode = 'fwd_bwd' and level = 'op' or 'layer'"
            )
        return self

    def run(self, context: Context) -> Metrics:
        self.refuse_unsupported(context.device)
        with TemporaryDirectory() as folder:
            answer = self._first_calls(context, Path(folder))
        parts = {name: float(seconds) for name, seconds in answer.items()}
        return {"cold_start_s": sum(parts.values())} | parts

    def _first_calls(self, context: Context, folder: Path) -> dict[str, Any]:
        """The JSON line that `tasks.first_calls` prints last."""
        output, errors = folder / "output", folder / "errors"
        with output.open("wb") as stdout, errors.open("wb") as stderr:
            started = time.time()
            process = subprocess.Popen(
                [sys.executable, "-m", "tasks.first_calls", str(context.device), repr(started)],
                stdin=subprocess.PIPE,
                stdout=stdout,
                stderr=stderr,
                env=_without_caches(folder),
                # A group of its own: compilers that it starts end with it.
                start_new_session=True,
            )
            try:
                assert process.stdin
                process.stdin.write(pickle.dumps(self))
                process.stdin.close()
                self._wait(process, context)
            finally:
                _end(process)
        if process.returncode:
            told = errors.read_text(errors="replace").strip()[-LONGEST_ERROR:]
            last = told.rpartition("\n")[2]
            kind = MemoryError if "OutOfMemoryError" in last else RuntimeError
            raise kind(f"the fresh process exited with code {process.returncode}: {last}\n{told}")
        return json.loads(output.read_text(errors="replace").splitlines()[-1])

    def _wait(self, process: subprocess.Popen[bytes], context: Context) -> None:
        end = time.monotonic() + self.timeout_s
        while True:
            try:
                process.wait(POLL_S)
                return
            except subprocess.TimeoutExpired:
                pass
            if context.should_stop():
                raise Paused
            if time.monotonic() > end:
                raise TimeoutError(
                    f"no forward and backward after timeout_s = {self.timeout_s:g} seconds"
                )


def _without_caches(folder: Path) -> dict[str, str]:
    """This process's environment, with every kernel cache private and empty."""
    private = {
        "TRITON_CACHE_DIR": str(folder / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "CUDA_CACHE_PATH": str(folder / "cuda"),
        "FLA_CACHE_RESULTS": "0",
        # As the mixers have it, which set it just before they import FLA.
        "FLA_DISABLE_BACKEND_DISPATCH": os.environ.get("FLA_DISABLE_BACKEND_DISPATCH", "1"),
        # The mixer's class may be in a user's file.
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
    }
    return os.environ | private


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
