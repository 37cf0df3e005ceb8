"""Multi-query associative recall: the data alone, with torch alone.

The law is that of zoology's generator (arXiv 2312.04927, all published eras): a row holds D
key-value pairs, then a query region of slots of two tokens in which every key appears once more;
the label at a query is that key's value.
"""

from __future__ import annotations

import torch
from torch import Tensor

UNLABELLED = -100
"""The label of a position that is not scored (torch's cross-entropy ignores it)."""


def mqar_batch(
    n: int,
    seq_len: int,
    kv_pairs: int,
    vocab_size: int = 8192,
    power_a: float = 0.01,
    random_non_queries: bool = False,
    *,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Draw n rows: inputs [n t] int64 and labels [n t] int64, -100 where unlabelled.

    With V = vocab_size, D = kv_pairs:
    - keys are D distinct ids of 1 .. V/2 - 1, values D distinct ids of V/2 .. V - 1, uniform;
    - tokens 0 .. 2D - 1 are k_0 v_0 k_1 v_1 ...;
    - the remaining tokens are S = (t - 2D) // 2 slots; slot i has weight (i + 1)^(power_a - 1), and
      D distinct slots are drawn by successive weighted sampling without replacement; the j-th
      DRAWN slot belongs to key j, so that earlier keys are queried sooner when power_a < 1;
    - slot g of key j puts k_j at token 2D + 2g and the label v_j on that same position;
    - the other tokens are 0, or, with `random_non_queries`, uniform on 0 .. V - 1.

    `generator` lives on `device`; the filler is drawn last, so that labels, keys and slots do not
    depend on `random_non_queries`. Raises ValueError as `check_mqar`.
    """
    if n < 1:
        raise ValueError(f"n = {n} rows; it should be at least 1")
    check_mqar(seq_len, kv_pairs, vocab_size, power_a)
    if generator.device.type != torch.device(device).type:
        raise ValueError(
            f"generator lives on {generator.device}; it should live on device = {device}"
        )
    half = vocab_size // 2
    keys = 1 + _distinct(n, kv_pairs, half - 1, generator)
    values = half + _distinct(n, kv_pairs, half, generator)
    slots = _query_slots(n, (seq_len - 2 * kv_pairs) // 2, kv_pairs, power_a, generator)

    inputs = torch.zeros(n, seq_len, dtype=torch.int64, device=generator.device)
    labels = torch.full_like(inputs, UNLABELLED)
    inputs[:, 0 : 2 * kv_pairs : 2] = keys
    inputs[:, 1 : 2 * kv_pairs : 2] = values
    positions = 2 * kv_pairs + 2 * slots
    inputs.scatter_(1, positions, keys)
    labels.scatter_(1, positions, values)
    if random_non_queries:
        filler = torch.randint(
            vocab_size, inputs.shape, generator=generator, device=generator.device
        )
        inputs = torch.where(inputs == 0, filler, inputs)
    return inputs, labels


def check_mqar(seq_len: int, kv_pairs: int, vocab_size: int, power_a: float = 0.01) -> None:
    """Raise ValueError, naming field, value and remedy, for a shape that holds no MQAR row."""
    if kv_pairs < 1:
        raise ValueError(f"kv_pairs = {kv_pairs}; it should be at least 1")
    if seq_len % 2:
        raise ValueError(f"seq_len = {seq_len}; it should be even")
    if 4 * kv_pairs > seq_len:
        raise ValueError(
            f"kv_pairs = {kv_pairs} does not fit seq_len = {seq_len}: 4 kv_pairs should be at "
            f"most seq_len, so kv_pairs at most {seq_len // 4} or seq_len at least {4 * kv_pairs}"
        )
    if vocab_size % 2 or vocab_size // 2 - 1 < kv_pairs:
        raise ValueError(
            f"vocab_size = {vocab_size}; it should be even and at least 2 kv_pairs + 2 = "
            f"{2 * kv_pairs + 2}"
        )
    if seq_len >= vocab_size:
        raise ValueError(f"vocab_size = {vocab_size}; it should be larger than seq_len = {seq_len}")
    if not power_a > 0:
        raise ValueError(f"power_a = {power_a}; it should be above 0 (1 is uniform over slots)")


def _distinct(n: int, count: int, pool: int, generator: torch.Generator) -> Tensor:
    """[n count]: per row `count` distinct ids of 0 .. pool - 1, uniform over ordered choices."""
    device = generator.device
    if pool <= 4 * count:
        return torch.rand(n, pool, generator=generator, device=device).argsort(1)[:, :count]
    # The first `count` distinct ids of a longer draw with replacement have the law of a draw
    # without replacement; a row that falls short is drawn anew, which favours no id.
    draws = count + 8 + 4 * count * count // pool
    chosen = torch.empty(n, count, dtype=torch.int64, device=device)
    missing = torch.arange(n, device=device)
    while len(missing):
        ids = torch.randint(pool, (len(missing), draws), generator=generator, device=device)
        ordered, order = ids.sort(dim=1, stable=True)
        repeat = torch.zeros_like(ordered, dtype=torch.bool)
        repeat[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
        new = ~torch.empty_like(repeat).scatter_(1, order, repeat)
        taken = new & (new.cumsum(1) <= count)
        enough = taken.sum(1) == count
        chosen[missing[enough]] = ids[enough][taken[enough]].view(-1, count)
        missing = missing[~enough]
    return chosen


def _query_slots(
    n: int, slots: int, count: int, power_a: float, generator: torch.Generator
) -> Tensor:
    """[n count]: the slots in the order drawn, weight (i + 1)^(power_a - 1), no replacement.

    Ranking independent exponentials of rate weight_i is the same law as successive sampling (the
    exponential race, or Gumbel top-k).
    """
    device = generator.device
    weight = torch.arange(1, slots + 1, dtype=torch.float64, device=device) ** (power_a - 1)
    arrival = torch.empty(n, slots, device=device).exponential_(generator=generator)
    return (arrival / weight.float()).topk(count, dim=1, largest=False, sorted=True).indices
