"""How every figure looks: one fixed mark for each mixer, plain ticks, labels at line ends.

Colours are those of Okabe and Ito ("Color Universal Design", 2008), told apart by colour-blind
readers; markers and dashes carry the same distinction in grey.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

GREY = "#6e6e6e"

MARKS = {
    "hgrn2": ("HGRN2", "#D55E00", "o"),
    "hgrn1": ("HGRN1", "#E69F00", "s"),
    "gla": ("GLA", "#009E73", "^"),
    "mamba": ("Mamba", "#0072B2", "D"),
    "mamba2": ("Mamba2", "#56B4E9", "v"),
    "attention": ("Attention", "#000000", "P"),
}
"""Mixer -> (name in figures, colour, marker). Another mixer gets a spare mark by its name."""
NAMES = {
    "based": "Based",
    "base_conv": "BaseConv",
    "h3": "H3",
    "hyena": "Hyena",
    "rwkv": "RWKV",
    "rwkv7": "RWKV-7",
    "delta_net": "DeltaNet",
    "gated_delta_net": "Gated DeltaNet",
    "sliding_window": "Sliding window",
}
"""Mixers with spare marks that are only published here, not run."""
SPARE_COLOURS = ("#CC79A7", "#7F7F7F", "#8C510A", "#5E3C99")
SPARE_MARKERS = ("X", "p", "h", "<", ">")

Dash = str | tuple[float, tuple[float, ...]]
DASHES: dict[str, Dash] = {
    "triton": "-",
    "sdpa": "-",
    "products": (0.0, (9.0, 1.2)),
    "reference": (0.0, (3.5, 1.2)),
    "fla": (0.0, (5.0, 1.2, 1.0, 1.2)),
    "fla_chunk": (0.0, (5.0, 1.2, 1.0, 1.2)),
    "fla_recurrent": (0.0, (5.0, 1.2, 1.0, 1.2, 1.0, 1.2)),
    "sdpa_flash": (0.0, (7.0, 1.2)),
    "sdpa_cudnn": (0.0, (2.0, 1.2)),
    "mamba_ssm": (0.0, (5.0, 1.2, 1.0, 1.2)),
}
"""Implementation -> dash: ours solid, eager references dashed, peers dash-dotted, others dotted."""
SPARE_DASH: Dash = (0.0, (1.2, 1.2))
FILLS = ("full", "none", "left", "right", "top", "bottom")
"""How further variants of one (mixer, implementation) fill the marker."""

RC: dict[RcKeyType, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.3,
    "lines.markersize": 4.5,
    "figure.dpi": 200,
    "savefig.dpi": 200,
    "svg.hashsalt": "mixerbench",
    "svg.fonttype": "path",
}


@contextmanager
def styled() -> Iterator[None]:
    """Draw and save inside this, so that a figure depends on nothing but its numbers."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(RC)
        yield


@dataclass(frozen=True)
class Mark:
    """How one series is drawn in every figure."""

    colour: str
    marker: str
    dash: Dash
    fill: str

    def line(self) -> dict[str, Any]:
        """Keyword arguments of `Axes.plot`."""
        return {
            "color": self.colour,
            "marker": self.marker,
            "linestyle": self.dash,
            "fillstyle": self.fill,
            "markerfacecoloralt": "white",
            "markeredgewidth": 0.9,
        }

    def hollow(self) -> dict[str, Any]:
        """Keyword arguments of `Axes.plot` for points that no line joins: pale too, since a variant
        may be hollow."""
        return self.line() | {"linestyle": "none", "fillstyle": "none", "alpha": 0.5}

    def point(self) -> dict[str, Any]:
        """Keyword arguments of `Axes.plot` for the single runs behind a line."""
        return {
            "color": self.colour,
            "marker": self.marker,
            "linestyle": "none",
            "fillstyle": "none",
            "markersize": 3,
            "markeredgewidth": 0.6,
            "alpha": 0.65,
        }


def mark(mixer: str, impl: str, variant: int = 0) -> Mark:
    """The fixed mark of (mixer, implementation); `variant` counts further settings of it."""
    seed = zlib.crc32(mixer.encode())
    spare = (
        mixer,
        SPARE_COLOURS[seed % len(SPARE_COLOURS)],
        SPARE_MARKERS[seed % len(SPARE_MARKERS)],
    )
    _, colour, marker = MARKS.get(mixer, spare)
    return Mark(colour, marker, DASHES.get(impl, SPARE_DASH), FILLS[variant % len(FILLS)])


def mixer_name(mixer: str) -> str:
    """The mixer's name as papers spell it."""
    return MARKS[mixer][0] if mixer in MARKS else NAMES.get(mixer, mixer)


def number(value: float, base: int = 1000) -> str:
    """Plain: 0.05, 12, 1.5k, 3M. Lengths and widths count their k in 1024 (`base`)."""
    for power, suffix in ((3, "G"), (2, "M"), (1, "k")):
        if abs(value) >= base**power:
            return f"{value / base**power:.3g}{suffix}"
    return f"{value:.3g}" if abs(value) >= 1e-4 or value == 0 else f"{value:.0e}"


def length(value: float) -> str:
    """256, 1k, 16k: a power of two reads as one; other numbers count their k in thousands."""
    return number(value, 1024 if value % 1024 == 0 else 1000)


def significant(value: object, digits: int = 4) -> str:
    """A number for a table's reader: `digits` significant digits, whole numbers whole."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if float(value).is_integer():
        return str(int(value))
    rounded = float(f"{value:.{digits}g}")
    return str(int(rounded)) if abs(rounded) >= 10**digits else f"{rounded:.{digits}g}"
