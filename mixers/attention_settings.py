"""Launch settings of attention's kernels: one small static table, never read by t."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

HEAD_SIZES = (16, 32, 64, 128)

Products = Literal["bf16", "tf32", "tf32x3"]
"""How the matrix products multiply, with fp32 sums: in bf16, in TF32, or as three TF32 products,
which hold fp32's digits."""


PADDING = 64
"""Rows are padded to a multiple of it, and so to whole tiles and steps: each below divides it."""


@dataclass(frozen=True)
class Launch:
    """Rows of a program's tile, rows that it walks over at once, and Triton's two knobs."""

    block: int
    step: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Settings:
    """One launch a kernel: the forward pass, the queries' gradients, those of keys and values."""

    forward: Launch
    query: Launch
    key: Launch


# 64 rows, the M of a Hopper matrix instruction, for four warps: eight would form every score twice.
# A step is as wide as the registers allow.
_WIDE = Launch(64, 64, 4, 2)
_HALF = Launch(64, 32, 4, 2)
_FLAT = Launch(64, 32, 4, 1)
# (most channels of a head, products) -> settings
TABLE: dict[tuple[int, Products], Settings] = {
    (64, "bf16"): Settings(_WIDE, _WIDE, _WIDE),
    (128, "bf16"): Settings(_WIDE, _WIDE, _HALF),
    (64, "tf32"): Settings(_HALF, _HALF, _HALF),
    # Two programs of these fit into a multiprocessor's shared memory.
    (128, "tf32"): Settings(_HALF, _FLAT, Launch(64, 16, 4, 1)),
    (64, "tf32x3"): Settings(_HALF, _HALF, _HALF),
    # As operands of either half, wider tiles do not fit into the registers.
    (128, "tf32x3"): Settings(_FLAT, Launch(16, 32, 4, 1), Launch(16, 32, 4, 1)),
}


def settings(width: int, products: Products) -> Settings:
    """The table's entry for heads of `width` channels, one of HEAD_SIZES."""
    return TABLE[max(width, 64), products]


def expect_head_size(n_heads: int, d_model: int) -> None:
    """Raise ValueError, naming field, value and remedy, unless the kernels take these heads."""
    width = d_model // n_heads
    if width not in HEAD_SIZES:
        fits = [str(d_model // size) for size in HEAD_SIZES if d_model % size == 0]
        instead = f"n_heads could be {', '.join(fits)}" if fits else "use impl = 'reference'"
        raise ValueError(
            f"impl = 'triton' takes heads of {', '.join(map(str, HEAD_SIZES))} channels, but "
            f"n_heads = {n_heads} of d_model = {d_model} have {width} each; {instead}"
        )
