"""Pathfinder's generator: against the literal reference, and files that a seed fixes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tasks.lra.generate import pathfinder
from tasks.lra.generate.canvas import Canvas
from tasks.lra.generate.contours import Dashes, draw_distractors, draw_targets
from tasks.lra.generate.pathfinder import Pictures, draw_shards, metadata_row, write_pathfinder
from tasks.lra.generate.rendering import render
from tasks.lra.generate.streams import Streams
from tasks.lra.generate.strokes import CONTOUR_LENGTH, SETTINGS, geometry
from tests.tasks.lra.pathfinder_reference import Painter, measure, statistics

CPU = torch.device("cpu")
GOLDEN = json.loads(Path(__file__).with_name("pathfinder_golden.json").read_text())
CELLS = [pytest.param(cell, id=f"{cell['resolution']}-{cell['difficulty']}") for cell in GOLDEN]


def ink_of(canvas: Canvas, *several: Dashes) -> torch.Tensor:
    """[b pixels] uint8"""
    ink = torch.zeros(len(several[0].at), canvas.size, dtype=torch.uint8)
    for dashes in several:
        for at, orientation in zip(*(field.unbind(1) for field in dashes), strict=True):
            rows = at.nonzero()[:, 0]
            canvas.draw(canvas.ink, ink, rows, at[rows], orientation[rows])
    return ink[:, canvas.pixels]


def draw(cell: dict[str, Any], margin: int, attempts: int) -> list[dict[str, float]]:
    """The statistics of each image that so many attempts give."""
    length = CONTOUR_LENGTH[cell["difficulty"]]
    canvas = Canvas(geometry(SETTINGS[cell["resolution"]], margin), CPU)
    streams = Streams(1, margin, torch.arange(attempts), device=CPU)
    targets = draw_targets(canvas, streams, length)
    own = streams.of(targets.attempt)
    distractors = draw_distractors(canvas, targets.occupied, own, length // 3)
    images, labels = render(canvas, targets.dashes, distractors, own)
    ink = ink_of(canvas, targets.dashes, distractors)
    paths = torch.stack(canvas.yx(targets.at), 2).numpy()
    return [
        statistics(
            images[place].numpy(),
            ink[place].numpy() / 255,
            targets.occupied[place, canvas.pixels].numpy() / 255,
            (paths[place, 0::2], paths[place, 1::2]),
            int((distractors.at[place] > 0).sum()),
            int(labels[place]),
        )
        for place in range(len(images))
    ]


ATTEMPTS = {
    (32, "easy"): 25_000,
    (32, "hard"): 120_000,
    (64, "easy"): 6_000,
    (128, "intermediate"): 700,
    (256, "easy"): 60,
}


@pytest.mark.parametrize("cell", CELLS)
def test_statistics_are_those_of_the_reference(cell):
    attempts = ATTEMPTS[cell["resolution"], cell["difficulty"]]
    margins = SETTINGS[cell["resolution"]].margins
    # A margin is drawn for an image, not for an attempt: both count the same.
    measured = [draw(cell, margin, attempts) for margin in margins]
    counts = np.array([len(part) for part in measured])
    assert counts.min() >= 20
    golden = cell["attempts"] / cell["images"]
    tries = (attempts / counts).mean()
    assert tries == pytest.approx(
        golden, abs=5 * golden * math.hypot(*(counts**-0.5), cell["images"] ** -0.5)
    )
    for name, mean in cell["mean"].items():
        values = [np.array([numbers[name] for numbers in part]) for part in measured]
        ours = np.mean([part.mean() for part in values])
        error = math.hypot(*(part.std() / len(part) ** 0.5 for part in values)) / len(values)
        both = math.hypot(error, cell["error"][name])
        assert ours == pytest.approx(mean, abs=5 * both + 1e-9), name


def test_the_golden_numbers_are_the_references():
    for cell in GOLDEN:
        if cell["resolution"] == 32:
            assert measure(32, cell["difficulty"], 1)["first"] == cell["first"]


def test_turning_weights_are_those_of_the_reference():
    setting = SETTINGS[64]
    canvas = Canvas(geometry(setting, 1), CPU)
    painter = Painter(setting, 6, np.random.default_rng(0))
    painter.margin = 1
    occupied = np.random.default_rng(1).integers(0, 256, painter.shape).astype(np.uint8)
    occupied[::2] = 0
    for degrees, pivot in ((-170, (20, 30)), (5, (33, 2)), (90, (62, 61))):
        heads, weights = painter.candidates(pivot, math.radians(degrees), occupied / 255)
        flat = torch.zeros(1, canvas.size, dtype=torch.uint8)
        flat[0, canvas.pixels] = torch.from_numpy(occupied.ravel())
        place = canvas.place(torch.tensor([pivot[0]]), torch.tensor([pivot[1]]))
        there = place + canvas.heads[degrees + 180]
        free = 255 - flat[0, there[:, None] + canvas.disc].amax(1).long()
        ours = dict.fromkeys(heads, 0.0)
        for y, x, weight, inside, share in zip(
            *(part.tolist() for part in canvas.yx(there)),
            canvas.weights[degrees + 180].tolist(),
            canvas.inside[there].tolist(),
            (free / (255 * 65536)).tolist(),
            strict=True,
        ):
            if inside and weight:
                ours[y, x] = weight * share
        assert list(ours) == heads
        assert np.allclose(list(ours.values()), weights, atol=1e-5)


def test_a_first_dash_needs_no_second_look_at_the_borders():
    # What lets the targets' seeds be tables: none of them can leave the image.
    for setting in SETTINGS.values():
        for margin in setting.margins:
            tables = geometry(setting, margin)
            low, size = tables.seed_window[:, None, :2], tables.seed_window[:, None, 2:]
            assert (tables.seed_window[~tables.seed_barred, 2:] > 0).all()
            aside = np.concatenate([np.zeros((1, 2), int), tables.seed_aside])[None]
            for offset in (tables.seed_head, tables.seed_pivot):
                reached = np.stack([low + aside, low + size - 1 + aside])
                assert reached.min() + offset.min() >= 0
                assert reached.max() + offset.max() < setting.resolution


def test_streams_are_uniform_and_independent_of_their_neighbours():
    streams = Streams(7, torch.arange(40_000), device=CPU)
    drawn = streams.below(10)
    counts = torch.bincount(drawn, minlength=10)
    assert ((counts - 4000).abs() < 5 * 60).all()
    second = streams.below(10)
    together = torch.bincount(10 * drawn + second, minlength=100)
    assert ((together - 400).abs() < 5 * 20).all()
    alone = Streams(7, torch.tensor([123]), device=CPU)
    assert [int(alone.below(10)), int(alone.below(10))] == [int(drawn[123]), int(second[123])]
    several = Streams(7, torch.arange(50), device=CPU).several_below(2, 10, torch.arange(50))
    assert torch.equal(several, torch.stack([drawn[:50], second[:50]], 1))


def test_images_do_not_depend_on_what_is_drawn_beside_them(monkeypatch: pytest.MonkeyPatch):
    pictures = Pictures(128, "easy", 3, "clipped", "cpu")
    alone = draw_shards(pictures, [(1, 6)])[0]
    monkeypatch.setitem(pathfinder._ATTEMPTS_BYTES, "cpu", 1 << 21)
    together = draw_shards(pictures, [(0, 4), (1, 6)])[1]
    assert np.array_equal(alone.images, together.images)
    assert (alone.labels, alone.margins) == (together.labels, together.margins)
    assert set(draw_shards(pictures, [(0, 24)])[0].margins) == {2, 3}


@pytest.mark.gpu
@pytest.mark.parametrize("resolution", sorted(SETTINGS))
def test_a_gpu_draws_the_same_images(resolution):
    drawn = [
        draw_shards(Pictures(resolution, "easy", 3, "clipped", device), [(0, 40), (1, 40)])
        for device in ("cpu", "cuda:0")
    ]
    for there, here in zip(*drawn, strict=True):
        assert np.array_equal(there.images, here.images)
        assert there.labels == here.labels


def files_below(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_files_depend_on_the_seed_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # Patched here alone: processes that are started draw shards of whatever size they are told.
    monkeypatch.setattr(pathfinder, "PER_SHARD", 20)
    written = {}
    for name, seed, jobs in (("one", 0, 1), ("two", 0, 2), ("other", 1, 1)):
        folder = tmp_path / name
        folder.mkdir()
        heard: list[int] = []
        pictures = Pictures(32, "easy", seed, "clipped", "cpu")
        write_pathfinder(folder, pictures, 50, jobs, heard.append)
        assert heard == [0, 20, 40, 50]
        written[name] = files_below(folder)
    assert written["one"] == written["two"]
    assert written["one"].keys() == written["other"].keys()
    assert written["one"] != written["other"]
    assert len(written["one"]) == 3 + 50


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pathfinder, "PER_SHARD", 10)
    pictures = Pictures(32, "easy", 0, "clipped", "cpu")

    def stop_at_20(done: int) -> None:
        if done == 20:
            raise KeyboardInterrupt

    (tmp_path / "cut").mkdir()
    (tmp_path / "whole").mkdir()
    with pytest.raises(KeyboardInterrupt):
        write_pathfinder(tmp_path / "cut", pictures, 40, 1, stop_at_20)
    before = (tmp_path / "cut/imgs/0/sample_0.png").stat().st_mtime_ns
    # A shard without metadata is not whole.
    (tmp_path / "cut/metadata/1.npy").unlink()
    heard: list[int] = []
    write_pathfinder(tmp_path / "cut", pictures, 40, 1, heard.append)
    assert heard == [10, 20, 30, 40]
    assert (tmp_path / "cut/imgs/0/sample_0.png").stat().st_mtime_ns == before
    write_pathfinder(tmp_path / "whole", pictures, 40, 1, heard.append)
    assert files_below(tmp_path / "cut") == files_below(tmp_path / "whole")


def test_metadata_are_written_as_published():
    rows = {
        (32, "hard", 1): "1.0 14 4.666666666666667 2 0.5 1 1",
        (32, "intermediate", 1): "1.0 9 3.0 2 0.5 1 1",
        (32, "easy", 1): "1.0 6 2 2 0.5 1 1",
        (128, "easy", 3): "1.8 6 2.0 5 1.5 3 1",
    }
    for (resolution, difficulty, margin), published in rows.items():
        pictures = Pictures(resolution, difficulty, 0, "clipped", "cpu")
        row = metadata_row(pictures, 12, 345, 1, margin)
        assert row == f"imgs/12 sample_345.png 345 1 {published}"


@pytest.mark.parametrize(("resolution", "level"), [(64, 219), (128, 226)])
def test_dashes_have_the_level_of_the_published_images(resolution, level):
    setting = SETTINGS[resolution]
    canvas = Canvas(geometry(setting, setting.margins[0]), CPU)
    streams = Streams(0, torch.arange(600), device=CPU)
    targets = draw_targets(canvas, streams, 6)
    nothing = Dashes.none(len(targets.at), 1, CPU)
    images, _ = render(canvas, targets.dashes, nothing, streams.of(targets.attempt))
    assert set(images.amax((1, 2)).tolist()) == {255}
    saturated = ink_of(canvas, targets.dashes) == 255
    levels = images.flatten(1)[saturated]
    # The others are under a marker, or in an image whose marker is cut by the border.
    assert (levels == level).double().mean() > 0.8


def test_hard_images_have_the_known_statistics():
    images = draw_shards(Pictures(32, "hard", 0, "clipped", "cpu"), [(0, 1000)])[0].images
    shares = [100 * (images > level).mean() for level in (0, 128)]
    # Of another implementation of the published generator; of how many is not known. The last one
    # hangs on levels at 125 to 128. Without contrasts: 14.7, 37.4, 27.3, 1.6.
    known = [22.3, 52.9, 37.6, 9.2]
    assert [images.mean(), images.std(), *shares] == pytest.approx(known, rel=0.02, abs=0.7)


@pytest.mark.parametrize(("resolution", "by"), [(32, 1.0), (64, 0.8)])
def test_documented_contrasts_have_no_limit_and_dim_as_well(resolution, by):
    clipped, documented = (
        draw_shards(Pictures(resolution, "easy", 0, contrast, "cpu"), [(0, 20)])[0]
        for contrast in ("clipped", "documented")
    )
    assert clipped.labels == documented.labels
    assert set(documented.images.max((1, 2))) == {255}
    assert (documented.images != clipped.images).any()
    # Markers have no contrast, and their overshoot is all that 255 levels are measured by.
    mean = documented.images.mean() / clipped.images.mean()
    assert mean == pytest.approx(by, abs=0.06)


def test_images_are_eight_bit_gray(tmp_path: Path):
    heard: list[int] = []
    pictures = Pictures(64, "easy", 0, "clipped", "cpu")
    write_pathfinder(tmp_path, pictures, 3, 1, heard.append)
    with Image.open(tmp_path / "imgs/0/sample_2.png") as image:
        assert (image.mode, image.size) == ("L", (64, 64))
