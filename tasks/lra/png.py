"""Gray PNGs to arrays. Needs no torch, so that a process that decodes them starts at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.PngImagePlugin import PngImageFile


class BadImage(Exception):
    """An image is not what it should be; the message names it."""


def read_gray(work: tuple[list[Path], int]) -> NDArray[Any]:
    """[n side side] uint8 of these images, which should be PNGs of that side and 8-bit gray.

    Raises BadImage for one that is missing, empty, torn, no PNG, of another size or of another
    mode.
    """
    paths, side = work
    images = np.empty((len(paths), side, side), np.uint8)
    for place, path in enumerate(paths):
        images[place] = _read(path, side)
    return images


def _read(path: Path, side: int) -> NDArray[Any]:
    try:
        # Stops before the pixels, as `Image.open` does, which refuses large sizes before we can.
        with PngImageFile(path) as image:
            if image.size != (side, side):
                found = " x ".join(map(str, image.size))
                raise BadImage(f"{path}: the image is {found}; it should be {side} x {side}")
            if image.mode != "L":
                raise BadImage(f"{path}: the image's mode is {image.mode}; it should be L (gray)")
            return np.asarray(image)
    except FileNotFoundError:
        raise BadImage(f"{path}: the image is not there") from None
    except (OSError, SyntaxError, ValueError, LookupError) as error:
        empty = path.stat().st_size == 0
        found = "empty (0 bytes)" if empty else f"torn, or not a PNG ({error})"
        raise BadImage(f"{path}: {found}") from None
