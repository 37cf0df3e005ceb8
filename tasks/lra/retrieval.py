"""Retrieval: whether two papers of the ACL Anthology Network cite a common one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from tasks.lra import files
from tasks.lra.characters import byte_encoder, character_encoder
from tasks.lra.examples import Convention, Dataset, Examples
from tasks.lra.files import BadData

FOLDER = "tsv_data"
COUNTS = {"train": 147_086, "eval": 18_090, "test": 17_437}
LENGTH = 4000
LABELS = {"0.0": 0, "1.0": 1}
COLUMNS = ("label", "id1", "id2", "text1", "text2")
GOOGLE_READS = 10_000
"""Characters of a document that Google encodes, before it cuts."""
TREE = f"""  {FOLDER}/new_aan_pairs.train.tsv, new_aan_pairs.eval.tsv, new_aan_pairs.test.tsv
  (tab-separated, no header, {", ".join(COLUMNS)}; 147,086, 18,090 and 17,437 rows)"""


def load_retrieval(root: Path | None = None, *, convention: Convention = "s4") -> Dataset:
    """Load the pairs, for one encoder that sees each document alone.

    The files hold printed Python bytes, a leading b and backslashes included; both conventions read
    them as they stand, and so does this. At most 4000 ids a document.
    s4: characters of the training documents by frequency, and an end. google: bytes.

    Raises MissingData, and BadData for a line that is not UTF-8, a document whose literal has no
    end, a wrong number of rows or columns,
    a label that is neither 0.0 nor 1.0, or an empty document.
    """
    folder = files.find(root, FOLDER, "new_aan_pairs.train.tsv", TREE, files.ARCHIVE)
    counts = files.expected(folder, COUNTS)
    keep = LENGTH if convention == "s4" else GOOGLE_READS
    pairs = {
        split: _pairs(folder / f"new_aan_pairs.{split}.tsv", counts[split], keep)
        for split in COUNTS
    }
    if convention == "s4":
        train = pairs["train"]
        encoder = character_encoder((text for _, *texts in train for text in texts), LENGTH)
    else:
        encoder = byte_encoder(LENGTH)
    train, val, test = (
        Examples(
            encoder.encode(text for _, text, _ in pairs[split]),
            torch.tensor([label for label, _, _ in pairs[split]]),
            encoder.encode(text for _, _, text in pairs[split]),
        )
        for split in COUNTS
    )
    return Dataset(
        task="retrieval",
        convention=convention,
        train=train,
        val=val,
        test=test,
        classes=2,
        vocab_size=encoder.vocab_size,
        max_length=LENGTH,
        provenance=files.provenance(folder),
        validation="new_aan_pairs.eval.tsv",
    )


def _pairs(path: Path, count: int, keep: int) -> list[tuple[int, str, str]]:
    """Label and the first `keep` characters of the documents of each row."""
    if not path.is_file():
        raise files.MissingData(f"{path} is not there. Expected:\n{TREE}\n{files.ARCHIVE}")
    files.check_not_empty(path)
    pairs = [(label, first[:keep], second[:keep]) for label, first, second in _rows(path)]
    files.check_count(path, len(pairs), count)
    return pairs


def _rows(path: Path) -> Iterator[tuple[int, str, str]]:
    """Label and documents of each row."""
    for number, line in files.lines(path):
        columns = line.split("\t")
        if len(columns) != len(COLUMNS):
            raise BadData(
                f"{path}, line {number}: {len(columns)} columns; there should be "
                f"{len(COLUMNS)}: {', '.join(COLUMNS)}"
            )
        label, _, _, first, second = columns
        if label not in LABELS:
            raise BadData(f"{path}, line {number}: label {label!r}; it should be 0.0 or 1.0")
        if not first or not second:
            raise BadData(f"{path}, line {number}: a document is empty")
        for text in (first, second):
            quote, body = text[1:2], text.removesuffix("\r")
            if text == "b" or (text[:2] in ("b'", 'b"') and (len(body) < 3 or body[-1] != quote)):
                raise BadData(
                    f"{path}, line {number}: a document begins with {text[:2]} and ends with "
                    f"{body[-10:]!r}; it should end with {quote}"
                )
        yield LABELS[label], first, second
