"""Gray PNGs to arrays. Needs no torch, so that a process that decodes them starts at once."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.PngImagePlugin import PngImageFile

DEPTH = 24
"""Where a PNG's header has its bits a sample; Pillow gives 2 and 4 of them mode L as well."""


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
        content = path.read_bytes()
    except FileNotFoundError:
        raise BadImage(f"{path}: the image is not there") from None
    except OSError as error:
        raise BadImage(f"{path}: cannot be read ({error.strerror})") from None
    if not content:
        raise BadImage(f"{path}: empty (0 bytes)")
    try:
        # Stops before the pixels, as `Image.open` does, which refuses large sizes before we can.
        with PngImageFile(BytesIO(content)) as image:
            if image.size != (side, side):
                found = " x ".join(map(str, image.size))
                raise BadImage(f"{path}: the image is {found}; it should be {side} x {side}")
            if image.mode != "L":
                raise BadImage(f"{path}: the image's mode is {image.mode}; it should be L (gray)")
            if content[DEPTH] != 8:
                raise BadImage(f"{path}: {content[DEPTH]} bits a pixel; there should be 8")
            return np.asarray(image)
    except (OSError, SyntaxError, ValueError, LookupError, struct.error, zlib.error) as error:
        raise BadImage(f"{path}: torn, or not a PNG ({error})") from None
