"""The arena's recipes, published and ours: each a function from a mixer and its data to a task.

All give every mixer the same depth, width, norms and channel mixer, and train it the same way. Two
things follow the mixer: attention always has sinusoidal positions (without any it would not see an
order), and Mamba by mamba_ssm, whose kernels run forwards alone, is summed over the two directions
as a whole layer (`directions = "flip_sum"`; the same model as Mamba in both directions). What a
mixer is configured with is the grid's.

What all published ones share: mean pool over valid positions, one linear head; for Retrieval
[u, v, u - v, u v] and a hidden layer; AdamW; cosine by steps with warm-up. Embeddings of ids start
as torch draws them, from N(0, 1): as large as sinusoidal positions. Only where no batch norm sees
it are batches sorted by length.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from mixers.base import Mixer
from mixers.layers import NormName
from tasks.backbone import Backbone
from tasks.lra.data import TEXTS, Data
from tasks.lra.task import LRA, SORT_POOL
from tasks.recipe import Training

TRAIN_EXAMPLES = {
    "listops": 96_000,
    "text": 25_000,
    "retrieval": 147_086,
    "image": 45_000,
    **dict.fromkeys(("pathfinder32", "pathfinder64", "path_x", "path_256"), 160_000),
}
"""Of the official files."""


class Setting(NamedTuple):
    """What a recipe says of one task."""

    layers: int
    d_model: int
    norm: NormName
    lr: float
    batch: int
    epochs: int
    warmup: int
    cosine: int | None
    """The step at which the cosine is at 0; None: the last."""
    positions: Literal["none", "sinusoidal"] = "none"
    weight_decay: float = 0.0
    dropout: float = 0.0
    clip: float | None = None
    glu_ratio: int = 1
    """Width of the channel mixer in units of the model's."""
    expand_ratio: int = 1
    """HGRN2's."""


HGRN2_PAPER: dict[str, Setting] = {
    "listops": Setting(
        *(5, 64, "batch", 5e-4, 128, 50, 5_000, 50_000, "sinusoidal"), expand_ratio=4
    ),
    "text": Setting(*(4, 128, "layer", 5e-3, 64, 40, 10_000, 50_000), dropout=0.1, expand_ratio=8),
    "retrieval": Setting(
        *(2, 256, "batch", 5e-3, 128, 20, 312, 50_000, "sinusoidal"),
        clip=1.0,
        glu_ratio=2,
        expand_ratio=2,
    ),
    "image": Setting(
        *(6, 512, "batch", 3e-3, 64, 75, 30_000, 50_000, "sinusoidal"), expand_ratio=2
    ),
    "pathfinder32": Setting(*(6, 128, "batch", 2e-3, 128, 100, 50_000, 500_000), expand_ratio=2),
    "path_x": Setting(
        *(6, 32, "batch", 7.5e-4, 256, 200, 150_000, 500_000, "sinusoidal"), clip=1.0
    ),
}
HGRN1_PAPER: dict[str, Setting] = {
    "listops": Setting(
        *(6, 32, "batch", 5e-4, 128, 50, 5_000, 50_000, "sinusoidal"), weight_decay=0.01
    ),
    "text": Setting(*(4, 128, "batch", 5e-3, 32, 32, 10_000, 50_000, "sinusoidal"), dropout=0.1),
    "retrieval": Setting(*(2, 64, "batch", 5e-3, 64, 20, 312, 50_000, "sinusoidal"), glu_ratio=2),
    "image": Setting(*(6, 512, "batch", 3e-3, 50, 100, 30_000, 50_000, "sinusoidal")),
    "pathfinder32": Setting(*(6, 128, "batch", 2e-3, 128, 200, 50_000, 500_000)),
    "path_x": Setting(*(6, 64, "batch", 7.5e-4, 16, 100, 150_000, 500_000)),
}
S4_SHAPE: dict[str, Setting] = {
    name: setting._replace(weight_decay=0.05)
    for name, setting in {
        "listops": Setting(6, 256, "batch", 0.01, 32, 40, 12_000, 120_000),
        "text": Setting(6, 256, "batch", 0.01, 16, 32, 5_000, 50_000),
        "retrieval": Setting(6, 256, "batch", 0.01, 64, 20, 5_000, 50_000),
        "image": Setting(6, 512, "batch", 0.01, 50, 200, 18_000, 180_000, dropout=0.1),
        "pathfinder32": Setting(6, 256, "batch", 0.004, 64, 200, 50_000, 500_000),
        "path_x": Setting(6, 256, "batch", 0.001, 16, 50, 50_000, 500_000),
    }.items()
}
SMALL: dict[str, Setting] = {
    "listops": Setting(5, 64, "batch", 1e-3, 128, 20, 0, None, "sinusoidal", expand_ratio=4),
    "pathfinder32": Setting(4, 64, "batch", 2e-3, 128, 30, 0, None, expand_ratio=2),
    "pathfinder64": Setting(4, 64, "batch", 2e-3, 128, 30, 0, None, expand_ratio=2),
}
SMOKE: dict[str, Setting] = {
    "listops": Setting(2, 32, "batch", 3e-3, 8, 2, 0, None, "sinusoidal", expand_ratio=16),
    "pathfinder32": Setting(2, 32, "batch", 3e-3, 8, 2, 0, None, expand_ratio=16),
}
SHARE_OF_WARMUP = 0.1
"""Of the steps of the short recipes: published warm-ups would swallow them."""


def hgrn2_paper(mixer: Mixer, data: Data, seed: int = 0) -> LRA:
    """HGRN2's (arXiv 2404.07904), as its released scripts have it, less the clusters: batches are
    those of all GPUs together, so that Pathfinder's and Path-X's batch norms see 128 and 256 images
    where theirs saw 16 and 32. In bf16. Their image tasks scan 2d_parallel, Path-X 2d_series;
    their Image is `Data(arena="image", colour=True, augment=True)`, its validation set augmented
    too."""
    return _published("lra-hgrn2-paper", HGRN2_PAPER, mixer, data, seed, "bf16_autocast")


def hgrn1_paper(mixer: Mixer, data: Data, seed: int = 0) -> LRA:
    """HGRN1's (arXiv 2311.04823), as its released scripts have it, in fp32. Its image tasks scan
    2d_parallel. The cosine stays at 0, where theirs turned up again (Image, Pathfinder, Path-X):
    for that set `schedule = "cosine_rebound"`."""
    return _published("lra-hgrn1-paper", HGRN1_PAPER, mixer, data, seed, "fp32")


def s4_shape(mixer: Mixer, data: Data, seed: int = 0) -> LRA:
    """S4's depth, width and optimiser (state-spaces/s4, its own rate of 1e-3 without weight decay
    for what sets how fast a state forgets); a block has one branch, as there. Pre-norm everywhere,
    where its ListOps and Image had the norm after the branch."""
    task = _published("lra-s4-shape", S4_SHAPE, mixer, data, seed, "fp32")
    backbone = Backbone.model_validate(
        task.backbone.model_dump() | {"channel_mixer": "none", "glu_width": None}
    )
    training = task.training.model_copy(update={"rates_lr": 1e-3})
    return task.model_copy(update={"backbone": backbone, "training": training})


def small(mixer: Mixer, data: Data, seed: int = 0) -> LRA:
    """Ours: minutes on one GPU, in bf16; a tenth of the steps warm up, the cosine ends at 0."""
    return _short("small", SMALL, mixer, data, seed, "bf16_autocast")


def smoke(mixer: Mixer, data: Data, seed: int = 0) -> LRA:
    """Ours: less than a minute on a CPU. It shows that all runs, not how good a mixer is."""
    return _short("smoke", SMOKE, mixer, data, seed, "fp32")


RECIPES: dict[str, Callable[[Mixer, Data], LRA]] = {
    "lra-hgrn2-paper": hgrn2_paper,
    "lra-hgrn1-paper": hgrn1_paper,
    "lra-s4-shape": s4_shape,
    "small": small,
    "smoke": smoke,
}


def changes(task: LRA) -> str:
    """In which settings a task differs from the recipe that it names, ` + ` between them; empty
    for none and for a label that is no recipe's. Mixer, data, seed and engine are not a recipe's.

    Raises ValueError where the recipe has no setting for the task's data."""
    if task.recipe not in RECIPES:
        return ""
    said = RECIPES[task.recipe](task.mixer, task.data)
    names = [
        name for name in ("directions", "pool", "pair", "sort_pool") if _differ(task, said, name)
    ]
    for part in ("backbone", "training"):
        ours, theirs = getattr(task, part), getattr(said, part)
        fields = type(ours).model_fields.keys() - {"engine", "compiled"}
        names += [name for name in sorted(fields) if _differ(ours, theirs, name)]
    return " + ".join(names)


def _differ(ours: object, theirs: object, name: str) -> bool:
    return getattr(ours, name) != getattr(theirs, name)


def _published(
    name: str,
    settings: dict[str, Setting],
    mixer: Mixer,
    data: Data,
    seed: int,
    precision: str,
) -> LRA:
    setting = _setting(name, settings, data)
    return _task(name, setting, mixer, data, seed, {"precision": precision})


def _short(
    name: str,
    settings: dict[str, Setting],
    mixer: Mixer,
    data: Data,
    seed: int,
    precision: str,
) -> LRA:
    setting = _setting(name, settings, data)
    examples = data.examples[0] if data.examples else TRAIN_EXAMPLES[data.arena]
    steps = setting.epochs * -(-examples // setting.batch)
    setting = setting._replace(warmup=round(SHARE_OF_WARMUP * steps))
    return _task(name, setting, mixer, data, seed, {"precision": precision})


def _setting(name: str, settings: dict[str, Setting], data: Data) -> Setting:
    if data.arena not in settings:
        raise ValueError(
            f"arena = {data.arena!r} has no setting in recipe {name}; it should be one of "
            f"{', '.join(settings)}, or build the LRA task yourself, by another label"
        )
    return settings[data.arena]


def _task(
    name: str, setting: Setting, mixer: Mixer, data: Data, seed: int, training: dict[str, Any]
) -> LRA:
    attention = mixer.name == "attention"
    # Pixels are ids in Google's convention alone.
    ids = data.arena in TEXTS or data.convention == "google"
    return LRA(
        mixer=mixer,
        recipe=name,
        data=data,
        directions="flip_sum" if mixer.forwards_alone else "both",
        pair="nli" if data.arena == "retrieval" else None,
        sort_pool=1 if setting.norm == "batch" else SORT_POOL,
        backbone=Backbone(
            d_model=setting.d_model,
            n_layers=setting.layers,
            glu_width=setting.glu_ratio * setting.d_model,
            glu_bias=True,
            norm=setting.norm,
            positions="sinusoidal" if attention else setting.positions,
            # Of the published code's sinusoidal encoder.
            embed_dropout=0.1 if setting.positions == "sinusoidal" else 0.0,
            branch_dropout=setting.dropout,
            tie_embeddings=False,
            embed_std=1.0 if ids else None,
        ),
        training=Training.model_validate(
            training
            | {
                "lr": setting.lr,
                "epochs": setting.epochs,
                "batch": setting.batch,
                "weight_decay": setting.weight_decay,
                "schedule": "cosine_step",
                "warmup_steps": setting.warmup,
                "schedule_steps": setting.cosine,
                "clip_norm": setting.clip,
                "order": "shuffled",
            }
        ),
        seed=seed,
    )
