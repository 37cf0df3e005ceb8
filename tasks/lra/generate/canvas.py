"""The canvas of Pathfinder's images, many at a time: dashes are placed, drawn and extended."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int, UInt8
from numpy.typing import NDArray
from torch import Tensor

from tasks.lra.generate.streams import Streams
from tasks.lra.generate.strokes import DEGREES, Geometry, Points

CROSSING = 459
"""Two claims that add up to 1.8 cross; in 255 levels."""
DEAD_END = 1671
"""A turn whose weights sum to less than 1e-4 has nowhere to go; in 255 * 2^16 levels."""
TRIALS = 3
"""Draws of a dash before its contour is given up."""

Picture = tuple[Int[Tensor, "o p"], UInt8[Tensor, "o p"]]
"""The pixels of a dash by orientation: offsets on the canvas, and values."""


class Ends(NamedTuple):
    """The growing ends of contours, one a row."""

    pivot: Int[Tensor, " b"]
    orientation: Int[Tensor, " b"]
    at: Int[Tensor, " b"]
    """Where the last dash starts: the tail of a first dash, the head of a later one."""

    def of(self, rows: Tensor) -> Ends:
        """The ends of these rows."""
        return Ends(*(field[rows] for field in self))

    def put(self, rows: Tensor, others: Ends) -> None:
        """Let these rows have other ends."""
        for field, other in zip(self, others, strict=True):
            field[rows] = other


class Canvas:
    """One geometry's tables on a device; places are indices into a flat canvas with a rim.

    The rim is so wide that all that is looked up around a contour lies on the canvas. It always
    holds 0: what would be drawn there is dropped.
    """

    def __init__(self, tables: Geometry, device: torch.device) -> None:
        setting, margin = tables.setting, tables.margin
        self.setting, self.device, self.side = setting, device, setting.resolution
        self.rim = 3 * (setting.dash + margin) + 2 * margin
        self.width = self.side + 2 * self.rim
        self.size = self.width**2
        inside = torch.zeros(self.width, self.width, dtype=torch.bool)
        inside[self.rim : -self.rim, self.rim : -self.rim] = True
        border = inside.clone()
        inner = self.rim + setting.padding
        border[inner:-inner, inner:-inner] = False
        self.inside = inside.flatten().to(device)
        self.pixels = self.inside.nonzero()[:, 0]
        self.empty = (border * 255).to(torch.uint8).flatten().to(device)
        """[s]: the occupancy of an empty image: its border"""
        self.candidates = self._offsets(tables.candidates)
        self.around = self.candidates[:, None] + self._offsets(tables.disc)
        self.weights = torch.as_tensor(tables.weights, device=device)
        self.advance = self._offsets(tables.advance)
        self.seed_head = self._offsets(tables.seed_head)
        self.seed_pivot = self._offsets(tables.seed_pivot)
        self.seed_aside = self._offsets(tables.seed_aside)
        self.seed_window = torch.as_tensor(tables.seed_window, device=device)
        self.seed_barred = torch.as_tensor(tables.seed_barred, device=device)
        self.seed_share = float((~tables.seed_barred).mean())
        self.seed_reach = self._offsets(tables.seed_reach.yx)
        self.ink = self._picture(tables.ink)
        self.claim = self._picture(tables.claim)

    def _offsets(self, yx: NDArray[Any]) -> Int[Tensor, " ..."]:
        return torch.as_tensor(yx[..., 0] * self.width + yx[..., 1], device=self.device)

    def _picture(self, points: Points) -> Picture:
        return self._offsets(points.yx), torch.as_tensor(points.value, device=self.device)

    def place(self, y: Int[Tensor, " b"], x: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
        """The place of a pixel."""
        return (y + self.rim) * self.width + x + self.rim

    def yx(self, place: Int[Tensor, " ..."]) -> tuple[Int[Tensor, " ..."], Int[Tensor, " ..."]]:
        """The pixel of a place."""
        return place // self.width - self.rim, place % self.width - self.rim

    def draw(
        self,
        picture: Picture,
        canvas: UInt8[Tensor, "b {self.size}"],
        rows: Int[Tensor, " m"],
        at: Int[Tensor, " m"],
        orientation: Int[Tensor, " m"],
    ) -> None:
        """Add a dash to the canvases of these rows, which are distinct, by maximum."""
        offsets, values = picture
        where = at[:, None] + offsets[orientation]
        flat = rows[:, None] * self.size + where
        # Repeated points write the same value.
        canvas.view(-1)[flat] = torch.maximum(
            canvas.view(-1)[flat], values[orientation] * self.inside[where]
        )

    def extend(
        self,
        canvas: UInt8[Tensor, "b {self.size}"],
        ends: Ends,
        streams: Streams,
        rows: Int[Tensor, " m"],
    ) -> Int[Tensor, " found"]:
        """Add a dash to the contours of these rows; return the rows where that was possible.

        There the canvas then holds the dash before the new one, so that a contour may touch its
        own last dash. Where it was not possible, neither the canvas nor the ends change.
        """
        old = ends.of(rows)
        pivot = old.pivot + self.advance[old.orientation]
        heads = pivot[:, None] + self.candidates
        near = (rows * self.size + pivot)[:, None, None] + self.around
        occupied = canvas.view(-1)[near].amax(2)
        weights = self.weights[old.orientation] * (255 - occupied.long()) * self.inside[heads]
        total = weights.cumsum(1)
        pending = (total[:, -1] >= DEAD_END).nonzero()[:, 0]
        turn = torch.full_like(pivot, -1)
        for _ in range(TRIALS):
            drawn = streams.below(total[pending, -1], rows[pending])
            chosen = torch.searchsorted(total[pending], drawn[:, None], right=True)[:, 0]
            fits = self._fits(canvas, rows[pending], heads[pending, chosen], DEGREES + chosen)
            turn[pending[fits]] = chosen[fits]
            pending = pending[~fits]
        found = (turn >= 0).nonzero()[:, 0]
        extended, turn = rows[found], turn[found]
        self.draw(self.claim, canvas, extended, old.at[found], old.orientation[found])
        ends.put(extended, Ends(pivot[found], DEGREES + turn, heads[found, turn]))
        return extended

    def _fits(
        self,
        canvas: UInt8[Tensor, "b {self.size}"],
        rows: Int[Tensor, " m"],
        at: Int[Tensor, " m"],
        orientation: Int[Tensor, " m"],
    ) -> Bool[Tensor, " m"]:
        offsets, values = self.claim
        flat = (rows * self.size + at)[:, None] + offsets[orientation]
        return (canvas.view(-1)[flat].short() + values[orientation]).amax(1) < CROSSING
