"""What a forward and a backward scan launch, noted on meta tensors for compilation."""

from __future__ import annotations

import torch

from hgrn2.kernels import scan
from hgrn2.kernels.first_call import Enqueued, noted
from hgrn2.kernels.scan_settings import scan_settings


def launches(batch: int, dtype: torch.dtype, *, turn: bool, both: bool) -> list[Enqueued]:
    """One forward and one backward pass over 32,768 tokens of 2048 channels, with lengths."""
    t, d = 32768 // batch, 2048
    pair = (2,) if turn else ()

    def meta(*shape: int, kind: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=kind, device="meta")

    v, z = meta(batch, t, d, *pair, kind=dtype), meta(batch, t, d, kind=dtype)
    angle = meta(2, d) if turn else None
    gated = scan.Gated(z, meta(d), meta(batch, kind=torch.int64))
    state = None if both else meta(batch, d, *pair)
    table = scan_settings(batch, d, dtype, turn=turn)
    with noted() as found:
        back = None
        if both:
            borders = scan.scan_borders(v, gated, angle, table, adjoint=False)
            back = scan.Direction(angle, borders)
        _, _, borders = scan.scan_output(
            v, gated, angle, first=state, back=back, settings=table, keep_borders=True
        )
        forward = scan.Direction(angle, borders)
        scan.scan_gradients(v, v, gated, forward, back=back, dlast=state, settings=table)
    return found
