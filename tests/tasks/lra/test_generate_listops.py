"""ListOps' generator: semantics, the published statistics, files that a seed fixes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from tasks.lra.generate.listops import (
    DRAWS,
    FIRST_OPERATOR,
    HEADER,
    expressions,
    shard,
    sources,
    write_listops,
)

MEANINGS = {
    "[MIN": min,
    "[MAX": max,
    "[MED": lambda arguments: int(np.median(arguments)),
    "[SM": lambda arguments: sum(arguments) % 10,
}


@pytest.fixture(scope="module")
def sample() -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Tokens, starts and values of the kept ones of some draws, and how many draws."""
    draws = 12 * DRAWS
    return *expressions(draws, np.random.default_rng(0)), draws


def evaluate(tree: object) -> int:
    """The value of a binary tree of nested pairs: ((((op a) b) c) close)."""
    if not isinstance(tree, tuple):
        return int(str(tree))
    arguments, node = [], tree[0]
    assert tree[1] == "]"
    while isinstance(node, tuple):
        node, argument = node
        arguments.append(evaluate(argument))
    assert 2 <= len(arguments) <= 10
    return MEANINGS[node](arguments)


def parse(tokens: list[str]) -> object:
    stack: list[list[object]] = [[]]
    for token in tokens:
        if token == "(":
            stack.append([])
        elif token == ")":
            left, right = stack.pop()
            stack[-1].append((left, right))
        else:
            stack[-1].append(token)
    (whole,) = stack[0]
    return whole


def depth(tree: object) -> int:
    """The depth of the deepest operator."""
    if not isinstance(tree, tuple):
        return 0
    node, deepest = tree[0], 0
    while isinstance(node, tuple):
        node, argument = node
        deepest = max(deepest, depth(argument))
    return 1 + deepest


def test_targets_are_the_values_of_the_sources():
    rows = [row.split("\t") for row in shard((3, 7))[:120]]
    for source, target in rows:
        tokens = source.split()
        tree = parse(tokens)
        assert evaluate(tree) == int(target)
        assert 500 < sum(token not in "()" for token in tokens) < 2000
        assert depth(tree) == 9


def test_a_small_expression_is_serialised_as_published():
    minimum, close = FIRST_OPERATOR + 4 * 2, 10
    maximum = FIRST_OPERATOR + 1 + 4 * 3
    tokens = np.array([minimum, 4, maximum, 1, 2, 3, close, close])
    assert list(sources(tokens, np.array([0, 8]))) == [
        "( ( ( [MIN 4 ) ( ( ( ( [MAX 1 ) 2 ) 3 ) ] ) ) ] )"
    ]


def test_statistics_are_the_published_ones(sample):
    tokens, starts, values, draws = sample
    lengths = np.diff(starts)
    n = len(lengths)
    assert n / draws == pytest.approx(0.0824, abs=4 * math.sqrt(0.0824 / draws) + 5e-4)
    assert lengths.mean() == pytest.approx(1037, abs=4 * lengths.std() / math.sqrt(n) + 1)
    for share, golden in zip((5, 25, 50, 75, 95), (540, 703, 957, 1311, 1805), strict=True):
        assert np.percentile(lengths, share) == pytest.approx(golden, rel=0.03), share
    golden = np.array([17.0, 9.1, 7.4, 8.1, 9.1, 8.7, 8.0, 7.5, 8.4, 16.8]) / 100
    shares = np.bincount(values, minlength=10) / n
    assert np.all(np.abs(shares - golden) < 5 * np.sqrt(golden / n) + 1e-3)
    roots = (tokens[starts[:-1]] - FIRST_OPERATOR) % 4
    by_root = sum(np.bincount(values[roots == root]).max() for root in range(4)) / n
    assert by_root == pytest.approx(0.365, abs=0.02)


def test_operators_and_arguments_are_uniform(sample):
    tokens, starts, _, _ = sample
    # The roots: whether deeper nodes are kept depends on how many arguments they have.
    roots = tokens[starts[:-1]] - FIRST_OPERATOR
    kinds = np.bincount(roots % 4, minlength=4) / len(roots)
    assert np.all(np.abs(kinds - 0.25) < 5 * math.sqrt(0.25 / len(roots)))
    assert set(np.unique(roots // 4)) == set(range(2, 11))


def test_files_depend_on_the_seed_alone(tmp_path: Path):
    splits = {"train": 700, "val": 150, "test": 60}
    written = {}
    for name, seed, jobs in (("one", 5, 1), ("two", 5, 2), ("other", 6, 1)):
        folder = tmp_path / name
        folder.mkdir()
        heard: list[int] = []
        write_listops(folder, splits, seed, jobs, heard.append)
        assert heard[0] == 0
        assert heard[-1] == 910
        written[name] = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert written["one"] == written["two"]
    assert written["one"] != written["other"]
    rows = {}
    for split, count in splits.items():
        lines = written["one"][f"basic_{split}.tsv"].decode().splitlines()
        assert lines[0] == HEADER
        assert len(lines) == 1 + count
        rows[split] = lines[1:]
    assert len({row for part in rows.values() for row in part}) == 910, "no expression twice"
