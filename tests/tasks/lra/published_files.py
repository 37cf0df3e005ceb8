"""Small files in the published formats, for loaders to read whole or broken."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np

from tasks.lra.image import BATCHES

SOURCES = (
    "( ( ( [MIN 4 ) 7 ) ] )",
    "( ( ( ( [SM 4 ) 9 ) 8 ) ] )",
    "( ( ( [MED 0 ) ( ( ( [MAX 1 ) 5 ) ] ) ) ] )",
)


def unseen(done: int) -> None:
    """Progress that nobody reads."""
    del done


def manifest(folder: Path, counts: dict[str, int], kind: str = "surrogate") -> None:
    name = {"generator": "listops", "version": 3} if kind == "generated" else {"name": "tiny"}
    content = {"kind": kind, "seed": 7, "counts": counts} | name
    (folder / "manifest.json").write_text(json.dumps(content))


def replace_text(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def write_listops(root: Path, level: str = "") -> Path:
    folder = root / level / "listops-1000"
    folder.mkdir(parents=True)
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        rows = [f"{source}\t{label}" for source, label in zip(SOURCES, "412", strict=True)]
        lines = ["Source\tTarget", *rows[:count]]
        (folder / f"basic_{split}.tsv").write_text("\n".join(lines) + "\n")
    manifest(folder, {"train": 3, "val": 2, "test": 1}, "generated")
    return folder


def write_text(root: Path) -> Path:
    folder = root / "aclImdb"
    for split in ("train", "test"):
        for place, name in enumerate(("neg", "pos")):
            (folder / split / name).mkdir(parents=True)
            for number in range(2):
                text = f"{'ab' * 20}{name}{number}<br /> é" * (1 + 200 * place)
                (folder / split / name / f"{number}_{9 - number}.txt").write_text(text)
    (folder / "train" / "unsup").mkdir()
    manifest(folder, {"train": 4, "test": 4})
    return folder


def write_retrieval(root: Path) -> Path:
    folder = root / "lra_release" / "tsv_data"
    folder.mkdir(parents=True)
    row = '1.0\t10\t11\tb\'A "title"\\n text \\xc3\\xa9\'\tb"other\'s"'
    long = f"0.0\t1\t2\tb'x'\tb'{'y' * 12_000}'"
    for split, rows in (("train", [row, long]), ("eval", [row]), ("test", [long])):
        (folder / f"new_aan_pairs.{split}.tsv").write_text("\n".join(rows) + "\n")
    manifest(folder, {"train": 2, "eval": 1, "test": 1})
    return folder


def write_image(root: Path, per_batch: int = 20, protocol: int = 2) -> Path:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in BATCHES:
        batch = {
            b"data": rng.integers(0, 256, (per_batch, 3072)).astype(np.uint8),
            b"labels": [place % 10 for place in range(per_batch)],
        }
        (folder / name).write_bytes(pickle.dumps(batch, protocol=protocol))
    manifest(folder, dict.fromkeys(BATCHES, per_batch))
    return folder
