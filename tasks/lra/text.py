"""Text: the sentiment of a film review (IMDB), character by character."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from tasks.lra import files
from tasks.lra.characters import byte_encoder, character_encoder
from tasks.lra.examples import Convention, Dataset, Examples, split_like_s4
from tasks.lra.files import BadData

FOLDER = "aclImdb"
COUNTS = {"train": 25_000, "test": 25_000}
CLASSES = ("neg", "pos")
LENGTHS: dict[Convention, int] = {"s4": 4096, "google": 1000}
TREE = f"""  {FOLDER}/train/neg/<id>_<rating>.txt, {FOLDER}/train/pos/, {FOLDER}/test/neg/,
  {FOLDER}/test/pos/ (12,500 files each)"""
GET = "Unpack https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz."

Validation = Literal["test", "held_out"]


def load_text(
    root: Path | None = None,
    *,
    convention: Convention = "s4",
    validation: Validation = "test",
    max_length: int | None = None,
) -> Dataset:
    """Load the reviews, markup included; class 1 is positive.

    s4: characters, ids by frequency, at least 15 times in the training texts, an end, at most 4096.
    google: bytes, at most 1000 as in its configuration; its paper says 4000 (`max_length`).
    `validation`: both use the test set, so that whoever chooses an epoch by it chooses by the test
    set; `held_out` takes a tenth of the training set instead.

    Raises MissingData, and BadData for an empty file, one that is not UTF-8, one of another name
    than <id>_<rating>.txt, or a wrong number of them.
    """
    folder = files.find(root, FOLDER, "train/pos", TREE, GET)
    counts = files.expected(folder, COUNTS)
    texts = {split: _texts(folder / split, counts[split]) for split in COUNTS}
    length = max_length or LENGTHS[convention]
    if convention == "s4":
        encoder = character_encoder((text for text, _ in texts["train"]), length, min_count=15)
    else:
        encoder = byte_encoder(length)
    train, test = (
        Examples(
            encoder.encode(text for text, _ in texts[split]),
            torch.tensor([label for _, label in texts[split]]),
        )
        for split in COUNTS
    )
    val = test
    if validation == "held_out":
        files.check_tenths(folder / "train", len(train), "reviews")
        held_out = len(train) // 10
        train, val = split_like_s4(train, [len(train) - held_out, held_out])
    return Dataset(
        task="text",
        convention=convention,
        train=train,
        val=val,
        test=test,
        classes=2,
        vocab_size=encoder.vocab_size,
        max_length=length,
        provenance=files.provenance(folder),
        validation="the test set" if validation == "test" else "a tenth of the training set",
    )


def _texts(folder: Path, count: int) -> list[tuple[str, int]]:
    texts: list[tuple[str, int]] = []
    for label, name in enumerate(CLASSES):
        if not (folder / name).is_dir():
            raise files.MissingData(f"{folder / name} is not there. Expected:\n{TREE}\n{GET}")
        paths = sorted((folder / name).glob("*.txt"), key=_number)
        files.check_count(folder / name, len(paths), count // 2, "reviews")
        texts += [(_read(path), label) for path in paths]
    return texts


def _number(path: Path) -> tuple[int, str]:
    number, _, rating = path.stem.partition("_")
    if not number.isdecimal() or not rating.isdecimal():
        raise BadData(f"{path}: the file's name should be <id>_<rating>.txt")
    return int(number), rating


def _read(path: Path) -> str:
    try:
        return files.read(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadData(f"{path}: not UTF-8 ({error})") from error
