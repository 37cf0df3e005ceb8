"""The data of a cell: generated files never pass as official ones, nor block them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tasks.base import Context, Paused, Unsupported
from tasks.lra.data import Data, official_is_there
from tests.tasks.lra.tiny_cells import CPU, LISTOPS

pytestmark = pytest.mark.usefixtures("_generated")


def test_what_is_not_there_is_told():
    with pytest.raises(Unsupported, match=r"(?s)aclImdb.*MIXERBENCH_DATA"):
        _ = Data(arena="text").load(Context(CPU))
    assert not official_is_there("listops")
    with pytest.raises(Unsupported, match=r"listops-1000/basic_train\.tsv is not there"):
        _ = Data(arena="listops").load(Context(CPU))


def test_generated_files_are_never_taken_for_official_ones(root: Path, monkeypatch):
    LISTOPS.load(Context(CPU))
    made = next((root / "generated").glob("listops-*"))
    monkeypatch.setenv("MIXERBENCH_DATA", str(made))
    assert not official_is_there("listops")
    with pytest.raises(Unsupported, match="source = 'official', but the files of listops are gen"):
        Data(arena="listops").load(Context(CPU))
    # The same files at the root are found there.
    assert LISTOPS.load(Context(CPU)).train.labels.shape == (24,)
    assert not (made / "generated").exists()


def test_official_files_at_an_inner_level_do_not_stop_generated_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("MIXERBENCH_DATA", str(tmp_path))
    made = LISTOPS.load(Context(CPU)).train
    next((tmp_path / "generated").glob("*/listops-1000")).rename(tmp_path / "listops-1000")
    official = tmp_path / "lra_release/listops-1000"
    official.mkdir(parents=True)
    (official / "basic_train.tsv").touch()
    assert torch.equal(LISTOPS.load(Context(CPU)).train.labels, made.labels)
    (official / "manifest.json").write_text("{")
    assert not official_is_there("listops")


def test_a_stop_while_data_are_made_is_a_pause(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("MIXERBENCH_DATA", str(tmp_path))
    with pytest.raises(Paused):
        LISTOPS.load(Context(CPU, should_stop=lambda: True))
    assert len(LISTOPS.load(Context(CPU)).train) == 24


def test_a_process_reads_the_same_files_once(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("MIXERBENCH_DATA", str(tmp_path))
    first = LISTOPS.load(Context(CPU))
    assert LISTOPS.load(Context(CPU)) is first
    other = LISTOPS.model_copy(update={"convention": "google"})
    assert other.load(Context(CPU)).vocab_size == 17
    again = LISTOPS.load(Context(CPU))
    assert again is not first
    assert torch.equal(again.train.inputs.ids, first.train.inputs.ids)
    # Relative roots are those of the folder that the process is in.
    monkeypatch.setenv("MIXERBENCH_DATA", "data")
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        assert LISTOPS.load(Context(CPU)) is not again
        again = LISTOPS.load(Context(CPU))
        # A record shows no folder of whoever ran it.
        with pytest.raises(Unsupported, match="data/listops-1000") as told:
            Data(arena="listops").load(Context(CPU))
        assert str(tmp_path) not in str(told.value)


def test_another_version_of_a_generator_makes_another_cell():
    hard = {"source": "generated", "examples": (8, 1, 1)}
    pathfinder = Data.model_validate({"arena": "pathfinder32", **hard})
    assert pathfinder.model_dump()["version"] == 2
    assert Data.model_validate(pathfinder.model_dump()) == pathfinder
    # Version 1 is left out: cells that were recorded before keep their keys.
    assert "version" not in Data.model_validate({"arena": "path_x", **hard}).model_dump()
    assert "version" not in Data(arena="pathfinder32").model_dump()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"arena": "text", "source": "generated", "examples": (8, 1, 1)}, "only listops and"),
        ({"arena": "listops", "examples": (8, 1, 1)}, "does not fit source = 'official'"),
        ({"arena": "listops", "source": "generated"}, "give the sizes"),
        (
            {"arena": "pathfinder32", "source": "generated", "examples": (8, 2, 1)},
            "eight, one and one",
        ),
        (
            {"arena": "pathfinder32", "source": "generated", "examples": (8, 1, 1), "version": 1},
            "version = 1 does not fit source = 'generated' of pathfinder32: it is 2 here",
        ),
        ({"arena": "text", "colour": True}, "colour = True does not fit arena = 'text'"),
    ],
)
def test_data_that_cannot_be_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        Data.model_validate(fields)
