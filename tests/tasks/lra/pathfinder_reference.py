"""Pathfinder's generator, literally: one image at a time, step by step, in floating point.

Slow, and independent of `tasks.lra.generate` but for the table of settings. Pixels are (y, x).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from tasks.lra.generate.strokes import CONTOUR_LENGTH, SETTINGS, Difficulty, Setting
from tests.tasks.lra.pathfinder_dashes import (
    AA,
    Array,
    Pixel,
    dilate,
    disc,
    flip,
    lanczos,
    paste,
    step,
    template,
)


@dataclass
class Drawn:
    """One image and what is known of it."""

    image: Array
    ink: Array
    label: int
    attempts: int
    paths: list[list[Pixel]]
    """Of each contour its tail and the head of each later dash."""
    distractor_dashes: int
    occupied: Array

    def statistics(self) -> dict[str, float]:
        """What both generators are compared on."""
        return statistics(
            self.image, self.ink, self.occupied, self.paths, self.distractor_dashes, self.label
        )


def statistics(
    image: Array, ink: Array, occupied: Array, paths: Any, distractor_dashes: int, label: int
) -> dict[str, float]:
    """Numbers of one image; `ink` and `occupied` from 0 to 1."""
    first, second = (np.asarray(path, float) for path in paths)
    return {
        "ink": float(ink.sum()),
        "occupied": float(occupied.sum()),
        "level": float(image.mean()),
        "distractor_dashes": distractor_dashes,
        "label": label,
        "length": float(np.linalg.norm(np.diff(first, axis=0), axis=1).sum()),
        "span_first": float(np.linalg.norm(first[-1] - first[0])),
        "span_second": float(np.linalg.norm(second[-1] - second[0])),
        "span_across": float(np.linalg.norm(second[-1] - first[0])),
        "pieces": ndimage.label(image > 100, np.ones((3, 3)))[1],
    }


def measure(resolution: int, difficulty: Difficulty, images: int) -> dict[str, Any]:
    """Draw images from seed 0; the attempts, and each statistic's mean and standard error."""
    setting = SETTINGS[resolution]
    painter = Painter(setting, CONTOUR_LENGTH[difficulty], np.random.default_rng(0))
    drawn = [painter.image() for _ in range(images)]
    numbers = {
        name: [image.statistics()[name] for image in drawn] for name in drawn[0].statistics()
    }
    return {
        "resolution": resolution,
        "difficulty": difficulty,
        "images": images,
        "attempts": sum(image.attempts for image in drawn),
        "first": drawn[0].statistics(),
        "mean": {name: float(np.mean(values)) for name, values in numbers.items()},
        "error": {name: float(np.std(values) / images**0.5) for name, values in numbers.items()},
    }


class Painter:
    def __init__(self, setting: Setting, contour_length: int, rng: np.random.Generator) -> None:
        self.setting, self.rng, self.length = setting, rng, contour_length
        self.shape = (setting.resolution, setting.resolution)

    def image(self) -> Drawn:
        s = self.setting
        label = int(self.rng.integers(2))
        self.margin = s.margins[self.rng.integers(len(s.margins))]
        attempts, targets = 0, None
        while targets is None:
            attempts += 1
            targets = self.two_contours()
        ink, occupied, paths = targets
        dashes, aside = 0, np.zeros(self.shape)
        for _ in range(s.distractors):
            for _ in range(5):
                made = self.distractor(aside, occupied)
                if made is not None:
                    aside, occupied = made
                    dashes += self.length // 3
                    break
        first = int(self.rng.integers(2))
        last = first if label else 1 - first
        # A contrast brightens up to the limit of a byte; one below 1 leaves no trace in published
        # images.
        brighter = [max(1.0, contrast) for contrast in s.contrasts]
        marked = np.minimum(np.maximum(brighter[0] * ink, brighter[1] * aside), 1.0)
        for centre in (paths[first][0], paths[last][-1]):
            marked = np.maximum(marked, self.marker(centre))
        low, high = marked.min(), marked.max()
        image = (255 * (marked - low) / (high - low) + 1e-9).astype(np.uint8)
        return Drawn(image, np.maximum(ink, aside), label, attempts, paths, dashes, occupied)

    def marker(self, centre: Pixel) -> Array:
        side = self.setting.resolution
        y, x = np.ogrid[: side * AA, : side * AA]
        away = (y - centre[0] * AA) ** 2 + (x - centre[1] * AA) ** 2
        large = (away <= (self.setting.marker_radius * AA) ** 2).astype(np.float32)
        return lanczos(large, side)

    def inside(self, pixel: Pixel) -> bool:
        return 0 <= pixel[0] < self.shape[0] and 0 <= pixel[1] < self.shape[1]

    def dash(self, at: Pixel, theta: float) -> tuple[Array, Array]:
        ink, mask = template(self.setting, self.margin, theta)
        return paste(self.shape, at, ink), paste(self.shape, at, mask)

    def seed_structure(self, theta: float) -> Array:
        """The saturated part of a dash's mask in a window, from one pixel past its middle."""
        middle = self.setting.dash + self.margin
        _, mask = template(self.setting, self.margin, theta)
        window = paste((2 * middle + 1, 2 * middle + 1), (middle + 1, middle + 1), mask)
        return window == 1

    def orientation(self) -> float:
        return int(self.rng.integers(-180, 180)) * math.pi / 180

    def two_contours(self) -> tuple[Array, Array, list[list[Pixel]]] | None:
        s, m = self.setting, self.margin
        occupied = np.ones(self.shape)
        occupied[s.padding : -s.padding, s.padding : -s.padding] = 0
        first = self.seed(occupied, band=2 * s.seed_distance)
        if first is None:
            return None
        tail1, theta1 = first
        angle = int(self.rng.integers(360)) * math.pi / 180
        tail2 = (
            round(tail1[0] + s.seed_distance * math.sin(angle)),
            round(tail1[1] + s.seed_distance * math.cos(angle)),
        )
        paths, thetas = [[tail1], [tail2]], [theta1, self.orientation()]
        pivots, inks, masks = [], [], []
        for (tail,), theta in zip(paths, thetas, strict=True):
            head = step(tail, theta, s.dash)
            pivots.append(step(head, flip(theta), s.dash + m))
            assert self.inside(head)
            assert self.inside(pivots[-1])
            ink, mask = self.dash(tail, theta)
            inks.append(ink)
            masks.append(mask)
        for _ in range(self.length - 1):
            for i in range(2):
                turned = self.extend(pivots[i], thetas[i], occupied)
                if turned is None:
                    return None
                pivots[i], thetas[i], head, ink, mask = turned
                paths[i].append(head)
                inks[i] = np.maximum(inks[i], ink)
                occupied = np.maximum(occupied, masks[i])
                masks[i] = mask
        return np.maximum(*inks), np.maximum(occupied, masks[1]), paths

    def seed(self, occupied: Array, band: int) -> tuple[Pixel, float] | None:
        for _ in range(3):
            theta = self.orientation()
            lined = occupied.copy()
            lined[:band] = lined[-band:] = lined[:, :band] = lined[:, -band:] = 1
            dilated = dilate(lined, self.seed_structure(theta))
            if dilated.min() < 0:
                return None
            free = np.argwhere(np.ceil(dilated - 0.3) == 0)
            if len(free) == 0:
                return None
            y, x = free[self.rng.integers(len(free))]
            tail = (int(y), int(x))
            head = step(tail, theta, self.setting.dash)
            pivot = step(head, flip(theta), self.setting.dash + self.margin)
            if self.inside(head) and self.inside(pivot):
                return tail, theta
        return None

    def candidates(self, pivot: Pixel, theta: float, occupied: Array) -> tuple[list[Pixel], Array]:
        """The pixels around a pivot, and each one's weight."""
        radius = self.setting.dash + self.margin
        heads: set[Pixel] = set()
        for angle in np.arange(0, 360, 360 / (2 * math.pi * radius)) * math.pi / 180:
            y, x = pivot[0] + radius * math.sin(angle), pivot[1] + radius * math.cos(angle)
            if 0 <= y < self.shape[0] and 0 <= x < self.shape[1]:
                heads.add((int(y), int(x)))
        ordered = sorted(heads)
        around = dilate(occupied, disc(self.margin))
        weights = []
        for y, x in ordered:
            turn = abs(math.atan2(y - pivot[0], x - pivot[1]) - theta)
            turn = min(turn, 2 * math.pi - turn)
            cosine = math.cos(min(turn * self.setting.continuity, math.pi / 2))
            weights.append((1 - around[y, x]) * max(cosine, 0) ** 2)
        return ordered, np.array(weights)

    def extend(
        self, pivot: Pixel, theta: float, occupied: Array
    ) -> tuple[Pixel, float, Pixel, Array, Array] | None:
        pivot = step(pivot, theta, self.setting.dash + 2 * self.margin)
        heads, weights = self.candidates(pivot, theta, occupied)
        if weights.sum() < 1e-4:
            return None
        cumulative = np.cumsum(weights / weights.sum())
        for _ in range(3):
            chosen = int(np.argmax(cumulative > self.rng.random()))
            head = heads[chosen]
            turned = math.atan2(head[0] - pivot[0], head[1] - pivot[1])
            ink, mask = self.dash(head, flip(turned))
            if (occupied + mask).max() < 1.8:
                return pivot, turned, head, ink, mask
        return None

    def distractor(self, ink: Array, occupied: Array) -> tuple[Array, Array] | None:
        if (np.ceil(occupied - 0.3) == 0).sum() / occupied.size < 0.01:
            return None
        seeded = self.seed(occupied, band=1)
        if seeded is None:
            return None
        tail, theta = seeded
        pivot = step(
            step(tail, theta, self.setting.dash), flip(theta), self.setting.dash + self.margin
        )
        new, mask = self.dash(tail, theta)
        ink = np.maximum(ink, new)
        for _ in range(self.length // 3 - 1):
            turned = self.extend(pivot, theta, occupied)
            if turned is None:
                return None
            occupied = np.maximum(occupied, mask)
            pivot, theta, _, new, mask = turned
            ink = np.maximum(ink, new)
        return ink, np.maximum(occupied, mask)


if __name__ == "__main__":
    # python -m tests.tasks.lra.pathfinder_reference: rewrites the golden file (ten minutes).
    cells = [measure(32, "easy", 3000), measure(32, "hard", 1500), measure(64, "easy", 600)]
    cells += [measure(128, "intermediate", 120), measure(256, "easy", 40)]
    Path(__file__).with_name("pathfinder_golden.json").write_text(json.dumps(cells, indent=1))
