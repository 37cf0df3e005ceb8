"""Claims are told cell by cell, missing ones as missing; others' points stand next to ours."""

from __future__ import annotations

from itertools import product

import pandas as pd
import pytest

from harness.figures import draw
from harness.figures_claims import IN_PART, NOT_RUN, THEIRS, verdicts
from harness.frames import tidy
from harness.records import Record
from harness.report import markdown
from tests.harness.synthetic import record
from tests.harness.synthetic_recall import mqar_records, mqar_task

RATES = (1e-5, 5e-5, 1e-4, 5e-4, 1e-3, 5e-3, 1e-2)


def paper(
    results: dict[tuple[str, int, int], float],
    *,
    protocol: str = "hgrn2-paper",
    rates: tuple[float, ...] = RATES,
) -> list[Record]:
    """Cells of the paper's grid: (mixer, seq_len, width) -> the best rate's accuracy."""
    pairs = {64: 4, 128: 8, 256: 16, 512: 64}
    made = []
    for ((mixer, seq_len, width), accuracy), lr in product(results.items(), rates):
        cell = seq_len, pairs[seq_len]
        task = mqar_task(mixer, "triton", cell=cell, d_model=width, lr=lr, seed=123)
        task |= {"protocol": protocol}
        reached = accuracy if lr == 1e-3 else accuracy / 2
        made.append(record(task, {"accuracy": reached, "state_bytes": 4 * width}))
    return made


RESULTS = {
    ("hgrn2", 64, 64): 0.9,
    ("hgrn1", 64, 64): 0.5,
    ("hgrn2", 128, 64): 0.3,
    ("hgrn1", 128, 64): 0.4,
    ("hgrn2", 64, 512): 0.995,
    ("hgrn1", 64, 512): 0.999,
    ("hgrn2", 512, 512): 0.8,
    ("attention", 64, 64): 1.0,
    ("attention", 512, 512): 0.7,
}


def test_every_cell_of_the_papers_figure_has_a_verdict_or_is_told_to_be_missing():
    rows = verdicts(tidy(paper(RESULTS))).set_index(["seq_len", "d_model"])
    assert len(rows) == 16
    above = rows["HGRN2 above HGRN1"]
    assert above[64, 64] == "reproduced"
    assert above[128, 64] == "not reproduced"
    assert above[64, 512] == "tie"
    assert above[512, 512] == NOT_RUN
    assert above.value_counts()[NOT_RUN] == 13
    assert rows["difference"][64, 64] == pytest.approx(0.4)
    solved = rows["attention at 1"]
    assert (solved[64, 64], solved[512, 512]) == ("reproduced", "not reproduced")
    assert solved.value_counts()[NOT_RUN] == 14
    assert rows["rates"][64, 64] == "7, 7"
    assert rows["rates"][512, 512] == "7, 0"


def test_a_cell_has_no_verdict_that_missing_rates_could_change():
    rows = verdicts(tidy(paper(RESULTS, rates=RATES[3:]))).set_index(["seq_len", "d_model"])
    above = rows["HGRN2 above HGRN1"]
    # Both above the bound is a tie whatever else there is.
    assert (above[64, 64], above[128, 64], above[64, 512]) == (IN_PART, IN_PART, "tie")
    assert rows["rates"][64, 64] == "4, 4"
    solved = rows["attention at 1"]
    assert (solved[64, 64], solved[512, 512]) == ("reproduced", IN_PART)


@pytest.mark.parametrize("lower", ["hgrn1", "hgrn2"])
def test_a_verdict_stands_once_the_lower_has_all_its_rates(lower: str):
    whole = {place: a for place, a in RESULTS.items() if place[0] == lower}
    some = {place: a for place, a in RESULTS.items() if place[0] != lower}
    table = tidy([*paper(whole), *paper(some, rates=RATES[3:])])
    above = verdicts(table).set_index(["seq_len", "d_model"])["HGRN2 above HGRN1"]
    expected = ("reproduced", IN_PART) if lower == "hgrn1" else (IN_PART, "not reproduced")
    assert (above[64, 64], above[128, 64]) == expected


def test_a_caption_tells_that_rates_are_missing():
    some = paper({("hgrn2", 64, 128): 0.9}, rates=RATES[:2])
    told = "that have a result, at some points 2 (`lrs`)"
    for made, missing in ((paper(RESULTS), False), ([*paper(RESULTS), *some], True)):
        plots = draw(tidy(made))
        for name in ("accuracy_over_width", "next_to_zoology"):
            assert (told in plots[name].caption) == missing, name


def test_the_claims_caption_counts():
    plot = draw(tidy(paper(RESULTS)))["claim_hgrn2_above_hgrn1"]
    counted = "Of 16 cells: 1 reproduced, 1 not reproduced, 1 tie, 13 not yet run."
    assert counted in plot.caption
    assert "1 reproduced, 1 not reproduced, 14 not yet run" in plot.caption
    assert "not yet run" in markdown(plot.summary)


def test_a_variant_of_ours_takes_no_part_in_the_papers_claim():
    ours = paper({("hgrn2", 128, 64): 0.9}, protocol="lower bound")
    plots = draw(tidy([*paper(RESULTS), *ours]))
    rows = plots["claim_hgrn2_above_hgrn1"].table.set_index(["seq_len", "d_model"])
    assert rows["HGRN2"][128, 64] == 0.3
    # And is a line of its own in the others.
    series = set(plots["accuracy_over_width"].table["series"])
    assert {"HGRN2, hgrn2-paper", "HGRN2, lower bound"} <= series


def test_zoologys_figure_stands_next_to_ours():
    table = draw(tidy(mqar_records(cells=((64, 4), (256, 16)))))["next_to_zoology"].table
    theirs = table[table["impl"] == THEIRS].set_index(["mixer", "seq_len", "d_model"])
    assert theirs["accuracy_mean"]["attention", 256, 64] == 1
    assert theirs["accuracy_mean"]["hyena", 256, 128] == 0.13
    assert len(theirs) == 5 * 2 * 2
    assert set(table[table["impl"] != THEIRS]["mixer"]) == {"hgrn2", "hgrn1", "attention"}


def test_the_published_sizes_of_state_stand_next_to_ours():
    made = []
    for mixer, state, accuracy in (("hgrn2", 65_536, 0.9), ("gla", 4_608, 0.5)):
        task = mqar_task(mixer, "triton", cell=(1024, 256), d_model=64, lr=1e-3, seed=123)
        task |= {"protocol": "mixed"}
        made.append(record(task, {"accuracy": accuracy, "state_bytes": state}))
    plots = draw(tidy(made))
    shown = pd.concat(
        plot.table for name, plot in plots.items() if name.startswith("state_next_to_zoology")
    )
    theirs = shown[shown["impl"] == THEIRS]
    assert theirs.query("mixer == 'gla'")["state_bytes"].tolist() == [4864, 17_920, 68_608]
    assert set(shown[shown["impl"] != THEIRS]["mixer"]) == {"hgrn2", "gla"}
    assert "d_model" not in plots["state_next_to_zoology"].summary
