"""The diagonal scan's launch settings: one static table, never read by T."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hgrn2.kernels.settings import cdiv

# Segments are multiples of it, and it of every step.
GRAIN = 128
# An H100's schedulers, one warp on each of which fills it; and how many warps over segments keep
# its memory busy.
SCHEDULERS = 132 * 4
WARPS = 4 * SCHEDULERS
# Registers a thread of the backward pass may take: left to itself, ptxas spills a few of them, to
# make room for more warps than there are.
REGISTERS = 224
# Of heads, with q and dq besides: all there are, and eight warps a multiprocessor.
REGISTERS_OF_HEADS = 255


@dataclass(frozen=True)
class ScanLaunch:
    """A walk's step: `warps` sub-blocks of `rows` tokens, `channels` channels, 32 lanes a warp."""

    channels: int
    warps: int
    rows: int

    def split(self, programs: int, t: int) -> tuple[int, int]:
        """How many segments to walk side by side, and tokens in each, a multiple of GRAIN."""
        grains = cdiv(t, GRAIN)
        # Every token is read twice then: worth it only where half of the schedulers had no warp.
        warps = programs * self.warps
        wanted = min(WARPS // warps, grains) if 2 * warps <= SCHEDULERS else 1
        segment_grains = cdiv(grains, wanted)
        return cdiv(grains, segment_grains), segment_grains * GRAIN


@dataclass(frozen=True)
class ScanSettings:
    """One launch a kernel. The backward pass has `border` rows: each sub-block starts from a kept
    state; the others' rows are multiples of it."""

    walk: ScanLaunch
    output: ScanLaunch
    backward: ScanLaunch


def border(turn: bool) -> int:
    """Tokens from one kept state to the next; complex ones fill the registers sooner."""
    return 8 if turn else 16


def scan_settings(batch: int, channels: int, dtype: torch.dtype, *, turn: bool) -> ScanSettings:
    """The table's entry for batch * channels recurrences.

    turn: complex states. Of many recurrences a warp needs no other. Fewer are spread over warps
    that take turns in time, which reads nothing twice; and where that does not fill the device
    either, over segments. 16 rows, loaded one step ahead, keep the memory busy; more take long
    to compile, as Triton follows every load's and store's dependences through each instruction.
    """
    recurrences = batch * channels
    alone = recurrences >= 32 * 1024 or recurrences < 32 * SCHEDULERS // 4
    # Two channels of 16 bits a thread: each load is of four bytes, as of a pair or an fp32.
    walk = ScanLaunch(32 if turn or dtype == torch.float32 else 64, 1, 16)
    output = walk if alone else ScanLaunch(32, 4, 16)
    return ScanSettings(walk, output, ScanLaunch(32, 1 if alone else 4, border(turn)))
