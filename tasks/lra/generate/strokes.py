"""Pathfinder's geometry as tables: whatever depends on an orientation alone is computed once.

A dash starts at an integer pixel and points along one of few orientations: 360 integer degrees for
the first dash of a contour, and the directions of the pixels on a circle for every later one. So
positions, weights and pictures of dashes are looked up, in integers, and a CPU and a GPU draw the
same images. Constants and rules: drewlinsley/pathfinder at ab9c130, google-research/
long-range-arena `data/pathfinder.py`, and the metadata of the published files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

Array = NDArray[Any]
Difficulty = Literal["easy", "intermediate", "hard"]

CONTOUR_LENGTH: dict[Difficulty, int] = {"easy": 6, "intermediate": 9, "hard": 14}
"""Dashes of a target contour."""
FOLDER: dict[Difficulty, str] = {
    "easy": "curv_baseline",
    "intermediate": "curv_contour_length_9",
    "hard": "curv_contour_length_14",
}
ANTIALIAS = 2
DEGREES = 360
WEIGHT_ONE = 1 << 16
"""A weight of 1; with 255 levels of occupancy and 52 directions a sum stays below 2^31."""


class Setting(NamedTuple):
    """What a resolution fixes. Lengths in pixels."""

    resolution: int
    margins: tuple[int, ...]
    """One is drawn for each image."""
    padding: int
    dash: int
    thickness: float
    marker_radius: float
    seed_distance: int
    continuity: float
    distractors: int
    """Fixed from the easy level's distractor length, 2, and kept for longer ones: the published
    images hold that many (long-range-arena issue 38), not the number in the data's description."""
    contrasts: tuple[float, float]
    """Documented ones, of target dashes and of distractors (`rendering.Contrast`)."""


SETTINGS = {
    setting.resolution: setting
    for setting in (
        Setting(32, (1,), 1, 2, 0.5, 1.5, 7, 1.0, 10, (1.5, 2.0)),
        Setting(64, (1,), 1, 5, 1, 2.5, 12, 1.8, 11, (0.8, 0.8)),
        Setting(128, (2, 3), 1, 5, 1.5, 3, 20, 1.8, 18, (0.9, 0.9)),
        Setting(256, (3,), 22, 5, 2, 5, 27, 1.8, 15, (1.0, 1.0)),
    )
}


class Points(NamedTuple):
    """For each orientation the pixels of a picture, as offsets from where the dash starts.

    Rows are filled up by repeating their first pixel, which changes no maximum.
    """

    yx: Array
    """[orientation point 2] int64"""
    value: Array
    """[orientation point] uint8"""


@dataclass(frozen=True)
class Geometry:
    """The tables of one resolution and margin.

    Orientations 0 to 359 are the integer degrees from -180; the others are the directions of
    `candidates`, in that order.
    """

    setting: Setting
    margin: int
    candidates: Array
    """[k 2] int64: pixels at a dash and a margin from the pivot, as offsets from it"""
    turns: Array
    """[o j] int64: the candidates to which a contour of that orientation may turn, in order"""
    weights: Array
    """[o j] int64: how willingly it does; 0 where there are fewer"""
    advance: Array
    """[o 2] int64: from a pivot to the next"""
    seed_head: Array
    """[360 2] int64: from the tail of a first dash to its head"""
    seed_pivot: Array
    """[360 2] int64: from the tail of a first dash to its pivot"""
    seed_aside: Array
    """[360 2] int64: from the first target's tail to the second's"""
    seed_window: Array
    """[360 4] int64: lowest y and x at which the first target may start, height and width of the
    range, whose sizes are below 1 where it holds nothing"""
    seed_reach: Points
    """[360 ...]: the pixels that must be free for a first dash to start"""
    seed_barred: Array
    """[360] bool: orientations in which no first dash starts. Where a pixel's whole reach is
    outside of the image, the original's dilation gives -infinity there (OpenCV's border), and its
    search then takes the whole image as full. At 32 pixels that bars most orientations."""
    disc: Array
    """[d 2] int64: the disc of a margin's radius"""
    ink: Points
    """The picture of a dash: of a first one from its tail, of a later one from its head back."""
    claim: Points
    """What a dash occupies: its picture, widened by the margin."""


@cache
def geometry(setting: Setting, margin: int) -> Geometry:
    """The tables of a resolution with one of its margins."""
    radius = setting.dash + margin
    candidates = _circle(radius)
    theta = np.concatenate([np.radians(np.arange(DEGREES) - 180), np.arctan2(*candidates.T)])
    degrees = theta[:DEGREES]
    # Later dashes are drawn from their head back towards the pivot.
    drawn = np.concatenate([degrees, _opposite(theta[DEGREES:])])
    weights = _turning_weights(theta, theta[DEGREES:], setting.continuity)
    # A stable sort brings those that are possible to the front, in their order.
    turns = np.argsort(weights == 0, 1, kind="stable")[:, : (weights > 0).sum(1).max()]
    pictures = [_dash(setting, margin, angle) for angle in drawn]
    head = steps(degrees, setting.dash)
    reach = _points([_seed_reach(setting, margin, claim) for _, claim in pictures[:DEGREES]])
    return Geometry(
        setting=setting,
        margin=margin,
        candidates=candidates,
        turns=turns,
        weights=np.take_along_axis(weights, turns, 1),
        advance=steps(theta, setting.dash + 2 * margin),
        seed_head=head,
        seed_pivot=head + steps(_opposite(degrees), radius),
        seed_aside=np.rint(setting.seed_distance * _units(degrees)).astype(np.int64),
        seed_window=_seed_window(setting, reach),
        seed_reach=reach,
        seed_barred=np.array([_leaves_the_image(yx, setting) for yx in reach.yx]),
        disc=np.argwhere(disc(margin)) - margin,
        ink=_points([ink for ink, _ in pictures]),
        claim=_points([claim for _, claim in pictures]),
    )


def steps(theta: Array, distance: int) -> Array:
    """[n 2] int64: the steps of that length along the angles [n], each coordinate rounded up."""
    # sin(pi) is not 0 but 1e-16, which would round up to a whole pixel.
    return np.ceil(np.round(distance * _units(theta), 9)).astype(np.int64)


def disc(radius: int) -> Array:
    """[2r+1 2r+1] bool: pixels within the radius of the middle one."""
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return x**2 + y**2 <= radius**2


def lanczos(picture: Array, side: int) -> Array:
    """[side side] in the picture's type, uint8 (which clips overshoots) or float32."""
    image = Image.fromarray(picture)
    return np.asarray(image.resize((side, side), Image.Resampling.LANCZOS))


def _units(theta: Array) -> Array:
    return np.stack([np.sin(theta), np.cos(theta)], 1)


def _circle(radius: int) -> Array:
    # One sample a pixel along the arc.
    angles = np.radians(np.arange(0, 360, 360 / (2 * math.pi * radius)))
    return np.unique(np.floor(np.round(radius * _units(angles), 9)).astype(np.int64), axis=0)


def _opposite(theta: Array) -> Array:
    return np.where(theta < 0, theta + math.pi, theta - math.pi)


def _turning_weights(theta: Array, towards: Array, continuity: float) -> Array:
    turn = np.abs(towards[None] - theta[:, None])
    turn = np.minimum(turn, 2 * math.pi - turn)
    cosine = np.cos(np.minimum(turn * continuity, math.pi / 2))
    return np.rint(WEIGHT_ONE * np.maximum(cosine, 0) ** 2).astype(np.int64)


def _dash(setting: Setting, margin: int, theta: float) -> tuple[Array, Array]:
    """Ink and claim [side side] uint8 of a dash that starts in the middle."""
    half = setting.dash + math.ceil(setting.thickness) + margin
    middle = half * ANTIALIAS
    y, x = middle + steps(np.array([theta]), setting.dash * ANTIALIAS)[0]
    large = Image.new("L", (2 * middle + 1, 2 * middle + 1))
    ImageDraw.Draw(large).line(
        [(middle, middle), (int(x), int(y))],
        fill=255,
        width=round(setting.thickness * ANTIALIAS),
    )
    line = np.asarray(large)
    widened = ndimage.grey_dilation(
        line, footprint=disc(margin * ANTIALIAS), mode="constant", cval=0
    )
    return lanczos(line, 2 * half + 1), lanczos(widened, 2 * half + 1)


def _seed_reach(setting: Setting, margin: int, claim: Array) -> Array:
    """The saturated part of a claim within a dash and a margin, moved by a pixel on both axes."""
    limit, half = setting.dash + margin, len(claim) // 2
    moved = np.zeros_like(claim)
    moved[1:, 1:] = claim[:-1, :-1]
    inner = moved[half - limit : half + limit + 1, half - limit : half + limit + 1]
    return np.where(inner == 255, inner, 0)


def _points(pictures: list[Array]) -> Points:
    found = [np.argwhere(picture) for picture in pictures]
    most = max(map(len, found))
    # All rows equally long: the first pixel again and again.
    found = [np.concatenate([yx, np.repeat(yx[:1], most - len(yx), 0)]) for yx in found]
    value = [picture[tuple(yx.T)] for picture, yx in zip(pictures, found, strict=True)]
    return Points(np.stack(found) - len(pictures[0]) // 2, np.stack(value))


def _leaves_the_image(reach: Array, setting: Setting) -> bool:
    inside = np.zeros((setting.resolution,) * 2, bool)
    y, x = np.ogrid[: setting.resolution, : setting.resolution]
    for dy, dx in reach:
        inside |= (y + dy >= 0) & (y + dy < len(y)) & (x + dx >= 0) & (x + dx < len(y))
    return not inside.all()


def _seed_window(setting: Setting, reach: Points) -> Array:
    """Where the reach stays two seed distances away from every border: a rectangle."""
    band = 2 * setting.seed_distance
    low = band - reach.yx.min(1)
    high = setting.resolution - 1 - band - reach.yx.max(1)
    return np.concatenate([low, high - low + 1], 1)


@cache
def markers(setting: Setting) -> Array:
    """[n n p p] float32: a marker at each distance from the borders, on a square of p = n pixels.

    Entry (i, j) is centred on pixel (i, j) of the square. The middle ones are a marker away from
    all borders; the others are cut by the border and resampled there. Overshoots are not clipped.
    """
    side = 2 * _marker_room(setting) + 1
    fine = np.arange(side * ANTIALIAS)
    square = (fine - ANTIALIAS * np.arange(side)[:, None]) ** 2
    within = square[:, None, :, None] + square[None, :, None, :]
    large = (within <= (setting.marker_radius * ANTIALIAS) ** 2).astype(np.float32)
    return np.array([[lanczos(marker, side) for marker in row] for row in large])


def _marker_room(setting: Setting) -> int:
    """A marker's radius, the three pixels that the resampling looks at, and one to be safe."""
    return math.ceil(setting.marker_radius) + 4
