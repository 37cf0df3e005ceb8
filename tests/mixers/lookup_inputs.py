"""Inputs of the lookup's tests, and its bar: a row's gradient is a sum in fp32, whose error is at
most as many roundings of all its terms as it has terms, and the result's own rounding."""

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
    """table, ids of which most are 0, and a gradient."""
    source = torch.Generator(device).manual_seed(b + t + vocab + d)
    table = torch.randn(vocab, d, generator=source, device=device).to(dtype)
    ids = torch.randint(vocab, (b, t), generator=source, device=device)
    filler = torch.rand(b, t, generator=source, device=device) < 0.7
    dy = torch.randn(b, t, d, generator=source, device=device).to(dtype)
    return table.requires_grad_(), ids.masked_fill(filler, 0), dy


def check(table: Tensor, ids: Tensor, dy: Tensor) -> None:
    """The rows are torch's, their gradient is the sum in fp64 within the bar."""
    found = looked_up(table, ids)
    assert torch.equal(found, table[ids])
    (dtable,) = torch.autograd.grad(found, table, dy)
    assert dtable.dtype == table.dtype
    flat, terms = ids.flatten(), dy.double().flatten(0, 1)
    exact, size = (
        torch.zeros_like(table, dtype=torch.float64).index_add(0, flat, x)
        for x in (terms, terms.abs())
    )
    count = flat.bincount(minlength=len(table))[:, None]
    summed = torch.promote_types(dy.dtype, torch.float32)
    rounding = count * torch.finfo(summed).eps / 2
    own = torch.finfo(dy.dtype).eps / 2
    assert ((dtable.double() - exact).abs() <= rounding * size + own * exact.abs()).all()
