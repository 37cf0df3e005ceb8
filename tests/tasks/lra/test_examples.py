"""Batches: every row once, few pads, a function of seed and epoch."""

from __future__ import annotations

import torch

from tasks.lra.examples import evaluation_batches, training_batches

LENGTHS = torch.randint(500, 2000, (1003,), generator=torch.Generator().manual_seed(0))


def pads(batches: list[torch.Tensor]) -> float:
    """Padded places for each place that is filled."""
    width = sum(int(LENGTHS[rows].max()) * len(rows) for rows in batches)
    return width / int(LENGTHS.sum()) - 1


def test_every_row_comes_once():
    for batches in (
        training_batches(LENGTHS, 32, seed=1, epoch=0, pool=4),
        evaluation_batches(LENGTHS, 32),
    ):
        assert torch.equal(torch.cat(batches).sort().values, torch.arange(1003))
        assert max(map(len, batches)) == 32


def test_the_order_is_a_function_of_seed_and_epoch():
    first = training_batches(LENGTHS, 32, seed=1, epoch=0, pool=64)
    again = training_batches(LENGTHS, 32, seed=1, epoch=0, pool=64)
    assert all(map(torch.equal, first, again))
    for seed, epoch in ((1, 1), (2, 0)):
        other = training_batches(LENGTHS, 32, seed=seed, epoch=epoch, pool=64)
        assert not torch.equal(torch.cat(first), torch.cat(other))


def test_rows_of_similar_length_come_together():
    shuffled = list(torch.randperm(1003, generator=torch.Generator().manual_seed(2)).split(32))
    bucketed = training_batches(LENGTHS, 32, seed=1, epoch=0, pool=16)
    assert pads(bucketed) < 0.1 < 0.4 < pads(shuffled)
    assert pads(evaluation_batches(LENGTHS, 32)) < 0.03
    drawn = training_batches(LENGTHS, 32, seed=1, epoch=0, pool=1)
    assert pads(drawn) > 0.4
    # Yet short batches do not all come first.
    widths = torch.tensor([float(LENGTHS[rows].max()) for rows in bucketed])
    assert widths[:16].std() > 100
