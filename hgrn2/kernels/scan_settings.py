"""The diagonal scan's launch settings: one static table, never read by T."""

from __future__ import annotations

from dataclasses import dataclass

import torch

# Tokens from one kept state to the next: what the backward pass starts its tiles from.
BORDER = 16
# Segments are multiples of it, and it of every step.
GRAIN = 128
# Warps that fill an H100: one on each of its 132 * 4 schedulers.
WARPS = 528


@dataclass(frozen=True)
class ScanLaunch:
    """A walk's step: `warps` sub-blocks of `rows` tokens, `channels` channels, 32 lanes a warp."""

    channels: int
    warps: int
    rows: int

    def split(self, programs: int, t: int) -> tuple[int, int]:
        """How many segments to walk side by side, and tokens in each, a multiple of GRAIN."""
        grains = cdiv(t, GRAIN)
        # Every token is read twice then: worth it only where it doubles the programs at least.
        wanted = max(1, min(WARPS // (programs * self.warps), grains))
        segment_grains = cdiv(grains, wanted)
        return cdiv(grains, segment_grains), segment_grains * GRAIN


@dataclass(frozen=True)
class ScanSettings:
    """One launch a kernel."""

    walk: ScanLaunch
    output: ScanLaunch
    backward: ScanLaunch


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def scan_settings(
    rows: int, channels: int, dtype: torch.dtype, *, turn: bool, both: bool
) -> ScanSettings:
    """The table's entry for a batch of `rows` sequences.

    turn: complex states. both: two directions in one kernel.
    """
    # A thread loads at least four bytes: two channels of 16 bits, or a pair.
    wide = 32 if turn or dtype == torch.float32 else 64
    tokens = 16 if turn or both or dtype == torch.float32 else 32
    return ScanSettings(
        walk=ScanLaunch(wide, 1, 16 if turn else 32),
        output=ScanLaunch(wide, 1, tokens),
        backward=ScanLaunch(32, 1, BORDER),
    )
