"""Records of several machines: a union, whatever the order and however often."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from harness.grids_recall import mqar_fig3, mqar_variants
from harness.merge import merge
from harness.records import Record, Records, utc_now


def record(key: str, device: str, **fields: Any) -> Record:
    now = utc_now()
    given: dict[str, Any] = {
        "key": key,
        "grid": "toy",
        "task": {"name": "toy"},
        "status": "ok",
        "metrics": {"accuracy": 0.5},
        "env": {"device": device},
        "started": now,
        "ended": now,
        "error": None,
    }
    return Record.model_validate(given | fields)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Of two machines that ran three cells each, one of them both."""
    paths = []
    for device, keys in (("H100 a", "abc"), ("H100 b", "cde")):
        records = Records(tmp_path / device, "theirs.jsonl")
        records.append(*(record(key, device) for key in keys))
        paths.append(records.path)
    return paths


def merged(files: list[Path], results: Path) -> list[str]:
    return list(merge("toy", files, results))


def keys(results: Path) -> list[str]:
    return [row.key for row in Records(results / "toy").rows()]


def test_all_records_are_there_once_however_often_they_come(
    files: list[Path], tmp_path: Path
) -> None:
    results = tmp_path / "results"
    Records(results / "toy").append(record("z", "H100 c"))
    told = merged([*files, files[0]], results)
    assert keys(results) == [*"zabccde"]
    assert [line.partition(": ")[2] for line in told] == [
        "3 of 3 records are new",
        "3 of 3 records are new",
        "0 of 3 records are new",
        "7 records",
    ]
    before = (results / "toy" / "records.jsonl").read_bytes()
    merged(files, results)
    assert (results / "toy" / "records.jsonl").read_bytes() == before


def test_a_torn_last_line_is_skipped_and_told(files: list[Path], tmp_path: Path) -> None:
    files[0].write_bytes(files[0].read_bytes()[:-30])
    told = merged(files, tmp_path / "results")
    assert keys(tmp_path / "results") == [*"abcde"]
    assert told[0].endswith("2 of 2 records are new; its last line is torn and was skipped")
    assert told[1].endswith("3 of 3 records are new")


def test_a_damaged_line_names_file_and_line_and_nothing_is_written(
    files: list[Path], tmp_path: Path
) -> None:
    first, second, third = files[1].read_text().splitlines()
    files[1].write_text(f"{first}\n{second[:40]}\n{third}\n")
    with pytest.raises(ValueError, match=r"H100 b/theirs\.jsonl, line 2, is no record"):
        merged(files, tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_plain_concatenation_joins_a_torn_line_to_the_next_and_that_is_an_error(
    files: list[Path], tmp_path: Path
) -> None:
    """Why there is a command for it."""
    joined = Records(tmp_path / "joined")
    joined.folder.mkdir()
    joined.path.write_bytes(files[0].read_bytes() + files[1].read_bytes())
    assert [row.key for row in joined.rows()] == [*"abccde"]
    joined.path.write_bytes(files[0].read_bytes()[:-30] + files[1].read_bytes())
    with pytest.raises(ValueError, match="line 3, is no record"):
        Records(joined.folder).rows()


def test_another_grids_records_of_cells_that_both_have_become_its_own(tmp_path: Path) -> None:
    gpu = torch.device("cuda")
    shared = {task.key for task in mqar_fig3(gpu)} & {task.key for task in mqar_variants(gpu)}
    assert shared
    both, other = min(shared), next(task.key for task in mqar_fig3(gpu) if task.key not in shared)
    theirs = Records(tmp_path / "mqar_fig3")
    theirs.append(*(record(key, "H100", grid="mqar_fig3") for key in (both, other)))
    results = tmp_path / "results"
    for new in (1, 0):
        told = list(merge("mqar_variants", [theirs.path], results))
        assert told[0].endswith(f"{new} of 1 records are new")
        (row,) = Records(results / "mqar_variants").rows()
        assert (row.key, row.grid) == (both, "mqar_variants")


def test_another_grids_records_and_a_file_that_is_not_there_are_refused(
    files: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(
        ValueError, match="holds records of toy, none of a cell that speed_quick has"
    ):
        list(merge("speed_quick", files, tmp_path / "results"))
    with pytest.raises(ValueError, match=r"of the suite is called so. Did you mean speed_quick\?"):
        list(merge("sped_quick", files, tmp_path / "results"))
    (noise := tmp_path / "noise.jsonl").write_bytes(bytes(range(200, 256)))
    with pytest.raises(ValueError, match=r"noise.jsonl holds no record"):
        merged([noise], tmp_path / "results")
    with pytest.raises(ValueError, match=r"there is no file .*nothing"):
        merged([tmp_path / "nothing.jsonl"], tmp_path / "results")
