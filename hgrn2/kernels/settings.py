"""Launch settings: one small static table, read by (K, V, dtype, architecture) and never by T."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    import triton.language as tl

# Tokens in a chunk: the M of one Hopper matrix instruction.
CHUNK = 64
WIDTHS = (16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Launch:
    """Tile of key and value channels of one program, and Triton's two knobs."""

    bk: int
    bv: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Settings:
    """One launch a stage, and how many programs the walk over chunks should have at least."""

    states: Launch
    output: Launch
    bwd_value: Launch
    bwd_gate: Launch
    deep: Launch
    bwd_deep: Launch
    programs: int
    group: int
    """Consecutive tokens that a thread holds (`gate.rows_to_tokens`)."""

    def split(self, programs: int, chunks: int) -> tuple[int, int]:
        """How many segments to walk side by side, and chunks in each."""
        wanted = min(self.programs // programs, chunks // 8)
        # Every token is walked over twice then: fewer than four segments gain nothing.
        wanted = wanted if wanted >= 4 else 1
        segment_chunks = cdiv(chunks, wanted)
        return cdiv(chunks, segment_chunks), segment_chunks


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def narrow(k: int, v: int) -> bool:
    """Whether a tile would have fewer than 64 channels.

    Triton 3.6 miscompiles such bf16 products on Hopper (wrong dq, dv and y, illegal accesses), so
    they run in tf32, where every width was found right.
    """
    return min(k, v) < 64


def dot_type(dtype: torch.dtype, k: int, v: int) -> tuple[tl.dtype, str]:
    """The dtype of the matrix products' operands, and Triton's input precision.

    fp16 goes through tf32, which has fp16's 10 bits and fp32's range. fp32 follows
    torch.set_float32_matmul_precision: "highest", the default, is three tf32 products.
    """
    # triton is not everywhere, and this file is read where it is not.
    import triton.language as tl

    if dtype == torch.bfloat16 and not narrow(k, v):
        return tl.bfloat16, "tf32"
    highest = dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    return tl.float32, "tf32x3" if highest else "tf32"


def check_widths(k: int, v: int) -> None:
    """Raise ValueError for a width that the kernels are not compiled for."""
    for name, width in (("k", k), ("v", v)):
        if width not in WIDTHS:
            raise ValueError(
                f"{name}={width}: impl='triton' takes widths {', '.join(map(str, WIDTHS))}; "
                "pad the heads or use impl='reference'"
            )


@cache
def settings(k: int, v: int, dtype: torch.dtype, capability: tuple[int, int]) -> Settings:
    """The table's entry for key width k and value width v."""
    if dtype == torch.bfloat16 and not narrow(k, v):
        # 128 value channels a program: every further program gates the same tokens again.
        bk, bv = 64, min(v, 128)
        return Settings(
            # Triton 3.7 runs out of registers with the wide tile on Blackwell.
            states=Launch(bk, bv if capability[0] < 10 else 64, 4, 3),
            output=Launch(bk, bv, 4, 2),
            bwd_value=Launch(bk, bv, 4, 3),
            bwd_gate=Launch(bk, min(v, 64), 4, 2),
            # Timed on Hopper; elsewhere it spills more. Of wider values two tiles of 128 do too.
            deep=Launch(bk, bv if v <= 128 else 64, 4, 1)
            if capability[0] == 9
            else Launch(bk, min(v, 64), 8, 1),
            bwd_deep=Launch(bk, min(v, 64), 8, 1),
            programs=264,
            # Of 64 x 64 channels, 8 a thread, four warps cover 16 rows at a time.
            group=4,
        )
    # Operands of 4 bytes: half the tile in the same shared memory.
    bk, bv = min(k, 32), min(v, 64)
    return Settings(
        states=Launch(bk, bv, 4, 2),
        output=Launch(bk, bv, 4, 2),
        bwd_value=Launch(bk, bv, 4, 1),
        bwd_gate=Launch(bk, min(v, 32), 4, 1),
        deep=Launch(bk, min(v, 32), 4, 1),
        bwd_deep=Launch(bk, min(v, 32), 4, 1),
        programs=264,
        # Differences of sums would cost fp32 digits.
        group=1,
    )
