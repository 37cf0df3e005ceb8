"""A report is a function of its records, complete, and builds without torch."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from harness.frames import cautions, frame, tidy
from harness.report import coverage, failures, markdown, provenance, write_report
from tests.harness.synthetic import GPU, record, write
from tests.harness.synthetic_kernels import speed_records
from tests.harness.synthetic_recall import mqar_records, mqar_task

ROOT = Path(__file__).parent.parent.parent
ONE = {"cell": (64, 4), "d_model": 64, "lr": 1e-3, "seed": 0}
CELLS = {"cells": ((512, 64),), "lrs": (1e-4, 1e-3)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    results = tmp_path_factory.mktemp("results")
    write(results, "mqar_synthetic", mqar_records(**CELLS))
    assert write_report("mqar_synthetic", results) == results / "mqar_synthetic" / "report.md"
    return results / "mqar_synthetic"


def test_every_figure_has_its_bitmap_and_its_tables(folder):
    figures = {path.stem for path in folder.glob("*.svg")}
    over = {"accuracy_over_width", "accuracy_over_lr", "accuracy_over_state"}
    assert figures == over | {"next_to_zoology"}
    for figure in figures:
        assert (folder / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
        assert len(pd.read_csv(folder / f"{figure}.csv")) > 5
        assert "HGRN2" in (folder / f"{figure}.md").read_text()
        assert f"({figure}.svg)" in (folder / "report.md").read_text()


def test_table_csv_has_a_row_for_every_cell(folder):
    table = pd.read_csv(folder / "table.csv")
    assert len(table) == 5 * 2 * 2 * 2
    assert (table["status"] == "oom").sum() == 4
    assert "accuracy_by_epoch" not in table
    assert {"mixer", "impl", "lr", "accuracy", "device", "commit", "key"} <= set(table.columns)


def test_the_report_lists_what_failed_and_where_the_numbers_come_from(folder):
    text = (folder / "report.md").read_text()
    assert "40 cells: 36 ok, 4 oom" in text
    failed = text.partition("## Cells without a result")[2].partition("##")[0]
    assert failed.count("CUDA out of memory") == 4
    assert "[{" not in failed, "segments say no more than seq_len and kv_pairs"
    assert "a" * 40 in text.partition("## Provenance")[2]
    assert "2.13.0" in text
    assert "| seed " in text
    assert str(folder.parent) not in text
    assert "Note." not in text


def test_the_same_records_give_the_same_bytes_in_another_process_without_torch(folder, tmp_path):
    write(tmp_path, "mqar_synthetic", mqar_records(**CELLS))
    code = (
        "import sys, harness.compare; from pathlib import Path;"
        "from harness.report import write_report;"
        f"write_report('mqar_synthetic', Path({str(tmp_path)!r}));"
        "bad = {'torch', 'mixers', 'tasks', 'hgrn2'} & set(sys.modules); assert not bad, bad"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=tmp_path)
    ours = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    theirs = {
        path.name: path.read_bytes()
        for path in (tmp_path / "mqar_synthetic").iterdir()
        if path.is_file()
    }
    assert set(ours) == set(theirs)
    assert [name for name in ours if ours[name] != theirs[name]] == []


def test_what_to_beware_of_is_in_the_report_and_on_stderr(tmp_path, capsys):
    task = mqar_task("gla", "fla", cell=(64, 4), d_model=64, lr=1e-3, seed=0)
    made = [
        record(task, status="error", error="RuntimeError: a | b\n  a frame"),
        record(task | {"seed": 1}, status="oom", error="full", commit="b" * 40, dirty=True),
    ]
    write(tmp_path, "grid", made)
    text = write_report("grid", tmp_path).read_text()
    assert "**Note.** The cells come from 2 commits" in text
    assert "**Note.** 1 of 2 cells ran with uncommitted changes" in text
    assert "2 commits" in capsys.readouterr().err
    assert "No figure is drawn for task mqar" in text
    assert r"RuntimeError: a \| b" in text
    assert "a frame" not in text


def test_several_devices_are_refused_unless_asked_for(tmp_path):
    made = mqar_records(grid="recall", cells=((64, 4),), lrs=(1e-3,), seeds=(0,))
    moved = [one.model_copy(update={"env": one.env | {"device": "NVIDIA H100"}}) for one in made]
    lost = {"status": "error", "metrics": {}, "error": "lost", "ended": "2030-01-01T00:00:00.000Z"}
    write(tmp_path, "recall", [*made[1:], moved[0], moved[1].model_copy(update=lost)])
    with pytest.raises(ValueError, match="2 devices"):
        write_report("recall", tmp_path)
    assert not (tmp_path / "recall" / "report.md").exists()
    text = write_report("recall", tmp_path, any_device=True).read_text()
    assert "**Note.** The cells come from 2 devices." in text
    # One row a cell: an error elsewhere does not hide its result.
    assert f"{len(made)} cells: " in text
    assert "lost" not in text
    assert f"Device: NVIDIA H100 and {GPU}." in text


def test_coverage_counts_cells_by_mixer_and_implementation():
    table = coverage(tidy(speed_records(lengths=(512,), trials=1))).set_index("mixer")
    assert table.loc["mamba", "speed"] == "2 ok, 2 unsupported"
    assert table.loc["gla", "speed"] == "4 ok"


def test_failures_are_told_apart_by_the_settings_that_differ():
    table = failures(tidy(mqar_records(cells=((512, 64),))))
    assert list(table.columns) == ["mixer", "impl", "d_model", "lr", "seed", "status", "reason"]
    assert len(table) == 6


def test_provenance_gives_ranges_and_counts():
    task = mqar_task("gla", "fla", cell=(64, 4), d_model=64, lr=1e-3, seed=0)
    made = [record(task | {"seed": seed}, {}) for seed in range(3)]
    for made_one, clock in zip(made, (1700, 1980, 1980), strict=True):
        made_one.env["sm_clock_mhz"] = clock
    made[0].env["torch"] = "2.12.0"
    told = provenance(tidy(made))
    assert told["sm_clock_mhz"] == "1700 to 1980"
    assert told["torch"] == "2.12.0 (1 cells), 2.13.0 (2 cells)"
    assert told["seed"] == "0, 1, 2"


def test_markdown_writes_numbers_to_the_right_and_four_digits():
    text = markdown(pd.DataFrame({"name": ["a|b"], "time_ms": [1.23456]}))
    assert text.splitlines() == [
        "| name   |   time_ms |",
        "|:-------|----------:|",
        r"| a\|b   |     1.235 |",
    ]


def test_a_report_that_cannot_be_written_is_one_clear_line(tmp_path):
    lost = record(mqar_task("gla", "fla", **ONE), status="oom", error="out of memory")
    write(tmp_path, "mqar_synthetic", [lost])
    folder = tmp_path / "mqar_synthetic"
    (folder / "report.md").mkdir()
    with pytest.raises(ValueError, match=r"cannot write .*report\.md: Is a directory.*--results"):
        write_report("mqar_synthetic", tmp_path)
    assert not list(folder.glob(".report-*"))


def test_a_disk_that_is_full_leaves_the_report_that_was_there(tmp_path, monkeypatch):
    write(tmp_path, "mqar_synthetic", mqar_records())
    path = write_report("mqar_synthetic", tmp_path)
    for file in path.parent.glob("*.[!j]*"):
        file.write_bytes(b"older")
    before = {file.name: file.read_bytes() for file in path.parent.iterdir() if file.is_file()}

    def full(self, *_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ValueError, match="No space left on device; make room, or copy"):
        write_report("mqar_synthetic", tmp_path)
    assert {f.name: f.read_bytes() for f in path.parent.iterdir() if f.is_file()} == before


def test_a_torn_last_line_and_unknown_commits_are_told(tmp_path):
    records = [r.model_copy(update={"env": {**r.env, "commit": None}}) for r in mqar_records()]
    write(tmp_path, "mqar_synthetic", [*mqar_records()[:1], *records[1:]])
    file = tmp_path / "mqar_synthetic" / "records.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    told = cautions(frame("mqar_synthetic", tmp_path))
    assert "last line of the records is torn" in told[0]
    assert re.search(r"from 1 commits: \w+ \(1\), unknown ones \(\d+\)", told[1])
