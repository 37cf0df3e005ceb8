"""The time of a training step: of real steps, checked first, alone and side by side."""

from __future__ import annotations

import pytest
import torch

from mixers import Attention
from tasks.base import Context, Wrong
from tasks.mqar.step import MQARStep
from tasks.mqar.task import MQAR, Segment
from tasks.recipe import Training
from tests.tasks.test_training import CPU, tiny


def timed(**fields: object) -> MQARStep:
    task = tiny(epochs=4, precision=fields.pop("precision", "fp32"))
    same = {name: getattr(task, name) for name in MQAR.model_fields if name != "name"}
    return MQARStep.model_validate(same | {"budget_s": 0.01} | fields)


@pytest.mark.parametrize("pack", [1, 3])
def test_a_step_is_timed_alone_and_in_a_pack(pack):
    metrics = timed(pack=pack).run(Context(CPU))
    # 96 / 32 and 80 / 32 rows.
    assert metrics["steps_per_epoch"] == 6
    assert 0 < metrics["step_ms_p20"] <= metrics["step_ms"] <= metrics["step_ms_p80"]
    assert metrics["step_ms_per_model"] == pytest.approx(metrics["step_ms"] / pack)
    epoch_s = 1e-3 * (6 * metrics["step_ms"] + metrics["evaluation_ms"])
    assert metrics["runs_per_hour"] == pytest.approx(pack * 3600 / (4 * epoch_s))
    # 32 rows of 2 queries over a vocabulary of 40, fp32.
    assert metrics["logits_mib"] == 32 * 2 * 40 * 4 / 2**20


def test_a_fault_of_the_implementation_is_found_before_a_time_is_told(monkeypatch):
    task = timed(mixer=Attention(n_heads=2, impl="sdpa"), budget_s=0.01)
    task.check(CPU)
    built = MQARStep.model

    def faulty(self, device):
        model = built(self, device)
        if self.mixer.impl != "reference":
            with torch.no_grad():
                model.blocks[0].mixer.proj_out.weight.mul_(1.5)
        return model

    monkeypatch.setattr(MQARStep, "model", faulty)
    with pytest.raises(Wrong, match="the gradient in fp32 of attention"):
        task.check(CPU)


@pytest.mark.parametrize("precision", ["fp32", "bf16_autocast"])
@pytest.mark.parametrize(("n_heads", "impl"), [(2, "sdpa"), (2, "products"), (1, "products")])
def test_the_check_passes_what_is_right(n_heads, impl, precision):
    mixer = Attention.model_validate({"n_heads": n_heads, "impl": impl})
    timed(mixer=mixer, precision=precision).check(CPU)


def test_a_batch_that_is_never_full_is_refused():
    with pytest.raises(ValueError, match="batch = 32 is more than the first segment's examples"):
        timed(train=({"seq_len": 16, "kv_pairs": 2, "examples": 20},))


def test_an_order_in_which_any_step_may_be_small_is_refused():
    shuffled = Training(lr=1e-3, batch=32, order="shuffled")
    with pytest.raises(ValueError, match="order = 'shuffled' has the smaller batch anywhere"):
        timed(training=shuffled)


def test_a_compiled_loss_of_full_batches_needs_one():
    task = tiny(compiled=True)
    few = {name: getattr(task, name) for name in MQAR.model_fields}
    few["train"] = (Segment(seq_len=16, kv_pairs=2, examples=20),)
    with pytest.raises(ValueError, match="batch = 32 is more than any segment's examples"):
        MQAR.model_validate(few)
