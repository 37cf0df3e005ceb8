"""How a model is trained: the settings, and what follows from them alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
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
    engine: Literal["eager", "graph"] = "eager"
    """`graph`: a whole step, forward to optimiser, and the forward of an evaluation are each
    replayed from a CUDA graph, one for each shape of a batch. `eager`: launched op by op."""
    compiled: bool = False
    """The loss and its backward pass through torch.compile first."""

    later: ClassVar[tuple[str, ...]] = ("engine", "compiled")


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


def adamw(model: nn.Module, training: Training) -> torch.optim.AdamW:
    """The optimiser. Its learning rate is a number on a CPU, and on a GPU a tensor there, so that
    a captured step reads what the schedule has since become."""
    decayed, free = [], []
    for parameter in model.parameters():
        (decayed if training.decay == "all" or parameter.ndim >= 2 else free).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": training.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    device = next(model.parameters()).device
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=torch.tensor(training.lr, device=device) if device.type == "cuda" else training.lr,
        betas=training.betas,
        eps=training.eps,
        fused=True,
    )


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
