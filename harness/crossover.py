"""From which length on one curve of times lies below another."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd

from harness.style import length


def crossovers(lines: pd.DataFrame, attention: pd.DataFrame, x: str, y: str) -> dict[str, str]:
    """Series -> where it is faster than attention, in words, for the lengths that both have.

    With several attention series the fastest at each length counts. Between two lengths the
    crossing is read off straight lines in log-log axes.
    """
    rival = attention.groupby(x)[y].min()
    found: dict[str, str] = {}
    for label, line in lines[lines["mixer"] != "attention"].groupby("series", sort=False):
        ours = line.groupby(x)[y].min()
        shared = ours.index.intersection(rival.index).sort_values()
        if len(shared):
            ratios = [float(ours[size] / rival[size]) for size in shared]
            found[str(label)] = _where([float(size) for size in shared], ratios)
    return found


def _where(sizes: list[float], ratios: list[float]) -> str:
    """`ratios` are our time over the rival's."""
    below = [ratio < 1 for ratio in ratios]
    turns = [i for i, (one, other) in enumerate(pairwise(below)) if one != other]
    if not turns:
        return "at every length" if below[0] else "at no length"
    if len(turns) > 1:
        faster = [length(size) for size, yes in zip(sizes, below, strict=True) if yes]
        return f"at {', '.join(faster)}"
    i = turns[0]
    (a, b), (left, right) = np.log(sizes[i : i + 2]), np.log(ratios[i : i + 2])
    crossing = float(np.exp(a + (b - a) * left / (left - right)))
    return f"{'up to' if below[0] else 'from'} about {float(f'{crossing:.2g}'):,.0f}"
