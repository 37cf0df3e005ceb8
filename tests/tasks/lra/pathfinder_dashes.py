"""What Pathfinder's literal reference draws with: steps, discs and dashes, by a drawing library."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from tasks.lra.generate.strokes import Setting

Array = NDArray[Any]
Pixel = tuple[int, int]
AA = 2


def step(pixel: Pixel, theta: float, distance: float) -> Pixel:
    return (
        math.ceil(pixel[0] + distance * math.sin(theta)),
        math.ceil(pixel[1] + distance * math.cos(theta)),
    )


def flip(theta: float) -> float:
    return theta + math.pi if theta < 0 else theta - math.pi


def disc(radius: int) -> Array:
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return x**2 + y**2 <= radius**2


def dilate(picture: Array, structure: Array) -> Array:
    """As OpenCV's: what is outside counts as -infinity."""
    return ndimage.maximum_filter(
        picture.astype(float), footprint=structure, mode="constant", cval=-math.inf
    )


def lanczos(picture: Array, side: int) -> Array:
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS))


@cache
def template(setting: Setting, margin: int, theta: float) -> tuple[Array, Array]:
    half = setting.dash + math.ceil(setting.thickness) + margin
    large = Image.new("F", (half * 2 * AA + 1, half * 2 * AA + 1))
    y, x = step((half * AA, half * AA), theta, setting.dash * AA)
    ImageDraw.Draw(large).line(
        [(half * AA, half * AA), (x, y)], fill=255, width=int(setting.thickness * AA)
    )
    line = np.asarray(large).astype(np.uint8)
    mask = dilate(line, disc(margin * AA)).astype(np.uint8)
    return lanczos(line, 2 * half + 1) / 255, lanczos(mask, 2 * half + 1) / 255


def paste(shape: tuple[int, int], at: Pixel, patch: Array) -> Array:
    """The patch centred on the pixel of an empty picture, cut at the borders."""
    out, half = np.zeros(shape), len(patch) // 2
    for i in range(len(patch)):
        for j in range(len(patch)):
            y, x = at[0] + i - half, at[1] + j - half
            if 0 <= y < shape[0] and 0 <= x < shape[1]:
                out[y, x] = patch[i, j]
    return out
