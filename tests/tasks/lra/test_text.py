"""Text's loader and the numbering of characters, on small files in the published format."""

from __future__ import annotations

import pytest
import torch

from tasks.lra.characters import character_encoder
from tasks.lra.examples import Provenance
from tasks.lra.files import BadData
from tasks.lra.text import load_text
from tests.tasks.lra.published_files import manifest, write_text


def test_text_in_both_conventions(tmp_path):
    write_text(tmp_path)
    s4 = load_text(tmp_path)
    assert s4.train.labels.tolist() == [0, 0, 1, 1]
    assert s4.val is s4.test
    assert s4.validation == "the test set"
    assert s4.train.lengths.tolist() == [53, 53, 4096, 4096]
    assert s4.train.cut == 2
    rows, _ = s4.train.inputs.padded(torch.arange(4))
    # b is the most frequent (it is in <br /> too); the g of two short reviews is too rare.
    assert rows[2, :4].tolist() == [4, 3, 4, 3]
    assert 1 in rows[0]
    assert rows[0, 52] == 2
    assert s4.provenance == Provenance("surrogate", "tiny", seed=7)
    google = load_text(tmp_path, convention="google")
    rows, _ = google.train.inputs.padded(torch.tensor([0]))
    assert bytes((rows[0] - 1).tolist()) == b"ab" * 20 + "neg0<br /> é".encode()
    assert google.train.lengths.max() == 1000
    assert google.vocab_size == 257
    assert google.train.inputs.ids.dtype == torch.int16
    paper = load_text(tmp_path, convention="google", max_length=4000)
    assert paper.train.lengths.max() == 4000


def test_text_can_hold_out_a_tenth(tmp_path):
    folder = write_text(tmp_path)
    for number in range(2, 12):
        for name in ("neg", "pos"):
            (folder / "train" / name / f"{number}_5.txt").write_text("fine" * (number + 1))
    manifest(folder, {"train": 24, "test": 4})
    dataset = load_text(tmp_path, validation="held_out")
    assert [len(part) for part in (dataset.train, dataset.val, dataset.test)] == [22, 2, 4]
    assert dataset.validation == "a tenth of the training set"
    whole = load_text(tmp_path).train
    order = torch.randperm(24, generator=torch.Generator().manual_seed(42))
    for part, rows in ((dataset.train, order[:22]), (dataset.val, order[22:])):
        assert torch.equal(part.labels, whole.labels[rows])
        ours, theirs = part.inputs.padded(torch.arange(len(part)))[0], whole.inputs.padded(rows)[0]
        assert torch.equal(ours, theirs)


def test_broken_text_is_refused(tmp_path):
    folder = write_text(tmp_path)
    path = folder / "test/pos/0_9.txt"
    path.write_bytes(b"")
    with pytest.raises(BadData, match=r"0_9.txt: the file is empty"):
        load_text(tmp_path)
    path.write_bytes(b"caf\xe9")
    with pytest.raises(BadData, match=r"0_9.txt: not UTF-8"):
        load_text(tmp_path)
    path.unlink()
    with pytest.raises(BadData, match="test/pos: 1 reviews; there should be 2"):
        load_text(tmp_path)


def test_characters_are_numbered_by_frequency():
    encoder = character_encoder(["bbbaac", "ad"], max_length=6)
    # The end takes a place, so c is cut off before it is counted.
    assert encoder.vocab_size == 3 + 3
    ids = encoder.encode(["abdcz", "bbbbbbbb"])
    assert ids.ids.tolist() == [3, 4, 5, 1, 1, 2, 4, 4, 4, 4, 4, 2]
    assert ids.cut == 1
