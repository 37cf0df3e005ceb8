"""Records: nothing lost, nothing torn, damage named."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from harness.cells import Cell, Machine, Options
from harness.claims import settled
from harness.records import Record, Records, utc_now

CPU = "A CPU"


def record(
    key: str = "a", status: str = "ok", ended: str | None = None, **fields: object
) -> Record:
    now = utc_now()
    ok = status == "ok"
    given = {
        "key": key,
        "grid": "toy",
        "task": {"name": "toy", "mixer": {"name": "toy"}},
        "status": status,
        "metrics": {"accuracy": 0.5} if ok else {},
        "env": {"device": CPU},
        "started": now,
        "ended": ended or now,
        "error": None if ok else "ValueError: no",
    }
    return Record.model_validate(given | fields)


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(tmp_path / "toy")


def test_a_line_has_exactly_the_agreed_keys(records: Records) -> None:
    records.append(record())
    (line,) = records.path.read_text().splitlines()
    assert list(json.loads(line)) == [
        "key",
        "grid",
        "task",
        "status",
        "metrics",
        "env",
        "started",
        "ended",
        "error",
    ]


def test_numbers_that_are_not_finite_are_null_and_come_back_as_nan(records: Records) -> None:
    records.append(record(metrics={"loss": math.nan, "by_epoch": [1.0, math.inf], "note": "x"}))
    line = records.path.read_text()
    assert "NaN" not in line
    assert "Infinity" not in line
    assert json.loads(line)["metrics"]["by_epoch"] == [1.0, None]
    (row,) = Records(records.folder).rows()
    loss, by_epoch = row.metrics["loss"], row.metrics["by_epoch"]
    assert isinstance(loss, float)
    assert math.isnan(loss)
    assert isinstance(by_epoch, list)
    assert math.isnan(by_epoch[1])


@pytest.mark.parametrize(
    "fields",
    [
        {"status": "wrong", "metrics": {"fwd_ms": 1.0}, "error": "off"},
        {"status": "error", "metrics": {}, "error": None},
        {"error": "but ok"},
        {"status": "fine"},
        {"extra": 1},
        {"metrics": {"shape": {"b": 1}}},
    ],
)
def test_metrics_exist_only_when_ok_and_an_error_only_when_not(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        record(**fields)  # pyright: ignore[reportArgumentType]


def test_settled_is_per_key_and_device_and_only_when_ok(records: Records) -> None:
    records.append(record("a"))
    records.append(record("b", status="error"))
    assert records.settled("a", CPU)
    assert records.settled("a", "NVIDIA H200") is None
    assert records.settled("b", CPU) is None
    newest = records.newest("b", CPU)
    assert newest
    assert newest.status == "error"


def test_a_record_of_another_device_of_a_kind_settles_where_asked(records: Records) -> None:
    at = "2026-01-0{}T00:00:00.000Z".format
    h100, h200 = ({"device": name, "device_type": "cuda"} for name in ("H100", "H200"))
    records.append(record("a", env=h100, started=at(1), ended=at(5)))
    records.append(record("a", env=h200, started=at(2), ended=at(4)))
    records.append(record("b", env=h100, status="error"))
    found = records.settled("a", "H300", kind="cuda")
    assert found
    assert found.device == "H100"
    later = records.settled("a", "H300", kind="cuda", since=at(2))
    assert later
    assert later.device == "H200"
    assert records.settled("a", "H300", kind="cuda", since=at(3)) is None
    assert records.settled("a", CPU, kind="cpu") is None
    assert records.settled("b", "H300", kind="cuda") is None


@pytest.mark.parametrize(("bits", "counts"), [(0, True), (0x4, True), (0x20, False)])
def test_a_time_that_a_hot_gpu_gave_settles_no_cell(records: Records, bits, counts) -> None:
    records.append(record("a", env={"device": "H100", "throttle_bits": bits}))
    machine = Machine(("cuda:0",), "H100", 1, {})
    options = Options(machine, records.folder.parent)
    trained = Cell("a", "toy", {}, b"", timed=False, any_device=False, packs=False, cost=1.0)
    assert settled(trained, records, options)
    assert bool(settled(replace(trained, timed=True), records, options)) == counts


def test_the_newest_ok_record_wins_whatever_the_order_of_a_merged_file(records: Records) -> None:
    records.append(record(ended="2024-04-12T00:00:00.000Z", metrics={"accuracy": 0.9}))
    records.append(record(ended="2024-04-11T00:00:00.000Z", metrics={"accuracy": 0.1}))
    records.append(record(ended="2024-04-13T00:00:00.000Z", status="oom"))
    found = records.settled("a", CPU)
    assert found
    assert found.metrics == {"accuracy": 0.9}


def test_a_torn_last_line_is_skipped_and_cut_by_the_next_append(records: Records) -> None:
    for key in "abc":
        records.append(record(key))
    whole = records.path.read_bytes()
    start_of_c = whole.rindex(b"\n", 0, -1) + 1
    for cut in range(start_of_c + 1, len(whole) - 1):
        records.path.write_bytes(whole[:cut])
        fresh = Records(records.folder)
        assert [row.key for row in fresh.rows()] == ["a", "b"]
        fresh.append(record("d"))
        assert [row.key for row in fresh.rows()] == ["a", "b", "d"]
        assert [row.key for row in Records(records.folder).rows()] == ["a", "b", "d"]
        assert records.path.read_bytes().startswith(whole[:start_of_c])


def test_a_last_line_without_its_line_end_is_kept(records: Records) -> None:
    records.append(record("a"))
    records.append(record("b"))
    records.path.write_bytes(records.path.read_bytes()[:-1])
    reader = Records(records.folder)
    assert [row.key for row in reader.rows()] == ["a", "b"]
    reader.append(record("c"))
    assert [row.key for row in reader.rows()] == ["a", "b", "c"]
    assert [json.loads(line)["key"] for line in records.path.read_text().splitlines()] == [*"abc"]


def test_damage_in_the_middle_names_file_and_line_and_stays_an_error(records: Records) -> None:
    for key in "abc":
        records.append(record(key))
    first, _, third = records.path.read_text().splitlines()
    records.path.write_text(f"{first}\n{first[:40]}{third}\n{third}\n")
    reader = Records(records.folder)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"records\.jsonl, line 2, is no record .* delete it"):
            reader.rows()


def test_a_reader_sees_what_others_append_and_parses_it_once(records: Records) -> None:
    reader = Records(records.folder)
    assert reader.rows() == []
    for count in range(1, 4):
        records.append(record(str(count)))
        assert len(reader.rows()) == count
    assert reader._offset == records.path.stat().st_size


def test_a_file_that_was_replaced_is_read_anew(records: Records) -> None:
    records.append(record("a"))
    assert [row.key for row in records.rows()] == ["a"]
    other = Records(records.folder.parent / "other")
    for key in "xyz":
        other.append(record(key))
    other.path.replace(records.path)
    assert [row.key for row in records.rows()] == [*"xyz"]


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    records = Records(tmp_path / "file" / "toy")
    with pytest.raises(ValueError, match=r"cannot write .*records\.jsonl: .*--results") as caught:
        records.check_writable()
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="cannot write"):
        records.append(record())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_clear_line(records: Records) -> None:
    records.check_writable()
    records.path.unlink()
    records.path.symlink_to("/dev/full")
    with pytest.raises(ValueError, match="No space left"):
        records.append(record())


def test_a_claim_is_exclusive_per_cell_and_device(records: Records) -> None:
    other = Records(records.folder)
    with records.claim("a", CPU) as mine:
        assert mine
        with other.claim("a", CPU) as theirs:
            assert not theirs
        with other.claim("a", "NVIDIA H200") as elsewhere, other.claim("b", CPU) as another:
            assert elsewhere
            assert another
    with other.claim("a", CPU) as theirs:
        assert theirs


APPEND_MANY = """
import sys
from pathlib import Path
from harness.records import Record, Records

folder, writer, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
records = Records(folder)
for n in range(count):
    # Of very different lengths, beyond a pipe's and a page's size.
    records.append(Record(
        key=f"{writer}-{n}", grid="toy", task={"filler": "x" * (n % 7) * 3000}, status="ok",
        metrics={}, env={}, started="", ended="", error=None,
    ))
"""


def test_eight_processes_append_at_once_without_a_torn_or_a_lost_line(records: Records) -> None:
    count = 60
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", APPEND_MANY, str(records.folder), str(writer), str(count)],
            env=environment,
        )
        for writer in range(8)
    ]
    seen = 0
    while any(writer.poll() is None for writer in writers):
        rows = len(records.rows())
        assert rows >= seen
        seen = rows
    assert [writer.wait() for writer in writers] == [0] * 8
    written = [json.loads(line)["key"] for line in records.path.read_text().splitlines()]
    assert sorted(written) == sorted(f"{w}-{n}" for w in range(8) for n in range(count))
    assert [row.key for row in records.rows()] == written
