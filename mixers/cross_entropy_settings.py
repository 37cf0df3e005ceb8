"""Where the fused loss runs, and its kernels' launch settings: one small static table, never read
by the number of rows. Imports no triton before it is known to be there.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch

from mixers.attention_settings import Launch, Products

WIDTHS = (16, 32, 64, 128)

_WIDE, _HALF, _FLAT = Launch(64, 64, 4, 2), Launch(64, 32, 4, 2), Launch(64, 32, 4, 1)
# Chosen by timing on Hopper with 8,192 rows and words; width 128 and tf32x3 by what spills least.
# (most width, products) -> the forward pass, the gradients of hidden rows, those of the weight
TABLE: dict[tuple[int, Products], tuple[Launch, Launch, Launch]] = {
    (64, "bf16"): (Launch(64, 128, 4, 3), Launch(64, 128, 4, 3), Launch(64, 128, 4, 2)),
    (128, "bf16"): (_WIDE, _WIDE, _HALF),
    (64, "tf32"): (Launch(128, 64, 8, 2), Launch(128, 64, 4, 1), Launch(128, 32, 4, 2)),
    (128, "tf32"): (_WIDE, _HALF, _HALF),
    (64, "tf32x3"): (_HALF, _FLAT, _FLAT),
    (128, "tf32x3"): (_HALF, _FLAT, _FLAT),
}


def settings(width: int, products: Products) -> tuple[Launch, Launch, Launch]:
    """The table's entry for rows of `width` channels, one of WIDTHS."""
    return TABLE[max(width, 64), products]


def expect_width(d_model: int) -> None:
    """Raise ValueError, naming field, value and remedy, unless the kernels take this width."""
    if d_model not in WIDTHS:
        raise ValueError(
            f"fused_loss = True takes d_model = {', '.join(map(str, WIDTHS))}, not {d_model}: use "
            "fused_loss = False"
        )


def unsupported(device: torch.device) -> str | None:
    """Why the kernels cannot run there, in words, or None."""
    if find_spec("triton") is None:
        return (
            "fused_loss = True needs triton, which is not installed: pip install triton, or use "
            "fused_loss = False"
        )
    from triton import knobs

    # On a CPU, under Triton's interpreter.
    return None if device.type == "cuda" or knobs.runtime.interpret else needs_cuda(device)


def needs_cuda(device: torch.device) -> str:
    return f"fused_loss = True needs a CUDA device, not {device}: use fused_loss = False"
