"""ListOps' loader, on small files in the published format, whole and broken."""

from __future__ import annotations

import pytest
import torch

from tasks.lra.examples import Provenance
from tasks.lra.files import BadData
from tasks.lra.generate import listops as listops_generator
from tasks.lra.listops import load_listops
from tests.tasks.lra.published_files import manifest, replace_text, unseen, write_listops


@pytest.mark.parametrize("level", ["", "lra_release", "lra_release/lra_release"])
def test_listops_is_found_at_every_level_of_the_archive(tmp_path, level):
    folder = write_listops(tmp_path, level)
    for root in (tmp_path, folder):
        dataset = load_listops(root)
        assert [len(part) for part in (dataset.train, dataset.val, dataset.test)] == [3, 2, 1]
    assert dataset.provenance == Provenance("generated", "listops", 3, 7)
    assert str(dataset.provenance) == "generated (listops version 3, seed 7)"


def test_the_inner_copy_of_the_archive_is_read(tmp_path):
    write_listops(tmp_path, "lra_release")
    inner = write_listops(tmp_path, "lra_release/lra_release")
    (inner / "basic_test.tsv").write_text("Source\tTarget\n( ( [MIN 3 ) ] )\t3\n")
    assert load_listops(tmp_path).test.labels.tolist() == [3]
    assert load_listops(tmp_path / "lra_release").test.labels.tolist() == [3]


def test_listops_in_both_conventions(tmp_path):
    write_listops(tmp_path)
    s4 = load_listops(tmp_path)
    # 3 [MIN, 4 [MAX, 5 [MED, 6 [SM, 7 ], then the digits; 2 ends.
    assert s4.train.inputs.padded(torch.tensor([0]))[0].tolist() == [[3, 12, 15, 7, 2]]
    rows, lengths = s4.train.inputs.padded(torch.tensor([1, 2]), width=10)
    assert rows.tolist() == [[6, 12, 17, 16, 7, 2, 0, 0, 0, 0], [5, 8, 4, 9, 13, 7, 7, 2, 0, 0]]
    assert lengths.tolist() == [6, 8]
    assert s4.train.labels.tolist() == [4, 1, 2]
    assert (s4.vocab_size, s4.classes, s4.max_length) == (18, 10, 2048)
    assert s4.train.inputs.ids.dtype == torch.uint8
    google = load_listops(tmp_path, convention="google")
    assert google.train.inputs.padded(torch.tensor([0]))[0].tolist() == [[1, 10, 13, 5]]
    assert (google.vocab_size, google.max_length) == (17, 2000)


def test_what_is_cut_is_counted_and_said(tmp_path):
    folder = write_listops(tmp_path)
    long = "( " * 2100 + "[MAX " + "1 ) " * 2098 + "] )"
    (folder / "basic_test.tsv").write_text(f"Source\tTarget\n{long}\t1\n")
    dataset = load_listops(tmp_path)
    assert dataset.test.cut == 1
    assert dataset.test.lengths.tolist() == [2048]
    assert int(dataset.test.inputs.ids[-1]) == 2
    (line,) = [line for line in dataset.describe() if line.startswith("test")]
    assert line.endswith("1 cut to 2048")
    assert not any("cut" in line for line in dataset.describe() if line.startswith("train"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Source\tTarget\n", "", "missing header: line 1 is"),
        ("[SM", "[SUM", r"line 3: unknown token '\[SUM'; there should be \[MIN \[MAX"),
        ("] )\t1", "] )\t10", "line 3: label '10'; it should be 0 to 9"),
        ("] )\t1", "] )\t1\tx", "line 3: 3 columns; there should be 2"),
        ("( ( ( [MIN 4 ) 7 ) ] )\t4\n", "", "2 rows; there should be 3"),
        ("( ( ( [MIN 4 ) 7 ) ] )", "", "line 2: no expression; there should be one before the tab"),
        ("4 ) 9 ) 8 ) ] )", "4 ) 9 )", "line 3: 1 operators and 0 closing brackets; there should"),
        ("( ( ( ( [SM 4 ) 9 ) 8 ) ] )", "( ( ) ) ", "line 3: no expression; there should be one"),
    ],
)
def test_broken_listops_is_refused(tmp_path, old, new, message):
    path = write_listops(tmp_path) / "basic_train.tsv"
    replace_text(path, old, new)
    with pytest.raises(BadData, match=message) as refused:
        load_listops(tmp_path)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize(("old", "line"), [(b"Source", 1), (b"[MED", 4)])
def test_listops_that_is_not_utf8_is_refused(tmp_path, old, line):
    path = write_listops(tmp_path) / "basic_train.tsv"
    path.write_bytes(path.read_bytes().replace(old, b"\xe9"))
    with pytest.raises(BadData, match=rf"basic_train.tsv, line {line}: not UTF-8 \(.*0xe9"):
        load_listops(tmp_path)


def test_lines_may_end_as_pythons_csv_writes_them(tmp_path):
    path = write_listops(tmp_path) / "basic_train.tsv"
    plain = load_listops(tmp_path).train
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    read = load_listops(tmp_path).train
    assert torch.equal(read.inputs.ids, plain.inputs.ids)
    assert torch.equal(read.labels, plain.labels)


def test_published_files_should_have_all_rows(tmp_path):
    folder = write_listops(tmp_path)
    (folder / "manifest.json").unlink()
    with pytest.raises(BadData, match="3 rows; there should be 96000"):
        load_listops(tmp_path)
    (folder / "basic_train.tsv").write_bytes(b"")
    with pytest.raises(BadData, match=r"basic_train.tsv: the file is empty"):
        load_listops(tmp_path)


def test_generated_listops_comes_back(tmp_path):
    folder = tmp_path / "listops-1000"
    folder.mkdir()
    counts = {"train": 40, "val": 10, "test": 5}
    listops_generator.write_listops(folder, counts, 0, 1, unseen)
    manifest(folder, counts, "generated")
    dataset = load_listops(tmp_path)
    lengths = torch.cat([part.lengths for part in (dataset.train, dataset.val, dataset.test)])
    assert len(lengths) == 55
    # With the end; without it more than 500 and fewer than 2000.
    assert lengths.min() >= 502
    assert lengths.max() <= 2000
