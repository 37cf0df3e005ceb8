"""The training loop: exact resume, early stop, schedules; MQAR's loss at labelled positions."""

from __future__ import annotations

import errno
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from mixers import Attention
from tasks import training
from tasks.backbone import Backbone, LanguageModel
from tasks.base import Context, Metrics, Paused, Unsupported
from tasks.mqar import UNLABELLED, mqar_batch
from tasks.mqar.recall import Recall, query_logits
from tasks.mqar.task import MQAR, Segment
from tasks.recipe import Training, adamw, learning_rate
from tasks.seeds import seeded

CPU = torch.device("cpu")


def tiny(**training: object) -> MQAR:
    settings = {"lr": 3e-3, "epochs": 3, "batch": 32, "clip_norm": 1.0} | training
    return MQAR(
        mixer=Attention(n_heads=2, impl="sdpa"),
        protocol="test",
        train=(
            Segment(seq_len=16, kv_pairs=2, examples=96),
            Segment(seq_len=24, kv_pairs=4, examples=80),
        ),
        test=(Segment(seq_len=16, kv_pairs=2, examples=64),),
        vocab_size=40,
        backbone=Backbone(d_model=16, positions="learned", embed_dropout=0.1),
        training=Training.model_validate(settings),
    )


class StopAfter:
    """A stop button that is pressed at the n-th poll."""

    def __init__(self, polls: int) -> None:
        self.left = polls

    def __call__(self) -> bool:
        self.left -= 1
        return self.left <= 0


def without_times(metrics: Metrics) -> Metrics:
    return {k: v for k, v in metrics.items() if k not in ("train_s", "step_ms", "pack")}


@pytest.mark.parametrize("order", ["fixed", "shuffled"])
@pytest.mark.parametrize("stops", [[1], [4], [6, 1, 2], [6, 6]])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path, order, stops):
    task = tiny(order=order, schedule="cosine_step", warmup_steps=3)
    whole = task.run(Context(CPU))
    checkpoint = tmp_path / "folder" / "cell.pt"
    for polls in stops:
        context = Context(CPU, checkpoint=checkpoint, should_stop=StopAfter(polls))
        with pytest.raises(Paused):
            task.run(context)
        assert checkpoint.exists()
        assert [p.name for p in checkpoint.parent.iterdir()] == ["cell.pt"]
    lines: list[str] = []
    resumed = task.run(Context(CPU, checkpoint=checkpoint, progress=lines.append))
    assert lines[0].startswith("resumed")
    assert without_times(resumed) == without_times(whole)


def test_a_checkpoint_that_cannot_be_written_ends_no_training(tmp_path: Path, monkeypatch):
    def full(_state, file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    monkeypatch.setattr(training, "CHECKPOINT_EVERY_S", 0.0)
    lines: list[str] = []
    task = tiny()
    found = task.run(Context(CPU, checkpoint=tmp_path / "cell.pt", progress=lines.append))
    assert without_times(found) == without_times(task.run(Context(CPU)))
    assert any("no checkpoint: cannot write" in line and "No space" in line for line in lines)
    assert not list(tmp_path.iterdir())


def test_two_runs_of_a_seed_are_equal_and_another_seed_is_not():
    before = torch.get_rng_state()
    task = tiny()
    first, again = task.run(Context(CPU)), task.run(Context(CPU))
    other = task.model_copy(update={"seed": 7}).run(Context(CPU))
    assert without_times(first) == without_times(again)
    assert first["loss_by_epoch"] != other["loss_by_epoch"]
    assert torch.equal(before, torch.get_rng_state())


def test_loss_and_gradients_at_labelled_positions_equal_those_over_all_positions():
    task = tiny().model_copy(
        update={"backbone": Backbone(d_model=16, positions="learned", embed_dropout=0.0)}
    )
    generator = torch.Generator().manual_seed(0)
    model = task.backbone.build(task.mixer, vocab_size=40, max_len=24, generator=generator).double()
    problem = Recall(task, CPU)
    problem.start_epoch(0)
    inputs, labels = mqar_batch(96, 16, 2, 40, generator=seeded(CPU, task.data_seed, "train", 0))
    ours = problem.loss(model, *problem.batch(0))
    gathered = torch.autograd.grad(ours, list(model.parameters()))
    everywhere = F.cross_entropy(
        model(inputs[:32]).flatten(0, 1), labels[:32].flatten(), ignore_index=UNLABELLED
    )
    full = torch.autograd.grad(everywhere, list(model.parameters()))
    torch.testing.assert_close(ours, everywhere, rtol=1e-13, atol=0)
    for a, b in zip(gathered, full, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-15)


def test_accuracy_counts_the_queries():
    task = tiny()
    problem = Recall(task, CPU)
    model = task.backbone.build(
        task.mixer, vocab_size=40, max_len=24, generator=torch.Generator().manual_seed(0)
    ).eval()
    rows = problem.test[0]
    with torch.no_grad():
        right = (query_logits(model, rows).argmax(-1) == rows.targets).double().mean()
        score = partial(problem.score, model)
        assert float(problem.evaluate(score)["accuracy"]) == pytest.approx(float(right), abs=1e-12)


def test_training_stops_early_and_reports_the_epoch_that_it_was_told():
    stopped = tiny(early_stop=0.0, epochs=5).run(Context(CPU))
    assert stopped["epochs_run"] == 1
    for report in ("last", "best"):
        metrics = tiny(report=report, lr=1e-2, epochs=4).run(Context(CPU))
        by_epoch = metrics["accuracy_by_epoch"]
        assert len(by_epoch) == 4
        assert metrics["accuracy"] == (max(by_epoch) if report == "best" else by_epoch[-1])


def test_a_learning_rate_that_diverges_is_a_result():
    metrics = tiny(lr=1e30, clip_norm=None).run(Context(CPU))
    assert metrics["diverged"] == 1
    assert metrics["epochs_run"] < 3
    assert metrics["accuracy"] < 0.2


def test_the_schedules():
    def rates(**fields: object) -> list[float]:
        training = Training.model_validate({"lr": 1.0, "epochs": 4} | fields)
        return [learning_rate(training, step // 5, step, 5) for step in range(20)]

    by_epoch = rates(schedule="cosine_epoch")
    assert by_epoch[::5] == [0.5 * (1 + math.cos(math.pi * e / 4)) for e in range(4)]
    assert len(set(by_epoch)) == 4
    by_step = rates(schedule="cosine_step", warmup_steps=5)
    assert by_step[:5] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert by_step[5:] == sorted(by_step[5:], reverse=True)
    assert rates(schedule="cosine_step", warmup_steps=50)[-1] == 20 / 50
    assert rates(schedule="constant") == [1.0] * 20
    decayed = rates(schedule="inverse_sqrt", warmup_steps=4)
    assert decayed[3] == 1.0
    assert decayed[15] == 0.5


def test_weight_decay_reaches_what_the_recipe_says():
    model = tiny().backbone.build(
        Attention(n_heads=2), vocab_size=40, max_len=24, generator=torch.Generator().manual_seed(0)
    )
    everything = adamw(model, Training(lr=1e-3))
    assert [g["weight_decay"] for g in everything.param_groups] == [0.1]
    split = adamw(model, Training(lr=1e-3, decay="matrices"))
    assert [g["weight_decay"] for g in split.param_groups] == [0.1, 0.0]
    assert all(p.ndim >= 2 for p in split.param_groups[0]["params"])
    assert all(p.ndim < 2 for p in split.param_groups[1]["params"])


def side_by_side(tasks: list[MQAR], contexts: list[Context]) -> list[Metrics | Exception]:
    """Each task's steps in turn, as in a pack; what each ended in."""
    running = {
        place: task.turns(context)
        for place, (task, context) in enumerate(zip(tasks, contexts, strict=True))
    }
    ends: dict[int, Metrics | Exception] = {}
    while running:
        for place, steps in list(running.items()):
            try:
                next(steps)
            except StopIteration as end:
                ends[place] = end.value
            except Exception as error:
                ends[place] = error
            if place in ends:
                del running[place]
    return [ends[place] for place in range(len(tasks))]


def test_a_pack_gives_what_each_gives_alone_bit_for_bit():
    tasks = [
        tiny(),
        tiny(lr=1e-2),
        tiny(lr=1e30, clip_norm=None),
        tiny(early_stop=0.0),
        tiny(precision="bf16_autocast", lr=1e-2),
        tiny().model_copy(update={"seed": 7}),
    ]
    alone = [task.run(Context(CPU)) for task in tasks]
    packed = side_by_side(tasks, [Context(CPU, pack=len(tasks))] * len(tasks))
    assert [end["pack"] for end in packed if isinstance(end, dict)] == [6] * 6
    for one, other in zip(packed, alone, strict=True):
        assert isinstance(one, dict)
        # Text, since the loss that diverged is not equal to itself.
        assert repr(without_times(one)) == repr(without_times(other))
    assert [end["epochs_run"] for end in alone] == [3, 3, alone[2]["epochs_run"], 1, 3, 3]


def test_a_pack_that_is_stopped_goes_on_as_packs_or_alone(tmp_path: Path):
    tasks = [tiny(), tiny(lr=1e-2)]
    whole = [without_times(task.run(Context(CPU))) for task in tasks]
    places = [tmp_path / f"{n}.pt" for n in range(2)]
    stopped = side_by_side(tasks, [Context(CPU, path, should_stop=StopAfter(7)) for path in places])
    assert all(isinstance(end, Paused) for end in stopped)
    first = tasks[0].run(Context(CPU, places[0]))
    second = side_by_side(tasks[1:], [Context(CPU, places[1])])[0]
    assert isinstance(second, dict)
    assert [without_times(first), without_times(second)] == whole


def test_a_graph_on_a_cpu_is_unsupported():
    with pytest.raises(Unsupported, match="engine = 'graph' needs a CUDA device, not cpu"):
        tiny(engine="graph").run(Context(CPU))


def test_the_engine_changes_no_key_of_a_cell_before_it():
    assert "engine" not in tiny().canonical()
    assert tiny().key == tiny(engine="eager", compiled=False, steps_together=1).key
    others = ({"engine": "graph"}, {"compiled": True}, {"steps_together": 8})
    assert len({tiny().key, *(tiny(**other).key for other in others)}) == 4


@pytest.mark.skipif(
    hasattr(LanguageModel.hidden, "__wrapped__"),
    reason="torch's tracer stops at jaxtyping",
)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_loss_equals_the_eager_one(monkeypatch):
    # What is left of compiling: torch's tracer, which finds nothing that it has to break at.
    compile = torch.compile

    def traced(function, *, dynamic, **_):
        return compile(function, dynamic=dynamic, backend="aot_eager", fullgraph=True)

    monkeypatch.setattr(torch, "compile", traced)
    fast, plain = tiny(compiled=True, epochs=2).run(Context(CPU)), tiny(epochs=2).run(Context(CPU))
    assert fast["loss_by_epoch"] == pytest.approx(plain["loss_by_epoch"], rel=1e-5)


def test_impossible_cells_are_refused_before_anything_runs():
    with pytest.raises(ValueError, match=r"kv_pairs = 5 does not fit seq_len = 16"):
        MQAR.model_validate(
            tiny().model_dump(exclude={"seq_len", "kv_pairs", "mixer", "test"})
            | {"mixer": Attention(), "test": (Segment(seq_len=16, kv_pairs=5, examples=1),)}
        )
    with pytest.raises(ValueError, match="d_model"):
        MQAR.model_validate(
            tiny().model_dump(exclude={"seq_len", "kv_pairs", "mixer"})
            | {"mixer": Attention(n_heads=3)}
        )
    with pytest.raises(ValueError, match="learning_rate"):
        Training.model_validate({"lr": 1e-3, "learning_rate": 1})
