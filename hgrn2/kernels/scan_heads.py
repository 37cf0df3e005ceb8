"""How HGRN2's heads lie among the diagonal scan's channels, one for every key with every value.

Groups of 32 channels are (h, v, k), keys innermost, so that sums over a head's keys and over a
group's values stay within a warp. A group holds all keys of a head, padded to a power of two, and
as many values as fit, also padded; whole heads where several fit. A head with more values takes
several groups, each with its part of the sums over values.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hgrn2.kernels.settings import cdiv

GROUP = 32


class Heads(NamedTuple):
    """HGRN2's heads."""

    count: int
    keys: int
    values: int

    @property
    def key_room(self) -> int:
        # Compared, not computed: where a compiler has symbols for sizes, it fixes them here.
        return next(n for n in (1, 2, 4, 8, 16, GROUP) if self.keys <= n)

    @property
    def value_room(self) -> int:
        """Values of one head in a group."""
        most = GROUP // self.key_room
        return next((n for n in (1, 2, 4, 8, 16) if self.values <= n < most), most)

    @property
    def parts(self) -> int:
        """Groups that hold one head's values, or 1."""
        return cdiv(self.values, self.value_room)

    @property
    def together(self) -> int:
        """Heads in a group."""
        return GROUP // (self.key_room * self.value_room)

    @property
    def channels(self) -> int:
        return cdiv(self.count, self.together) * self.parts * GROUP

    @property
    def constants(self) -> dict[str, int]:
        """The kernels' own of them."""
        names = ("HEADS", "KEYS", "VALUES", "KEY_ROOM", "VALUE_ROOM")
        return dict(zip(names, (*self, self.key_room, self.value_room), strict=True))

    def to_channels(self, x: Tensor) -> Tensor:
        """x [.. h k v] in the order of the channels, [.. d]; 0 where there is none."""
        h = cdiv(self.count, self.together) * self.together
        v = self.parts * self.value_room
        sizes = (v - self.values, self.key_room - self.keys, h - self.count)
        if any(sizes):
            x = torch.nn.functional.pad(x, [n for size in sizes for n in (0, size)])
        x = x.unflatten(-1, (self.parts, -1)).unflatten(-4, (-1, self.together))
        # h groups, h, k, v parts, v -> h groups, v parts, h, v, k
        return x.movedim((-2, -3), (-4, -1)).flatten(-5)

    def from_channels(self, x: Tensor) -> Tensor:
        """[.. h k v] of the channels x [.. d]."""
        sizes = (-1, self.parts, self.together, self.value_room, self.key_room)
        x = x.unflatten(-1, sizes).movedim((-4, -1), (-2, -3)).flatten(-2).flatten(-4, -3)
        return x[..., : self.count, : self.keys, : self.values]


NONE = Heads(0, 1, 1)
"""HGRN1's channels."""


@triton.jit
def head_of(d, VALUES: tl.constexpr, KEY_ROOM: tl.constexpr, VALUE_ROOM: tl.constexpr):
    """Of channels d: their head, and which part of its values theirs is in."""
    PER: tl.constexpr = KEY_ROOM * VALUE_ROOM
    PARTS: tl.constexpr = (VALUES + VALUE_ROOM - 1) // VALUE_ROOM
    GROUP: tl.constexpr = 32
    return d // GROUP // PARTS * (GROUP // PER) + d % GROUP // PER, d // GROUP % PARTS


@triton.jit
def key_place(
    d,
    HEADS: tl.constexpr,
    KEYS: tl.constexpr,
    VALUES: tl.constexpr,
    KEY_ROOM: tl.constexpr,
    VALUE_ROOM: tl.constexpr,
    PARTS: tl.constexpr,
    EXACT: tl.constexpr,
):
    """Of channels d: their place in a row of (h, k), or with PARTS of (part, h, k), and whether
    there is such a key. EXACT: heads fill their groups, and no d is beyond the last."""
    h, part = head_of(d, VALUES, KEY_ROOM, VALUE_ROOM)
    k = d % KEY_ROOM
    place = h * KEYS + k
    if PARTS:
        place += part * (HEADS * KEYS)
    has = tl.full(d.shape, True, tl.int1)
    if not EXACT or KEYS != KEY_ROOM:
        has = (k < KEYS) & (h < HEADS)
    return place, has


@triton.jit
def value_place(
    d,
    HEADS: tl.constexpr,
    VALUES: tl.constexpr,
    KEY_ROOM: tl.constexpr,
    VALUE_ROOM: tl.constexpr,
    EXACT: tl.constexpr,
):
    """Of channels d: their place in a row of (h, v), and whether there is such a value."""
    h, part = head_of(d, VALUES, KEY_ROOM, VALUE_ROOM)
    v = part * VALUE_ROOM + d // KEY_ROOM % VALUE_ROOM
    has = tl.full(d.shape, True, tl.int1)
    if not EXACT or VALUES % VALUE_ROOM != 0:
        has = (v < VALUES) & (h < HEADS)
    return h * VALUES + v, has


@triton.jit
def over_keys(x, KEY_ROOM: tl.constexpr):
    """The sums of x [W BC] over each head's keys, [W BC/KEY_ROOM]."""
    return tl.sum(tl.reshape(x, (x.shape[0], x.shape[1] // KEY_ROOM, KEY_ROOM)), 2)


@triton.jit
def over_values(x, KEY_ROOM: tl.constexpr, VALUE_ROOM: tl.constexpr):
    """The sums of x [W BC] over a group's values of each head, [W BC/VALUE_ROOM]."""
    W: tl.constexpr = x.shape[0]
    BC: tl.constexpr = x.shape[1]
    apart = tl.reshape(x, (W, BC // (KEY_ROOM * VALUE_ROOM), VALUE_ROOM, KEY_ROOM))
    return tl.reshape(tl.sum(apart, 2), (W, BC // VALUE_ROOM))


@triton.jit
def with_value(tile, BC: tl.constexpr, KEY_ROOM: tl.constexpr):
    """The channels of a tile whose sums `over_keys` leaves, [1 BC/KEY_ROOM]."""
    return tile * BC + tl.arange(0, BC // KEY_ROOM)[None, :] * KEY_ROOM


@triton.jit
def with_key(tile, BC: tl.constexpr, KEY_ROOM: tl.constexpr, VALUE_ROOM: tl.constexpr):
    """The channels of a tile whose sums `over_values` leaves, [1 BC/VALUE_ROOM]."""
    e = tl.arange(0, BC // VALUE_ROOM)[None, :]
    return tile * BC + e // KEY_ROOM * (KEY_ROOM * VALUE_ROOM) + e % KEY_ROOM
