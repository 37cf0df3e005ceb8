"""What attention launches, forward and backward, recorded on meta tensors for compilation."""

from __future__ import annotations

from contextlib import ExitStack
from unittest.mock import patch

import torch

from mixers import attention_backward, attention_kernels
from tests.hgrn2.triton_compilation import Launched

KERNELS = (
    (attention_kernels, "attention_fwd_kernel"),
    (attention_backward, "attention_bwd_query_kernel"),
    (attention_backward, "attention_bwd_key_kernel"),
)


def launches(width: int, dtype: torch.dtype, p: float) -> list[Launched]:
    """At 128 rows of 512 tokens, views of one projection; products as torch is told now."""
    found: list[Launched] = []

    class Recorder:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            return lambda *args, **options: found.append(Launched(self.kernel, args, options))

    qkv = torch.empty(128, 512, 3, 1, width, dtype=dtype, device="meta")
    state = torch.empty((), dtype=torch.int64, device="meta") if p else None
    with ExitStack() as replaced:
        for module, name in KERNELS:
            recorder = Recorder(getattr(module, name))
            replaced.enter_context(patch.object(module, name, recorder))
        o, lse, _ = attention_kernels.attention_output(*qkv.unbind(2), state, p)
        attention_backward.attention_gradients(*qkv.unbind(2), o, lse, o, state, p)
    return found
