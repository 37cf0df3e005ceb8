"""Inputs of the lookup's tests: gradients are whole numbers, whose sums are exact in any order."""

from __future__ import annotations

import torch
from torch import Tensor

from mixers.lookup import looked_up


def draw(
    b: int,
    t: int,
    vocab: int,
    d: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> tuple[Tensor, Tensor, Tensor]:
    """table, ids of which most are 0, and a gradient of whole numbers."""
    source = torch.Generator(device).manual_seed(b + t + vocab + d)
    table = torch.randn(vocab, d, generator=source, device=device).to(dtype)
    ids = torch.randint(vocab, (b, t), generator=source, device=device)
    filler = torch.rand(b, t, generator=source, device=device) < 0.7
    # Small enough that sums in fp32, or in fp64 alone, are exact.
    most = 2**36 if dtype == torch.float64 else 8
    dy = torch.randint(-most, most, (b, t, d), generator=source, device=device).to(dtype)
    return table.requires_grad_(), ids.masked_fill(filler, 0), dy


def check(table: Tensor, ids: Tensor, dy: Tensor) -> None:
    """The rows are torch's, and their gradient is the sum in fp64, rounded once."""
    found = looked_up(table, ids)
    assert torch.equal(found, table[ids])
    (dtable,) = torch.autograd.grad(found, table, dy)
    exact = torch.zeros_like(table, dtype=torch.float64)
    exact.index_add_(0, ids.flatten(), dy.double().flatten(0, 1))
    assert torch.equal(dtable, exact.to(table.dtype))
