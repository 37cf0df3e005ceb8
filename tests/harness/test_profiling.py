"""`mixerbench profile`: one cell's operators on a CPU, and what it refuses."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from harness import cli, profiling
from harness.grids_recall import mqar_quick, mqar_step
from harness.grids_speed import speed_quick
from mixers import Attention
from tasks.base import Task, Unsupported
from tasks.mqar.step import MQARStep
from tasks.mqar.task import MQAR, Segment
from tests.harness.toy_tasks import Toy, ToyMixer

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("task", "training"), [(mqar_quick(CPU)[-1], True), (speed_quick(CPU)[0], False)]
)
def test_every_operator_of_a_step_has_its_share(task: Task, training: bool):
    table, wall_ms, _ = profiling.profile(task, CPU, skip=1, calls=2)
    assert list(table.columns) == list(profiling.COLUMNS)
    assert table["share"].sum() == pytest.approx(1)
    assert table["ms"].is_monotonic_decreasing
    assert (table["us_per_call"] * table["calls"] / 1e3).tolist() == pytest.approx(
        table["ms"].tolist()
    )
    assert 0 < table["ms"].sum() < 1.5 * wall_ms
    calls = table.set_index("kernel")["calls"]
    assert calls["aten::mm"] >= 1
    # One update a step; what is timed has none.
    assert calls.get("aten::_fused_adamw_", 0) == training


@pytest.mark.parametrize(("together", "examples"), [(1, 5 * 64), (8, 1_300), (8, 3 * 64)])
def test_an_epoch_shorter_than_the_profile_begins_again(together: int, examples: int):
    """What does not fill a launch, a smaller batch among it, is left out; fewer steps go alone."""
    short = mqar_quick(CPU)[-1]
    assert isinstance(short, MQAR)
    (rows,) = short.train
    fields = {
        "train": (rows.model_copy(update={"examples": examples}),),
        "training": short.training.model_copy(update={"steps_together": together}),
    }
    found = profiling.profile(short.model_copy(update=fields), CPU, skip=5, calls=4)
    assert found.together == (8 if examples == 1_300 else 1)
    assert found.table.set_index("kernel")["calls"]["aten::_fused_adamw_"] == pytest.approx(1)


def test_a_timed_step_is_profiled_as_one_model():
    step = mqar_step(CPU)[0]
    assert isinstance(step, MQARStep)
    rows = (Segment(seq_len=16, kv_pairs=4, examples=512),)
    small = {"train": rows, "test": rows, "vocab_size": 32}
    alone = step.model_copy(update=small | {"pack": 1})
    eager = alone.training.model_copy(update={"engine": "eager", "compiled": False, "batch": 64})
    task = alone.model_copy(update={"training": eager, "mixer": Attention()})
    assert "aten::mm" in set(profiling.profile(task, CPU, skip=1, calls=1).table["kernel"])
    with pytest.raises(Unsupported, match="pack = 7: a profile is of one model"):
        profiling.profile(task.model_copy(update={"pack": 7}), CPU, skip=0, calls=1)


@pytest.mark.gpu
def test_kernels_are_seen_inside_a_graph():
    gpu = torch.device("cuda:0")
    task = next(cell for cell in mqar_quick(gpu) if cell.mixer.name == "attention")
    table, wall_ms, together = profiling.profile(task, gpu, skip=4, calls=2)
    assert together == 8
    assert 0 < table["ms"].sum() < 1.5 * wall_ms
    assert table["kernel"].str.contains("triton").any()


def test_what_repeats_nothing_is_refused():
    with pytest.raises(Unsupported, match="task 'toy' gives a profiler nothing"):
        profiling.profile(Toy(mixer=ToyMixer()), CPU, skip=0, calls=1)


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)

    def profile(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.setattr(sys, "argv", ["mixerbench", "profile", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return (int(ended.value.code or 0), *capsys.readouterr())

    return profile


def test_the_command_shows_the_longest_and_writes_all(profile):
    where = 'task == "speed" and mixer == "attention" and seq_len == 128 and trial == 0'
    few = ("--skip", "1", "--calls", "2", "--top", "3", "--device", "cpu")
    status, out, _ = profile("speed_quick", "--where", where, *few, "--csv", "all.csv")
    assert status == 0
    written = pd.read_csv("all.csv")
    assert len(written) > 3
    assert written["kernel"][0] in out
    # A header, three rows, the sum, the file.
    assert len(out.splitlines()) == 6
    assert f"{len(written)} kernels" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mqar_quick"], "mqar_quick has 20 cells; choose one by --where, as of\n  hgrn2"),
        (["mqar_quick", "--where", "lr == 7"], "--where 'lr == 7' chooses none of the cells"),
        (["mqar_quik"], "Did you mean mqar_quick"),
    ],
)
def test_a_mistake_is_told(profile, arguments, words):
    status, _, err = profile(*arguments, "--device", "cpu")
    assert status == 2
    assert words in err
