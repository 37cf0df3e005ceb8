"""Tiles: the part of [b t h k] tensors that the chunked form works on at a time.

A tile is laid out as [r n c k]: r rows (a sequence and a head), n chunks in time, c tokens of a
chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

# Numbers of one input in a tile. On a CPU, few enough for a tile's dozen buffers to stay in cache
# and for the allocator to hand the same memory out again; elsewhere, enough to fill the device.
TILE = 1 << 18
TILE_OF_ACCELERATORS = 1 << 24


class Place(NamedTuple):
    """Where a tile lies: in [b t ..] tensors, and in [(b h) chunks ..] ones."""

    batch: slice
    time: slice
    rows: slice
    chunks: slice


class Gates(NamedTuple):
    """A tile's gates [r n c k]; `open` is sigmoid(z) where they came as z and bound."""

    f: Tensor
    key: Tensor
    open: Tensor | None


class Tiling(NamedTuple):
    """How inputs [b t h k] are cut into tiles, in which dtype, and how the gates come."""

    b: int
    t: int
    h: int
    c: int
    batch_step: int
    time_step: int
    dtype: torch.dtype
    tied: bool
    """the gates come as z [b t h k] and bound [h k], not as key and f [b t h k]"""

    @classmethod
    def of(cls, q: Tensor, v: Tensor, chunk: int, dtype: torch.dtype, tied: bool) -> Tiling:
        b, t, h, k = q.shape
        # a short sequence is one chunk, its length rounded up to a power of two
        c = min(chunk, 1 << (t - 1).bit_length())
        one_chunk = h * c * max(k, v.shape[-1])
        tile = TILE if q.device.type == "cpu" else TILE_OF_ACCELERATORS
        batch_step = min(b, max(1, tile // one_chunk))
        time_step = c * max(1, tile // (batch_step * one_chunk))
        return cls(b, t, h, c, batch_step, time_step, dtype, tied)

    @property
    def n(self) -> int:
        """Chunks of the whole sequence."""
        return -(-self.t // self.c)

    def places(self) -> Iterator[list[Place]]:
        """For every slice of the batch, its tiles in the order of time."""
        for b in range(0, self.b, self.batch_step):
            b_end = min(b + self.batch_step, self.b)
            yield [
                Place(
                    slice(b, b_end),
                    slice(t, min(t + self.time_step, self.t)),
                    slice(b * self.h, b_end * self.h),
                    slice(t // self.c, -(-min(t + self.time_step, self.t) // self.c)),
                )
                for t in range(0, self.t, self.time_step)
            ]

    def load(self, x: Tensor, place: Place, fill: float = 0.0) -> Tensor:
        """The tile [r n c k] of x [b t h k], the last chunk filled up with `fill`."""
        x = x[place.batch, place.time].to(self.dtype)
        if short := -x.shape[1] % self.c:
            x = pad(x, (0, 0, 0, 0, 0, short), value=fill)
        return x.unflatten(1, (-1, self.c)).permute(0, 3, 1, 2, 4).flatten(0, 1).contiguous()

    def store(self, tile: Tensor, x: Tensor, place: Place) -> None:
        """Write a tile [r n c k] to where it lies in x [b t h k]."""
        part = x[place.batch, place.time]
        tile = tile.unflatten(0, (-1, self.h)).permute(0, 2, 3, 1, 4).flatten(1, 2)
        part.copy_(tile[:, : part.shape[1]])

    def load_gates(self, key_or_z: Tensor, f_or_bound: Tensor, place: Place) -> Gates:
        """The gates, the identity where the last chunk is filled up."""
        if not self.tied:
            return Gates(self.load(f_or_bound, place, 1.0), self.load(key_or_z, place), None)
        # sigmoid(inf) = 1 makes f = 1 and key = 0, exactly
        z = self.load(key_or_z, place, torch.inf)
        bound = self._bound(f_or_bound, place)
        free = 1 - bound
        s = torch.sigmoid(z)
        return Gates(torch.addcmul(bound, free, s), torch.neg(z).sigmoid_().mul_(free), s)

    def store_gates(
        self,
        gates: Gates,
        dkey: Tensor,
        df: Tensor,
        bound: Tensor,
        dkey_or_dz: Tensor,
        df_or_dbound: Tensor,
        place: Place,
    ) -> None:
        """Write the gradients of the gates; those of z and bound follow from df/dz = -dkey/dz.

        dz = key sigmoid(z) (df - dkey) and dbound = sum sigmoid(-z) (df - dkey), where
        sigmoid(-z) = key / (1 - bound).
        """
        if gates.open is None:
            self.store(dkey, dkey_or_dz, place)
            self.store(df, df_or_dbound, place)
            return
        scaled = (df - dkey).mul_(gates.key)
        per_row = scaled.sum((1, 2)) / (1 - self._bound(bound, place)[:, 0, 0])
        df_or_dbound += per_row.unflatten(0, (-1, self.h)).sum(0)
        self.store(scaled.mul_(gates.open), dkey_or_dz, place)

    def _bound(self, bound: Tensor, place: Place) -> Tensor:
        """bound [h k] for every row of a tile: [r 1 1 k]."""
        return bound.to(self.dtype).repeat(place.batch.stop - place.batch.start, 1)[:, None, None]
