"""The step sizes that Mamba's kernels form, by themselves."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch.nn import functional as F

from mixers.mamba_backward import slope
from mixers.mamba_kernels import softplus


@triton.jit
def softplus_kernel(z, y, derivative, N: tl.constexpr):
    i = tl.arange(0, N)
    s = softplus(tl.load(z + i))
    tl.store(y + i, s)
    tl.store(derivative + i, slope(s))


def check_softplus(device: str) -> None:
    """All digits from far below to far above zero, of the value and of its derivative."""
    z = torch.linspace(-60, 60, 4096, device=device)
    found = torch.empty(2, 4096, device=device)
    softplus_kernel[(1,)](z, found[0], found[1], N=4096)
    exact = F.softplus(z.double(), threshold=100), z.double().sigmoid()
    # An exponential has the rounding of its argument, which is absolute.
    allowed = (4 + z.abs()) * 2**-23
    for ours, wanted in zip(found.double(), exact, strict=True):
        assert ((ours - wanted).abs() <= allowed * wanted).all()
