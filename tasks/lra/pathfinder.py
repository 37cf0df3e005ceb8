"""Pathfinder, and Path-X at 128 pixels: whether one dashed contour joins two markers."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from tasks.lra import files
from tasks.lra.examples import (
    Convention,
    Dataset,
    Examples,
    PixelScale,
    Sequences,
    split_like_s4,
)
from tasks.lra.files import BadData
from tasks.lra.generate.strokes import CONTOUR_LENGTH, FOLDER, Difficulty
from tasks.lra.generate.workers import in_order
from tasks.lra.png import BadImage, read_gray

Resolution = Literal[32, 64, 128, 256]

COUNTS = {"images": 200_000}
PER_FILE = 1000
COLUMNS = 11
CENTRED = PixelScale(0.5, 0.5)
IMAGE = re.compile(r"imgs/[0-9]{1,9}/sample_[0-9]{1,9}\.png")
EMPTY = "pathfinder32/curv_baseline/imgs/0/sample_172.png"
"""Published without a byte: the one image of the published files that is left out, as S4 does."""


def load_pathfinder(
    root: Path | None = None,
    *,
    resolution: Resolution = 32,
    difficulty: Difficulty = "hard",
    convention: Convention = "s4",
    jobs: int | None = None,
) -> Dataset:
    """Load one difficulty of one resolution; the arena's are the hard ones of 32 and 128.

    s4: scalars scaled to [-1, 1]; metadata files in the order of their numbers; split 80/10/10 as
    torch's random_split with seed 42 draws it. google: ids of an embedding; split in that order
    without a shuffle (its own order is that of TFDS, which these files do not have).
    `jobs` processes decode; None: as many as torch has threads.

    Raises MissingData, and BadData for a wrong number of metadata files or rows, wrong columns, a
    label that is neither 0 nor 1, labels that are not balanced, dashes of another difficulty, an
    image outside imgs/ or of two rows, or one that is missing, empty, torn, no PNG, of another size
    or not 8-bit gray.
    """
    name = f"pathfinder{resolution}/{FOLDER[difficulty]}"
    folder = files.find(root, name, "metadata", _tree(name), _get(resolution, difficulty))
    count = files.expected(folder, COUNTS)["images"]
    files.check_tenths(folder, count, "images")
    shards = [
        _rows(path, min(PER_FILE, count - PER_FILE * place), CONTOUR_LENGTH[difficulty])
        for place, path in enumerate(_metadata(folder, count))
    ]
    names = Counter(image for rows in shards for image, _ in rows)
    twice = [name for name, times in names.items() if times > 1]
    if twice:
        raise BadData(f"{folder / 'metadata'}: {twice[0]} has two rows; there should be one")
    provenance = files.provenance(folder)
    if provenance.kind == "official":
        shards = [[row for row in rows if not _published_empty(folder, row[0])] for rows in shards]
    labels = [label for shard in shards for _, label in shard]
    files.check_balance(folder, labels, 2, within=max(0.02, 2.5 / len(labels) ** 0.5))
    work = [([folder / image for image, _ in shard], resolution) for shard in shards]
    try:
        images = list(in_order(read_gray, work, min(jobs or torch.get_num_threads(), len(work))))
    except BadImage as error:
        raise BadData(str(error)) from None
    pixels = torch.from_numpy(np.concatenate(images)).flatten(1)
    examples = Examples(Sequences.of_equal_length(pixels), torch.tensor(labels))
    tenth = len(labels) // 10
    sizes = [len(labels) - 2 * tenth, tenth, tenth]
    if convention == "s4":
        train, val, test = split_like_s4(examples, sizes)
    else:
        parts = torch.arange(len(labels)).split(sizes)
        train, val, test = (examples.select(rows) for rows in parts)
    return Dataset(
        task="path_x" if resolution == 128 else f"pathfinder{resolution}",
        convention=convention,
        train=train,
        val=val,
        test=test,
        classes=2,
        vocab_size=256,
        max_length=resolution**2,
        provenance=provenance,
        validation="a tenth of the images",
        pixels=CENTRED if convention == "s4" else None,
    )


def _metadata(folder: Path, count: int) -> list[Path]:
    paths = list((folder / "metadata").glob("*.npy"))
    wrong = [path for path in paths if not path.stem.isdecimal()]
    if wrong:
        raise BadData(f"{wrong[0]}: the file's name should be <number>.npy")
    wanted = -(-count // PER_FILE)
    files.check_count(folder / "metadata", len(paths), wanted, "metadata files")
    return sorted(paths, key=lambda path: int(path.stem))


def _rows(path: Path, count: int, dashes: int) -> list[tuple[str, int]]:
    """Each image's path in the folder, and its label. The files are text despite their suffix.

    `dashes`: of a contour, which the difficulty sets."""
    try:
        lines = files.read(path).decode("ascii").splitlines()
    except UnicodeDecodeError:
        raise BadData(f"{path}: not text; metadata are, despite the suffix") from None
    rows: list[tuple[str, int]] = []
    for number, line in enumerate(lines, 1):
        columns = line.split()
        if len(columns) != COLUMNS:
            raise BadData(
                f"{path}, line {number}: {len(columns)} columns; there should be {COLUMNS}"
            )
        if columns[3] not in ("0", "1"):
            raise BadData(f"{path}, line {number}: label {columns[3]!r}; it should be 0 or 1")
        if columns[5] not in (str(dashes), f"{dashes}.0"):
            raise BadData(
                f"{path}, line {number}: a contour of {columns[5]} dashes; at this difficulty "
                f"there should be {dashes}"
            )
        image = f"{columns[0]}/{columns[1]}"
        if not IMAGE.fullmatch(image):
            raise BadData(
                f"{path}, line {number}: image {image!r}; it should be "
                "imgs/<number>/sample_<number>.png"
            )
        rows.append((image, int(columns[3])))
    files.check_count(path, len(rows), count)
    return rows


def _published_empty(folder: Path, image: str) -> bool:
    """Whether it is the image that was published without a byte, and has none."""
    path = folder / image
    return path.match(EMPTY) and path.is_file() and path.stat().st_size == 0


def _tree(name: str) -> str:
    return f"""  {name}/imgs/<0 to 199>/sample_<0 to 999>.png (8-bit gray)
  {name}/metadata/<0 to 199>.npy (text, 1,000 rows of 11 columns)"""


def _get(resolution: int, difficulty: str) -> str:
    return f"""{files.ARCHIVE}
Or generate images of the same law, which are not the published sample:
  mixerbench data pathfinder --out DIR --resolution {resolution} --difficulty {difficulty} \
--images 200000 --seed 0"""
