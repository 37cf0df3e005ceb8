"""What Mamba's scan and its convolution launch, noted on meta tensors for compilation."""

from __future__ import annotations

import torch

from hgrn2.kernels.first_call import Enqueued, noted
from mixers.conv_silu_kernels import conv_silu_gradients, conv_silu_output
from mixers.mamba_passes import scan_gradients, scan_output


def launches(
    channels: int, d_state: int, dtype: torch.dtype, rows: int = 512, tokens: int = 64
) -> list[Enqueued]:
    """Both passes of the scan, then both of the convolution."""

    def meta(*shape: int, kind: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=kind, device="meta")

    x, dt = (meta(rows, tokens, channels, kind=dtype) for _ in range(2))
    B, C = (meta(rows, tokens, d_state) for _ in range(2))
    rates, skip, bias = meta(d_state, channels), meta(channels), meta(channels)
    with noted() as found:
        y, _, *kept = scan_output(x, dt, rates, B, C, skip, bias, None, True)
        scan_gradients(x, rates, B, C, skip, y, *kept)
        half, taps = meta(rows, tokens, 2 * channels, kind=dtype).chunk(2, -1)[1], meta(channels, 4)
        conv_silu_output(half, taps, bias)
        conv_silu_gradients(half, taps, bias, y)
    return found
