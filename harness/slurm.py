"""A grid on a Slurm cluster: an array of jobs, each of which is one more run of the same grid.

The claims of harness/records.py share the cells among them; nothing else connects the jobs.
"""

from __future__ import annotations

import math
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

SPARE_MIN = 5
"""Between the end of a job's budget and Slurm's limit: cells are saved, the last one ends."""


def submit(
    command: list[str],
    *,
    partition: str,
    array: int,
    gpus: int,
    cpus: int,
    budget_s: float,
    folder: Path,
    cluster: str = "slurm",
) -> list[Any]:
    """Submit `array` jobs that each run `mixerbench` with the words of `command`: submitit's jobs.

    What they print is in `folder`. `cluster`: submitit's name of it ("local" runs them as processes
    of this machine). Raises ValueError where submitit or Slurm is missing.
    """
    try:
        submitit = import_module("submitit")
    except ImportError:
        raise ValueError("submit needs submitit: pip install -e '.[slurm]'") from None
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
    except RuntimeError as error:
        raise ValueError(f"submit: {error}") from error
    executor.update_parameters(
        name="mixerbench",
        nodes=1,
        tasks_per_node=1,
        gpus_per_node=gpus or None,
        cpus_per_task=cpus,
        timeout_min=math.ceil(budget_s / 60) + SPARE_MIN,
        stderr_to_stdout=True,
        slurm_partition=partition,
        slurm_array_parallelism=array,
        # Since Slurm 22.05 srun does not take this over from the job.
        slurm_srun_args=[f"--cpus-per-task={cpus}"],
    )
    words = [sys.executable, "-m", "harness.cli", *command]
    with executor.batch():
        return [executor.submit(subprocess.run, words, check=True) for _ in range(array)]
