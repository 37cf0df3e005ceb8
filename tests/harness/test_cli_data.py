"""`mixerbench data`: what it writes and says, that it goes on, and one clear line for mistakes."""

from __future__ import annotations

import json
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import cli
from tasks.lra.generate import folders, pathfinder
from tasks.lra.generate.pathfinder import Pictures, Shard

Mixerbench = Callable[..., str]


@pytest.fixture
def mixerbench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Mixerbench:
    """`mixerbench data ...` in this process, in an empty folder: what it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MIXERBENCH_DATA", raising=False)

    def mixerbench(*arguments: str, status: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["mixerbench", "data", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        assert (ended.value.code or 0) == status, said
        return said.out + said.err

    return mixerbench


LISTOPS = ("listops", "--out", "data", "--train", "30", "--val", "6", "--test", "4", "--jobs", "1")
PATHFINDER = ("pathfinder", "--out", "data", "--difficulty", "easy", "--images", "60")


def test_listops_is_generated_once_and_loads(mixerbench: Mixerbench):
    said = mixerbench(*LISTOPS)
    assert "40 expressions to data/listops-1000" in said
    assert re.search(r"data/listops-1000: 40 expressions in .*, \d+ a second", said)
    written = {path.name for path in Path("data/listops-1000").iterdir()}
    assert written == {"basic_train.tsv", "basic_val.tsv", "basic_test.tsv", "manifest.json"}
    assert "is there already" in mixerbench(*LISTOPS)
    shown = mixerbench("show", "listops")
    assert "listops, convention s4, generated (listops version 1, seed 0)" in shown
    assert re.search(r"train +30 examples", shown)
    refused = mixerbench(*LISTOPS, "--seed", "1", status=2)
    assert "data/listops-1000 holds files of seed = 0, not 1; remove it" in refused


def test_pathfinder_is_generated_and_goes_on(
    mixerbench: Mixerbench, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pathfinder, "PER_SHARD", 20)
    write = pathfinder.write_shard

    def fails_at_the_third(folder: Path, pictures: Pictures, shard: Shard) -> int:
        if len(list((folder / "metadata").iterdir())) == 2:
            raise ValueError("no space left")
        return write(folder, pictures, shard)

    monkeypatch.setattr(pathfinder, "write_shard", fails_at_the_third)
    assert "no space left" in mixerbench(*PATHFINDER, "--jobs", "1", status=2)
    folder = Path("data/pathfinder32/curv_baseline")
    assert not folder.exists()
    monkeypatch.setattr(pathfinder, "write_shard", write)
    refused = mixerbench(*PATHFINDER, "--jobs", "1", "--seed", "3", status=2)
    assert "curv_baseline.part holds files of seed = 0, not 3" in refused
    said = mixerbench(*PATHFINDER, "--jobs", "1")
    assert re.search(r"curv_baseline: 20 images in", said)
    assert {path.name for path in folder.iterdir()} == {"imgs", "metadata", "manifest.json"}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["counts"] == {"images": 60}
    assert manifest["settings"] == {
        "resolution": 32,
        "difficulty": "easy",
        "contrast": "clipped",
    }


def test_each_resolution_and_difficulty_of_pathfinder_is_shown(mixerbench: Mixerbench):
    mixerbench("pathfinder", "--out", "data", "--images", "10", "--jobs", "1")
    easy = ("--resolution", "64", "--difficulty", "easy")
    mixerbench("pathfinder", "--out", "data", "--images", "20", "--jobs", "1", *easy)
    shown = mixerbench("show", "pathfinder")
    assert "pathfinder32, convention s4, generated (pathfinder version 2, seed 0)" in shown
    assert re.search(r"train +8 examples", shown)
    shown = mixerbench("show", "pathfinder", *easy)
    assert "pathfinder64, convention s4, generated (pathfinder version 1, seed 0)" in shown
    assert re.search(r"train +16 examples", shown)
    for setting, absent in (
        (("--resolution", "64"), "pathfinder64/curv_contour_length_14/metadata is not there"),
        (("--difficulty", "easy"), "pathfinder32/curv_baseline/metadata is not there"),
    ):
        assert absent in mixerbench("show", "pathfinder", *setting, status=2)
    absent = mixerbench("show", "path_x", "--difficulty", "easy", "--resolution", "128", status=2)
    assert "pathfinder128/curv_baseline/metadata is not there" in absent


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*PATHFINDER, "--resolution", "48"), "--resolution 48: it should be 32, 64, 128 or 256"),
        ((*PATHFINDER, "--device", "gpu"), "--device 'gpu': use cpu, cuda"),
        (("listops", "--out", "/dev/null", "--train", "9"), "cannot write /dev/null"),
        (("show", "text"), "aclImdb/train/pos is not there. Tried:"),
        (("show", "path_x", "--root", "x"), "--resolution 128 --difficulty hard --images 200000"),
        (
            ("show", "pathfinder", "--resolution", "0"),
            "--resolution 0: it should be 32, 64, 128",
        ),
        (("show", "path_x", "--resolution", "64"), "--resolution 64: path_x is of 128; show path"),
        (("show", "text", "--resolution", "32"), "--resolution 32: text has none; leave it out"),
        (("show", "image", "--difficulty", "easy"), "--difficulty easy: image has none; leave it"),
        (("show", "path_x", "--difficulty", "mild"), "'mild' is not one of 'easy', 'intermediate'"),
    ],
)
def test_mistakes_are_named(mixerbench: Mixerbench, arguments, message):
    assert message in mixerbench(*arguments, status=2)


def test_a_folder_of_other_files_is_left_alone(mixerbench: Mixerbench):
    for name, message in (
        ("listops-1000", "is there and was not generated; choose another folder"),
        ("listops-1000.part", "is there and is no interrupted run's; remove it"),
    ):
        folder = Path("data") / name
        folder.mkdir(parents=True)
        (folder / "other").touch()
        assert message in mixerbench(*LISTOPS, status=2)
        shutil.rmtree(folder)


def test_a_part_becomes_the_folder_only_at_the_end(tmp_path: Path):
    wanted = folders.manifest("listops", 1, 0, {}, {"train": 1})
    with folders.part_folder(tmp_path / "whole", wanted) as part:
        (part / "file").write_text("x")
        assert not (tmp_path / "whole").exists()
    assert folders.is_there(tmp_path / "whole", wanted)
    assert not part.exists()


def test_a_kill_at_either_end_blocks_nobody(tmp_path: Path):
    wanted = folders.manifest("listops", 1, 0, {}, {"train": 1})
    part = tmp_path / "whole.part"
    part.mkdir()
    with folders.part_folder(tmp_path / "whole", wanted) as given:
        assert given == part
    (tmp_path / "whole").rename(part)
    with folders.part_folder(tmp_path / "whole", wanted) as given:
        assert given is None
    assert folders.is_there(tmp_path / "whole", wanted)


def test_one_run_writes_and_the_other_finds(tmp_path: Path):
    wanted = folders.manifest("listops", 1, 0, {}, {"train": 1})
    first_is_in, said = threading.Event(), []

    def second() -> None:
        first_is_in.wait()
        with folders.part_folder(tmp_path / "whole", wanted) as part:
            said.append(part)

    other = threading.Thread(target=second)
    other.start()
    with folders.part_folder(tmp_path / "whole", wanted) as part:
        assert part is not None
        first_is_in.set()
        time.sleep(0.2)
        assert not said
    other.join()
    assert said == [None]


def test_help_shows_an_example(mixerbench: Mixerbench):
    for command in ((), ("listops",), ("pathfinder",), ("show",)):
        assert "mixerbench data" in mixerbench(*command, "--help").partition("Example")[2]
