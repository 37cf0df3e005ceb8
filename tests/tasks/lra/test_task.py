"""The arena as a task: the data a cell asks for, batches of few widths, recipes, whole runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mixers import GLA, HGRN1, HGRN2, Attention, Mamba, Mixer
from tasks.base import Context, Metrics, Paused, Unsupported
from tasks.lra import recipes
from tasks.lra.batches import Split, channels, noise, tokens_of, varied, width_of
from tasks.lra.data import Data, official_is_there
from tasks.lra.listops import SYMBOLS, root_operators
from tasks.lra.step import LRAStep
from tasks.lra.task import LRA, Classification
from tasks.recipe import Training, adamw, learning_rate
from tests.tasks.test_training import StopAfter, without_times

CPU = torch.device("cpu")
LISTOPS = Data(arena="listops", source="generated", examples=(24, 8, 8))
PATHFINDER = Data(
    arena="pathfinder32", source="generated", examples=(80, 10, 10), difficulty="easy"
)
MIXERS: list[Mixer] = [
    HGRN2(expand_ratio=4, lower_bound="exclusive"),
    HGRN1(separate_theta=True, lower_bound="exclusive"),
    GLA(n_heads=1),
    Mamba(d_state=4),
    Attention(n_heads=2),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(autouse=True)
def _data(root: Path, monkeypatch) -> None:
    monkeypatch.setenv("MIXERBENCH_DATA", str(root))
    # One process draws: a pool of them takes longer to start than so little takes to draw.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny(mixer: Mixer = MIXERS[1], data: Data = LISTOPS, **fields: object) -> LRA:
    task = recipes.smoke(mixer, data)
    small = {"d_model": 8, "glu_width": 8, "n_layers": 1, "embed_dropout": 0.1}
    backbone = task.backbone.model_copy(update=small)
    training = {"batch": 10, "epochs": 2} | fields.pop("training", {})  # pyright: ignore
    return LRA.model_validate(
        {name: getattr(task, name) for name in LRA.model_fields}
        | {"backbone": backbone, "training": task.training.model_copy(update=training)}
        | fields
    )


def test_a_run_generates_its_data_and_tells_all(root: Path):
    metrics = tiny().run(Context(CPU))
    assert metrics["provenance"] == "generated (listops version 1, seed 0)"
    assert (metrics["train_examples"], metrics["test_examples"]) == (24, 8)
    assert metrics["validation_set"] == "basic_val.tsv"
    assert metrics["recipe_changes"] == "d_model + glu_width + n_layers + batch"
    assert recipes.changes(recipes.smoke(MIXERS[1], LISTOPS)) == ""
    val, test = metrics["val_accuracy_by_epoch"], metrics["accuracy_by_epoch"]
    assert isinstance(val, list)
    assert isinstance(test, list)
    assert len(val) == len(test) == 2
    best = val.index(max(val))
    assert metrics["best_epoch"] == best + 1
    assert metrics["test_accuracy_best_val"] == test[best]
    assert metrics["accuracy"] == metrics["test_accuracy_last"] == test[-1]
    assert metrics["val_accuracy"] == metrics["val_accuracy_last"] == val[-1]
    dataset = LISTOPS.load(Context(CPU))
    tokens = len(dataset.train.inputs.ids)
    assert metrics["tokens_per_s"] * metrics["train_s"] == pytest.approx(2 * tokens)
    assert metrics["sequences_per_s"] * metrics["train_s"] == pytest.approx(2 * 24)
    shares = root_operators(dataset.test, "s4")
    there = {name: int(rows.sum()) for name, rows in shares.items() if rows.any()}
    right = sum(metrics[f"accuracy_{name}"] * count for name, count in there.items())
    assert right / 8 == pytest.approx(metrics["accuracy"])
    made = list((root / "generated").glob("listops-*/listops-1000/manifest.json"))
    assert len(made) == 1


def test_every_root_is_known():
    test = LISTOPS.load(Context(CPU)).test
    known = root_operators(test, "s4")
    assert torch.stack(list(known.values())).sum(0).tolist() == [1] * 8
    first = int(test.inputs.ids[0]) - 3
    assert known[SYMBOLS[first][1:].lower()][0]


@pytest.mark.parametrize("stops", [[1], [3, 2]])
@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, stops, norm):
    task = tiny()
    task = task.model_copy(update={"backbone": task.backbone.model_copy(update={"norm": norm})})
    whole = plain(task.run(Context(CPU)))
    checkpoint = tmp_path / "cell.pt"
    for polls in stops:
        with pytest.raises(Paused):
            task.run(Context(CPU, checkpoint, should_stop=StopAfter(polls)))
    assert plain(task.run(Context(CPU, checkpoint))) == whole


def plain(metrics: Metrics) -> Metrics:
    speeds = ("tokens_per_s", "sequences_per_s")
    return {k: v for k, v in without_times(metrics).items() if k not in speeds}


@pytest.mark.parametrize("mixer", MIXERS, ids=lambda mixer: mixer.name)
def test_every_mixer_trains_on_images(mixer):
    metrics = tiny(mixer, PATHFINDER, training={"epochs": 1}).run(Context(CPU))
    assert metrics["steps"] == 8
    assert 0.3 < metrics["loss_by_epoch"][0] < 1.2


@pytest.mark.parametrize("scan", ["2d_parallel", "2d_series"])
def test_images_are_scanned_in_two_dimensions(scan):
    mixer = MIXERS[0].model_copy(update={"scan": scan})
    assert tiny(mixer, PATHFINDER, training={"epochs": 1}).run(Context(CPU))["steps"] == 8


def test_widths_are_few_and_hold_every_row():
    assert [width_of(n, 2048, 8) for n in (1, 256, 257, 2000, 2048)] == [256, 256, 512, 2048, 2048]
    assert width_of(2000, 2000, 7) == 7 * 286
    assert width_of(777, 2048, None) == 777
    dataset = LISTOPS.load(Context(CPU))
    split = Split(dataset.train, dataset, CPU)
    exact, bucketed = (split.training(4, seed=1, epoch=0, buckets=buckets) for buckets in (None, 4))
    assert {width for _, width in bucketed} <= {512, 1024, 1536, 2048}
    for (rows, width), (same, least) in zip(bucketed, exact, strict=True):
        assert torch.equal(rows, same)
        assert width >= least
        ids, lengths, _ = split.tensors((rows, width))
        assert ids.shape == (4, width)
        assert torch.equal((ids != 0).sum(1), lengths)


def test_bucketed_widths_change_no_score():
    task = tiny()
    problems = [
        Classification(cell, LISTOPS.load(Context(CPU)), CPU)
        for cell in (task, task.model_copy(update={"buckets": 3}))
    ]
    model = task.model(task.mixer, problems[0].dataset, CPU).eval()
    seen = []
    for problem in problems:
        with torch.no_grad():
            seen.append(
                torch.cat(
                    [
                        problem.logits(model, *problem.test.tensors(batch)[:-1])
                        for batch in problem.test.evaluation(4, problem.task.buckets)
                    ]
                )
            )
    torch.testing.assert_close(*seen, rtol=1e-4, atol=1e-5)


def test_what_is_not_there_is_told():
    with pytest.raises(Unsupported, match=r"(?s)aclImdb.*MIXERBENCH_DATA"):
        _ = Data(arena="text").load(Context(CPU))
    assert not official_is_there("listops")
    with pytest.raises(Unsupported, match=r"listops-1000/basic_train\.tsv is not there"):
        _ = Data(arena="listops").load(Context(CPU))


def test_generated_files_are_never_taken_for_official_ones(root: Path, monkeypatch):
    LISTOPS.load(Context(CPU))
    made = next((root / "generated").glob("listops-*"))
    monkeypatch.setenv("MIXERBENCH_DATA", str(made))
    assert not official_is_there("listops")
    with pytest.raises(Unsupported, match="source = 'official', but the files of listops are gen"):
        Data(arena="listops").load(Context(CPU))
    # The same files at the root are found there.
    assert LISTOPS.load(Context(CPU)).train.labels.shape == (24,)
    assert not (made / "generated").exists()


def test_official_files_at_an_inner_level_do_not_stop_generated_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("MIXERBENCH_DATA", str(tmp_path))
    made = LISTOPS.load(Context(CPU)).train
    next((tmp_path / "generated").glob("*/listops-1000")).rename(tmp_path / "listops-1000")
    official = tmp_path / "lra_release/listops-1000"
    official.mkdir(parents=True)
    (official / "basic_train.tsv").touch()
    assert torch.equal(LISTOPS.load(Context(CPU)).train.labels, made.labels)
    (official / "manifest.json").write_text("{")
    assert not official_is_there("listops")


def test_a_stop_while_data_are_made_is_a_pause(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("MIXERBENCH_DATA", str(tmp_path))
    with pytest.raises(Paused):
        LISTOPS.load(Context(CPU, should_stop=lambda: True))
    assert len(LISTOPS.load(Context(CPU)).train) == 24


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"arena": "text", "source": "generated", "examples": (8, 1, 1)}, "only listops and"),
        ({"arena": "listops", "examples": (8, 1, 1)}, "does not fit source = 'official'"),
        ({"arena": "listops", "source": "generated"}, "give the sizes"),
        (
            {"arena": "pathfinder32", "source": "generated", "examples": (8, 2, 1)},
            "eight, one and one",
        ),
        ({"arena": "text", "colour": True}, "colour = True does not fit arena = 'text'"),
    ],
)
def test_data_that_cannot_be_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        Data.model_validate(fields)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"pair": "nli"}, "pair = 'nli' does not fit arena = 'listops'"),
        ({"pool": "cls", "directions": "causal"}, "reads out the first token"),
        (
            {"mixer": HGRN2(expand_ratio=4, scan="2d_series")},
            "scan = '2d_series' takes whole images",
        ),
        ({"mixer": HGRN2(expand_ratio=16)}, "expand_ratio = 16 does not divide d_model = 8"),
        ({"data": Data(arena="listops", source="random")}, "use LRAStep"),
    ],
)
def test_cells_that_cannot_be_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        tiny(**fields)


def test_images_are_varied_by_crops_and_flips_alone():
    image = torch.arange(1024, dtype=torch.int16).view(1, -1)
    seen = varied(image.repeat(400, 1), torch.Generator().manual_seed(0)).view(-1, 32, 32)
    square = image.view(32, 32)
    mirrored = torch.cat([square[:4].flip(0), square, square[-4:].flip(0)])
    mirrored = torch.cat([mirrored[:, :4].flip(1), mirrored, mirrored[:, -4:].flip(1)], 1)
    crops = {
        tuple(crop.flatten().tolist())
        for top in range(9)
        for left in range(9)
        for crop in (
            mirrored[top : top + 32, left : left + 32],
            mirrored[top : top + 32, left : left + 32].flip(1),
        )
    }
    found = {tuple(one.flatten().tolist()) for one in seen}
    assert found <= crops
    assert len(found) > 100


def test_pixels_are_scaled_by_channel():
    data = Data(arena="image", colour=True, augment=True)
    dataset = noise(data, 2)
    assert channels(dataset) == 3
    ids = dataset.train.inputs.ids.view(2, -1)
    x = tokens_of(dataset, ids)
    assert x.shape == (2, 1024, 3)
    assert float(x[1, 7, 2]) == pytest.approx((int(ids[1, 23]) / 255 - 0.4465) / 0.261, rel=1e-5)
    gray = noise(Data(arena="pathfinder32"), 2)
    x = tokens_of(gray, gray.train.inputs.ids.view(2, -1))
    assert x.shape == (2, 1024, 1)
    assert -1 <= float(x.min()) < float(x.max()) <= 1


@pytest.mark.parametrize(
    ("recipe", "mixer", "counts"),
    [
        (
            recipes.hgrn2_paper,
            HGRN2(lower_bound="exclusive"),
            {
                "listops": 146e3,
                "text": 463e3,
                "retrieval": 1.32e6,
                "image": 11.0e6,
                "pathfinder32": 695e3,
                "path_x": 45e3,
            },
        ),
        (
            recipes.hgrn1_paper,
            HGRN1(lower_bound="exclusive", separate_theta=True),
            {
                "listops": 64e3,
                "text": 663e3,
                "retrieval": 109e3,
                "image": 15.8e6,
                "pathfinder32": 995e3,
                "path_x": 252e3,
            },
        ),
    ],
    ids=["hgrn2", "hgrn1"],
)
def test_published_models_have_the_published_sizes(recipe, mixer, counts):
    """Less what embeds and the head, which the published counts leave out."""
    settings = recipes.HGRN2_PAPER if mixer.name == "hgrn2" else recipes.HGRN1_PAPER
    assert set(settings) == set(counts)
    for arena, published in counts.items():
        ratio = {"expand_ratio": settings[arena].expand_ratio} if mixer.name == "hgrn2" else {}
        task = recipe(mixer.model_copy(update=ratio), Data(arena=arena))
        model = task.model(task.mixer, noise(task.data, 1), CPU)
        parts = model.parameter_counts()
        size = sum(p.numel() for p in model.parameters())
        size -= parts["parameters_head"] + parts["parameters_embedding"]
        assert size == pytest.approx(published, rel=0.025), arena


@pytest.mark.parametrize("name", list(recipes.RECIPES))
def test_recipes_give_every_mixer_the_same_depth_and_width(name):
    settings = {
        "lra-hgrn2-paper": recipes.HGRN2_PAPER,
        "lra-hgrn1-paper": recipes.HGRN1_PAPER,
        "lra-s4-shape": recipes.S4_SHAPE,
        "small": recipes.SMALL,
        "smoke": recipes.SMOKE,
    }[name]
    for arena, setting in settings.items():
        sizes = set()
        for mixer in MIXERS:
            task = recipes.RECIPES[name](mixer, Data(arena=arena))
            assert task.recipe == name
            sizes.add((task.backbone.n_layers, task.backbone.d_model))
            assert task.directions == ("flip_sum" if mixer.name == "mamba" else "both")
            if mixer.name == "attention":
                assert task.backbone.positions == "sinusoidal"
        assert sizes == {(setting.layers, setting.d_model)}
    with pytest.raises(ValueError, match=f"no setting in recipe {name}"):
        recipes.RECIPES[name](MIXERS[0], Data(arena="path_256"))


def test_short_recipes_warm_up_for_a_tenth_of_their_steps():
    training = recipes.small(MIXERS[0], Data(arena="listops")).training
    assert training.warmup_steps == 20 * 750 / 10
    assert recipes.smoke(MIXERS[0], LISTOPS).training.warmup_steps == round(0.1 * 2 * 3)


def test_a_cosine_stays_at_its_end_or_turns_up_again():
    fields = {"lr": 1.0, "epochs": 4, "warmup_steps": 4, "schedule_steps": 12}
    clamped, rebound = (
        [
            learning_rate(Training.model_validate(fields | {"schedule": name}), 0, step, 5)
            for step in range(20)
        ]
        for name in ("cosine_step", "cosine_rebound")
    )
    assert clamped[:12] == rebound[:12]
    assert clamped[8] == pytest.approx(0.5)
    assert clamped[12:] == [0.0] * 8
    assert rebound[16] == pytest.approx(0.5)


def test_what_sets_the_memory_may_have_a_rate_of_its_own():
    # Of two layers: the bounds are one, angles are two a layer, Mamba has A, D and dt's bias.
    expected = {"hgrn2": 1, "hgrn1": 1 + 2 * 2, "gla": 0, "mamba": 2 * 3, "attention": 0}
    for mixer in MIXERS:
        training = recipes.s4_shape(mixer, Data(arena="listops")).training
        assert training.rates_lr == 1e-3
        task = tiny(mixer, backbone=tiny().backbone.model_copy(update={"n_layers": 2}))
        built = task.model(mixer, noise(Data(arena="listops"), 1), CPU)
        optimizer = adamw(built, training)
        own = [group for group in optimizer.param_groups if "scale" in group]
        assert sum(len(group["params"]) for group in own) == expected[mixer.name]
        assert all(group["weight_decay"] == 0 and group["lr"] == 1e-3 for group in own)
        total = sum(len(group["params"]) for group in optimizer.param_groups)
        assert total == len(list(built.parameters()))


def test_a_rate_of_its_own_follows_the_schedule():
    task = tiny(training={"rates_lr": 3e-4, "lr": 3e-3, "epochs": 1})
    trainer = task.trainer(Context(CPU))
    steps = trainer.start_epoch()
    seen = []
    for _ in range(steps):
        trainer.one_step(steps)
        seen.append([group["lr"] for group in trainer.optimizer.param_groups])
    assert len({rates[0] for rates in seen}) > 1
    for first, own in seen:
        assert own == pytest.approx(first / 10)


@pytest.mark.parametrize(
    "fields",
    [
        *({"arena": name} for name in ("listops", "text", "retrieval", "pathfinder32", "path_x")),
        {"arena": "image", "colour": True, "augment": True},
    ],
    ids=lambda fields: fields["arena"],
)
def test_the_step_of_every_task_is_checked(fields):
    cell = recipes.hgrn1_paper(MIXERS[1], Data.model_validate(fields))
    small = {"d_model": 8, "glu_width": 8, "n_layers": 1}
    step = LRAStep.model_validate(
        {name: getattr(cell, name) for name in LRA.model_fields if name != "name"}
        | {"data": Data.model_validate(fields | {"source": "random"})}
        | {"backbone": cell.backbone.model_copy(update=small)}
    )
    step.check(CPU)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"schedule": "constant"}, "schedule_steps = 8 does not fit schedule = 'constant'"),
        ({"schedule": "cosine_step", "warmup_steps": 8}, "use more than warmup_steps = 8"),
    ],
)
def test_a_cosine_that_cannot_end_is_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        Training.model_validate({"lr": 1.0, "schedule_steps": 8} | fields)


def test_a_step_is_timed_on_noise():
    task = recipes.hgrn2_paper(MIXERS[0], Data(arena="path_x"))
    fields = {name: getattr(task, name) for name in LRA.model_fields if name != "name"}
    with pytest.raises(ValueError, match="a step is timed on 'random' data"):
        LRAStep.model_validate(fields)
    cell = tiny(MIXERS[0], PATHFINDER)
    fields = {name: getattr(cell, name) for name in LRA.model_fields if name != "name"}
    noise_of = Data(arena="pathfinder32", source="random")
    step = LRAStep.model_validate(
        fields
        | {"data": noise_of, "budget_s": 0.05}
        | {"training": cell.training.model_copy(update={"batch": 2})}
    )
    assert step.seq_len == 1024
    metrics = step.run(Context(CPU))
    assert metrics["tokens_per_s"] == pytest.approx(1e3 * 2 * 1024 / metrics["step_ms"])
