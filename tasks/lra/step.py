"""How long a training step of the arena takes, as training runs it, on noise of a task's shape."""

from __future__ import annotations

import time
from typing import ClassVar, Literal

import torch
from pydantic import PositiveFloat, computed_field
from torch import Tensor

from mixers.base import Mixer
from tasks.base import Context, Metrics
from tasks.check import expect_as_close, of
from tasks.graphs import WARM_UP_CALLS
from tasks.lra.batches import noise
from tasks.lra.examples import Dataset
from tasks.lra.task import LRA, Classification
from tasks.recipe import autocast
from tasks.timing import spread, synchronize, wall_ms

CHECKED_LEN = 256
"""A square, of which a scan over an image makes rows."""


class LRAStep(LRA):
    """Milliseconds of one training step of the whole model by the wall: the host's part, the data
    and the optimiser included; peak memory."""

    name: Literal["lra_step"] = "lra_step"
    trial: int = 0
    """Which of several runs of the same measurement, each in a fresh process."""
    budget_s: PositiveFloat = 2.0
    """Time spent on repetitions."""

    timed: ClassVar[bool] = True
    any_device: ClassVar[bool] = False
    packs: ClassVar[bool] = False

    def _check_source(self) -> None:
        if self.data.source != "random":
            raise ValueError(f"source = {self.data.source!r}: a step is timed on 'random' data")

    @computed_field
    @property
    def seq_len(self) -> int:
        """Tokens of a sequence."""
        return noise(self.data, 1).max_length

    def dataset(self, context: Context) -> Dataset:
        return noise(self.data, self.training.batch)

    def run(self, context: Context) -> Metrics:
        """Memory (on a GPU) is all that is in use, data and parameters included."""
        device, start = context.device, time.perf_counter()
        trainer = self.trainer(context)
        steps = trainer.start_epoch()

        def step() -> None:
            trainer.step %= steps
            trainer.advance()

        # Once more than it takes to capture, so that what is timed is a replay.
        for _ in range(WARM_UP_CALLS + 2):
            step()
        synchronize(device)
        cold_start_s = time.perf_counter() - start
        memory: Metrics = {}
        if device.type == "cuda":
            memory["peak_mib"] = torch.cuda.max_memory_allocated(device) / 2**20
            memory["reserved_mib"] = torch.cuda.max_memory_reserved(device) / 2**20
        self.check(device)
        trainer.model.train()
        # The same call as two interleaved series: their difference is the noise floor.
        both = wall_ms(step, device, budget_s=self.budget_s, calls=1)
        times, null_times = both[::2], both[1::2]
        p20, step_ms, p80 = spread(times)
        sequences = self.training.batch * (2 if self.pair else 1)
        return memory | {
            "step_ms": step_ms,
            "step_ms_p20": p20,
            "step_ms_p80": p80,
            "repetitions": len(times),
            "null_ms": spread(null_times)[1],
            "tokens_per_s": 1e3 * sequences * self.seq_len / step_ms,
            "sequences_per_s": 1e3 * sequences / step_ms,
            "cold_start_s": cold_start_s,
            "parameters": float(sum(p.numel() for p in trainer.model.parameters())),
        }

    def check(self, device: torch.device) -> None:
        """Raise Wrong where the gradients' error against fp64 is more than twice that of the
        reference in the cell's precision, over all parameters, on one sequence of 256 tokens
        without dropout."""
        reference = self.mixer.model_copy(update={"impl": "reference"})
        exact = self._gradients(reference, device, torch.float64)
        baseline, ours = (
            self._gradients(mixer, device, torch.float32) for mixer in (reference, self.mixer)
        )
        what = f"the gradient in {self.training.precision} {of(self.mixer)}"
        expect_as_close(what, ours, baseline, exact, torch.finfo(self.compute_dtype).eps)

    def _gradients(self, mixer: Mixer, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Of the loss by every parameter, in a row; parameters in fp64 run without autocast."""
        dataset = noise(self.data, 1, CHECKED_LEN)
        model = self.model(mixer, dataset, device).to(dtype).eval()
        problem = Classification(self, dataset, device)
        row = torch.zeros(1, dtype=torch.int64, device=device)
        batch = problem.train.tensors((row, CHECKED_LEN))
        precision = "fp32" if dtype == torch.float64 else self.training.precision
        with autocast(precision, device):
            loss = problem.loss(model, *batch)
        gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        return torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])
