"""Whether an implementation is right, before a time or an accuracy of it counts.

The bar: an error against fp64 is at most twice that of the reference in the same precision, plus
`slack` for where the reference happens to be closer.
"""

from __future__ import annotations

from torch import Tensor

from mixers.base import Mixer
from tasks.base import Wrong


def relative_error(x: Tensor, exact: Tensor) -> float:
    """|x - exact| / |exact|, over the whole tensor, in fp64."""
    exact = exact.double()
    scale = exact.norm()
    return float((x.double() - exact).norm() / (scale if scale > 0 else 1.0))


def bar(error: float, slack: float) -> float:
    """What an error may be where the reference's in the same precision is `error`."""
    return 2 * error + slack


def expect_as_close(what: str, mine: Tensor, same: Tensor, exact: Tensor, slack: float) -> None:
    """Raise Wrong, naming `what`, where mine does not pass the bar that `same`, the reference's,
    sets."""
    expect_close(what, relative_error(mine, exact), bar(relative_error(same, exact), slack))


def expect_close(what: str, error: float, allowed: float) -> None:
    """Raise Wrong where the error is above what is allowed, or NaN."""
    if not error <= allowed:
        raise Wrong(f"{what} is off by {error:.2e} against fp64; at most {allowed:.2e} is allowed")


def of(mixer: Mixer) -> str:
    return f"of {mixer.name} ({mixer.impl})"
