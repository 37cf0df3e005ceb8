"""Retrieval's loader, on small files in the published format, whole and broken."""

from __future__ import annotations

import pytest
import torch

from tasks.lra.files import BadData
from tasks.lra.retrieval import load_retrieval
from tests.tasks.lra.published_files import replace_text, write_retrieval


def test_retrieval_reads_the_byte_literals_as_they_stand(tmp_path):
    write_retrieval(tmp_path)
    dataset = load_retrieval(tmp_path, convention="google")
    assert dataset.train.labels.tolist() == [1, 0]
    assert dataset.train.seconds is not None
    rows, lengths = dataset.train.inputs.padded(torch.tensor([0]))
    assert bytes((rows[0, : lengths[0]] - 1).tolist()) == b"b'A \"title\"\\n text \\xc3\\xa9'"
    assert dataset.train.lengths.tolist() == [28, 4000]
    assert dataset.train.cut == 1
    s4 = load_retrieval(tmp_path)
    assert s4.train.seconds is not None
    assert s4.train.seconds.lengths.tolist() == [11, 4000]
    assert s4.train.inputs.ids[28] == 2
    # Every character of the training documents, three special ones.
    text = set("b'A \"title\"\\n text \\xc3\\xa9'b\"other's\"b'x'b'yyy'")
    assert s4.vocab_size == 3 + len(text)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("1.0\t10", "1\t10", "line 1: label '1'; it should be 0.0 or 1.0"),
        ("1.0\t10\t", "1.0\t", "line 1: 4 columns; there should be 5: label, id1"),
        ("0.0\t1", "label\tid1\tid2\ttext1\ttext2\n0.0\t1", "line 2: label 'label'"),
        ("b'x'", "", "line 2: a document is empty"),
        (
            "b'x'",
            "b'x",
            "line 2: a document begins with b' and ends with \"b'x\"; it should end with '",
        ),
        ("b'x'", "b'", "line 2: a document begins with b' and ends with \"b'\""),
        ("other's\"", "other's", 'line 1: a document begins with b" and ends with .* end with "'),
    ],
)
def test_broken_retrieval_is_refused(tmp_path, old, new, message):
    replace_text(write_retrieval(tmp_path) / "new_aan_pairs.train.tsv", old, new)
    with pytest.raises(BadData, match=message):
        load_retrieval(tmp_path)


def test_retrieval_that_is_not_utf8_is_refused(tmp_path):
    path = write_retrieval(tmp_path) / "new_aan_pairs.train.tsv"
    path.write_bytes(path.read_bytes().replace(b"b'x'", b"b'\xe9'"))
    with pytest.raises(BadData, match=r"train.tsv, line 2: not UTF-8 \(.*0xe9"):
        load_retrieval(tmp_path)


def test_a_carriage_return_ends_no_line_of_retrieval(tmp_path):
    path = write_retrieval(tmp_path) / "new_aan_pairs.train.tsv"
    path.write_bytes(path.read_bytes().replace(b"b'x'", b"b'\r'\r"))
    dataset = load_retrieval(tmp_path, convention="google")
    rows, lengths = dataset.train.inputs.padded(torch.tensor([1]))
    assert bytes((rows[0, : lengths[0]] - 1).tolist()) == b"b'\r'\r"
