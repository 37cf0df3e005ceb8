"""From Pathfinder's dashes to images: ink, two markers, and the stretch to 255 levels."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from tasks.lra.generate.canvas import Canvas
from tasks.lra.generate.contours import Dashes
from tasks.lra.generate.streams import Streams
from tasks.lra.generate.strokes import markers

Contrast = Literal["clipped", "documented"]
"""`clipped`: the documented contrasts brighten dashes, up to 1, and never dim them. In the
published images of 64 and 128 pixels those below 1 have no effect; hard ones of 32, where they
exceed 1, come near to what is known of their mean, spread and shares of dark and bright pixels (the
test has the numbers; no published image of 32 pixels was at hand). `documented`: dashes are scaled
by them, without a limit."""

_PIXELS = 1 << 22
"""Rendered at once, in fp64."""


def render(
    canvas: Canvas,
    targets: Dashes,
    distractors: Dashes,
    streams: Streams,
    contrast: Contrast = "clipped",
) -> tuple[UInt8[Tensor, "b h w"], Int[Tensor, " b"]]:
    """Images and labels. A label is 1 where the two markers are at the ends of one contour.

    `targets` alternate between the two contours. The first marker is at the tail of either; the
    second at the head of the same one or of the other, with equal chances.
    """
    label, first = streams.below(2), streams.below(2)
    last = torch.where(label == 1, first, 1 - first)
    tail = targets.at.gather(1, first[:, None])[:, 0]
    head = targets.at[:, -2:].gather(1, last[:, None])[:, 0]
    table = torch.as_tensor(markers(canvas.setting), device=canvas.device).double()
    parts = torch.arange(len(label), device=canvas.device).split(_PIXELS // canvas.side**2)
    images = []
    for rows in parts:
        ink = [
            _contrasted(_ink(canvas, dashes.of(rows)), scale, contrast)
            for dashes, scale in zip((targets, distractors), canvas.setting.contrasts, strict=True)
        ]
        images.append(_mark(canvas, torch.maximum(*ink), table, (tail[rows], head[rows])))
    return torch.cat(images), label


def _ink(canvas: Canvas, dashes: Dashes) -> Float[Tensor, "b h w"]:
    drawn = torch.zeros(len(dashes.at), canvas.size, dtype=torch.uint8, device=canvas.device)
    for at, orientation in zip(dashes.at.unbind(1), dashes.orientation.unbind(1), strict=True):
        rows = at.nonzero()[:, 0]
        canvas.draw(canvas.ink, drawn, rows, at[rows], orientation[rows])
    # In fp64 a device's own rounding cannot reach the 255 levels.
    return drawn[:, canvas.pixels].view(-1, canvas.side, canvas.side).double() / 255


def _contrasted(ink: Float[Tensor, "b h w"], scale: float, contrast: Contrast) -> Tensor:
    """[b h w] fp64"""
    return ink * scale if contrast == "documented" else (ink * max(1.0, scale)).clamp(max=1.0)


def _mark(
    canvas: Canvas,
    ink: Float[Tensor, "b h w"],
    table: Float[Tensor, "n n n n"],
    places: tuple[Int[Tensor, " b"], Int[Tensor, " b"]],
) -> UInt8[Tensor, "b h w"]:
    """Add the markers and stretch to 255 levels."""
    room = len(table) // 2
    rows = torch.arange(len(ink), device=canvas.device)
    square = torch.arange(len(table), device=canvas.device)
    for place in places:
        y, x = canvas.yx(place)
        near_y, near_x = (_nearness(p, canvas.side, room) for p in (y, x))
        where = (
            rows[:, None, None],
            (y - near_y)[:, None, None] + square[:, None],
            (x - near_x)[:, None, None] + square,
        )
        ink[where] = torch.maximum(ink[where], table[near_y, near_x])
    low, high = ink.amin((1, 2), keepdim=True), ink.amax((1, 2), keepdim=True)
    # Cut off, not rounded: dashes of the published images have 219 at 64 pixels and 226 at 128,
    # where markers overshoot to 1.1610 and 1.1244.
    return (255 * (ink - low) / (high - low) + 1e-9).to(torch.uint8)


def _nearness(p: Int[Tensor, " b"], side: int, room: int) -> Int[Tensor, " b"]:
    """The index of a coordinate in the table of markers, whose middle is far from all borders."""
    return torch.where(p < room, p, torch.where(p >= side - room, p - side + 2 * room + 1, room))
