"""Records become tidy rows: nothing lost, nothing mixed unasked."""

from __future__ import annotations

import pytest
import torch

from harness.figures import draw
from harness.frames import LATER, PROVENANCE, TRAINED, cautions, flatten, frame, settings, tidy
from harness.grids import GRIDS
from mixers import HGRN1, HGRN2
from tasks.backbone import Backbone
from tasks.decode import Decode
from tasks.lra.data import Data
from tasks.lra.step import LRAStep
from tasks.lra.task import LRA
from tasks.recipe import Training
from tests.harness.synthetic import CPU, GPU, record, write
from tests.harness.synthetic_kernels import speed_records
from tests.harness.synthetic_recall import mqar_records, mqar_task, recall

TASK = {
    "name": "mqar",
    "mixer": {"name": "hgrn2", "impl": "triton", "expand": 64, "dropout": 0.0},
    "backbone": {"d_model": 128, "dropout": 0.1, "name": "plain"},
    "training": {"lr": 1e-3, "schedule": {"warmup": 0}},
    "segments": [{"seq_len": 64, "kv_pairs": 4}],
    "seed": 1,
}


def test_flatten_names_leaves_by_their_own_name_where_it_is_unique():
    assert flatten(TASK) == {
        "task": "mqar",
        "mixer": "hgrn2",
        "impl": "triton",
        "expand": 64,
        "mixer_dropout": 0.0,
        "scan": "1d",
        "d_model": 128,
        "backbone_dropout": 0.1,
        "backbone_name": "plain",
        "first": None,
        "branch_dropout": 0.0,
        "embed_std": None,
        "lr": 1e-3,
        "warmup": 0,
        "engine": "eager",
        "compiled": False,
        "schedule_steps": None,
        "rates_lr": None,
        "steps_together": 1,
        "segments": '[{"kv_pairs":4,"seq_len":64}]',
        "fused_loss": False,
        "seed": 1,
    }


def test_flatten_keeps_the_bare_name_for_a_field_of_the_task_itself():
    row = flatten({"name": "speed", "d_model": 64, "mixer": {"name": "gla", "d_model": 32}})
    assert (row["d_model"], row["mixer_d_model"]) == (64, 32)


def test_flatten_refuses_two_fields_that_would_share_a_column():
    with pytest.raises(ValueError, match="a_x"):
        flatten({"name": "t", "a_x": 1, "a": {"x": 2}, "b": {"x": 3}})


def test_a_frame_has_one_row_a_cell_with_settings_metrics_and_provenance(tmp_path):
    write(tmp_path, "mqar_synthetic", mqar_records())
    table = frame("mqar_synthetic", tmp_path)
    assert len(table) == 5 * 4 * 2 * 3 * 2
    assert table["status"].value_counts().to_dict() == {"ok": 232, "oom": 6, "timeout": 2}
    assert settings(table)[:4] == ["task", "mixer", "impl", "mixer_init"]
    assert "accuracy" not in settings(table)
    assert tuple(table.columns[-len(PROVENANCE) :]) == PROVENANCE
    failed = table[table["status"] != "ok"]
    assert failed["accuracy"].isna().all()
    assert set(failed["error"]) == {"CUDA out of memory", "stopped after 3600 s"}
    row = table.query("mixer == 'hgrn2' and seq_len == 64 and d_model == 64 and seed == 1").iloc[0]
    assert row["accuracy"] == recall("hgrn2", (64, 4), 64, 1e-4, 1)
    assert row["accuracy_by_epoch"] == [row["accuracy"] / 2, row["accuracy"]]


def test_the_newest_row_of_a_cell_and_device_wins_wherever_it_stands():
    task = mqar_task("gla", "fla", cell=(64, 4), d_model=64, lr=1e-3, seed=0)
    old = record(task, {"accuracy": 0.1}, ended="2024-01-01T00:00:00.000Z")
    new = record(task, {"accuracy": 0.2}, ended="2024-01-02T00:00:00.000Z")
    elsewhere = record(task, {"accuracy": 0.3}, device=CPU, ended="2024-01-03T00:00:00.000Z")
    # A merged file: another machine's lines follow, older ones among them.
    table = tidy([new, elsewhere, old])
    assert list(zip(table["device"], table["accuracy"], strict=True)) == [(GPU, 0.2), (CPU, 0.3)]
    rerun = record(task, status="oom", error="full", ended="2024-01-04T00:00:00.000Z")
    assert list(tidy([new, rerun])["status"]) == ["oom"]


def test_a_metric_never_overwrites_a_setting():
    task = mqar_task("gla", "fla", cell=(64, 4), d_model=64, lr=1e-3, seed=0)
    table = tidy([record(task, {"accuracy": 0.5, "batch": 7})])
    assert (table["batch"][0], table["measured_batch"][0]) == (512, 7)


def test_a_later_field_has_the_value_that_records_before_it_had():
    row = flatten({"name": "decode", "context": 8})
    assert (row["level"], row["replay"]) == ("layer", "eager")
    assert flatten({"name": "decode", "context": 8, "replay": "graph"})["replay"] == "graph"
    trained = flatten({"name": "mqar", "training": {"lr": 0.1}})
    assert (trained["engine"], trained["compiled"]) == ("eager", False)
    assert flatten({"name": "mqar", "training": {"engine": "graph"}})["engine"] == "graph"
    assert flatten({"name": "lra", "mixer": {"name": "hgrn2"}})["scan"] == "1d"
    assert flatten({"name": "yours", "data": "text.tsv"}) == {"task": "yours", "data": "text.tsv"}
    kinds = {"decode": Decode, "training": Training, "backbone": Backbone, "data": Data}
    kinds |= {"hgrn1": HGRN1, "hgrn2": HGRN2}
    for name, kind in (kinds | {"lra": LRA, "lra_step": LRAStep}).items():
        assert LATER[name] == {field: kind.model_fields[field].default for field in kind.later}


def test_several_devices_are_refused_unless_asked_for(tmp_path):
    write(tmp_path, "speed", speed_records(lengths=(512,), trials=1))
    write(tmp_path, "speed", speed_records(lengths=(512,), trials=1, device=CPU))
    with pytest.raises(ValueError, match=rf"2 devices: {CPU} \(20 cells\).*--any-device"):
        frame("speed", tmp_path)
    assert frame("speed", tmp_path, any_device=True)["device"].nunique() == 2
    assert set(frame("speed", tmp_path, only_device="H200")["device"]) == {GPU}
    with pytest.raises(ValueError, match=rf"called 'H100'; it has those of {CPU} \(20 cells\)"):
        frame("speed", tmp_path, only_device="H100")


def test_the_tasks_that_pool_devices_are_those_that_say_so():
    device = torch.device("cpu")
    tasks = {type(task) for grid in GRIDS for task in grid(device)}
    names = {kind.model_fields["name"].default for kind in tasks if kind.any_device}
    assert names == set(TRAINED)


@pytest.mark.parametrize("make", [False, True], ids=["absent", "empty"])
def test_a_grid_without_records_is_an_error_that_says_what_is_there(tmp_path, make):
    write(tmp_path, "other", mqar_records(cells=((64, 4),), widths=(64,)))
    if make:
        (tmp_path / "mqar").mkdir()
        (tmp_path / "mqar" / "records.jsonl").touch()
    with pytest.raises(ValueError, match=r"'mqar' has no records.*mixerbench run mqar.*other"):
        frame("mqar", tmp_path)


def test_another_grids_records_are_refused(tmp_path):
    records = [record(TASK, grid="mine"), record({**TASK, "seed": 2}, grid="other")]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "records.jsonl").write_bytes(b"".join(x.line() for x in records))
    with pytest.raises(
        ValueError, match=r"records\.jsonl holds records of other, not of mine alone"
    ):
        frame("mine", tmp_path)


def test_mixed_commits_and_uncommitted_changes_are_told():
    task = mqar_task("gla", "fla", cell=(64, 4), d_model=64, lr=1e-3, seed=0)
    one, two = record(task, {}), record(task | {"seed": 1}, {}, commit="b" * 40, dirty=True)
    assert cautions(tidy([one])) == []
    commits, dirty = cautions(tidy([one, two]))
    assert "2 commits: aaaaaaaaaa (1), bbbbbbbbbb (1)" in commits
    assert dirty.startswith("1 of 2 cells")


@pytest.mark.parametrize(("bits", "told"), [(None, 0), (0, 0), (0x4, 0), (0x20, 1), (0x44, 1)])
def test_a_gpu_slowed_down_by_heat_is_told_and_its_power_limit_is_not(bits, told):
    task = mqar_task("gla", "fla", cell=(64, 4), d_model=64, lr=1e-3, seed=0)
    one = record(task, {})
    lines = cautions(tidy([one.model_copy(update={"env": one.env | {"throttle_bits": bits}})]))
    assert [line.startswith("1 of 1 cells ended on a GPU") for line in lines] == [True] * told


def test_times_of_a_restless_machine_are_told_and_no_conclusion_is_drawn_of_them():
    made = speed_records()
    (first,) = [i for i, row in enumerate(made) if row.metrics][:1]
    metrics = made[first].metrics
    assert metrics
    restless = metrics | {"null_ms": 1.3 * metrics["time_ms"]}
    both = [*made[:first], made[first].model_copy(update={"metrics": restless}), *made[first + 1 :]]
    for records, told in ((made, False), (both, True)):
        table = tidy(records)
        said = [line for line in cautions(table) if line.startswith("1 of 240 cells took over 25%")]
        assert bool(said) == told
        caption = draw(table)["latency"].caption
        assert ("Which is faster than attention is not told" in caption) == told
        assert ("Operator, forward: HGRN2 from about 3," in caption) != told
