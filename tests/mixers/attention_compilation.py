"""What attention launches, forward and backward, noted on meta tensors for compilation."""

from __future__ import annotations

import torch

from hgrn2.kernels.first_call import Enqueued, noted
from mixers.attention_backward import attention_gradients
from mixers.attention_kernels import attention_output


def launches(width: int, dtype: torch.dtype, p: float, *, alone: bool = False) -> list[Enqueued]:
    """At 128 rows of 512 tokens, views of one projection; products as torch is told now. `alone`:
    of 64 tokens' queries."""
    qkv = torch.empty(128, 512, 3, 1, width, dtype=dtype, device="meta")
    state = torch.empty((), dtype=torch.int64, device="meta") if p else None
    q, k, v = qkv.unbind(2)
    at = torch.empty(128, 64, dtype=torch.int64, device="meta") if alone else None
    q = q[:, :64] if alone else q
    with noted() as found:
        o, rest, lse, bits = attention_output(q, k, v, at, state, p)
        attention_gradients(q, k, v, at, o, rest, lse, bits, o, p)
    return found
