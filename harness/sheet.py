"""A figure's sheet: panels in rows, ticks in plain numbers, labels at line ends, a note below."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from matplotlib.transforms import ScaledTranslation

from harness.style import GREY, Mark, length, number, styled

WIDTH_IN, COLUMN_IN = 6.9, 3.4
"""A paper's two columns, and one of them."""
PANEL_IN = 1.4
"""What a panel has at least, with its margins, beside names and labels."""
BETWEEN_IN = 0.15
"""From one panel's title to the next."""
LINE_PT = 10.5
"""From one line of 8-pt text to the next."""
APART_PT = 2.0
"""From one number below a panel to the next."""
NOTE_CHARACTERS = 112
SWATCH_PT, TEXT_PT = (5.0, 23.0), 28.0
"""From the panel's right edge to the ends of a label's piece of line, long enough for every dash to
show, and to its text."""


@dataclass(frozen=True)
class End:
    """What a label names: the last point of a line, in data units (None: no line here)."""

    text: str
    mark: Mark
    at: tuple[float, float] | None
    colour: str = "black"
    """Of the text."""


class Sheet:
    """Panels of one figure, `columns` in a row, or rows of up to four that are as equal as can be.

    Draw on `axes`, call `label`, then `finish`; all inside `styled`.
    """

    def __init__(
        self,
        count: int,
        *,
        height_in: float,
        columns: int | None = None,
        note: str = "",
        share: bool = False,
    ) -> None:
        rows = math.ceil(count / (columns or 4))
        columns = columns or math.ceil(count / rows)
        width_in = COLUMN_IN if columns == 1 else WIDTH_IN
        lines = textwrap.wrap(note, round(NOTE_CHARACTERS * width_in / WIDTH_IN))
        note_in = (len(lines) + 0.5) * LINE_PT / 72 if lines else 0.0
        total_in = rows * height_in + note_in
        self.figure = Figure(figsize=(width_in, total_in))
        below = note_in / total_in
        self.figure.set_layout_engine(
            ConstrainedLayoutEngine(rect=(0, below, 1, 1 - below), w_pad=0.04, h_pad=0.04)
        )
        grid = self.figure.subplots(rows, columns, sharex=share, sharey=share, squeeze=False)
        self.axes: list[Axes] = list(grid.flat[:count])
        for empty in grid.flat[count:]:
            empty.remove()
        self.columns = columns
        self._labels: list[tuple[Axes, list[tuple[End, Text]]]] = []
        if lines:
            self.figure.text(
                0.008, 0.25 * LINE_PT / 72 / total_in, "\n".join(lines), color=GREY, va="bottom"
            ).set_in_layout(False)

    def axis_names(self, index: int, *, x: str, y: str) -> None:
        """Name the axes of panel `index` where no panel below or to the left does it."""
        if index + self.columns >= len(self.axes):
            self.axes[index].set_xlabel(x)
            self.axes[index].tick_params(labelbottom=True)
        if index % self.columns == 0:
            self.axes[index].set_ylabel(y)

    def last_of_row(self, index: int) -> bool:
        """Whether panel `index` has none to its right."""
        return index % self.columns == self.columns - 1 or index == len(self.axes) - 1

    def label(self, ax: Axes, ends: Sequence[End]) -> None:
        """Name the lines right of the panel, each at the height of its end as far as they fit."""
        offset = ScaledTranslation(TEXT_PT / 72, 0, self.figure.dpi_scale_trans)
        style = {"transform": ax.transAxes + offset, "va": "center"}
        made = [(end, ax.text(1, 0.5, end.text, color=end.colour, **style)) for end in ends]
        # In a row that is not full the space to the right is free: it need not be made.
        index = self.axes.index(ax)
        free = index == len(self.axes) - 1 and index % self.columns < self.columns - 1
        for end, text in made:
            text.set_in_layout(not free)
            if end.at is None:
                text.set(text=f"{end.text} (none)", color=GREY)
        self._labels.append((ax, made))

    def finish(self) -> Figure:
        """Settle the layout, then put the labels where their lines ended up."""
        self._widen()
        self.figure.align_ylabels()
        self.figure.draw_without_rendering()
        # A wider panel's numbers can take some of what it gained.
        for missing_in in iter(self._missing_in, 0.0):
            width_in, height_in = self.figure.get_size_inches()
            self.figure.set_size_inches(width_in + self.columns * missing_in, height_in)
            self.figure.draw_without_rendering()
        self.figure.set_layout_engine("none")
        for ax in self.axes:
            self._thin(ax)
        for ax, made in self._labels:
            self._place(ax, made)
        return self.figure

    def _widen(self) -> None:
        """Wider than a page, or a column, where names and labels would leave the panels no room."""
        left, right = ([0.0] * self.columns for _ in range(2))
        for i, ax in enumerate(self.axes):
            names = ax.yaxis.get_tightbbox()
            left[i % self.columns] = max(left[i % self.columns], names.width if names else 0.0)
        for ax, made in self._labels:
            column = self.axes.index(ax) % self.columns
            inside = [text.get_window_extent().width for _, text in made if text.get_in_layout()]
            right[column] = max(right[column], *inside, 0.0)
        beside_in = sum([*left, *right]) / self.figure.dpi
        beside_in += sum(width > 0 for width in right) * TEXT_PT / 72
        width_in, height_in = self.figure.get_size_inches()
        wanted_in = beside_in + self.columns * PANEL_IN
        self.figure.set_size_inches(max(width_in, wanted_in), height_in)

    def _missing_in(self) -> float:
        """By how much each panel is too narrow for its title, next to the others and the edges."""
        missing = [0.0]
        boxes = [ax.title.get_window_extent() for ax in self.axes]
        for i, box in enumerate(boxes):
            # A panel's middle moves away from an edge by half of what the panel gains.
            missing += [-2 * box.x0, 2 * (box.x1 - self.figure.bbox.x1)]
            if not self.last_of_row(i):
                missing.append(box.x1 + BETWEEN_IN * self.figure.dpi - boxes[i + 1].x0)
        return round(max(missing) / self.figure.dpi, 2)

    def _thin(self, ax: Axes) -> None:
        """Leave out the numbers below a panel that would touch the next one to their right; names,
        which cannot be inferred, stay."""
        if not isinstance(ax.xaxis.get_major_formatter(), FuncFormatter):
            return
        inside, taken = ax.get_window_extent(), math.inf
        boxes = [(text.get_window_extent(), text) for text in ax.get_xticklabels()]
        for box, text in sorted(boxes, key=lambda pair: -pair[0].x0):
            if not inside.x0 <= (box.x0 + box.x1) / 2 <= inside.x1:
                continue
            if box.x1 + APART_PT / 72 * self.figure.dpi > taken:
                text.set_visible(False)
            else:
                taken = box.x0

    def _place(self, ax: Axes, made: list[tuple[End, Text]]) -> None:
        height_pt = ax.get_window_extent().height * 72 / self.figure.dpi
        to_axes = ax.transData + ax.transAxes.inverted()
        ends = [None if end.at is None else to_axes.transform(end.at) for end, _ in made]
        # Lines that are missing here are named below all others.
        wanted = [-1.0 if end is None else float(end[1]) for end in ends]
        start, stop = (
            1 + pt / 72 * self.figure.dpi / ax.get_window_extent().width for pt in SWATCH_PT
        )
        for (end, text), point, y in zip(
            made, ends, spread(wanted, LINE_PT / height_pt), strict=True
        ):
            text.set_y(y)
            swatch = Line2D([start, stop], [y, y], transform=ax.transAxes)
            swatch.set(**end.mark.line(), markevery=[1], clip_on=False)
            ax.add_artist(swatch)
            if point is not None:
                leader = Line2D([point[0], start], [point[1], y], transform=ax.transAxes)
                # Dotted where the line ends early, so that nobody takes it for data.
                dash = "-" if point[0] > 0.9 else (0, (1, 3))
                leader.set(color=end.mark.colour, linewidth=0.5, linestyle=dash, clip_on=False)
                ax.add_artist(leader)


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Heights at least `gap` apart, within 0 and 1 as far as they fit, close to the wanted ones
    and in their order."""
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    placed: list[float] = []
    for i in order:
        y = min(max(wanted[i], 0.0), 1.0)
        placed.append(max(y, placed[-1] + gap) if placed else y)
    top = 1.0
    for k in reversed(range(len(placed))):
        placed[k] = min(placed[k], top)
        top = placed[k] - gap
    heights = [0.0] * len(wanted)
    for i, y in zip(order, placed, strict=True):
        heights[i] = y
    return heights


def log_limits(values: Iterable[float]) -> tuple[float, float]:
    """Limits of a log axis around the positive values, with a margin; one value stands in the
    middle; from 1 to 10 where there is none."""
    positive = [value for value in values if value > 0]
    low, high = (min(positive), max(positive)) if positive else (1.0, 10.0)
    margin = (high / low) ** 0.07 if high > low else 2.0
    return low / margin, high * margin


def value_ticks(axis: Axis, values: Sequence[float], *, most: int = 6) -> None:
    """Ticks at the values measured (every other one, the last kept, where they are too many)."""
    ticks = sorted({float(value) for value in values})
    while len(ticks) > most:
        ticks = ticks[::-2][::-1]
    _ticks(axis, ticks, length)


def plain_ticks(axis: Axis, *, most: int = 5) -> None:
    """Ticks at 1 (2 5) times powers of ten inside the limits of a log axis, written plainly."""
    low, high = axis.get_view_interval()
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    inside: list[float] = []
    for steps in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10.0**decade for decade in decades for step in steps]
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) <= most:
            break
    _ticks(axis, inside[:: math.ceil(len(inside) / most) or 1], number)


def binary_ticks(axis: Axis, *, most: int = 5) -> None:
    """Ticks at powers of two inside the limits of a log axis: 256, 1k, 4k."""
    low, high = axis.get_view_interval()
    powers = list(range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1))
    step = max(1, math.ceil(len(powers) / most))
    _ticks(axis, [2.0**power for power in powers if power % step == 0], length)


def rate_ticks(axis: Axis, values: Iterable[float]) -> None:
    """Ticks at the powers of ten among the limits of a log axis; at the values themselves where
    there are fewer than two."""
    low, high = axis.get_view_interval()
    powers = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
    if len(powers) < 2:
        _ticks(axis, sorted(values), number)
    else:
        _ticks(axis, [10.0**power for power in powers], _power_of_ten)


def _power_of_ten(value: float) -> str:
    return f"$10^{{{round(math.log10(value))}}}$"


def _ticks(axis: Axis, ticks: Sequence[float], write: Callable[[float], str]) -> None:
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))
    axis.set_minor_locator(NullLocator())


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write `stem`.svg and `stem`.png (200 dpi); the same figure gives the same bytes."""
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("svg", "png")]
    with styled():
        figure.savefig(paths[0], metadata={"Date": None, "Creator": None})
        figure.savefig(paths[1], metadata={"Software": None})
    return paths
