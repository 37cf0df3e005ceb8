"""The generator against the structural rules and the measured statistics of zoology's."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from scipy import stats

from tasks.mqar import UNLABELLED, mqar_batch
from tasks.mqar.data import _distinct

GOLDEN = json.loads((Path(__file__).parent / "mqar_golden.json").read_text())
CELLS = [
    pytest.param(cell, id=f"{cell['input_seq_len']}-{cell['num_kv_pairs']}-a{cell['power_a']}")
    for cell in GOLDEN["stats"]
]


def draw(cell: dict, n: int, seed: int = 0, **options: bool) -> tuple[torch.Tensor, torch.Tensor]:
    return mqar_batch(
        n,
        cell["input_seq_len"],
        cell["num_kv_pairs"],
        cell["vocab_size"],
        cell["power_a"],
        generator=torch.Generator().manual_seed(seed),
        **options,
    )


def slots_by_key(inputs: torch.Tensor, labels: torch.Tensor, pairs: int) -> torch.Tensor:
    """[n pairs]: the slot of each key, in the context's order."""
    keys = inputs[:, 0 : 2 * pairs : 2]
    positions = (labels != UNLABELLED).nonzero()[:, 1].view(-1, pairs)
    queries = inputs.gather(1, positions)
    by_key, by_query = keys.argsort(1), queries.argsort(1)
    assert torch.equal(keys.gather(1, by_key), queries.gather(1, by_query)), "each key once"
    slots = (positions.gather(1, by_query) - 2 * pairs) // 2
    return torch.empty_like(slots).scatter_(1, by_key, slots)


@pytest.mark.parametrize("cell", CELLS)
def test_rows_obey_the_structural_rules(cell):
    inputs, labels = draw(cell, 2000)
    pairs, vocab = cell["num_kv_pairs"], cell["vocab_size"]
    labelled = labels != UNLABELLED
    assert (labelled.sum(1) == pairs).all()
    positions = labelled.nonzero()[:, 1]
    assert (positions % 2 == 0).all()
    assert positions.min() >= 2 * pairs
    assert positions.max() <= cell["input_seq_len"] - 2
    keys, values = inputs[:, 0 : 2 * pairs : 2], inputs[:, 1 : 2 * pairs : 2]
    assert keys.min() >= 1
    assert keys.max() <= vocab // 2 - 1
    assert values.min() >= vocab // 2
    assert values.max() <= vocab - 1
    for ids in (keys, values):
        ordered = ids.sort(1).values
        assert (ordered[:, 1:] != ordered[:, :-1]).all(), "ids of a row are distinct"
    slots = slots_by_key(inputs, labels, pairs)
    answers = labels.gather(1, 2 * pairs + 2 * slots)
    assert torch.equal(answers, values), "a query's label is the value paired with its key"
    filler = inputs[:, 2 * pairs :][~labelled[:, 2 * pairs :]]
    assert (filler == 0).all()


@pytest.mark.parametrize("cell", CELLS)
def test_slots_follow_the_golden_statistics(cell):
    n = 20_000
    inputs, labels = draw(cell, n, seed=1)
    slots = slots_by_key(inputs, labels, cell["num_kv_pairs"]).double()
    golden_error = cell["se_mean_gap_overall"]
    error = float(slots.mean(1).std()) / n**0.5
    tolerance = 5 * (error**2 + golden_error**2) ** 0.5 + 1e-9
    assert abs(float(slots.mean()) - cell["mean_gap_overall"]) <= tolerance

    weight = torch.arange(1, cell["space"] + 1).double() ** (cell["power_a"] - 1)
    pmf = weight / weight.sum()
    exact = torch.tensor(cell["first_key_slot_prob_exact_first8"]).double()
    assert (pmf[:8] - exact).abs().max() < 1e-6
    counts = slots[:, 0].long().bincount(minlength=cell["space"]).double()
    chi2 = float(((counts - n * pmf) ** 2 / (n * pmf)).sum())
    assert chi2 < stats.chi2.isf(1e-4, cell["space"] - 1), "the first key's slot has this pmf"

    reference = cell.get("mean_gap_by_key_index_reference")
    if reference is None:
        return
    shown = len(reference)
    spread = slots[:, :shown].std(0) / n**0.5
    gap = (slots[:, :shown].mean(0) - torch.tensor(reference).double()).abs()
    # The reference came from 0.4 M rows or more: its own error is a fifth of ours at most.
    assert (gap <= 5 * 1.05 * spread).all()
    inclusion = torch.stack(
        [(slots == i).any(1).double().mean() for i in range(len(cell["slot_inclusion_measured"]))]
    )
    expected = torch.tensor(cell["slot_inclusion_gumbel_reference"]).double()
    error = (expected * (1 - expected) / n).sqrt().clamp(min=2e-4)
    assert ((inclusion - expected).abs() <= 5 * error).all()


def test_earlier_keys_are_queried_sooner_and_uniformly_when_a_is_one():
    for power_a, increasing in ((0.01, True), (1.0, False)):
        cell = {"input_seq_len": 64, "num_kv_pairs": 4, "vocab_size": 8192, "power_a": power_a}
        inputs, labels = draw(cell, 50_000)
        mean = slots_by_key(inputs, labels, 4).double().mean(0)
        if increasing:
            assert (mean[1:] - mean[:-1] > 0.4).all()
        else:
            assert (mean - 13.5).abs().max() < 5 * 8.08 / 50_000**0.5


def test_random_filler_leaves_context_labels_and_queries_alone():
    golden = GOLDEN["random_non_queries_true"]
    cell = {"input_seq_len": 256, "num_kv_pairs": 16, "vocab_size": 8192, "power_a": 0.01}
    plain, labels = draw(cell, 5000)
    filled, same_labels = draw(cell, 5000, random_non_queries=True)
    assert torch.equal(labels, same_labels)
    assert torch.equal(filled[plain != 0], plain[plain != 0])
    filler = filled[plain == 0].double()
    assert filler.numel() / 5000 == golden["fill_tokens_per_seq"]
    standard_error = 8192 / 12**0.5 / filler.numel() ** 0.5
    assert abs(float(filler.mean()) - 4095.5) < 5 * standard_error
    assert filler.min() == 0
    assert filler.max() == 8191


def test_distinct_ids_are_uniform_over_ordered_choices():
    for pool in (6, 40):
        ids = _distinct(60_000, 3, pool, torch.Generator().manual_seed(0))
        code = ids[:, 0] * pool * pool + ids[:, 1] * pool + ids[:, 2]
        counts = code.unique(return_counts=True)[1].double()
        cells = pool * (pool - 1) * (pool - 2)
        expected = 60_000 / cells
        chi2 = float(((counts - expected) ** 2).sum() / expected)
        chi2 += (cells - len(counts)) * expected
        assert abs(chi2 - (cells - 1)) < 5 * (2 * (cells - 1)) ** 0.5


def test_a_seed_gives_the_same_rows_and_the_global_generator_is_untouched():
    before = torch.get_rng_state()
    cell = {"input_seq_len": 64, "num_kv_pairs": 8, "vocab_size": 8192, "power_a": 0.01}
    first, again, other = (draw(cell, 100, seed, random_non_queries=True)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seq_len": 64, "kv_pairs": 17}, ["kv_pairs = 17", "at most 16", "at least 68"]),
        ({"seq_len": 63, "kv_pairs": 4}, ["seq_len = 63", "even"]),
        ({"seq_len": 64, "kv_pairs": 0}, ["kv_pairs = 0", "at least 1"]),
        ({"seq_len": 64, "kv_pairs": 4, "vocab_size": 64}, ["vocab_size = 64", "larger"]),
        ({"seq_len": 64, "kv_pairs": 4, "vocab_size": 8}, ["vocab_size = 8", "at least"]),
        ({"seq_len": 64, "kv_pairs": 4, "power_a": 0.0}, ["power_a = 0.0", "above 0"]),
        ({"seq_len": 64, "kv_pairs": 4, "n": 0}, ["n = 0", "at least 1"]),
    ],
)
def test_an_impossible_shape_is_named(options, words):
    with pytest.raises(ValueError, match=words[0]) as error:
        mqar_batch(**({"n": 2} | options), generator=torch.Generator())
    for word in words:
        assert word in str(error.value)


def test_the_data_needs_torch_alone():
    code = """
import sys
for name in ("pydantic", "numpy.testing", "pandas", "triton", "jaxtyping", "mixers"):
    sys.modules[name] = None
from tasks.mqar import mqar_batch
import torch
print(mqar_batch(2, 16, 2, 64, generator=torch.Generator())[0].shape)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_hundred_thousand_rows_take_under_two_seconds():
    generator = torch.Generator().manual_seed(0)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        mqar_batch(100_000, 64, 4, generator=generator)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 2
