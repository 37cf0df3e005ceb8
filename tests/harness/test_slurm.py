"""An array of jobs shares one grid. submitit's local jobs stand for Slurm's."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

from harness.cli_run import check
from harness.records import Records
from harness.slurm import submit

TOYS = Path(__file__).parent / "toy_grids.py"


def test_without_submitit_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[slurm\]'"):
        submit(["grids"], partition="gpu", array=1, gpus=1, cpus=1, budget_s=60, folder=tmp_path)


@pytest.mark.cluster
def test_the_jobs_of_an_array_share_the_cells(tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="needs submitit: pip install -e '.[slurm]'")
    jobs = submit(
        ["run", f"{TOYS}:many", "--device", "cpu", "--jobs", "1", "--results", str(tmp_path)],
        partition="gpu",
        array=2,
        gpus=0,
        cpus=1,
        budget_s=60,
        folder=tmp_path / ".slurm",
        cluster="local",
    )
    for job in jobs:
        assert job.result().returncode == 0
        # Both took part.
        assert "] ok" in job.stdout()
    records = Records(tmp_path / "many").rows()
    assert set(Counter(row.key for row in records).values()) == {1}
    assert len(records) == 40


@pytest.mark.cluster
def test_the_array_asks_slurm_for_what_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an `sbatch` that keeps what it is handed."""
    pytest.importorskip("submitit", reason="needs submitit: pip install -e '.[slurm]'")
    programs = tmp_path / "programs"
    programs.mkdir()
    kept = tmp_path / "kept.sh"
    for name in ("sbatch", "srun"):
        (programs / name).write_text(
            f'#!/bin/sh\ncp "$1" {kept}\necho "Submitted batch job 4711"\n'
        )
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    jobs = submit(
        ["run", "mqar_fig3"],
        partition="gpu",
        array=3,
        gpus=1,
        cpus=8,
        budget_s=90 * 60,
        folder=tmp_path / ".slurm",
    )
    assert [job.job_id for job in jobs] == ["4711_0", "4711_1", "4711_2"]
    asked = {line.removeprefix("#SBATCH --") for line in kept.read_text().splitlines()}
    assert {
        "partition=gpu",
        "array=0-2%3",
        "gpus-per-node=1",
        "cpus-per-task=8",
        "time=95",
        "nodes=1",
        "ntasks-per-node=1",
    } <= asked
    assert "srun --unbuffered" in kept.read_text()
    assert " --cpus-per-task=8 " in kept.read_text()


def test_a_query_is_of_the_columns_that_the_jobs_will_have():
    """FLA's gate is a column of a GPU's cells alone."""
    check(["mqar_step"], "gate == 'eager'", "cuda")
    with pytest.raises(ValueError, match="'gate' is no column"):
        check(["mqar_step"], "gate == 'eager'", "cpu")
