"""What the fused loss launches, forward and backward, noted on meta tensors for compilation."""

from __future__ import annotations

import torch

from hgrn2.kernels.first_call import Enqueued, noted
from mixers.cross_entropy_backward import gradients_of
from mixers.cross_entropy_kernels import losses_of


def launches(width: int, dtype: torch.dtype, words: int = 8192) -> list[Enqueued]:
    """At 2,048 labels; products as torch is told now."""
    rows = 2048
    hidden = torch.empty(rows, width, dtype=dtype, device="meta")
    weight = torch.empty(words, width, device="meta")
    target = torch.empty(rows, dtype=torch.int64, device="meta")
    with noted() as found:
        loss, lse, aim = losses_of(hidden, weight, target)
        gradients_of(hidden, weight, lse, aim, loss)
    return found
