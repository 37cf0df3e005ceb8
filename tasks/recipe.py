"""How a model is trained: the settings, and what follows from them alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)
from torch import nn

from mixers.base import Frozen

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
    schedule: Literal[
        "constant", "cosine_epoch", "cosine_step", "cosine_rebound", "inverse_sqrt"
    ] = "cosine_epoch"
    """Cosine to 0 over all epochs, changed once an epoch or once a step; or lr / sqrt(step).
    `cosine_rebound`: past its last step the cosine turns up again, as in some published runs."""
    warmup_steps: NonNegativeInt = 0
    schedule_steps: PositiveInt | None = None
    """The step, the warm-up's included, at which a cosine by steps is at 0, where it stays; None:
    the last one."""
    rates_lr: PositiveFloat | None = None
    """Learning rate, and no weight decay, of what sets how fast a mixer forgets (HGRN's lower
    bounds and angles, Mamba's A, D and step size); None: as all else."""
    clip_norm: PositiveFloat | None = None
    precision: Literal["fp32", "tf32", "bf16_autocast"] = "fp32"
    """Of the training steps; evaluation is always fp32."""
    order: Literal["fixed", "shuffled"] = "fixed"
    """Of the batches: the same every epoch, or a new permutation of the examples each epoch."""
    early_stop: Share | None = None
    """Stop after the first epoch whose accuracy is above this."""
    report: Literal["last", "best"] = "last"
    """Which epoch's accuracy is `accuracy`."""
    engine: Literal["eager", "graph"] = "eager"
    """`graph`: a whole step, forward to optimiser, and the forward of an evaluation are each
    replayed from a CUDA graph, one for each shape of a batch. `eager`: launched op by op."""
    compiled: bool = False
    """The loss of full batches and its backward pass through torch.compile first."""

    steps_together: PositiveInt = 1
    """How many steps are launched at once where so many batches in a row have one shape; with
    `graph`, as one graph. The host's part of a small model's step can take as long as the device's.
    """

    later: ClassVar[tuple[str, ...]] = (
        *("engine", "compiled", "schedule_steps", "rates_lr", "steps_together"),
    )

    @property
    def compute_dtype(self) -> torch.dtype:
        """The type that a mixer's operator sees in training."""
        return torch.bfloat16 if self.precision == "bf16_autocast" else torch.float32

    @model_validator(mode="after")
    def _has_an_end(self) -> Training:
        if self.schedule_steps is None:
            return self
        if self.schedule not in ("cosine_step", "cosine_rebound"):
            raise ValueError(
                f"schedule_steps = {self.schedule_steps} does not fit schedule = "
                f"{self.schedule!r}: leave it out, or use 'cosine_step' or 'cosine_rebound'"
            )
        if self.schedule_steps <= self.warmup_steps:
            raise ValueError(
                f"schedule_steps = {self.schedule_steps} counts the warm-up too: use more than "
                f"warmup_steps = {self.warmup_steps}"
            )
        return self


def learning_rate(training: Training, epoch: int, step: int, steps_per_epoch: int) -> float:
    """The learning rate of optimiser step number `step` (from 0), in epoch number `epoch`."""
    total = training.epochs * steps_per_epoch
    if step < training.warmup_steps:
        return training.lr * (step + 1) / training.warmup_steps
    if training.schedule == "cosine_epoch":
        return training.lr * 0.5 * (1 + math.cos(math.pi * epoch / training.epochs))
    if training.schedule in ("cosine_step", "cosine_rebound"):
        span = max(1, (training.schedule_steps or total) - training.warmup_steps)
        done = (step - training.warmup_steps) / span
        if training.schedule == "cosine_step":
            # Clamped: a recipe whose warm-up is longer than the run still ends at 0, not above.
            done = min(1.0, done)
        return training.lr * 0.5 * (1 + math.cos(math.pi * done))
    if training.schedule == "inverse_sqrt":
        return training.lr * math.sqrt(max(1, training.warmup_steps) / (step + 1))
    return training.lr


def adamw(model: nn.Module, training: Training) -> torch.optim.AdamW:
    """The optimiser. Its learning rate is a number on a CPU, and on a GPU a tensor there, so that
    a captured step reads what the schedule has since become."""
    device = next(model.parameters()).device

    def rate(lr: float) -> float | torch.Tensor:
        return torch.tensor(lr, device=device) if device.type == "cuda" else lr

    decayed, free, own = [], [], []
    rates = set() if training.rates_lr is None else set(map(id, _rates(model)))
    for parameter in model.parameters():
        if id(parameter) in rates:
            own.append(parameter)
        else:
            (decayed if training.decay == "all" or parameter.ndim >= 2 else free).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": training.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    if training.rates_lr is not None:
        scale = training.rates_lr / training.lr
        groups.append(
            {"params": own, "weight_decay": 0.0, "lr": rate(training.rates_lr), "scale": scale}
        )
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=rate(training.lr),
        betas=training.betas,
        eps=training.eps,
        fused=True,
    )


def _rates(model: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters that set how fast a mixer forgets, as its modules name them."""
    for module in model.modules():
        for name in getattr(module, "rates", ()):
            parameter = getattr(module, name)
            if parameter is not None:
                yield parameter


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Of a forward pass; nothing but for `bf16_autocast`."""
    if precision == "bf16_autocast":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """fp32 products in TF32 for `tf32`, and in fp32 for every other name."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
