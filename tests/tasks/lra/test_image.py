"""Image's loader, on small files in the published format, whole and broken; both ways to gray."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tasks.lra.files import BadData, MissingData
from tasks.lra.image import BATCHES, load_image, pillow_gray, tensorflow_gray
from tests.tasks.lra.published_files import write_image


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
        (
            lambda batch: batch.update({b"labels": 3}),
            r"labels are int64 \[\]; they should be integers",
        ),
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


def test_arrays_of_old_and_new_numpy_are_read(tmp_path):
    folder = write_image(tmp_path)
    ids = load_image(tmp_path).train.inputs.ids
    new, old = b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"
    for asked, other in ((new, old), (old, new)):
        for name in BATCHES:
            path = folder / name
            path.write_bytes(path.read_bytes().replace(asked, other))
            assert other in path.read_bytes()
        assert torch.equal(load_image(tmp_path).train.inputs.ids, ids)


def array_of(state: bytes, dtype: bytes = b"u1") -> bytes:
    """A pickle of data and no labels; of the data, an array, the state is written as given."""
    kind = b"cnumpy\ndtype\n(S'" + dtype + b"'\nI0\nI1\ntR"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
    return b"(S'data'\n" + array + state.replace(b"DTYPE", kind) + b"S'labels'\n(ld."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cnumpy.nowhere\ndtype\n.", "it asks for numpy.nowhere.dtype"),
        (b"cnumpy\n_reconstruct\n.", "it asks for numpy._reconstruct"),
        (b"c_codecs\nencode\nVa\nVnone\n\x86R.", "LookupError"),
        (array_of(b""), "an array without its bytes"),
        (array_of(b"(I1\n(I4\ntDTYPEI0\nS'abc'\ntb"), "cannot reshape array of size 3"),
        (array_of(b"(I1\n(L1152921504606846975L\ntDTYPEI0\nS'abc'\ntb"), "cannot reshape"),
        (array_of(b"(I1\n(I1\ntDTYPEI0\nS'abcdefgh'\ntb", b"O8"), "an array of =O8, which is no"),
        (array_of(b"(I1\n(I1\ntI7\nI0\nS'abcdefgh'\ntb"), "an array of 7, which is no integer"),
        (array_of(b"(I1\n(I1\ntDTYPEI0\n(lNtb"), "not a batch of CIFAR-10"),
        (b"]K\x01.", "TypeError"),
    ],
)
def test_a_damaged_pickle_is_refused(tmp_path, content, message):
    path = write_image(tmp_path) / "data_batch_3"
    path.write_bytes(content)
    with pytest.raises(BadData, match=message) as refused:
        load_image(tmp_path)
    assert f"{path}: not a batch of CIFAR-10" in str(refused.value)


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
