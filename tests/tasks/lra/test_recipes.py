"""The arena's recipes: the published sizes, the same shape for every mixer, rates and schedules."""

from __future__ import annotations

import pytest
import torch

from mixers import HGRN1, HGRN2, Mamba
from tasks.base import Context
from tasks.lra import recipes
from tasks.lra.batches import noise
from tasks.lra.data import Data
from tasks.recipe import Training, adamw, learning_rate
from tests.tasks.lra.tiny_cells import CPU, LISTOPS, MIXERS, tiny

pytestmark = pytest.mark.usefixtures("_generated")


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
            assert task.directions == "both"
            if mixer.name == "attention":
                assert task.backbone.positions == "sinusoidal"
        assert sizes == {(setting.layers, setting.d_model)}
        forwards_alone = recipes.RECIPES[name](Mamba(impl="mamba_ssm"), Data(arena=arena))
        assert forwards_alone.directions == "flip_sum"
    with pytest.raises(ValueError, match=f"no setting in recipe {name}"):
        recipes.RECIPES[name](MIXERS[0], Data(arena="path_256"))


def test_ids_start_as_large_as_their_positions():
    for recipe in (recipes.hgrn2_paper, recipes.smoke):
        task = recipe(MIXERS[0], Data(arena="listops"))
        model = task.model(task.mixer, noise(task.data, 1), CPU)
        assert isinstance(model.embedding, torch.nn.Embedding)
        # 18 ids of 32 or 64 channels: four standard errors.
        assert float(model.embedding.weight.detach().std()) == pytest.approx(1, abs=0.12)
    assert recipes.hgrn2_paper(MIXERS[0], Data(arena="image")).backbone.embed_std is None
    ids = Data(arena="image", convention="google")
    assert recipes.hgrn2_paper(MIXERS[0], ids).backbone.embed_std == 1


def test_a_batch_norm_sees_no_batches_sorted_by_length():
    pools = {
        arena: recipes.hgrn2_paper(MIXERS[0], Data(arena=arena)).sort_pool
        for arena in ("listops", "text", "retrieval", "image")
    }
    # Its Text has layer norms.
    assert pools == {"listops": 1, "text": 64, "retrieval": 1, "image": 1}


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
        trainer.advance()
        seen.append([group["lr"] for group in trainer.optimizer.param_groups])
    assert len({rates[0] for rates in seen}) > 1
    for first, own in seen:
        assert own == pytest.approx(first / 10)
