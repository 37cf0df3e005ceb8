"""How long a training step of MQAR takes, alone and with other models on the same device."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import ClassVar, Literal

import torch
from pydantic import PositiveFloat, PositiveInt, model_validator

from tasks.base import Context, Metrics, Unsupported
from tasks.graphs import WARM_UP_CALLS
from tasks.mqar.task import MQAR
from tasks.timing import spread, synchronize, wall_ms


class MQARStep(MQAR):
    """Milliseconds of one step of each of `pack` models that differ in their seed, by the wall as
    training runs them: the host's part, the data and the optimiser included."""

    name: Literal["mqar_step"] = "mqar_step"
    pack: PositiveInt = 1
    """Models side by side."""
    trial: int = 0
    """Which of several runs of the same measurement, each in a fresh process."""
    budget_s: PositiveFloat = 1.0
    """Time spent on repetitions."""

    timed: ClassVar[bool] = True
    any_device: ClassVar[bool] = False
    packs: ClassVar[bool] = False

    @model_validator(mode="after")
    def _has_a_full_batch(self) -> MQARStep:
        batch, examples = self.training.batch, self.train[0].examples
        if batch > examples:
            raise ValueError(
                f"batch = {batch} is more than the first segment's examples = {examples}, so that "
                "no step is a full one: use a smaller batch"
            )
        if self.training.order != "fixed":
            raise ValueError(
                f"order = {self.training.order!r} has the smaller batch anywhere, and full steps "
                "alone are timed: use order = 'fixed'"
            )
        return self

    def repeated(self, device: torch.device) -> Callable[[], int]:
        if self.pack > 1:
            raise Unsupported(f"pack = {self.pack}: a profile is of one model; use pack = 1")
        return super().repeated(device)

    def run(self, context: Context) -> Metrics:
        """`step_ms` is of one full step of all models, `runs_per_hour` of whole trainings at that
        time: every epoch, none stopped early, evaluations included.

        Memory (on a GPU) is all that is in use, data and parameters included.
        """
        device, start = context.device, time.perf_counter()
        gpu = device.type == "cuda"
        seeds = range(self.seed, self.seed + self.pack)
        trainers = [self.model_copy(update={"seed": seed}).trainer(context) for seed in seeds]
        steps = max([trainer.start_epoch() for trainer in trainers])
        full = self.train[0].examples // self.training.batch

        def step() -> None:
            for trainer in trainers:
                # The smaller batch at the end is left out, and what is too few for a whole graph.
                if trainer.step + min(full, self.training.steps_together) > full:
                    trainer.step = 0
                trainer.advance()

        def evaluate() -> None:
            for trainer in trainers:
                trainer.evaluate()

        # Once more than it takes to capture, so that what is timed is a replay.
        for _ in range(WARM_UP_CALLS + 1):
            step()
        before = trainers[0].steps_done
        step()
        together = trainers[0].steps_done - before
        synchronize(device)
        cold_start_s = time.perf_counter() - start
        # The same call as two interleaved series: their difference is the noise floor.
        calls = max(1, 16 // together) if gpu else 1
        both = [ms / together for ms in wall_ms(step, device, budget_s=self.budget_s, calls=calls)]
        times, null_times = both[::2], both[1::2]
        for _ in range(WARM_UP_CALLS + 1):
            evaluate()
        evaluation_ms = median(wall_ms(evaluate, device, budget_s=self.budget_s / 4, calls=1))
        p20, step_ms, p80 = spread(times)
        epoch_ms = steps * step_ms + evaluation_ms
        metrics: Metrics = {
            "step_ms": step_ms,
            "step_ms_p20": p20,
            "step_ms_p80": p80,
            "repetitions": len(times),
            "null_ms": spread(null_times)[1],
            "step_ms_per_model": step_ms / self.pack,
            "evaluation_ms": evaluation_ms,
            "steps_per_epoch": steps,
            "steps_together": together,
            "runs_per_hour": 3.6e6 * self.pack / (self.training.epochs * epoch_ms),
            "cold_start_s": cold_start_s,
            "logits_mib": self.logits_bytes / 2**20,
        }
        if gpu:
            metrics["peak_mib"] = torch.cuda.max_memory_allocated(device) / 2**20
            metrics["reserved_mib"] = torch.cuda.max_memory_reserved(device) / 2**20
        # Last: its memory is no training's. Nothing is told where it raises.
        return metrics | self.check(device)

    @property
    def logits_bytes(self) -> int:
        """Of a batch's logits at its labelled positions, in the type of the head's product; the
        fused loss keeps none."""
        if self.fused_loss:
            return 0
        labelled = self.training.batch * self.train[0].kv_pairs
        return labelled * self.vocab_size * self.compute_dtype.itemsize
