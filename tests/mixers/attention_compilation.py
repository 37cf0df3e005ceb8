"""What attention launches, forward and backward, noted on meta tensors for compilation."""

from __future__ import annotations

import torch

from hgrn2.kernels.first_call import Enqueued, noted
from mixers.attention_backward import attention_gradients
from mixers.attention_kernels import attention_output


def launches(width: int, dtype: torch.dtype, p: float) -> list[Enqueued]:
    """At 128 rows of 512 tokens, views of one projection; products as torch is told now."""
    qkv = torch.empty(128, 512, 3, 1, width, dtype=dtype, device="meta")
    state = torch.empty((), dtype=torch.int64, device="meta") if p else None
    with noted() as found:
        o, lse, bits = attention_output(*qkv.unbind(2), state, p)
        attention_gradients(*qkv.unbind(2), o, lse, bits, o, p)
    return found
