"""Where Mamba's Triton kernels run, and their launch settings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hgrn2 import api
from hgrn2.kernels.scan_settings import GRAIN, SCHEDULERS
from hgrn2.kernels.settings import cdiv

# A CPU stands for a GPU.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# Tokens of a block, from one kept state to the next.
ROWS = 8
# Of these the backward pass holds the states of so many at a time.
HELD = 4
# Channels of a program of one warp, with up to 16 numbers of state: in the forward pass one a
# thread. Backward fewer than threads: Triton loads such a row as it is needed, each number in
# several threads, and exchanges none.
FORWARD = 32
BACKWARD = 16


@dataclass(frozen=True)
class Launch:
    """Channels of a program, its room for numbers of state, a power of two, and segments of time
    walked side by side."""

    tile: int
    room: int
    segments: int

    @property
    def forward_registers(self) -> int | None:
        """At most so many of a thread in the forward pass, which gives a scheduler a fourth warp of
        32 channels with 16 numbers of state. None where a thread has fewer numbers, where warps are
        few, and of wider states, of which a thread needs more registers."""
        return 128 if (self.tile, self.room) == (FORWARD, 16) else None

    def is_whole(self, t: int, channels: int, d_state: int) -> bool:
        """Whether blocks, tiles and their room make up the tokens of a segment, the channels and
        the numbers of state: nothing is to be masked."""
        return t > 0 and t % ROWS == 0 and channels % self.tile == 0 and self.room == d_state


def tile_of(d_state: int, most: int) -> tuple[int, int]:
    """Channels of a program, at most so many, and its room for numbers of state: fewer channels of
    more than 16 numbers."""
    room = 1 << (d_state - 1).bit_length()
    return max(1, min(most, 16 * most // room)), room


def launch_of(batch: int, channels: int, d_state: int, t: int, most: int) -> Launch:
    """`tile_of`, with half the channels where neither programs nor segments give every scheduler a
    warp."""
    tile, room = tile_of(d_state, most)
    programs = batch * cdiv(channels, tile)
    segments = segments_of(programs, t)
    if tile > 1 and programs * segments < SCHEDULERS:
        tile //= 2
    return Launch(tile, room, segments)


def segments_of(programs: int, t: int) -> int:
    """How many segments of a length to walk side by side: a power of two, with at most two warps
    for each of an H100's schedulers; 1 for fewer than four, which gain nothing, and where no such
    number of segments of whole grains makes the length."""
    segments = 1 << (2 * SCHEDULERS // programs).bit_length() if programs else 1
    while segments > 4:
        segments //= 2
        if t >= GRAIN and t % (segments * GRAIN) == 0:
            return segments
    return 1


def unsupported(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the kernels cannot run there, in words; None when they can."""
    return api.unsupported("triton", torch.device("cuda") if INTERPRETED else device, dtype)


def expect_supported(x: Tensor) -> None:
    """Raise ValueError where `unsupported` says why."""
    if (reason := unsupported(x.device, x.dtype)) is not None:
        raise ValueError(reason)


def expect_shapes(named: Mapping[str, tuple[Tensor, tuple[int, ...]]]) -> None:
    """Raise ValueError, naming tensor and shapes, unless each tensor has the shape beside it."""
    for name, (x, shape) in named.items():
        if tuple(x.shape) != shape:
            raise ValueError(f"{name} is {list(x.shape)}; it should be {list(shape)}")
