"""Batches: few widths that hold every row, images varied, pixels scaled."""

from __future__ import annotations

import pytest
import torch

from tasks.base import Context
from tasks.lra.batches import Split, channels, noise, tokens_of, varied, width_of
from tasks.lra.data import Data
from tasks.lra.task import Classification
from tests.tasks.lra.tiny_cells import CPU, LISTOPS, tiny

pytestmark = pytest.mark.usefixtures("_generated")


def test_widths_are_few_and_hold_every_row():
    assert [width_of(n, 2048, 8) for n in (1, 256, 257, 2000, 2048)] == [256, 256, 512, 2048, 2048]
    assert width_of(2000, 2000, 7) == 7 * 286
    assert width_of(777, 2048, None) == 777
    dataset = LISTOPS.load(Context(CPU))
    split = Split(dataset.train, dataset, CPU)
    exact, bucketed = (
        split.training(4, seed=1, epoch=0, buckets=buckets, pool=64) for buckets in (None, 4)
    )
    assert {width for _, width in bucketed} <= {512, 1024, 1536, 2048}
    for (rows, width), (same, least) in zip(bucketed, exact, strict=True):
        assert torch.equal(rows, same)
        assert width >= least
        ids, lengths, _ = split.tensors((rows, width))
        assert ids.shape == (4, width)
        assert torch.equal((ids != 0).sum(1), lengths)


def test_bucketed_widths_change_no_score():
    task = tiny()
    problems = [
        Classification(cell, LISTOPS.load(Context(CPU)), CPU)
        for cell in (task, task.model_copy(update={"buckets": 3}))
    ]
    model = task.model(task.mixer, problems[0].dataset, CPU).eval()
    seen = []
    for problem in problems:
        with torch.no_grad():
            seen.append(
                torch.cat(
                    [
                        problem.logits(model, *problem.test.tensors(batch)[:-1])
                        for batch in problem.test.evaluation(4, problem.task.buckets)
                    ]
                )
            )
    torch.testing.assert_close(*seen, rtol=1e-4, atol=1e-5)


def test_images_are_varied_by_crops_and_flips_alone():
    image = torch.arange(1024, dtype=torch.int16).view(1, -1)
    seen = varied(image.repeat(400, 1), torch.Generator().manual_seed(0)).view(-1, 32, 32)
    square = image.view(32, 32)
    mirrored = torch.cat([square[:4].flip(0), square, square[-4:].flip(0)])
    mirrored = torch.cat([mirrored[:, :4].flip(1), mirrored, mirrored[:, -4:].flip(1)], 1)
    crops = {
        tuple(crop.flatten().tolist())
        for top in range(9)
        for left in range(9)
        for crop in (
            mirrored[top : top + 32, left : left + 32],
            mirrored[top : top + 32, left : left + 32].flip(1),
        )
    }
    found = {tuple(one.flatten().tolist()) for one in seen}
    assert found <= crops
    assert len(found) > 100


def test_pixels_are_scaled_by_channel():
    data = Data(arena="image", colour=True, augment=True)
    dataset = noise(data, 2)
    assert channels(dataset) == 3
    ids = dataset.train.inputs.ids.view(2, -1)
    x = tokens_of(dataset, ids)
    assert x.shape == (2, 1024, 3)
    assert float(x[1, 7, 2]) == pytest.approx((int(ids[1, 23]) / 255 - 0.4465) / 0.261, rel=1e-5)
    gray = noise(Data(arena="pathfinder32"), 2)
    x = tokens_of(gray, gray.train.inputs.ids.view(2, -1))
    assert x.shape == (2, 1024, 1)
    assert -1 <= float(x.min()) < float(x.max()) <= 1
