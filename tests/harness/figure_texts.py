"""What is written in a figure, and which of it cannot be read."""

from __future__ import annotations

from itertools import combinations

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def texts(figure: Figure) -> str:
    """All that is written in a figure, outside its axes too."""
    inside = [text.get_text() for ax in figure.axes for text in ax.texts]
    return "\n".join([*inside, *(text.get_text() for text in figure.texts)])


def overlaps(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of texts that cover each other, or one text and the edge that cuts it."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    found, boxes = [], []
    shown = list(figure.texts)
    for ax in figure.axes:
        shown += [*ax.texts, ax.title, ax.xaxis.label, ax.yaxis.label]
        shown += [*ax.get_xticklabels(), *ax.get_yticklabels()]
    for text in shown:
        if text.get_text() and text.get_visible():
            box = text.get_window_extent(renderer)
            if box.x0 < -1 or box.x1 > figure.bbox.x1 + 1 or box.y0 < -1:
                found.append((text.get_text(), "the edge"))
            # Boxes hold the room of a line's ascenders and descenders, mostly empty.
            boxes.append((text.get_text(), box.padded(-2)))
    for (one, a), (other, b) in combinations(boxes, 2):
        if a.overlaps(b):
            found.append((one, other))
    return found
