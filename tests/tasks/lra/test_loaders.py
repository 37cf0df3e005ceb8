"""The loaders, on small files in the published formats, whole and broken in every known way."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tasks.lra.characters import character_encoder
from tasks.lra.examples import Dataset, Provenance, Sequences
from tasks.lra.files import BadData, MissingData
from tasks.lra.generate import listops as listops_generator
from tasks.lra.generate.pathfinder import Pictures, write_pathfinder
from tasks.lra.image import BATCHES, load_image, pillow_gray, tensorflow_gray
from tasks.lra.listops import load_listops
from tasks.lra.pathfinder import load_pathfinder
from tasks.lra.retrieval import load_retrieval
from tasks.lra.text import load_text

Write = Callable[[Path], Path]


def unseen(done: int) -> None:
    """Progress that nobody reads."""
    del done


def manifest(folder: Path, counts: dict[str, int], kind: str = "surrogate") -> None:
    name = {"generator": "listops", "version": 3} if kind == "generated" else {"name": "tiny"}
    content = {"kind": kind, "seed": 7, "counts": counts} | name
    (folder / "manifest.json").write_text(json.dumps(content))


# ListOps

SOURCES = (
    "( ( ( [MIN 4 ) 7 ) ] )",
    "( ( ( ( [SM 4 ) 9 ) 8 ) ] )",
    "( ( ( [MED 0 ) ( ( ( [MAX 1 ) 5 ) ] ) ) ] )",
)


def write_listops(root: Path, level: str = "") -> Path:
    folder = root / level / "listops-1000"
    folder.mkdir(parents=True)
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        rows = [f"{source}\t{label}" for source, label in zip(SOURCES, "412", strict=True)]
        lines = ["Source\tTarget", *rows[:count]]
        (folder / f"basic_{split}.tsv").write_text("\n".join(lines) + "\n")
    manifest(folder, {"train": 3, "val": 2, "test": 1}, "generated")
    return folder


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


def replace_text(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Source\tTarget\n", "", "missing header: line 1 is"),
        ("[SM", "[SUM", r"line 3: unknown token '\[SUM'; there should be \[MIN \[MAX"),
        ("] )\t1", "] )\t10", "line 3: label '10'; it should be 0 to 9"),
        ("] )\t1", "] )\t1\tx", "line 3: 3 columns; there should be 2"),
        ("( ( ( [MIN 4 ) 7 ) ] )\t4\n", "", "2 rows; there should be 3"),
    ],
)
def test_broken_listops_is_refused(tmp_path, old, new, message):
    path = write_listops(tmp_path) / "basic_train.tsv"
    replace_text(path, old, new)
    with pytest.raises(BadData, match=message) as refused:
        load_listops(tmp_path)
    assert str(path) in str(refused.value)


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


# Text


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


# Retrieval


def write_retrieval(root: Path) -> Path:
    folder = root / "lra_release" / "tsv_data"
    folder.mkdir(parents=True)
    row = '1.0\t10\t11\tb\'A "title"\\n text \\xc3\\xa9\'\tb"other\'s"'
    long = f"0.0\t1\t2\tb'x'\tb'{'y' * 12_000}'"
    for split, rows in (("train", [row, long]), ("eval", [row]), ("test", [long])):
        (folder / f"new_aan_pairs.{split}.tsv").write_text("\n".join(rows) + "\n")
    manifest(folder, {"train": 2, "eval": 1, "test": 1})
    return folder


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
    ],
)
def test_broken_retrieval_is_refused(tmp_path, old, new, message):
    replace_text(write_retrieval(tmp_path) / "new_aan_pairs.train.tsv", old, new)
    with pytest.raises(BadData, match=message):
        load_retrieval(tmp_path)


# Image


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


def read_batch(path: Path) -> dict[bytes, Any]:
    return pickle.loads(path.read_bytes())


def test_image_in_both_conventions(tmp_path):
    folder = write_image(tmp_path)
    s4 = load_image(tmp_path)
    assert [len(part) for part in (s4.train, s4.val, s4.test)] == [90, 10, 20]
    raw = np.concatenate([read_batch(folder / name)[b"data"] for name in BATCHES[:-1]])
    order = torch.randperm(100, generator=torch.Generator().manual_seed(42))
    place = int(order[90])
    colour = raw[place].reshape(3, 32, 32).transpose(1, 2, 0)
    gray = np.asarray(Image.fromarray(colour).convert("L")).ravel()
    row, lengths = s4.val.inputs.padded(torch.tensor([0]))
    assert row[0].tolist() == gray.tolist()
    assert lengths.tolist() == [1024]
    assert int(s4.val.labels[0]) == place % 10
    assert s4.pixels == (122.6 / 255, 61 / 255)
    google = load_image(tmp_path, convention="google")
    assert google.pixels is None
    assert google.val.labels.tolist() == [place % 10 for place in range(90, 100)]
    assert google.vocab_size == 256


def test_colours_come_pixel_by_pixel(tmp_path):
    folder = write_image(tmp_path)
    dataset = load_image(tmp_path, colour=True)
    assert dataset.pixels is not None
    assert dataset.pixels.mean == (0.4914, 0.4822, 0.4465)
    planes = np.asarray(read_batch(folder / "test_batch")[b"data"]).reshape(-1, 3, 1024)
    rows = dataset.test.inputs.ids.view(len(planes), 1024, 3).numpy()
    assert (rows == planes.transpose(0, 2, 1)).all()
    with pytest.raises(ValueError, match="colour = True does not fit convention = 'google'"):
        load_image(tmp_path, convention="google", colour=True)


def test_both_lumas():
    pixels = np.array([[[255, 0, 0, 0, 10], [255, 255, 0, 0, 20], [255, 0, 255, 0, 30]]], np.uint8)
    assert pillow_gray(pixels).tolist() == [[255, 150, 29, 0, 18]]
    # 0.2989, 0.5870, 0.1140 of 255.5, cut off.
    assert tensorflow_gray(pixels).tolist() == [[255, 149, 29, 0, 18]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda batch: batch[b"labels"].__setitem__(3, 10), "label 10 is out of range"),
        (lambda batch: batch.update({b"data": batch[b"data"][:, :3000]}), r"uint8 \[20, 3000\]"),
        (lambda batch: batch.update({b"data": batch[b"data"][:19]}), "19 images; there should be"),
        (lambda batch: batch[b"labels"].__setitem__(3, 1.0), "labels are float64"),
        (lambda batch: batch.pop(b"labels"), "not a batch of CIFAR-10"),
        (lambda batch: batch.update({b"more": Path}), "it asks for pathlib"),
    ],
)
def test_broken_image_is_refused(tmp_path, change, message):
    path = write_image(tmp_path) / "data_batch_4"
    batch = read_batch(path)
    change(batch)
    path.write_bytes(pickle.dumps(batch))
    with pytest.raises(BadData, match=message) as refused:
        load_image(tmp_path)
    assert str(path) in str(refused.value)


def test_torn_and_absent_batches_are_refused(tmp_path):
    folder = write_image(tmp_path)
    path = folder / "data_batch_2"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(BadData, match="data_batch_2: not a batch"):
        load_image(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(BadData, match="data_batch_2: the file is empty"):
        load_image(tmp_path)
    path.unlink()
    with pytest.raises(MissingData, match="data_batch_2 is not there"):
        load_image(tmp_path)


# Pathfinder


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


FIRST_TRAIN = [37542, 143173, 127710, 58234, 152906]
FIRST_VAL = [122036, 135593, 30913]
FIRST_TEST = [143170, 45464, 153084]


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


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:100]), "torn"),
        (lambda path: path.write_bytes(path.read_bytes()[:-30]), "torn"),
        (lambda path: path.write_bytes(b""), r"empty \(0 bytes\)"),
        (lambda path: path.write_bytes(b"GIF" * 50), "not an image"),
        (lambda path: path.unlink(), "is not there"),
        (lambda path: Image.new("L", (64, 32)).save(path), "64 x 32; it should be 32 x 32"),
        (lambda path: Image.new("RGB", (32, 32)).save(path), "mode is RGB; it should be L"),
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


def test_the_image_that_was_published_empty_is_left_out(tmp_path):
    folder = tmp_path / "pathfinder32/curv_baseline"
    folder.mkdir(parents=True)
    pictures = Pictures(32, "easy", 4, "clipped", "cpu")
    write_pathfinder(folder, pictures, 180, 1, unseen)
    manifest(folder, {"images": 180})
    assert sum(map(len, parts(load_easy(tmp_path)))) == 180
    (folder / "imgs/0/sample_172.png").write_bytes(b"")
    assert sum(map(len, parts(load_easy(tmp_path)))) == 179


def parts(dataset: Dataset) -> list[Any]:
    return [dataset.train, dataset.val, dataset.test]


# What all have in common


@pytest.mark.parametrize(
    ("load", "needs", "generates"),
    [
        (load_listops, "listops-1000/basic_train.tsv", "mixerbench data listops --out DIR"),
        (load_text, "aclImdb/train/pos", None),
        (load_retrieval, "tsv_data/new_aan_pairs.train.tsv", None),
        (load_image, "cifar-10-batches-py/data_batch_1", None),
        (
            load_pathfinder,
            "pathfinder32/curv_contour_length_14/metadata",
            "mixerbench data pathfinder --out DIR --resolution 32 --difficulty hard",
        ),
    ],
)
def test_absent_files_are_named_with_every_path_that_was_tried(
    tmp_path, monkeypatch, load, needs, generates
):
    monkeypatch.setenv("MIXERBENCH_DATA", str(tmp_path))
    with pytest.raises(MissingData) as missing:
        load()
    told = str(missing.value)
    for level in ("lra_release/lra_release/", "lra_release/", ""):
        assert f"{tmp_path}/{level}{needs}\n" in told
    assert "Expected:\n  " in told
    assert "MIXERBENCH_DATA" in told
    assert ("mixerbench data" in told) == (generates is not None)
    assert generates is None or generates in told


def test_a_manifest_says_where_data_come_from(tmp_path):
    folder = write_listops(tmp_path)
    for content, message in (
        ("{", "not a manifest"),
        ('{"kind": "official"}', "it should be generated or surrogate"),
        ('{"kind": "surrogate", "counts": {}}', "counts are of"),
    ):
        (folder / "manifest.json").write_text(content)
        with pytest.raises(BadData, match=message):
            load_listops(tmp_path)


def test_a_batch_is_never_cut():
    sequences = Sequences.of([np.arange(1, 4, dtype=np.uint8), np.arange(1, 8, dtype=np.uint8)])
    with pytest.raises(ValueError, match="width = 5; the longest of these sequences has 7 ids"):
        sequences.padded(torch.tensor([0, 1]), width=5)
    rows, _ = sequences.select(torch.tensor([1, 0, 1])).padded(torch.tensor([1, 2]))
    assert rows.tolist() == [[1, 2, 3, 0, 0, 0, 0], [1, 2, 3, 4, 5, 6, 7]]
