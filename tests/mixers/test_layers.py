"""Dropout's random numbers: their law, their independence, and where they go on."""

from __future__ import annotations

import pytest
import torch

from mixers.layers import Dropout, hash_, keeps, seed_dropout


def seeded(p: float, seed: int = 0) -> Dropout:
    dropout = Dropout(p)
    seed_dropout(dropout, torch.Generator().manual_seed(seed))
    return dropout


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_masks_are_fair_and_independent(p):
    """Within five standard deviations: of a share, and of a correlation."""
    dropout = seeded(p)
    kept = torch.stack([dropout(torch.ones(64, 32, 32)) != 0 for _ in range(16)]).double()
    assert kept.mean().item() == pytest.approx(1 - p, abs=5 * (p * (1 - p) / kept.numel()) ** 0.5)
    apart = kept - kept.mean()
    for axis in range(4):
        for step in (1, 2, 7):
            one, other = (apart.narrow(axis, at, apart.shape[axis] - step) for at in (0, step))
            correlation = (one * other).mean() / (p * (1 - p))
            assert abs(correlation) < 5 * one.numel() ** -0.5, (axis, step)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_columns_that_differ_by_few_bits_are_independent(p):
    """Within five standard deviations; worse factors show 0.012 between some."""
    row, column, state = torch.arange(2**15)[:, None], torch.arange(64), torch.tensor(12345)
    kept = keeps(row, column, state, p).double() - (1 - p)
    for distance in (*range(1, 64), *(2**bit for bit in range(6, 18))):
        other = keeps(row, column ^ distance, state, p).double() - (1 - p)
        correlation = (kept * other).mean() / (p * (1 - p))
        # Below 64 every pair is there twice.
        assert abs(correlation) < 5 * (kept.numel() / 2) ** -0.5, distance


def test_what_is_kept_is_scaled_and_the_rest_has_no_gradient():
    x = torch.randn(4, 100, requires_grad=True)
    y = seeded(0.25)(x)
    assert torch.equal(y[y != 0], (x / 0.75)[y != 0])
    y.sum().backward()
    assert torch.equal(x.grad, (y != 0) / 0.75)


def test_a_loaded_state_goes_on_with_the_same_masks():
    x, whole = torch.ones(1000), seeded(0.5)
    first, kept = whole(x), whole.state_dict()["state"].clone()
    second, third = whole(x), whole(x)
    assert not torch.equal(first, second)
    resumed = seeded(0.5, seed=1)
    resumed.load_state_dict({"state": kept})
    assert torch.equal(resumed(x), second)
    assert torch.equal(resumed(x), third)


def test_the_hash_is_a_bijection_below_2_32():
    x = torch.cat([torch.arange(2**16), 2**32 - 1 - torch.arange(2**16)])
    found = hash_(x.clone())
    assert len(found.unique()) == len(x)
    assert int(found.max()) < 2**32
