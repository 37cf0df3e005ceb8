"""The smallest cells of the arena: generated data of a few rows, one layer of eight channels."""

from __future__ import annotations

import torch

from mixers import GLA, HGRN1, HGRN2, Attention, Mamba, Mixer
from tasks.lra import recipes
from tasks.lra.data import Data
from tasks.lra.task import LRA

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
