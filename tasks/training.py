"""The one training loop: explicit seeds, exact resume, early stop, one evaluation an epoch.

A task hands it a model and a `Problem`; nothing here knows what is learned. The host never waits
for the device inside an epoch, but to stay a few steps ahead of it and no more.
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mixers.layers import seed_dropout
from tasks.base import Context, Metrics, Paused, Unsupported
from tasks.graphs import Function, Graphs, Replayed, compiled
from tasks.problem import Problem, runs
from tasks.recipe import Training, adamw, autocast, learning_rate, matmul_precision
from tasks.seeds import seeded

CHECKPOINT_EVERY_S = 60.0
CHECKPOINT_FORMAT = 3
"""Of what a checkpoint holds; one of another format is not gone on from."""
# An evaluation is not polled for a stop: what was trained before it is kept.
CHECKPOINT_BEFORE_EVALUATION_S = 10.0
STEPS_AHEAD = 16
"""How many steps the host may be ahead of the device: enough that the device never waits, few
enough that a stop is not long in coming."""


def steps_for_a_profiler(trainer: Trainer) -> Callable[[], int]:
    """Launches the next steps of the first epoch, those that go together at once, and returns how
    many; over again at its end, which may have another shape."""
    steps, together = trainer.start_epoch(), trainer.training.steps_together

    def call() -> int:
        if trainer.step == steps or trainer.alike[trainer.step] < min(together, trainer.alike[0]):
            trainer.step = 0
        before = trainer.steps_done
        trainer.advance()
        return trainer.steps_done - before

    return call


class Trainer:
    """One model in training: its optimiser, its random numbers, its graphs and its checkpoint.

    It goes on from `context.checkpoint` if that is there; when `context.should_stop` says so, it
    saves it and raises Paused. A resumed run equals an uninterrupted one; on a CPU bit for bit,
    where the number of threads is the same. Raises Unsupported for a graph on a CPU.
    """

    def __init__(
        self,
        model: nn.Module,
        training: Training,
        problem: Problem,
        *,
        seed: int,
        context: Context,
    ) -> None:
        self.model, self.training, self.problem, self.context = model, training, problem, context
        device = context.device
        if training.engine == "graph" and device.type != "cuda":
            raise Unsupported(f"engine = 'graph' needs a CUDA device, not {device}: use 'eager'")
        self.optimizer = adamw(model, training)
        seed_dropout(model, seeded(device, seed, "dropout"))
        self.loss_sum = torch.zeros((), device=device, dtype=torch.float64)
        self.loss = problem.loss
        self.full_loss = compiled(problem.loss) if training.compiled else problem.loss
        self.graphs: Graphs | None = None
        self.update: Function = self._update
        self.score: Function = partial(problem.score, model)
        if training.engine == "graph":
            self.graphs = Graphs(device)
            self.update = Replayed(self.update, self.graphs)
            self.score = Replayed(self.score, self.graphs)
        self.ahead: deque[tuple[torch.cuda.Event, int]] = deque()
        """Launches that the device may not have come to, and their steps."""
        self.epoch = self.step = self.steps_done = 0
        self.alike: list[int] = []
        """Of the epoch's batches: how many in a row from each one on have its shape."""
        self.rates = torch.zeros(0)
        """Learning rates of the epoch's steps, fp64 on the device."""
        self.losses: list[float] = []
        self.history: dict[str, list[float]] = {}
        self.train_s = 0.0
        self.finished = self.diverged = False
        self.clock = self.saved = time.monotonic()

    def steps(self) -> Generator[None, None, Metrics]:
        """Train to the end; between steps another model may have its turn."""
        if self.context.checkpoint is not None and self.context.checkpoint.exists():
            self.load(self.context.checkpoint)
        while not self.finished:
            steps = self.start_epoch()
            while self.step < steps:
                self.advance()
                self._keep_or_stop()
                yield
            self._read_clock()
            if time.monotonic() - self.saved > CHECKPOINT_BEFORE_EVALUATION_S:
                self.save()
            scores = self.evaluate()
            # The others' evaluations are launched before the host waits for this one.
            yield
            self._end_epoch(scores, steps)
        return self.metrics()

    def start_epoch(self) -> int:
        """Prepare the epoch; return its number of steps."""
        if self.graphs is not None:
            # What the model and its data were made on.
            self.graphs.stream.wait_stream(torch.cuda.current_stream(self.context.device))
        with self._here():
            self.alike = runs(self.problem.start_epoch(self.epoch))
            steps, before = len(self.alike), self.steps_done - self.step
            rates = [
                learning_rate(self.training, self.epoch, before + step, steps)
                for step in range(steps)
            ]
            self.rates = torch.tensor(rates, dtype=torch.float64, device=self.context.device)
        self.model.train()
        self.clock = time.monotonic()
        return steps

    def advance(self) -> None:
        """Launch the next steps, several at once where the recipe says so and their batches are
        alike, then wait until the device is at most a few steps behind."""
        together = self.training.steps_together
        count = together if self.alike[self.step] >= together else 1
        steps = range(self.step, self.step + count)
        with self._here(), matmul_precision(self.training.precision):
            batches = [tensor for step in steps for tensor in self.problem.batch(step)]
            self.update(self.rates[steps.start : steps.stop], *batches)
            if self.context.device.type == "cuda":
                event = torch.cuda.Event()
                event.record()
                self.ahead.append((event, count))
        while len(self.ahead) > 1 and sum(count for _, count in self.ahead) > STEPS_AHEAD:
            self.ahead.popleft()[0].synchronize()
        self.step += count
        self.steps_done += count

    def evaluate(self) -> dict[str, Tensor]:
        """Launch an evaluation."""
        self.model.eval()
        with self._here(), torch.no_grad(), matmul_precision("fp32"):
            return self.problem.evaluate(self.score)

    def _update(self, rates: Tensor, *batches: Tensor) -> Tensor:
        """A whole step for each rate and batch, the batches' tensors in a row; returns the sum of
        the epoch's losses."""
        parts = len(batches) // len(rates)
        for i, rate in enumerate(rates.unbind()):
            self._step(rate, *batches[i * parts : (i + 1) * parts])
        return self.loss_sum

    def _step(self, rate: Tensor, *batch: Tensor) -> None:
        self._set_rate(rate)
        self.optimizer.zero_grad(set_to_none=True)
        full = len(batch[0]) == self.training.batch
        with autocast(self.training.precision, self.context.device):
            # An epoch's smaller last batch is one step in hundreds: not worth a compilation.
            loss = (self.full_loss if full else self.loss)(self.model, *batch)
        loss.backward()
        if self.training.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.training.clip_norm)
        capturing = self.graphs is not None and torch.cuda.is_current_stream_capturing()
        for group in self.optimizer.param_groups:
            # torch asks it of a step that is captured and warns of it in any other.
            group["capturable"] = capturing
        self.optimizer.step()
        self.loss_sum += loss.detach()

    def _here(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.graphs is None else torch.cuda.stream(self.graphs.stream)

    def _set_rate(self, rate: Tensor) -> None:
        for group in self.optimizer.param_groups:
            scaled = rate * group["scale"] if "scale" in group else rate
            if isinstance(group["lr"], Tensor):
                group["lr"].copy_(scaled)
            else:
                group["lr"] = scaled.item()

    def _keep_or_stop(self) -> None:
        stop = self.context.should_stop()
        if stop or time.monotonic() - self.saved > CHECKPOINT_EVERY_S:
            self._read_clock()
            self.save()
        if stop:
            raise Paused

    def _read_clock(self) -> None:
        """Count the time since the last look as training, all of what was launched included."""
        if self.context.device.type == "cuda":
            with self._here():
                torch.cuda.current_stream(self.context.device).synchronize()
        now = time.monotonic()
        self.train_s, self.clock = self.train_s + now - self.clock, now

    def _end_epoch(self, scores: dict[str, Tensor], steps: int) -> None:
        with self._here():
            names, values = list(scores), [*scores.values(), self.loss_sum / steps]
            *read, mean_loss = torch.stack([value.double() for value in values]).tolist()
            self.loss_sum.zero_()
        for name, score in zip(names, read, strict=True):
            self.history.setdefault(name, []).append(score)
        self.losses.append(mean_loss)
        self.epoch, self.step = self.epoch + 1, 0
        accuracy, stop = self.history["accuracy"][-1], self.training.early_stop
        # A learning rate at which training diverges is a result of the grid, not a failure.
        self.diverged = not math.isfinite(mean_loss)
        learned = stop is not None and accuracy > stop
        self.finished = self.diverged or learned or self.epoch == self.training.epochs
        self.context.progress(
            f"epoch {self.epoch}/{self.training.epochs}  loss {mean_loss:.4f}  "
            f"accuracy {accuracy:.4f}"
        )

    def metrics(self) -> Metrics:
        """Of the run so far; times are of the wall, those of a pack's other models included."""
        accuracies = self.history["accuracy"]
        best = max(range(len(accuracies)), key=accuracies.__getitem__)
        chosen = best if self.training.report == "best" else len(accuracies) - 1
        metrics: Metrics = {name: values[chosen] for name, values in self.history.items()}
        return metrics | {
            "best_accuracy": accuracies[best],
            "last_accuracy": accuracies[-1],
            "diverged": float(self.diverged),
            "epochs_run": self.epoch,
            "steps": self.steps_done,
            "train_s": self.train_s,
            "step_ms": 1e3 * self.train_s / self.steps_done,
            "pack": self.context.pack,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "accuracy_by_epoch": accuracies,
            "loss_by_epoch": self.losses,
        }

    def save(self) -> None:
        """Write the checkpoint, where there is a place for it. A training does not end because it
        cannot be written: it says so, and leaves the room to the record."""
        path = self.context.checkpoint
        if path is not None:
            part = path.with_suffix(".part")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                # To an open file: given a path, torch hides why it failed.
                with self._here(), part.open("wb") as file:
                    torch.save(self._state(), file)
                os.replace(part, path)
            except OSError as error:
                with suppress(OSError):
                    part.unlink()
                self.context.progress(
                    f"no checkpoint: cannot write {path}: {error.strerror or error}"
                )
        self.clock = self.saved = time.monotonic()

    def _state(self) -> dict[str, Any]:
        return {
            "format": CHECKPOINT_FORMAT,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "loss_sum": self.loss_sum,
            "counters": [self.epoch, self.step, self.steps_done],
            "train_s": self.train_s,
            "losses": self.losses,
            "history": self.history,
        }

    def load(self, path: Path) -> None:
        """Go on from a checkpoint."""
        state = torch.load(path, map_location=self.context.device, weights_only=True)
        if state.get("format") != CHECKPOINT_FORMAT:
            self.context.progress("its checkpoint is another version's: started over")
            return
        self.model.load_state_dict(state["model"])
        groups = self.optimizer.param_groups
        rates = [group["lr"] for group in groups]
        self.optimizer.load_state_dict(state["optimizer"])
        # Ours again: on a GPU a tensor, whatever the checkpoint has.
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self.loss_sum.copy_(state["loss_sum"])
        self.epoch, self.step, self.steps_done = state["counters"]
        self.train_s, self.losses = state["train_s"], state["losses"]
        self.history = state["history"]
        self.context.progress(f"resumed at epoch {self.epoch + 1}, step {self.step}")
