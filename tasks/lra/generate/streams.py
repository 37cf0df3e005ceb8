"""Random streams for batches: one a row, in integer arithmetic that is the same on every device."""

from __future__ import annotations

from copy import copy

import torch
from jaxtyping import Int
from torch import Tensor

_GOLDEN = -7046029254386353131
_MIX = ((30, -4658895280553007687), (27, -7723592293110705685), (31, 1))


def mixed(x: Int[Tensor, " ..."]) -> Int[Tensor, " ..."]:
    """SplitMix64's finaliser (Steele et al. 2014) in int64 that wraps around."""
    for shift, factor in _MIX:
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return x


class Streams:
    """A SplitMix64 stream for each row, named by whole numbers.

    What a row draws depends on its names and on what it drew before, never on the other rows.
    """

    def __init__(self, *names: Int[Tensor, " b"] | int, device: torch.device) -> None:
        state = torch.zeros((), dtype=torch.int64, device=device)
        for name in names:
            state = mixed((state ^ torch.as_tensor(name, device=device)) + _GOLDEN)
        self._state = state

    def of(self, rows: Int[Tensor, " b"]) -> Streams:
        """The streams of these rows, to go on with apart."""
        part = copy(self)
        part._state = self._state[rows]
        return part

    def to(self, device: torch.device) -> Streams:
        """The same streams, there."""
        moved = copy(self)
        moved._state = self._state.to(device)
        return moved

    def put(self, rows: Int[Tensor, " b"], part: Streams) -> None:
        """Let these rows go on where `part` is."""
        self._state[rows] = part._state

    def below(
        self, limit: Int[Tensor, " b"] | int, rows: Int[Tensor, " b"] | None = None
    ) -> Int[Tensor, " b"]:
        """A uniform number from 0 to limit - 1 for each of these rows (None: all). Limits are below
        2^31, which makes the numbers uniform to 2^-32."""
        if rows is None:
            state = self._state = self._state + _GOLDEN
        else:
            state = self._state[rows] + _GOLDEN
            self._state[rows] = state
        return (((mixed(state) >> 32) & 0xFFFFFFFF) * limit) >> 32

    def several_below(
        self, count: int, limit: int, rows: Int[Tensor, " b"]
    ) -> Int[Tensor, "b count"]:
        """As `below`, `count` numbers for each row."""
        ahead = _GOLDEN * torch.arange(1, count + 1, device=rows.device)
        states = self._state[rows][:, None] + ahead
        self._state[rows] = states[:, -1]
        return (((mixed(states) >> 32) & 0xFFFFFFFF) * limit) >> 32
