"""A step of the arena: checked for every task, timed on noise."""

from __future__ import annotations

import pytest

from tasks.base import Context
from tasks.lra import recipes
from tasks.lra.data import Data
from tasks.lra.step import LRAStep
from tasks.lra.task import LRA
from tests.tasks.lra.tiny_cells import CPU, MIXERS, PATHFINDER, tiny

pytestmark = pytest.mark.usefixtures("_generated")


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
