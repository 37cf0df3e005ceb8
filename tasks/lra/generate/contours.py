"""Pathfinder's contours, many at a time: two targets an image, then its distractors.

Rows of a batch are attempts or images. Everything is in integers and every row has a random
stream of its own, so what is drawn depends neither on the device nor on the size of a batch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from tasks.lra.generate.canvas import TRIALS, Canvas, Ends
from tasks.lra.generate.streams import Streams
from tasks.lra.generate.strokes import DEGREES

FREE_BELOW = 77
"""A pixel is free up to an occupancy of 0.3; in 255 levels."""
FEWEST_FREE = 0.01
"""No distractor is started where less of the image is free."""
DISTRACTOR_TRIALS = 5
FIRST_LOOKS = 32
"""Random pixels that are looked at before all of them are."""
_AT_ONCE = 1 << 22


class Dashes(NamedTuple):
    """Dashes in the order in which they were drawn. [b n] int64."""

    at: Int[Tensor, "b n"]
    """Where each starts on the canvas; 0 where there is none."""
    orientation: Int[Tensor, "b n"]

    @classmethod
    def none(cls, rows: int, count: int, device: torch.device) -> Dashes:
        return cls(*torch.zeros(2, rows, count, dtype=torch.int64, device=device))

    def of(self, rows: Tensor) -> Dashes:
        """The dashes of these rows."""
        return Dashes(self.at[rows], self.orientation[rows])

    def note(self, rows: Tensor, column: int, ends: Ends) -> None:
        """The last dash at these ends is number `column`."""
        self.at[rows, column] = ends.at[rows]
        self.orientation[rows, column] = ends.orientation[rows]


class Targets(NamedTuple):
    """Two target contours a row."""

    attempt: Int[Tensor, " b"]
    """Which attempt succeeded."""
    occupied: UInt8[Tensor, "b s"]
    """How much of each pixel is."""
    at: Int[Tensor, "b n"]
    orientation: Int[Tensor, "b n"]
    """The dashes, as `Dashes`, of the two contours alternating."""

    @property
    def dashes(self) -> Dashes:
        return Dashes(self.at, self.orientation)


def draw_targets(canvas: Canvas, streams: Streams, length: int) -> Targets:
    """Attempt two contours of `length` dashes for each stream: those that succeeded, in order.

    The first starts near the middle, the second a seed distance away from it. They grow in turn;
    when one cannot, the attempt has failed.
    """
    ends, seeded = _seed_targets(canvas, streams)
    ends, streams = [end.of(seeded) for end in ends], streams.of(seeded)
    occupied = canvas.empty.expand(len(seeded), -1).contiguous()
    dashes = Dashes.none(len(seeded), 2 * length, canvas.device)
    alive = torch.arange(len(seeded), device=canvas.device)
    for number in range(2 * length):
        end = ends[number % 2]
        if number >= 2:
            alive = canvas.extend(occupied, end, streams, alive)
        dashes.note(alive, number, end)
    # The last dash of the second contour; the first's stays unclaimed, as in the original.
    canvas.draw(canvas.claim, occupied, alive, *(field[alive, -1] for field in dashes))
    return Targets(seeded[alive], occupied[alive], *(field[alive] for field in dashes))


def _seed_targets(canvas: Canvas, streams: Streams) -> tuple[list[Ends], Int[Tensor, " found"]]:
    """The first dashes of both contours, and the attempts that have them."""
    first, second, aside = (streams.below(DEGREES) for _ in range(3))
    low_y, low_x, height, width = canvas.seed_window[first].unbind(1)
    y = low_y + streams.below(height.clamp(min=1))
    x = low_x + streams.below(width.clamp(min=1))
    tails = [canvas.place(y, x)]
    tails.append(tails[0] + canvas.seed_aside[aside])
    ends = [
        Ends(tail + canvas.seed_pivot[orientation], orientation, tail)
        for tail, orientation in zip(tails, (first, second), strict=True)
    ]
    seeded = (height > 0) & (width > 0) & ~canvas.seed_barred[first]
    return ends, seeded.nonzero()[:, 0]


def draw_distractors(
    canvas: Canvas, occupied: UInt8[Tensor, "b s"], streams: Streams, length: int
) -> Dashes:
    """Add the setting's number of distractors of `length` dashes to every canvas, in place.

    One that finds no room in five trials is left out.
    """
    count = canvas.setting.distractors
    dashes = Dashes.none(len(occupied), count * length, canvas.device)
    fewest = FEWEST_FREE * canvas.side**2
    for number in range(count):
        free = (occupied[:, canvas.pixels] < FREE_BELOW).sum(1)
        pending = (free >= fewest).nonzero()[:, 0]
        for _ in range(DISTRACTOR_TRIALS):
            done = _one_distractor(canvas, occupied, streams, pending, dashes, number * length)
            pending = pending[~done]
    return dashes


def _one_distractor(
    canvas: Canvas,
    occupied: UInt8[Tensor, "b s"],
    streams: Streams,
    rows: Int[Tensor, " m"],
    dashes: Dashes,
    column: int,
) -> Bool[Tensor, " m"]:
    """One trial of one distractor in each of these rows: where it succeeded."""
    trial, own = occupied[rows], streams.of(rows)
    ends, alive = _seed_distractors(canvas, trial, own)
    length = dashes.at.shape[1] // canvas.setting.distractors
    drawn = Dashes.none(len(rows), length, canvas.device)
    for number in range(length):
        if number:
            alive = canvas.extend(trial, ends, own, alive)
        drawn.note(alive, number, ends)
    canvas.draw(canvas.claim, trial, alive, *(field[alive, -1] for field in drawn))
    streams.put(rows, own)
    occupied[rows[alive]] = trial[alive]
    for field, new in zip(dashes, drawn, strict=True):
        field[rows[alive], column : column + length] = new[alive]
    done = torch.zeros(len(rows), dtype=torch.bool, device=canvas.device)
    done[alive] = True
    return done


def _seed_distractors(
    canvas: Canvas, occupied: UInt8[Tensor, "m s"], streams: Streams
) -> tuple[Ends, Int[Tensor, " found"]]:
    """First dashes anywhere where there is room: their ends, and the rows that have one."""
    rows = torch.arange(len(occupied), device=canvas.device)
    ends = Ends(*torch.zeros(3, len(rows), dtype=torch.int64, device=canvas.device))
    seeded = torch.zeros(len(rows), dtype=torch.bool, device=canvas.device)
    pending = rows
    for _ in range(TRIALS):
        orientation = streams.below(DEGREES, pending)
        allowed = ~canvas.seed_barred[orientation]
        pending, orientation = pending[allowed], orientation[allowed]
        tail = _free_place(canvas, occupied, streams, pending, canvas.seed_reach[orientation])
        pending, orientation, tail = (x[tail > 0] for x in (pending, orientation, tail))
        pivot = tail + canvas.seed_pivot[orientation]
        fits = canvas.inside[tail + canvas.seed_head[orientation]] & canvas.inside[pivot]
        ends.put(pending[fits], Ends(pivot, orientation, tail).of(fits))
        seeded[pending[fits]] = True
        pending = pending[~fits]
    return ends, seeded.nonzero()[:, 0]


def _free_place(
    canvas: Canvas,
    occupied: UInt8[Tensor, "b s"],
    streams: Streams,
    rows: Int[Tensor, " m"],
    reach: Int[Tensor, "m p"],
) -> Int[Tensor, " m"]:
    """A uniform place among those whose reach is free; 0 where there is none.

    The first free one of some random pixels is uniform among the free; only where none of them is
    free, all pixels are looked at.
    """
    looks = canvas.pixels[streams.several_below(FIRST_LOOKS, len(canvas.pixels), rows)]
    flat = (rows[:, None] * canvas.size + looks)[..., None] + reach[:, None]
    free = occupied.view(-1)[flat].amax(2) < FREE_BELOW
    place = looks.gather(1, free.int().argmax(1, keepdim=True))[:, 0]
    for part in (~free.any(1)).nonzero()[:, 0].split(max(1, _AT_ONCE // len(canvas.pixels))):
        place[part] = _any_free_place(canvas, occupied, streams, rows[part], reach[part])
    return place


def _any_free_place(
    canvas: Canvas,
    occupied: UInt8[Tensor, "b s"],
    streams: Streams,
    rows: Int[Tensor, " m"],
    reach: Int[Tensor, "m p"],
) -> Int[Tensor, " m"]:
    """As `_free_place`, by looking at all pixels."""
    flat = rows[:, None] * canvas.size + canvas.pixels
    highest = torch.zeros_like(flat, dtype=torch.uint8)
    for point in reach.unbind(1):
        highest = torch.maximum(highest, occupied.view(-1)[flat + point[:, None]])
    counted = (highest < FREE_BELOW).cumsum(1)
    number = streams.below(counted[:, -1], rows)
    index = torch.searchsorted(counted, number[:, None], right=True)[:, 0]
    place = canvas.pixels[index.clamp(max=len(canvas.pixels) - 1)]
    return place.where(counted[:, -1] > 0, 0)
