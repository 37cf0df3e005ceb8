"""ListOps expressions, many at a time, in the published tab-separated format.

The law is that of google-research/long-range-arena `data/listops.py`: a node at depth below 10 is
an operator with probability 1/4, else a digit; an operator has 2 to 10 arguments; an expression is
kept if its operators, digits and closing brackets number more than 500 and fewer than 2000, and if
it has not been kept before. The original's order is that of a hash; here a seed gives the files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.lra.generate.workers import in_order

Array = NDArray[Any]

VERSION = 1
OPERATORS = ("MIN", "MAX", "MED", "SM")
MAX_DEPTH = 10
MAX_ARGS = 10
P_OPERATOR = 0.25
LONGER_THAN, SHORTER_THAN = 500, 2000
DRAWS = 8192
"""Expressions that a shard draws; one in twelve is kept."""
HEADER = "Source\tTarget"

CLOSE, FIRST_OPERATOR = 10, 11
"""Tokens 0 to 9 are the digits."""


class Level(NamedTuple):
    """The nodes of one depth, of all trees, siblings together. [n] each."""

    tree: Array
    parent: Array
    """Index in the level above."""
    args: Array
    """0 for a digit."""
    symbol: Array
    """The digit, or the index of the operator."""


def write_listops(
    folder: Path, splits: dict[str, int], seed: int, jobs: int, progress: Callable[[int], None]
) -> None:
    """Write basic_<split>.tsv for each split, of that many expressions, in this order.

    `progress` hears how many are written. The files are the same for any number of jobs.
    """
    expressions = _distinct(in_order(shard, _shards(seed), jobs))
    done = 0
    progress(done)
    for split, count in splits.items():
        with open(folder / f"basic_{split}.tsv", "w", encoding="ascii") as file:
            file.write(HEADER + "\n")
            for number in range(1, count + 1):
                file.write(next(expressions) + "\n")
                if number % 100 == 0 or number == count:
                    progress(done + number)
        done += count


def _shards(seed: int) -> Iterator[tuple[int, int]]:
    number = 0
    while True:
        yield seed, number
        number += 1


def _distinct(shards: Iterable[list[str]]) -> Iterator[str]:
    seen: set[bytes] = set()
    for rows in shards:
        for row in rows:
            digest = hashlib.sha1(row.encode("ascii")).digest()
            if digest not in seen:
                seen.add(digest)
                yield row


def shard(name: tuple[int, int]) -> list[str]:
    """The rows of a shard, (seed, number): source, tab and target, without a newline."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(name)))
    tokens, starts, values = expressions(DRAWS, rng)
    return [
        f"{source}\t{value}"
        for source, value in zip(sources(tokens, starts), values.tolist(), strict=True)
    ]


def expressions(draws: int, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Draw that many trees; of those that are kept: tokens, starts [n + 1] and values [n].

    Tokens are depth first: digits 0 to 9, `CLOSE`, and for an operator with a arguments
    `FIRST_OPERATOR` + operator + 4 a.
    """
    levels, kept = _grow(draws, rng)
    sizes, values = _fold(levels)
    return *_flatten(levels, sizes, kept), values[0][kept]


def _grow(draws: int, rng: np.random.Generator) -> tuple[list[Level], Array]:
    """The levels of the trees, and which trees are kept."""
    levels: list[Level] = []
    length = np.zeros(draws, np.int64)
    tree, parent = np.arange(draws), np.zeros(draws, np.int64)
    for depth in range(1, MAX_DEPTH + 1):
        n = len(tree)
        operator = (rng.random(n) <= P_OPERATOR) & (depth < MAX_DEPTH)
        args = np.where(operator, rng.integers(2, MAX_ARGS + 1, n), 0)
        symbol = np.where(operator, rng.integers(len(OPERATORS), size=n), rng.integers(10, size=n))
        length += np.bincount(tree, weights=1 + operator, minlength=draws).astype(np.int64)
        levels.append(Level(tree, parent, args, symbol))
        # A tree that is too long already is not grown further; it is not kept.
        grown = np.flatnonzero(operator & (length[tree] < SHORTER_THAN))
        parent = np.repeat(grown, args[grown])
        tree = tree[parent]
    return levels, np.flatnonzero((length > LONGER_THAN) & (length < SHORTER_THAN))


def _fold(levels: list[Level]) -> tuple[list[Array], list[Array]]:
    """Bottom up, a level at a time: how many tokens each node spans, and its value."""
    sizes, values = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for number in range(len(levels) - 1, -1, -1):
        level = levels[number]
        size, value = np.ones(len(level.args), np.int64), level.symbol.copy()
        if number + 1 < len(levels) and len(levels[number + 1].parent):
            below = levels[number + 1].parent
            first = np.flatnonzero(np.diff(below, prepend=-1))
            nodes = below[first]
            size[nodes] = 2 + np.add.reduceat(sizes[0], first)
            value[nodes] = _evaluate(level.symbol[nodes], level.args[nodes], first, values[0])
        sizes.insert(0, size)
        values.insert(0, value)
    return sizes[:-1], values[:-1]


def _evaluate(operator: Array, args: Array, first: Array, below: Array) -> Array:
    """[n]: the values of operators whose arguments are groups of `below` that begin at `first`."""
    # By value within each group: what is between the groups is larger than any digit.
    group = np.repeat(np.arange(len(first)), args)
    ordered = np.sort(group * 16 + below) % 16
    low, high = ordered[first + (args - 1) // 2], ordered[first + args // 2]
    results = (
        ordered[first],
        ordered[first + args - 1],
        (low + high) // 2,
        np.add.reduceat(below, first) % 10,
    )
    return np.choose(operator, results)


def _flatten(levels: list[Level], sizes: list[Array], kept: Array) -> tuple[Array, Array]:
    """Top down: every node's tokens at their places, and where the kept trees start."""
    lengths = np.zeros(len(levels[0].tree), np.int64)
    lengths[kept] = sizes[0][kept]
    starts = np.concatenate([[0], np.cumsum(lengths[kept])])
    at = np.full(len(lengths), -1, np.int64)
    at[kept] = starts[:-1]
    tokens = np.full(starts[-1], CLOSE, np.int64)
    for number, level in enumerate(levels):
        if number:
            # After the operator and the siblings before it.
            before = np.cumsum(sizes[number]) - sizes[number]
            first = np.flatnonzero(np.diff(level.parent, prepend=-1))
            offset = before - np.repeat(before[first], np.diff(first, append=len(before)))
            above = at[level.parent]
            at = np.where(above < 0, -1, above + 1 + offset)
        coded = np.where(
            level.args > 0,
            FIRST_OPERATOR + level.symbol + len(OPERATORS) * level.args,
            level.symbol,
        )
        tokens[at[at >= 0]] = coded[at >= 0]
    return tokens, starts


def sources(tokens: Array, starts: Array) -> Iterator[str]:
    """The expressions as the files have them: the left-associated binary tree, in brackets.

    An operator opens a bracket for each argument and for the closing one; every argument and the
    closing bracket then close one.
    """
    text = [f"{digit} )" for digit in range(10)] + ["] ) )"]
    text += [
        "( " * (args + 1) + f"[{operator}" for args in range(MAX_ARGS + 1) for operator in OPERATORS
    ]
    words = np.array(text, dtype=object)[tokens].tolist()
    for start, stop in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        # The whole is nobody's argument.
        yield " ".join(words[start:stop]).removesuffix(" )")
