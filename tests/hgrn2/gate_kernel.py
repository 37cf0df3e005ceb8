"""GLA's log gate as its kernels form it, by itself."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from hgrn2.gate import gla_log_gate
from hgrn2.kernels.gate import MIN_LOG2, log2_free_gate


@triton.jit
def log2_free_gate_kernel(z, y, N: tl.constexpr, FAST: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(y + i, log2_free_gate(tl.load(z + i), FAST))


def check_log2_free_gate(device: str, *, fast: bool) -> None:
    """Of gates that are all but open as of closed ones; held at MIN_LOG2; a NaN is one."""
    z = torch.linspace(-1500, 80, 2048, device=device)
    z = torch.cat([z, torch.linspace(-20, 20, 2048, device=device)])
    z[:3] = torch.tensor([torch.nan, -torch.inf, torch.inf])
    found = torch.full((4096,), -1.0, device=device)
    log2_free_gate_kernel[(1,)](z, found, N=4096, FAST=fast)
    exact = (gla_log_gate(z.double()) / math.log(2)).clamp(MIN_LOG2.value)
    assert found[0].isnan()
    assert found[1:3].tolist() == [MIN_LOG2.value, 0.0]
    # A rounded sum 1 + u of at least 1 + 1/16 and its logarithm, off by 2^-22 where it is FAST, or
    # four terms of a series; and an exponential has the rounding of its argument, an absolute one.
    allowed = ((128 if fast else 64) + z.abs()) * 2**-24
    assert ((found - exact).abs() <= allowed * exact.abs())[3:].all()
