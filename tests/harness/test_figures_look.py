"""A fixed style: no text covers another, numbers read plainly, and a figure is always the same."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg

from harness.figures_decode import decode
from harness.figures_recall import mqar
from harness.frames import tidy
from harness.sheet import End, Sheet, save, spread, value_ticks
from harness.style import DASHES, SPARE_DASH, Mark, length, number, significant, styled
from tests.harness.figure_texts import overlaps
from tests.harness.synthetic_kernels import decode_records
from tests.harness.synthetic_recall import mqar_records


@pytest.mark.parametrize("kind", ["recall", "speed", "decode", "map"])
def test_no_text_covers_another(kind, recall_plots, speed_plots):
    plots = {
        "recall": lambda: recall_plots,
        "speed": lambda: speed_plots,
        "decode": lambda: decode(tidy(decode_records(contexts=(256, 4096)))),
        "map": lambda: mqar(
            tidy(mqar_records(cells=((64, 4), (64, 8), (128, 8), (128, 4)), lrs=(1e-3,)))
        ),
    }[kind]()
    assert plots
    for name, plot in plots.items():
        assert not overlaps(plot.figure), name


@given(st.lists(st.floats(-0.5, 1.5), min_size=1, max_size=8))
def test_labels_are_spread_apart_in_their_order(wanted):
    placed = spread(wanted, 0.1)
    assert all(-1e-9 <= y <= 1 + 1e-9 for y in placed)
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    heights = [placed[i] for i in order]
    assert all(b - a > 0.1 - 1e-9 for a, b in pairwise(heights))


def test_labels_that_have_room_stay_where_their_lines_end():
    assert spread([0.9, 0.2, 0.5], 0.1) == [0.9, 0.2, 0.5]


@pytest.mark.parametrize(
    ("value", "said"), [(256, "256"), (1024, "1k"), (16_384, "16k"), (2**20, "1M"), (1500, "1.5k")]
)
def test_lengths_read_plainly(value, said):
    assert length(value) == said


def test_numbers_read_plainly():
    assert [number(x) for x in (0.05, 2, 1500, 3e6, 2e9)] == ["0.05", "2", "1.5k", "3M", "2G"]
    assert [significant(x) for x in (0.123456, 7.0, 36_154_321.7, True, None, float("nan"))] == [
        "0.1235",
        "7",
        "36150000",
        "True",
        "–",
        "–",
    ]


@pytest.mark.parametrize(("label", "wider"), [("HGRN2", False), ("HGRN2, " * 12, True)])
def test_long_labels_leave_the_panels_room(label, wider):
    with styled():
        sheet = Sheet(2, height_in=2.0, columns=2)
        for ax in sheet.axes:
            ax.plot([0, 1], [0, 1])
            sheet.label(ax, [End(label, Mark("black", "o", "-", "full"), (1, 1))])
        figure = sheet.finish()
    assert (figure.get_size_inches()[0] > 7) == wider
    assert all(ax.get_window_extent().width > 0.7 * figure.dpi for ax in sheet.axes)


def test_labels_show_every_dash():
    def drawn(dash):
        with styled():
            sheet = Sheet(1, height_in=1.0, columns=1)
            sheet.label(sheet.axes[0], [End("GLA", Mark("black", "^", dash, "full"), (1, 0.5))])
            canvas = FigureCanvasAgg(sheet.finish())
            canvas.draw()
        return np.asarray(canvas.buffer_rgba())[:, :, 0] > 128

    pictures = [drawn(dash) for dash in {*DASHES.values(), SPARE_DASH}]
    for one, other in combinations(pictures, 2):
        # A gap of 1.2 line widths is 4 dots wide and as high.
        assert (one != other).sum() >= 10


@pytest.mark.parametrize("letters", range(10, 70, 3))
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_single_panel_has_room_beside_texts_of_any_length(side, letters):
    with styled():
        sheet = Sheet(1, height_in=2.0, columns=1)
        (ax,) = sheet.axes
        ax.plot([0, 1], [0.5, 0.8])
        sheet.axis_names(0, x="Epoch", y="Test accuracy")
        if side == "left":
            ax.set(yticks=[0.5], yticklabels=["n" * letters])
        else:
            sheet.label(ax, [End("n" * letters, Mark("black", "o", "-", "full"), (1, 0.8))])
        figure = sheet.finish()
    assert ax.get_window_extent().width > 0.7 * figure.dpi


def test_numbers_below_a_panel_do_not_touch():
    with styled():
        sheet = Sheet(4, height_in=2.0, columns=4)
        lengths = [2**11, 2**15, 2**18, 2**20, 2**22]
        for ax in sheet.axes:
            ax.set(xscale="log", xlim=(2**10, 2**23))
            value_ticks(ax.xaxis, lengths)
        figure = sheet.finish()
        figure.draw_without_rendering()
    for ax in sheet.axes:
        texts = [text for text in ax.get_xticklabels() if text.get_visible()]
        assert [text.get_text() for text in texts] == ["2k", "32k", "1M", "4M"]
        boxes = [text.get_window_extent() for text in texts]
        assert all(a.x1 < b.x0 for a, b in pairwise(boxes))


@pytest.mark.parametrize("label", ["", "HGRN2, short conv first (none)"])
@pytest.mark.parametrize("columns", [1, 2, 3, 4])
def test_titles_have_room_beside_each_other(columns, label):
    sheet = Sheet(columns, height_in=2.0, columns=columns)
    for i, ax in enumerate(sheet.axes):
        ax.set_title("256 tokens, 16 pairs, bf16 autocast")
        sheet.axis_names(i, x="Model width", y="Trainings an hour")
    if label:
        sheet.label(sheet.axes[-1], [End(label, Mark("black", "o", "-", "full"), (1, 1))])
    figure = sheet.finish()
    assert not overlaps(figure)
    boxes = [ax.title.get_window_extent() for ax in sheet.axes]
    assert all(a.x1 + 0.1 * figure.dpi < b.x0 for a, b in pairwise(boxes))


def test_the_same_records_give_the_same_svg(tmp_path):
    table = tidy(mqar_records(cells=((64, 4),), lrs=(1e-3,)))
    for copy in ("one", "two"):
        save(mqar(table)["accuracy_over_width"].figure, tmp_path / copy)
    one, two = ((tmp_path / f"{copy}.svg").read_bytes() for copy in ("one", "two"))
    assert one == two
    assert b"<dc:date>" not in one
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
