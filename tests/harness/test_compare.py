"""Verdicts on times whose ratios are known."""

from __future__ import annotations

import random

import numpy as np
import pytest

from harness.compare import compare, interval, show
from tests.harness.synthetic import record, write
from tests.harness.synthetic_kernels import speed_records, speed_task, timing
from tests.harness.synthetic_recall import mqar_records

GRID = "speed"


def cells(mixer: str, ms: float, *, impl="triton", trials=5, jitter=0.005, null=1.0, **size):
    """Trials around `ms`; `null` is the factor between the A/A series."""
    rng = random.Random(f"{mixer}{impl}{ms}")
    for trial in range(trials):
        centre = ms * (1 + rng.uniform(-jitter, jitter))
        times = [centre * (1 + rng.uniform(-jitter, jitter)) for _ in range(21)]
        task = speed_task(mixer, impl, trial=trial, **size)
        yield record(task, timing(times, [null * time for time in times]), grid=GRID)


def verdicts(tmp_path, *made, baseline="attention"):
    write(tmp_path, GRID, [one for group in made for one in group])
    return compare(GRID, tmp_path, baseline=baseline).set_index("series")


def test_known_ratios_get_their_verdicts(tmp_path):
    table = verdicts(
        tmp_path,
        cells("attention", 2.0, impl="sdpa"),
        cells("hgrn2", 1.0),
        cells("gla", 4.0, impl="fla"),
        cells("mamba", 2.0, impl="mamba_ssm", null=1.01),
    )
    assert table["verdict"].to_dict() == {
        "HGRN2": "faster",
        "GLA": "slower",
        "Mamba": "no difference",
    }
    assert table["speedup"].to_dict() == pytest.approx(
        {"HGRN2": 2.0, "GLA": 0.5, "Mamba": 1.0}, rel=0.02
    )
    row = table.loc["HGRN2"]
    assert row["low"] < row["speedup"] < row["high"] < 2.1
    assert (row["time_ms"], row["baseline_ms"]) == pytest.approx((1.0, 2.0), rel=0.01)
    assert (row["trials"], row["resampled"], row["baseline"]) == (5, "trials", "Attention")


def test_a_difference_inside_the_noise_floor_is_no_difference(tmp_path):
    made = [
        list(cells("attention", 1.10, impl="sdpa", jitter=0.001)),
        list(cells("hgrn2", 1.0, jitter=0.001)),
    ]
    (tmp_path / "quiet").mkdir()
    quiet = verdicts(tmp_path / "quiet", *made).loc["HGRN2"]
    assert (quiet["verdict"], quiet["noise_floor"]) == ("faster", pytest.approx(0))
    # Another mixer of the same size whose A/A runs differ by a fifth.
    noisy = verdicts(tmp_path / "noisy", *made, cells("gla", 1.0, null=1.2)).loc["HGRN2"]
    assert noisy["low"] > 1
    assert noisy["noise_floor"] == pytest.approx(0.2)
    assert noisy["verdict"] == "no difference"


def test_an_interval_that_covers_one_is_no_difference(tmp_path):
    table = verdicts(
        tmp_path,
        cells("attention", 1.05, impl="sdpa", jitter=0.3),
        cells("hgrn2", 1.0, jitter=0.3),
    )
    row = table.loc["HGRN2"]
    assert row["low"] < 1 < row["high"]
    assert row["verdict"] == "no difference"


def test_the_interval_is_that_of_the_trials_not_of_their_many_repetitions(tmp_path):
    # Two processes each agree within themselves and differ from each other.
    made = []
    for trial, ms in enumerate((1.0, 1.0, 1.3)):
        times = timing([ms] * 101, [ms] * 101)
        made.append(record(speed_task("hgrn2", "triton", trial=trial), times, grid=GRID))
        flat = timing([1.2] * 101, [1.2] * 101)
        made.append(record(speed_task("attention", "sdpa", trial=trial), flat, grid=GRID))
    row = verdicts(tmp_path, made).loc["HGRN2"]
    assert (row["low"], row["high"]) == pytest.approx((1.2 / 1.3, 1.2))
    assert row["verdict"] == "no difference"


@pytest.mark.parametrize(("trials", "told"), [(1, "1 trial"), (2, "2 trials")])
@pytest.mark.parametrize("fewer", ["attention", "hgrn2"])
def test_fewer_than_three_trials_on_a_side_give_no_verdict(tmp_path, fewer, trials, told):
    count = {"attention": 3, "hgrn2": 3, fewer: trials}
    table = verdicts(
        tmp_path,
        cells("attention", 2.0, impl="sdpa", trials=count["attention"]),
        cells("hgrn2", 1.0, trials=count["hgrn2"]),
    )
    row = table.loc["HGRN2"]
    assert (row["resampled"], row["verdict"]) == ("repetitions", f"no verdict ({told})")
    assert row["speedup"] == pytest.approx(2, rel=0.02)


def test_one_repetition_each_gives_no_interval_and_no_verdict():
    assert all(np.isnan(interval(np.array([1.0]), np.array([2.0]))))


def test_only_cells_of_one_size_are_compared(tmp_path):
    write(
        tmp_path,
        GRID,
        [
            *cells("attention", 1.0, impl="sdpa", seq_len=512),
            *cells("attention", 8.0, impl="sdpa", seq_len=8192),
            *cells("hgrn2", 2.0, seq_len=512),
            *cells("hgrn2", 2.0, seq_len=8192),
            *cells("hgrn2", 4.0, seq_len=8192, mode="fwd_bwd"),
        ],
    )
    table = compare(GRID, tmp_path, baseline="attention/sdpa")
    told = table.set_index(["mode", "seq_len"])["verdict"].to_dict()
    assert told == {
        ("fwd", 512): "slower",
        ("fwd", 8192): "faster",
        ("fwd_bwd", 8192): "no baseline",
    }


def test_cells_without_a_time_keep_their_status(tmp_path, capsys):
    write(tmp_path, GRID, speed_records(lengths=(512, 32_768)))
    table = compare(GRID, tmp_path, baseline="attention")
    assert set(table.query("mixer == 'mamba' and level == 'op'")["verdict"]) == {"unsupported"}
    lost = table.query("level == 'training_step' and seq_len == 32768")
    assert set(lost["verdict"]) == {"no baseline"}
    show(table)
    said = capsys.readouterr().out
    assert "Speed-up over Attention" in said
    assert said.count("no baseline") == 4
    assert len(said.splitlines()) == len(table) + 3


def test_the_title_tells_only_what_every_row_has(tmp_path, capsys):
    made = [*cells("attention", 2.0), *cells("hgrn2", 1.0), *cells("gla", 4.0)]
    write(tmp_path, GRID, made)
    table = compare(GRID, tmp_path, baseline="attention")
    # As of a grid that decodes too: one row alone has a context.
    table.insert(0, "context", [64.0, np.nan])
    show(table)
    title, heads, *_ = capsys.readouterr().out.splitlines()
    assert "seq_len" in title
    assert "context" not in title
    assert "context" in heads


def test_the_same_records_give_the_same_intervals(tmp_path):
    write(tmp_path, GRID, speed_records(lengths=(512,)))
    one, two = (compare(GRID, tmp_path, baseline="gla") for _ in range(2))
    assert one.equals(two)


def test_a_baseline_that_is_not_there_is_an_error_that_lists_what_is(tmp_path):
    write(tmp_path, GRID, speed_records(lengths=(512,), trials=1))
    with pytest.raises(
        ValueError, match=r"baseline 'rwkv' is not in the grid.*hgrn2/triton; .*sdpa"
    ):
        compare(GRID, tmp_path, baseline="rwkv")


def test_a_mixer_with_two_implementations_must_be_named_with_one(tmp_path):
    made = [*cells("gla", 1.0, impl="fla"), *cells("gla", 2.0, impl="reference")]
    write(tmp_path, GRID, [*made, *cells("hgrn2", 1.0)])
    with pytest.raises(ValueError, match=r"'gla' means several series.*gla/reference"):
        compare(GRID, tmp_path, baseline="gla")
    table = compare(GRID, tmp_path, baseline="gla/fla").set_index("series")
    assert set(table.index) == {"GLA (reference)", "HGRN2"}


def test_a_grid_without_times_is_told_what_compare_is_for(tmp_path):
    write(tmp_path, "mqar", mqar_records(cells=((64, 4),), widths=(64,), lrs=(1e-3,)))
    with pytest.raises(ValueError, match=r"'mqar' has no times.*mixerbench report mqar"):
        compare("mqar", tmp_path, baseline="attention")


def test_heads_of_one_size_are_compared_with_each_other(tmp_path):
    """At one width: HGRN2's by their size, attention's by their number; a mixer without heads
    with those of the most common size."""
    made = []
    for size, ms in ((64, 1.0), (128, 2.0), (256, 4.0)):
        for mixer, impl, field, value, factor in (
            ("hgrn2", "triton", "expand_ratio", size, 1),
            ("attention", "sdpa", "n_heads", 2048 // size, 2),
            ("mamba", "mamba_ssm", "d_state", 16, 1),
        ):
            for seq_len in (512, 2048) if size == 128 else (512,):
                task = speed_task(mixer, impl, seq_len=seq_len)
                task |= {"mixer": task["mixer"] | {field: value}}
                if mixer != "mamba" or size == 128:
                    times = [factor * ms] * 5
                    made.append(record(task, timing(times, times), grid=GRID))
    table = verdicts(tmp_path, made).query("seq_len == 512").reset_index()
    found = table[["series", "head_size", "baseline_ms", "speedup"]].to_records(index=False)
    assert sorted(map(tuple, found)) == [
        ("HGRN2", 64, 2.0, 2.0),
        ("HGRN2", 128, 4.0, 2.0),
        ("HGRN2", 256, 8.0, 2.0),
        ("Mamba", 128, 4.0, 2.0),
    ]
