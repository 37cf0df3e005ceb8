"""ListOps: evaluate nested MIN, MAX, MED and sum-mod-10; the digit is the class."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from tasks.lra import files
from tasks.lra.examples import Convention, Dataset, Examples, Sequences
from tasks.lra.files import BadData
from tasks.lra.generate.listops import HEADER

FOLDER = "listops-1000"
COUNTS = {"train": 96_000, "val": 2_000, "test": 2_000}
SYMBOLS = ("[MIN", "[MAX", "[MED", "[SM", "]", *map(str, range(10)))
TREE = f"""  {FOLDER}/basic_train.tsv, basic_val.tsv, basic_test.tsv
  (tab-separated, header Source, Target; 96,000, 2,000 and 2,000 rows)"""
GET = (
    files.ARCHIVE
    + """
Or generate files of the same law, which are not the published sample:
  mixerbench data listops --out DIR --train 96000 --val 2000 --test 2000 --seed 0"""
)


def load_listops(root: Path | None = None, *, convention: Convention = "s4") -> Dataset:
    """Load the three files. Round brackets are dropped, as everybody does.

    s4: pad 0, unknown 1, end 2, then the 15 symbols; an end after each expression; at most 2048.
    (S4 orders the symbols by frequency; here their order is fixed.)
    google: pad 0, 15 symbols, one id for unknown ones; no end; at most 2000.

    Raises MissingData, and BadData for a line that is not UTF-8, a missing header, an expression
    with more operators than closing brackets or fewer, a wrong number
    of rows or columns, a label that is no digit, a row without an expression, or a token that is
    none of the symbols.
    """
    folder = files.find(root, FOLDER, "basic_train.tsv", TREE, GET)
    first, end, length = (3, [2], 2048) if convention == "s4" else (1, [], 2000)
    ids = {symbol: first + place for place, symbol in enumerate(SYMBOLS)}
    counts = files.expected(folder, COUNTS)
    train, val, test = (
        _load(folder / f"basic_{split}.tsv", counts[split], ids, end, length) for split in COUNTS
    )
    return Dataset(
        task="listops",
        convention=convention,
        train=train,
        val=val,
        test=test,
        classes=10,
        vocab_size=18 if convention == "s4" else 17,
        max_length=length,
        provenance=files.provenance(folder),
        validation="basic_val.tsv",
    )


def root_operators(examples: Examples, convention: Convention) -> dict[str, Bool[Tensor, " n"]]:
    """Which expressions have which operator at their root, by its name in small letters."""
    first = 3 if convention == "s4" else 1
    roots = examples.inputs.ids[examples.inputs.offsets[:-1]]
    return {
        symbol.removeprefix("[").lower(): roots == first + place
        for place, symbol in enumerate(SYMBOLS[:4])
    }


def _load(path: Path, count: int, ids: dict[str, int], end: list[int], length: int) -> Examples:
    if not path.is_file():
        raise files.MissingData(f"{path} is not there. Expected:\n{TREE}\n{GET}")
    labels: list[int] = []
    expressions: list[np.ndarray] = []
    cut = 0
    for number, source, label in _rows(path):
        tokens = source.replace("(", "").replace(")", "").split()
        if not tokens:
            raise BadData(
                f"{path}, line {number}: no expression; there should be one before the tab, "
                f"not {source[:40]!r}"
            )
        cut += len(tokens) + len(end) > length
        tokens = tokens[: length - len(end)]
        try:
            expressions.append(np.array([*map(ids.__getitem__, tokens), *end], np.uint8))
        except KeyError as error:
            raise BadData(
                f"{path}, line {number}: unknown token {error.args[0]!r}; "
                f"there should be {' '.join(SYMBOLS)} and round brackets"
            ) from None
        opened, closed = source.count("["), source.count("]")
        if opened != closed:
            raise BadData(
                f"{path}, line {number}: {opened} operators and {closed} closing brackets; "
                "there should be as many"
            )
        labels.append(label)
    files.check_count(path, len(labels), count)
    return Examples(Sequences.of(expressions, cut), torch.tensor(labels))


def _rows(path: Path) -> Iterator[tuple[int, str, int]]:
    """Line number, source and label of each row."""
    files.check_not_empty(path)
    for number, line in files.lines(path):
        # Google's generator writes by Python's csv, which ends lines with \r\n.
        text = line.removesuffix("\r")
        if number == 1:
            if text != HEADER:
                raise BadData(f"{path}: missing header: line 1 is {text[:40]!r}, not {HEADER!r}")
            continue
        columns = text.split("\t")
        if len(columns) != 2:
            raise BadData(f"{path}, line {number}: {len(columns)} columns; there should be 2")
        source, label = columns
        if label not in SYMBOLS[-10:]:
            raise BadData(f"{path}, line {number}: label {label!r}; it should be 0 to 9")
        yield number, source, int(label)
