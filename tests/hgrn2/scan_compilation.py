"""What a forward and a backward scan launch, noted on meta tensors for compilation."""

from __future__ import annotations

import torch

from hgrn2.kernels import scan
from hgrn2.kernels.first_call import Enqueued, noted
from hgrn2.kernels.scan_heads import Heads
from hgrn2.kernels.scan_settings import scan_settings


def launches(batch: int, dtype: torch.dtype, *, turn: bool, both: bool) -> list[Enqueued]:
    """One forward and one backward pass over 32,768 tokens of 2048 channels, with lengths."""
    t, d = 32768 // batch, 2048
    pair = (2,) if turn else ()
    v, z = meta(batch, t, d, *pair, kind=dtype), meta(batch, t, d, kind=dtype)
    angle = meta(2, d) if turn else None
    gated = scan.Gated(z, meta(d), meta(batch, kind=torch.int64))
    state = None if both else meta(batch, d, *pair)
    return passes(v, v, gated, angle, state, both=both)


def head_launches(dtype: torch.dtype, *, both: bool) -> list[Enqueued]:
    """The same of 128 sequences of 2,048 tokens and 16 heads of 4 keys and 4 values."""
    b, t, heads = 128, 2048, Heads(16, 4, 4)
    v = meta(b, t, 64, kind=dtype)
    gated = scan.Gated(v, meta(heads.channels), meta(b, kind=torch.int64), v, heads)
    return passes(v, v, gated, None, None, both=both)


def meta(*shape: int, kind: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=kind, device="meta")


def passes(
    v: torch.Tensor,
    dh: torch.Tensor,
    gated: scan.Gated,
    angle: torch.Tensor | None,
    state: torch.Tensor | None,
    *,
    both: bool,
) -> list[Enqueued]:
    b, _, d = gated.size
    table = scan_settings(b, d, gated.z.dtype, turn=angle is not None)
    with noted() as found:
        back = None
        if both:
            borders = scan.scan_borders(v, gated, angle, table, adjoint=False)
            back = scan.Direction(angle, borders)
        _, _, borders = scan.scan_output(
            v, gated, angle, first=state, back=back, settings=table, keep_borders=True
        )
        forward = scan.Direction(angle, borders)
        scan.scan_gradients(v, dh, gated, forward, back=back, dlast=state, settings=table)
    return found
