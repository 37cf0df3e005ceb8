"""Pathfinder's images in the published format: PNGs in folders of 1000, and text metadata.

Law: drewlinsley/pathfinder at ab9c130 with the settings of `strokes.SETTINGS`. A folder of images
is a shard with random streams of its own, so the files depend on the seed alone: not on the cores,
the device, or on how often the run was interrupted.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tasks.lra.generate.canvas import Canvas
from tasks.lra.generate.contours import Targets, draw_distractors, draw_targets
from tasks.lra.generate.folders import write
from tasks.lra.generate.rendering import Contrast, render
from tasks.lra.generate.streams import Streams
from tasks.lra.generate.strokes import CONTOUR_LENGTH, SETTINGS, Difficulty, geometry
from tasks.lra.generate.workers import in_order

VERSIONS = {32: 2, 64: 1, 128: 1, 256: 1}
"""Of the law, by resolution. 1 of 32 pixels had dashes without their contrasts, too dim."""
PER_SHARD = 1000
_ATTEMPTS_BYTES = {"cpu": 1 << 24, "cuda": 1 << 30}
"""Of the canvases of attempts that are under way at once."""
_SHARDS_PIXELS, _SHARDS = 1 << 27, 64
"""Of the shards that a GPU draws together at most: the more, the fewer launches an image. Others
are written meanwhile."""


@dataclass(frozen=True)
class Pictures:
    """What is drawn, less the shard."""

    resolution: int
    difficulty: Difficulty
    seed: int
    contrast: Contrast
    device: str

    @property
    def names(self) -> tuple[int, int, int]:
        """Of every random stream."""
        return self.seed, self.resolution, CONTOUR_LENGTH[self.difficulty]


class Shard(NamedTuple):
    """The images of a folder."""

    number: int
    images: NDArray[Any]
    """[n h w] uint8"""
    labels: list[int]
    margins: list[int]


def write_pathfinder(
    folder: Path, pictures: Pictures, images: int, jobs: int, progress: Callable[[int], None]
) -> None:
    """Write imgs/<shard>/sample_<i>.png and metadata/<shard>.npy; go on where a run stopped.

    `progress` hears how many images are there. On a CPU `jobs` processes draw and write; with a
    GPU this process draws there and they write.
    """
    (folder / "metadata").mkdir(exist_ok=True)
    shards = [
        (number, min(PER_SHARD, images - first))
        for number, first in enumerate(range(0, images, PER_SHARD))
    ]
    left = [shard for shard in shards if not _metadata(folder, shard[0]).exists()]
    done = images - sum(count for _, count in left)
    progress(done)
    if torch.device(pictures.device).type == "cpu":
        written = in_order(_draw_and_write, ((folder, pictures, shard) for shard in left), jobs)
    else:
        drawn = ((folder, pictures, shard) for shard in _drawn_in_groups(pictures, left))
        written = in_order(_write_drawn, drawn, jobs)
    for count in written:
        done += count
        progress(done)


def _drawn_in_groups(pictures: Pictures, shards: list[tuple[int, int]]) -> Iterator[Shard]:
    size = min(_SHARDS, max(1, _SHARDS_PIXELS // (PER_SHARD * pictures.resolution**2)))
    for first in range(0, len(shards), size):
        yield from draw_shards(pictures, shards[first : first + size])


def _draw_and_write(work: tuple[Path, Pictures, tuple[int, int]]) -> int:
    folder, pictures, shard = work
    if multiprocessing.parent_process() is not None:
        # The other cores are other shards'.
        torch.set_num_threads(1)
    return write_shard(folder, pictures, draw_shards(pictures, [shard])[0])


def _write_drawn(work: tuple[Path, Pictures, Shard]) -> int:
    return write_shard(*work)


def draw_shards(pictures: Pictures, shards: list[tuple[int, int]]) -> list[Shard]:
    """Draw shards, (number, images) each, together."""
    setting, device = SETTINGS[pictures.resolution], torch.device(pictures.device)
    numbers = torch.tensor([number for number, count in shards for _ in range(count)])
    places = torch.tensor([place for _, count in shards for place in range(count)])
    streams = Streams(*pictures.names, numbers, places, device=torch.device("cpu"))
    margins = torch.tensor(setting.margins)[streams.below(len(setting.margins))]
    images = np.empty((len(numbers), setting.resolution, setting.resolution), np.uint8)
    labels = np.empty(len(numbers), np.int64)
    for margin in setting.margins:
        canvas = Canvas(geometry(setting, margin), device)
        mine = (margins == margin).nonzero()[:, 0]
        targets = _targets(pictures, canvas, margin, numbers[mine])
        own = streams.of(mine).to(device)
        length = CONTOUR_LENGTH[pictures.difficulty] // 3
        distractors = draw_distractors(canvas, targets.occupied, own, length)
        drawn, label = render(canvas, targets.dashes, distractors, own, pictures.contrast)
        images[mine.numpy()], labels[mine.numpy()] = drawn.cpu().numpy(), label.cpu().numpy()
    return [
        Shard(number, images[mine], labels[mine].tolist(), margins.numpy()[mine].tolist())
        for number, _ in shards
        for mine in [np.flatnonzero(numbers.numpy() == number)]
    ]


def _targets(pictures: Pictures, canvas: Canvas, margin: int, numbers: Tensor) -> Targets:
    """Two contours for each image, whose shards are `numbers`: of each shard's attempts the first
    ones that succeed."""
    shards, counts = (x.tolist() for x in numbers.unique_consecutive(return_counts=True))
    wanted = dict(zip(shards, counts, strict=True))
    found: dict[int, list[Targets]] = {shard: [] for shard in shards}
    room = _ATTEMPTS_BYTES[canvas.device.type] / canvas.size / canvas.seed_share
    begun, share = 0, 0.1
    while wanted:
        # About as many as are needed, as far as there is room. This changes no image.
        each = 1 + int(min(1.2 * max(wanted.values()) / share, room / len(wanted)))
        pending = torch.tensor(list(wanted), device=canvas.device)
        attempts = torch.arange(begun, begun + each, device=canvas.device)
        streams = Streams(
            *pictures.names,
            pending.repeat_interleave(each),
            margin,
            attempts.repeat(len(pending)),
            device=canvas.device,
        )
        drawn = draw_targets(canvas, streams, CONTOUR_LENGTH[pictures.difficulty])
        for place, shard in enumerate(pending.tolist()):
            mine = (drawn.attempt // each == place).nonzero()[: wanted[shard], 0]
            found[shard].append(Targets(*(field[mine] for field in drawn)))
            wanted[shard] -= len(mine)
        begun += each
        share = max(len(drawn.attempt) / (each * len(pending)), share / 8)
        wanted = {shard: left for shard, left in wanted.items() if left}
    parts = [part for shard in shards for part in found[shard]]
    return Targets(*(torch.cat(field) for field in zip(*parts, strict=True)))


def write_shard(folder: Path, pictures: Pictures, shard: Shard) -> int:
    """Write the images, then the metadata, whose presence says that the shard is whole."""
    images = folder / "imgs" / str(shard.number)
    images.mkdir(parents=True, exist_ok=True)
    for place, image in enumerate(shard.images):
        Image.fromarray(image).save(images / f"sample_{place}.png")
    rows = [
        metadata_row(pictures, shard.number, place, label, margin)
        for place, (label, margin) in enumerate(zip(shard.labels, shard.margins, strict=True))
    ]
    write(_metadata(folder, shard.number), "".join(row + "\n" for row in rows))
    return len(rows)


def metadata_row(pictures: Pictures, shard: int, place: int, label: int, margin: int) -> str:
    """Eleven columns: folder, file, number in the folder, label, continuity, dashes of a contour
    and of a distractor, a dash's length and thickness, margin, number of contrasts."""
    setting, length = SETTINGS[pictures.resolution], CONTOUR_LENGTH[pictures.difficulty]
    # As the published files have it: an integer at 32 pixels alone.
    distractor = 2 if (setting.resolution, length) == (32, 6) else length / 3
    columns = (
        *(f"imgs/{shard}", f"sample_{place}.png", place, label, setting.continuity, length),
        *(distractor, setting.dash, setting.thickness, margin, 1),
    )
    return " ".join(map(str, columns))


def _metadata(folder: Path, shard: int) -> Path:
    # Text, in spite of its suffix, as published.
    return folder / "metadata" / f"{shard}.npy"
