"""Image: CIFAR-10 in gray, pixel by pixel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tasks.lra import files, pickled
from tasks.lra.examples import (
    Convention,
    Dataset,
    Examples,
    PixelScale,
    Sequences,
    split_like_s4,
)
from tasks.lra.files import BadData

Array = NDArray[Any]

FOLDER = "cifar-10-batches-py"
BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
COUNTS = dict.fromkeys(BATCHES, 10_000)
PIXELS = 32 * 32
S4_SCALE = PixelScale(122.6 / 255, 61.0 / 255)
COLOUR_SCALE = PixelScale((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261))
"""Of OpenNLPLab/lra, which HGRN1 and HGRN2 were run with."""
TREE = f"""  {FOLDER}/data_batch_1 to data_batch_5, test_batch
  (pickles with data, 10,000 x 3,072 bytes, and labels)"""
GET = "Unpack https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz."


def load_image(
    root: Path | None = None, *, convention: Convention = "s4", colour: bool = False
) -> Dataset:
    """Load the images as 1024 levels of gray each; no augmentation.

    `colour`: red, green and blue of each pixel, one after the other, which the arena does not have
    but the code of HGRN1 and HGRN2 has; for s4 alone.

    s4: Pillow's luma, scalars scaled by 122.6 and 61; 5,000 of the training images drawn as torch's
    random_split with seed 42 are held out. google: TensorFlow's luma, ids of an embedding; the last
    5,000 are held out (its own order is that of TFDS, which these files do not have).

    Raises ValueError for colours that google's ids do not have, MissingData, and BadData for a file
    that is no such pickle, holds another number of images, labels out of range or, in the
    published training set, unbalanced ones.
    """
    if colour and convention == "google":
        raise ValueError("colour = True does not fit convention = 'google': use 's4'")
    folder = files.find(root, FOLDER, "data_batch_1", TREE, GET)
    counts = files.expected(folder, COUNTS)
    batches = [_batch(folder / name, counts[name]) for name in BATCHES]
    levels = pillow_gray if convention == "s4" else tensorflow_gray
    if colour:
        levels = interleaved
    train, test = (
        Examples(
            Sequences.of_equal_length(
                torch.from_numpy(np.concatenate([levels(pixels) for pixels, _ in part]))
            ),
            torch.from_numpy(np.concatenate([labels for _, labels in part])),
        )
        for part in (batches[:-1], batches[-1:])
    )
    if files.provenance(folder).kind == "official":
        files.check_balance(folder, train.labels.tolist(), 10, within=0.0)
    files.check_tenths(folder, len(train), "images to train on")
    held_out = len(train) // 10
    sizes = [len(train) - held_out, held_out]
    if convention == "s4":
        train, val = split_like_s4(train, sizes)
    else:
        train, val = (train.select(rows) for rows in torch.arange(len(train)).split(sizes))
    return Dataset(
        task="image",
        convention=convention,
        train=train,
        val=val,
        test=test,
        classes=10,
        vocab_size=256,
        max_length=PIXELS,
        provenance=files.provenance(folder),
        validation="a tenth of the training set",
        pixels=(COLOUR_SCALE if colour else S4_SCALE) if convention == "s4" else None,
    )


def interleaved(pixels: Array) -> Array:
    """[n 3 p] uint8 to [n 3p] uint8, the channels of a pixel together."""
    return np.ascontiguousarray(np.moveaxis(pixels, 1, 2)).reshape(len(pixels), -1)


def pillow_gray(pixels: Array) -> Array:
    """[n 3 p] uint8 to [n p] uint8: Pillow's conversion to mode L."""
    red, green, blue = np.moveaxis(pixels.astype(np.int64), 1, 0)
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16).astype(np.uint8)


def tensorflow_gray(pixels: Array) -> Array:
    """[n 3 p] uint8 to [n p] uint8: TensorFlow's rgb_to_grayscale, in fp32."""
    unit = pixels.astype(np.float32) * np.float32(1 / 255)
    weights = np.array([0.2989, 0.5870, 0.1140], np.float32)
    luma = np.einsum("ncp,c->np", unit, weights)
    return (luma * np.float32(255.5)).astype(np.uint8)


def _batch(path: Path, count: int) -> tuple[Array, Array]:
    """[n 3 p] uint8 and [n] int64."""
    if not path.is_file():
        raise files.MissingData(f"{path} is not there. Expected:\n{TREE}\n{GET}")
    files.check_not_empty(path)
    try:
        content = pickled.load(path)
        pixels, labels = (pickled.array(content[name]) for name in (b"data", b"labels"))
    # A damaged pickle may raise anything.
    except Exception as error:
        raise BadData(
            f"{path}: not a batch of CIFAR-10 ({error!r}); it should be a pickle of data and labels"
        ) from error
    if pixels.dtype != np.uint8 or pixels.shape[1:] != (3 * PIXELS,):
        raise BadData(
            f"{path}: data are {pixels.dtype} {list(pixels.shape)}; they should be uint8 "
            f"[{count}, {3 * PIXELS}]"
        )
    files.check_count(path, len(pixels), count, "images")
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise BadData(
            f"{path}: labels are {labels.dtype} {list(labels.shape)}; they should be integers "
            f"[{count}]"
        )
    files.check_count(path, len(labels), count, "labels")
    wrong = labels[(labels < 0) | (labels > 9)]
    if len(wrong):
        raise BadData(f"{path}: label {wrong[0]} is out of range; it should be 0 to 9")
    return pixels.reshape(count, 3, PIXELS), labels.astype(np.int64)
