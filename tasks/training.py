"""The one training loop: explicit seeds, exact resume, early stop, one evaluation an epoch.

A task hands it a model and a `Problem`; nothing here knows what is learned.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from mixers.base import Frozen
from mixers.layers import seed_dropout
from tasks.base import Context, Metrics, Paused

CHECKPOINT_EVERY_S = 60.0
# An evaluation is not polled for a stop: what was trained before it is kept.
CHECKPOINT_BEFORE_EVALUATION_S = 10.0


Share = Annotated[float, Field(ge=0, lt=1)]


class Training(Frozen):
    """How a model is trained and which of its numbers is reported."""

    lr: PositiveFloat
    epochs: PositiveInt = 64
    batch: PositiveInt = 512
    weight_decay: NonNegativeFloat = 0.1
    decay: Literal["all", "matrices"] = "all"
    """`all`: weight decay on every parameter, norms, biases and decay rates included (zoology).
    `matrices`: on parameters of two or more axes."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    schedule: Literal["constant", "cosine_epoch", "cosine_step", "inverse_sqrt"] = "cosine_epoch"
    """Cosine to 0 over all epochs, changed once an epoch or once a step; or lr / sqrt(step)."""
    warmup_steps: NonNegativeInt = 0
    clip_norm: PositiveFloat | None = None
    precision: Literal["fp32", "tf32", "bf16_autocast"] = "fp32"
    """Of the training steps; evaluation is always fp32."""
    order: Literal["fixed", "shuffled"] = "fixed"
    """Of the batches: the same every epoch, or a new permutation of the examples each epoch."""
    early_stop: Share | None = None
    """Stop after the first epoch whose accuracy is above this."""
    report: Literal["last", "best"] = "last"
    """Which epoch's accuracy is `accuracy`."""


@runtime_checkable
class Problem(Protocol):
    """What is learned. `loss` and `evaluate` see the model in the right mode and precision."""

    def start_epoch(self, epoch: int) -> int:
        """Prepare the epoch's order; return its number of steps."""
        ...

    def loss(self, model: nn.Module, step: int) -> Tensor:
        """The scalar loss of the epoch's batch number `step`."""
        ...

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Metrics on held-out data; `accuracy` among them."""
        ...


def seeded(device: torch.device | str, *parts: object) -> torch.Generator:
    """A generator whose seed is a function of `parts` alone, so that streams never overlap."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8]) >> 1)


def train(
    model: nn.Module, training: Training, problem: Problem, *, seed: int, context: Context
) -> Metrics:
    """Train to the end, or to an early stop, and return the metrics of the run.

    Goes on from `context.checkpoint` if it is there; when `context.should_stop` says so, saves it
    and raises Paused. A resumed run equals an uninterrupted one; on a CPU bit for bit, where the
    number of threads is the same.
    """
    run = _Run(model, training, problem, seed, context)
    if context.checkpoint is not None and context.checkpoint.exists():
        run.load(context.checkpoint)
    with _matmul_precision(training.precision):
        run.to_the_end()
    return run.metrics()


class _Run:
    def __init__(
        self, model: nn.Module, training: Training, problem: Problem, seed: int, context: Context
    ) -> None:
        self.model, self.training, self.problem, self.context = model, training, problem, context
        self.optimizer = _optimizer(model, training)
        self.dropout = seeded(context.device, seed, "dropout")
        seed_dropout(model, self.dropout)
        self.epoch = self.step = self.steps_done = 0
        self.loss_sum = torch.zeros((), device=context.device, dtype=torch.float64)
        self.losses: list[float] = []
        self.history: dict[str, list[float]] = {}
        self.train_s = 0.0
        self.finished = self.diverged = False
        self.clock = self.saved = time.monotonic()

    def to_the_end(self) -> None:
        while not self.finished:
            steps = self.problem.start_epoch(self.epoch)
            self.model.train()
            self.clock = time.monotonic()
            while self.step < steps:
                self._one_step(steps)
                self._keep_or_stop()
            if time.monotonic() - self.saved > CHECKPOINT_BEFORE_EVALUATION_S:
                self.save()
            self._end_epoch(float(self.loss_sum) / steps)

    def _keep_or_stop(self) -> None:
        stop = self.context.should_stop()
        if stop or time.monotonic() - self.saved > CHECKPOINT_EVERY_S:
            self.save()
        if stop:
            raise Paused

    def _read_clock(self) -> None:
        now = time.monotonic()
        self.train_s, self.clock = self.train_s + now - self.clock, now

    def _one_step(self, steps: int) -> None:
        lr = learning_rate(self.training, self.epoch, self.steps_done, steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            loss = self.problem.loss(self.model, self.step)
        loss.backward()
        if self.training.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.training.clip_norm)
        self.optimizer.step()
        self.loss_sum += loss.detach()
        self.step += 1
        self.steps_done += 1

    def _autocast(self) -> torch.autocast | nullcontext[None]:
        if self.training.precision == "bf16_autocast":
            return torch.autocast(self.context.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def _end_epoch(self, mean_loss: float) -> None:
        self._read_clock()
        self.model.eval()
        with torch.no_grad(), _matmul_precision("fp32"):
            scores = self.problem.evaluate(self.model)
        self.losses.append(mean_loss)
        for name, score in scores.items():
            self.history.setdefault(name, []).append(score)
        self.epoch, self.step = self.epoch + 1, 0
        self.loss_sum.zero_()
        accuracy, stop = scores["accuracy"], self.training.early_stop
        # A learning rate at which training diverges is a result of the grid, not a failure.
        self.diverged = not math.isfinite(mean_loss)
        learned = stop is not None and accuracy > stop
        self.finished = self.diverged or learned or self.epoch == self.training.epochs
        self.context.progress(
            f"epoch {self.epoch}/{self.training.epochs}  loss {mean_loss:.4f}  "
            f"accuracy {accuracy:.4f}"
        )

    def metrics(self) -> Metrics:
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
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "accuracy_by_epoch": accuracies,
            "loss_by_epoch": self.losses,
        }

    def save(self) -> None:
        self._read_clock()
        self.saved = self.clock
        path = self.context.checkpoint
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        torch.save(self._state(), part)
        os.replace(part, path)

    def _state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "dropout": self.dropout.get_state(),
            "loss_sum": self.loss_sum,
            "counters": [self.epoch, self.step, self.steps_done],
            "train_s": self.train_s,
            "losses": self.losses,
            "history": self.history,
        }

    def load(self, path: Path) -> None:
        state = torch.load(path, map_location=self.context.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.dropout.set_state(state["dropout"].cpu())
        self.loss_sum.copy_(state["loss_sum"])
        self.epoch, self.step, self.steps_done = state["counters"]
        self.train_s, self.losses = state["train_s"], state["losses"]
        self.history = state["history"]
        self.context.progress(f"resumed at epoch {self.epoch + 1}, step {self.step}")


def learning_rate(training: Training, epoch: int, step: int, steps_per_epoch: int) -> float:
    """The learning rate of optimiser step number `step` (from 0), in epoch number `epoch`."""
    total = training.epochs * steps_per_epoch
    if step < training.warmup_steps:
        return training.lr * (step + 1) / training.warmup_steps
    if training.schedule == "cosine_epoch":
        return training.lr * 0.5 * (1 + math.cos(math.pi * epoch / training.epochs))
    if training.schedule == "cosine_step":
        # Clamped: a recipe whose warm-up is longer than the run still ends at 0, not above.
        span = max(1, total - training.warmup_steps)
        done = min(1.0, (step - training.warmup_steps) / span)
        return training.lr * 0.5 * (1 + math.cos(math.pi * done))
    if training.schedule == "inverse_sqrt":
        return training.lr * math.sqrt(max(1, training.warmup_steps) / (step + 1))
    return training.lr


def _optimizer(model: nn.Module, training: Training) -> torch.optim.AdamW:
    decayed, free = [], []
    for parameter in model.parameters():
        (decayed if training.decay == "all" or parameter.ndim >= 2 else free).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": training.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=training.lr,
        betas=training.betas,
        eps=training.eps,
        fused=True,
    )


@contextmanager
def _matmul_precision(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
