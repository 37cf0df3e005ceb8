"""What the loaders have in common: absent files are named, manifests are read, no batch is cut."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tasks.lra.examples import Sequences
from tasks.lra.files import BadData, MissingData
from tasks.lra.image import load_image
from tasks.lra.listops import load_listops
from tasks.lra.pathfinder import load_pathfinder
from tasks.lra.retrieval import load_retrieval
from tasks.lra.text import load_text
from tests.tasks.lra.published_files import write_image, write_listops, write_text


@pytest.mark.parametrize(
    ("load", "needs", "generates"),
    [
        (load_listops, "listops-1000/basic_train.tsv", "mixerbench data listops --out DIR"),
        (load_text, "aclImdb/train/pos", None),
        (load_retrieval, "tsv_data/new_aan_pairs.train.tsv", None),
        (load_image, "cifar-10-batches-py/data_batch_1", None),
        (
            load_pathfinder,
            "pathfinder32/curv_contour_length_14/metadata",
            "mixerbench data pathfinder --out DIR --resolution 32 --difficulty hard",
        ),
    ],
)
def test_absent_files_are_named_with_every_path_that_was_tried(
    tmp_path, monkeypatch, load, needs, generates
):
    monkeypatch.setenv("MIXERBENCH_DATA", str(tmp_path))
    with pytest.raises(MissingData) as missing:
        load()
    told = str(missing.value)
    for level in ("lra_release/lra_release/", "lra_release/", ""):
        assert f"{tmp_path}/{level}{needs}\n" in told
    assert "Expected:\n  " in told
    assert "MIXERBENCH_DATA" in told
    assert ("mixerbench data" in told) == (generates is not None)
    assert generates is None or generates in told


def counted(key: str, value: object) -> str:
    """The manifest of small expressions with another value."""
    content = {"kind": "surrogate", "name": "tiny", "counts": {"train": 3, "val": 2, "test": 1}}
    return json.dumps(content | {key: value})


def test_a_manifest_says_where_data_come_from(tmp_path):
    folder = write_listops(tmp_path)
    for content, message in (
        ("{", "not a manifest"),
        ('{"kind": "official"}', "it should be generated or surrogate"),
        ('{"kind": "surrogate", "counts": {}}', "counts are {}; they should be of"),
        ('{"kind": "surrogate", "counts": null}', "counts are None; they should be of"),
        ('{"kind": "surrogate", "counts": {"train": 3.0, "val": 2, "test": 1}}', "train = 3.0; it"),
        ('{"kind": "surrogate", "counts": {"train": 3, "val": 0, "test": 1}}', "val = 0; it"),
        (counted("seed", "7"), "seed = '7'; it should be an integer from 0 on"),
        (counted("version", None), "version = None; it should be"),
        (counted("name", 5), "name the generator, or the surrogate, not 5"),
        ("[" * 100_000, "not a manifest"),
    ):
        (folder / "manifest.json").write_text(content)
        with pytest.raises(BadData, match=message):
            load_listops(tmp_path)


def test_what_is_no_file_is_refused(tmp_path):
    folder = tmp_path / "aclImdb"
    write_text(tmp_path)
    path = folder / "train/pos/0_9.txt"
    path.unlink()
    path.mkdir()
    with pytest.raises(BadData, match=r"0_9.txt: not a file, which it should be"):
        load_text(tmp_path)
    path.rmdir()
    path.symlink_to(path)
    with pytest.raises(BadData, match=r"0_9.txt: cannot be read \(Too many levels"):
        load_text(tmp_path)


def test_a_tenth_needs_ten(tmp_path):
    write_text(tmp_path)
    with pytest.raises(BadData, match="train: 4 reviews; there should be at least 10"):
        load_text(tmp_path, validation="held_out")
    write_image(tmp_path, per_batch=1)
    with pytest.raises(BadData, match="5 images to train on; there should be at least 10"):
        load_image(tmp_path)


def test_a_batch_is_never_cut():
    sequences = Sequences.of([np.arange(1, 4, dtype=np.uint8), np.arange(1, 8, dtype=np.uint8)])
    with pytest.raises(ValueError, match="width = 5; the longest of these sequences has 7 ids"):
        sequences.padded(torch.tensor([0, 1]), width=5)
    rows, _ = sequences.select(torch.tensor([1, 0, 1])).padded(torch.tensor([1, 2]))
    assert rows.tolist() == [[1, 2, 3, 0, 0, 0, 0], [1, 2, 3, 4, 5, 6, 7]]
