"""Pathfinder's loader, on small files in the published format, whole and broken."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tasks.lra.examples import Dataset
from tasks.lra.files import BadData
from tasks.lra.generate.pathfinder import Pictures, write_pathfinder
from tasks.lra.pathfinder import COUNTS, load_pathfinder
from tests.tasks.lra.published_files import manifest, replace_text, unseen

FIRST_TRAIN = [37542, 143173, 127710, 58234, 152906]
FIRST_VAL = [122036, 135593, 30913]
FIRST_TEST = [143170, 45464, 153084]


@pytest.fixture(scope="module")
def pathfinder_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("published")
    folder = root / "lra_release/lra_release/pathfinder32/curv_baseline"
    folder.mkdir(parents=True)
    pictures = Pictures(32, "easy", 0, "clipped", "cpu")
    write_pathfinder(folder, pictures, 1100, 1, unseen)
    manifest(folder, {"images": 1100}, "generated")
    return root


def load_easy(root: Path, **options: Any) -> Dataset:
    return load_pathfinder(root, difficulty="easy", jobs=1, **options)


def test_pathfinder_is_split_as_s4_does(pathfinder_root):
    dataset = load_easy(pathfinder_root)
    assert [len(part) for part in (dataset.train, dataset.val, dataset.test)] == [880, 110, 110]
    folder = pathfinder_root / "lra_release/lra_release/pathfinder32/curv_baseline"
    rows = [
        line.split()
        for number in (0, 1)
        for line in (folder / f"metadata/{number}.npy").read_text().splitlines()
    ]
    theirs = torch.utils.data.random_split(
        range(1100), [880, 110, 110], generator=torch.Generator().manual_seed(42)
    )
    for part, rows_of in zip((dataset.train, dataset.val, dataset.test), theirs, strict=True):
        assert part.labels.tolist() == [int(rows[i][3]) for i in rows_of.indices]
        pixels, _ = part.inputs.padded(torch.tensor([5]))
        image = Image.open(folder / "/".join(rows[rows_of.indices[5]][:2]))
        assert pixels[0].tolist() == np.asarray(image).ravel().tolist()
    assert dataset.pixels == (0.5, 0.5)
    google = load_easy(pathfinder_root, convention="google")
    assert google.test.labels.tolist() == [int(row[3]) for row in rows[-110:]]
    assert google.pixels is None
    assert "generated (listops version 3, seed 7)" in next(iter(google.describe()))


def test_the_first_of_s4s_indices():
    # torch's random_split of 200,000 images with seed 42, as every S4-lineage number used it.
    order = torch.randperm(200_000, generator=torch.Generator().manual_seed(42))
    split = torch.utils.data.random_split(
        range(200_000), [160_000, 20_000, 20_000], generator=torch.Generator().manual_seed(42)
    )
    for part, rows in zip(split, order.split([160_000, 20_000, 20_000]), strict=True):
        assert part.indices == rows.tolist()
    assert order[:5].tolist() == FIRST_TRAIN
    assert order[160_000:160_003].tolist() == FIRST_VAL
    assert order[180_000:180_003].tolist() == FIRST_TEST


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """The folder of forty images."""
    folder = tmp_path / "pathfinder32/curv_baseline"
    folder.mkdir(parents=True)
    pictures = Pictures(32, "easy", 4, "clipped", "cpu")
    write_pathfinder(folder, pictures, 40, 1, unseen)
    manifest(folder, {"images": 40})
    return folder


def broken_image(folder: Path, write: Callable[[Path], object], message: str) -> None:
    path = folder / "imgs/0/sample_17.png"
    write(path)
    with pytest.raises(BadData, match=message) as refused:
        load_easy(folder)
    assert str(path) in str(refused.value)


def chunk(name: bytes, content: bytes) -> bytes:
    """A part of a PNG: length, name, content and checksum."""
    checksum = zlib.crc32(name + content).to_bytes(4, "big")
    return len(content).to_bytes(4, "big") + name + content + checksum


def claim_size(path: Path, side: int) -> None:
    """Write another size into a PNG's header."""
    image = path.read_bytes()
    header = chunk(b"IHDR", side.to_bytes(4, "big") * 2 + image[24:29])
    path.write_bytes(image[:8] + header + image[33:])


def add_damaged_profile(path: Path) -> None:
    """Write an empty colour profile between a PNG's pixels and its end."""
    image = path.read_bytes()
    path.write_bytes(image[:-12] + chunk(b"iCCP", b"") + image[-12:])


def four_bits(path: Path) -> None:
    """Write a PNG of four bits a pixel."""
    side = (32).to_bytes(4, "big")
    header = chunk(b"IHDR", side * 2 + b"\x04\0\0\0\0")
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 17 * 32))
    path.write_bytes(path.read_bytes()[:8] + header + pixels + chunk(b"IEND", b""))


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:100]), "torn"),
        (lambda path: path.write_bytes(path.read_bytes()[:-30]), "torn"),
        (add_damaged_profile, "torn"),
        (lambda path: path.write_bytes(b""), r"empty \(0 bytes\)"),
        (lambda path: path.write_bytes(b"GIF" * 50), "not a PNG"),
        (lambda path: Image.new("L", (32, 32)).save(path, "GIF"), "not a PNG"),
        (lambda path: path.unlink(), "is not there"),
        (lambda path: Image.new("L", (64, 32)).save(path), "64 x 32; it should be 32 x 32"),
        (lambda path: claim_size(path, 10_000), "10000 x 10000; it should be 32 x 32"),
        (lambda path: claim_size(path, 60_000), "60000 x 60000; it should be 32 x 32"),
        (lambda path: Image.new("RGB", (32, 32)).save(path), "mode is RGB; it should be L"),
        (four_bits, "4 bits a pixel; there should be 8"),
        (loop, r"cannot be read \(Too many levels"),
    ],
)
def test_broken_images_are_refused(small, write, message):
    broken_image(small, write, message)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (" 1 1.0 6 ", " 2 1.0 6 ", "label '2'; it should be 0 or 1"),
        (" 1 1.0 6 ", " 1.0 6 ", "10 columns; there should be 11"),
        ("imgs/0 sample_0.png 0 ", "", "8 columns; there should be 11"),
        (" 1.0 6 ", " 1.0 14 ", "a contour of 14 dashes; at this difficulty there should be 6"),
        (
            "imgs/0 sample_3.",
            "../imgs/0 sample_3.",
            r"image '\.\./imgs/0/sample_3.png'; it should be",
        ),
        ("imgs/0 sample_3.", "/tmp sample_3.", "image '/tmp/sample_3.png'; it should be imgs/<n"),
        ("sample_3.png", "sample_3\0.png", "image .*; it should be imgs/<number>/sample_<number>"),
        ("sample_3.png", "sample_4.png", "imgs/0/sample_4.png has two rows; there should be one"),
        (" 0 1.0 6 ", " 1 1.0 6 ", "unbalanced labels: 0.0% are 0; there should be about 50%"),
    ],
)
def test_broken_metadata_are_refused(small, old, new, message):
    replace_text(small / "metadata/0.npy", old, new)
    with pytest.raises(BadData, match=message):
        load_easy(small)


def test_all_rows_and_files_of_metadata_are_needed(small):
    path = small / "metadata/0.npy"
    text = path.read_text()
    path.write_text("".join(text.splitlines(keepends=True)[:-1]))
    with pytest.raises(BadData, match=r"0.npy: 39 rows; there should be 40"):
        load_easy(small)
    np.save(path, np.zeros(3))
    with pytest.raises(BadData, match="not text; metadata are, despite the suffix"):
        load_easy(small)
    manifest(small, {"images": 9})
    with pytest.raises(BadData, match="9 images; there should be at least 10"):
        load_easy(small)
    (small / "manifest.json").unlink()
    for number in range(199):
        (small / f"metadata/{number}.npy").write_text(text)
    with pytest.raises(BadData, match="199 metadata files; there should be 200"):
        load_easy(small)
    path.rename(small / "metadata/first.npy")
    with pytest.raises(BadData, match=r"first.npy: the file's name should be <number>.npy"):
        load_easy(small)


def parts(dataset: Dataset) -> list[Any]:
    return [dataset.train, dataset.val, dataset.test]


def test_the_image_that_was_published_empty_is_left_out(tmp_path, monkeypatch):
    folder = tmp_path / "pathfinder32/curv_baseline"
    folder.mkdir(parents=True)
    pictures = Pictures(32, "easy", 4, "clipped", "cpu")
    write_pathfinder(folder, pictures, 180, 1, unseen)
    monkeypatch.setitem(COUNTS, "images", 180)
    assert sum(map(len, parts(load_easy(tmp_path)))) == 180
    (folder / "imgs/0/sample_172.png").write_bytes(b"")
    published = load_easy(tmp_path)
    assert sum(map(len, parts(published))) == 179
    assert published.provenance.kind == "official"
    for kind in ("generated", "surrogate"):
        manifest(folder, {"images": 180}, kind)
        with pytest.raises(BadData, match=r"sample_172.png: empty \(0 bytes\)"):
            load_easy(tmp_path)
