"""The figures of the GPU's grids: heads, ways of launching, cold starts and gate regimes apart."""

from __future__ import annotations

import pytest

from harness.figures import draw
from harness.figures_speed import by_head_size
from harness.frames import tidy
from harness.plot import Plot
from harness.style import mark
from tests.harness.figure_texts import overlaps, texts
from tests.harness.synthetic import record
from tests.harness.synthetic_kernels import (
    accuracy_records,
    cold_start_records,
    decode_records,
    speed_task,
    timing,
)

KINDS = ("latency", "throughput", "roofline")
WAYS = tuple(
    {"level": level, "replay": replay}
    for level, replay in (("layer", "eager"), ("layer", "graph"), ("op", "graph"))
)


@pytest.fixture(scope="module")
def plots() -> dict[str, Plot]:
    made = [
        *cold_start_records(),
        *accuracy_records(),
        *decode_records(contexts=(256, 16_384), ways=WAYS),
    ]
    return draw(tidy(made))


def test_every_task_has_its_figures(plots):
    errors = {f"error_{name}" for name in ("y", "dq", "dz", "dv", "dbound", "dkey")}
    decoding = {"decode_latency", "decode_latency_op", "decode_state"}
    assert set(plots) == errors | decoding | {"cold_start"}


def test_no_text_covers_another(plots):
    for name, plot in plots.items():
        assert not overlaps(plot.figure), name


def test_eager_and_replayed_steps_share_no_panel(plots):
    titles = [ax.get_title() for ax in plots["decode_latency"].figure.axes]
    assert titles == [
        "Batch 1, eager",
        "Batch 1, from a CUDA graph",
        "Batch 64, eager",
        "Batch 64, from a CUDA graph",
    ]
    table = plots["decode_latency"].table
    apart = table.groupby(["series", "batch", "context"])["replay"].nunique()
    assert (apart == 2).all()
    assert {ax.get_title() for ax in plots["decode_latency_op"].figure.axes} == {
        "Batch 1, from a CUDA graph",
        "Batch 64, from a CUDA graph",
    }


def test_the_bytes_floor_of_decoding_is_drawn_and_in_the_table(plots):
    plot = plots["decode_latency"]
    assert plot.table["bytes_floor_ms"].to_numpy() == pytest.approx(
        plot.table["time_ms"].to_numpy() / 4, rel=0.1
    )
    floors = {tuple(line.get_ydata()) for line in plot.figure.axes[0].lines}
    for _, line in plot.table.query("batch == 1 and replay == 'eager'").groupby("series"):
        assert tuple(line.sort_values("context")["bytes_floor_ms"]) in floors
    assert "copy bandwidth" in plot.caption


def test_cells_from_before_there_were_levels_and_replays_are_eager_layers():
    old, new = decode_records(contexts=(256,)), decode_records(contexts=(512,), ways=WAYS[:1])
    plot = draw(tidy([*old, *new]))["decode_latency"]
    assert [ax.get_title() for ax in plot.figure.axes] == ["Batch 1", "Batch 64"]
    assert plot.table.groupby("series")["context"].nunique().eq(2).all()


def test_a_cold_start_is_a_bar_of_its_parts(plots):
    plot = plots["cold_start"]
    row = plot.table.query("mixer == 'gla' and level == 'op'").iloc[0]
    assert row["forward_s"] == 102.5
    assert (row["cold_start_s_min"], row["cold_start_s_max"]) == pytest.approx((325.3, 326.3))
    assert row["trials"] == 2
    ax = plot.figure.axes[0]
    assert ax.get_title() == "Operator"
    widths = [patch.get_width() for patch in ax.patches]
    assert widths[:5] == pytest.approx([2.0, 0.1, 0.3, 8.5, 16.0])
    assert "Mamba error in 4 cells" in texts(plot.figure).replace("\n", " ")
    assert list(plot.summary["Mamba"]) == ["error", "error"]


def test_errors_stand_beside_the_references_and_broken_results_are_told(plots):
    plot = plots["error_dz"]
    titles = [ax.get_title() for ax in plot.figure.axes]
    assert titles == ["Lower bound 0", "Lower bound 0.5", "No lower bound"]
    assert "1 results are not finite" in plot.caption
    assert "eager reference in the same precision" in plot.caption
    summary = plot.summary.set_index(["bound", "regime"])
    assert summary.loc[("Lower bound 0", "closed"), "HGRN2 (fla)"] == "not finite"
    crosses = [line for line in plot.figure.axes[0].lines if line.get_marker() == "x"]
    assert len(crosses) == 1
    assert {"error_dz", "reference_error_dz"} <= set(plot.table)
    assert set(plots["error_dkey"].table["mixer"]) == {"gla"}
    assert set(plots["error_dbound"].table["mixer"]) == {"hgrn2"}


def heads_records():
    """Operators with heads of three sizes, and training steps at half the width."""
    made = []
    for level, mode, width in (("op", "fwd", 2048), ("training_step", "step", 1024)):
        for size in (64, 128, 256) if level == "op" else (128,):
            for mixer, impl, field, value in (
                ("hgrn2", "triton", "expand_ratio", size),
                ("attention", "sdpa", "n_heads", width // size),
                ("mamba", "mamba_ssm", "d_state", 16),
            ):
                if mixer == "mamba" and size != 128:
                    continue
                for seq_len in (512, 2048):
                    task = speed_task(mixer, impl, level=level, mode=mode, seq_len=seq_len)
                    task |= {"d_model": width, "mixer": task["mixer"] | {field: value}}
                    made.append(record(task, timing([1.0 + size / 64] * 5, [1.0] * 5)))
    return made


def test_heads_of_one_size_share_a_figure():
    drawn = draw(tidy(heads_records()))
    names = {f"{kind}{heads}" for kind in KINDS for heads in ("", "_heads_64", "_heads_256")}
    assert set(drawn) == names
    main = drawn["latency"]
    assert set(main.table["series"]) == {"HGRN2", "Attention", "Mamba"}
    assert [ax.get_title() for ax in main.figure.axes] == ["Operator, forward", "Training step"]
    assert "Heads of 128." in main.caption
    small = drawn["latency_heads_64"].table
    assert set(small["series"]) == {"HGRN2", "Attention"}
    assert set(small["time_ms"]) == {2.0}


def test_a_grid_with_heads_of_one_size_is_one_part():
    task = speed_task("hgrn2", "triton")
    task["mixer"]["expand_ratio"] = 32
    made = [record(task, timing([1.0] * 5, [1.0] * 5))]
    assert [suffix for suffix, _ in by_head_size(tidy(made))] == [""]


def test_two_kernels_of_one_mixer_have_two_dashes():
    for mixer, impls in (
        ("hgrn1", ("triton", "reference", "fla_chunk", "fla_recurrent")),
        ("attention", ("sdpa", "products", "reference", "sdpa_flash", "sdpa_cudnn")),
    ):
        assert len({str(mark(mixer, impl).dash) for impl in impls}) == len(impls)
