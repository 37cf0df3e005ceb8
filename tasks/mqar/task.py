"""MQAR as a task: data of one or more difficulties, a two-layer model, accuracy at the queries."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import ClassVar, Literal

import torch
from pydantic import PositiveInt, computed_field, model_validator
from torch import Tensor

from mixers.base import Frozen
from mixers.cross_entropy_settings import expect_width, unsupported
from tasks.backbone import Backbone, LanguageModel
from tasks.base import Context, Metrics, Task, Unsupported
from tasks.check import expect_as_close
from tasks.mqar.data import check_mqar
from tasks.mqar.gradients import TOLERANCE, check_gradients
from tasks.mqar.loss import HeadLoss, head_loss, separate
from tasks.mqar.recall import Recall
from tasks.recipe import Training, autocast, matmul_precision
from tasks.seeds import seeded
from tasks.training import Trainer, steps_for_a_profiler


class Segment(Frozen):
    """`examples` rows of one difficulty."""

    seq_len: PositiveInt
    kv_pairs: PositiveInt
    examples: PositiveInt


class MQAR(Task):
    """Multi-query associative recall; `tasks.mqar.protocols` holds the published settings."""

    name: Literal["mqar"] = "mqar"
    protocol: str
    """A label: whose settings these are."""
    train: tuple[Segment, ...]
    """Batches never mix segments; with `order = "fixed"` they come in this order every epoch."""
    test: tuple[Segment, ...]
    test_batch: PositiveInt = 512
    vocab_size: PositiveInt = 8192
    power_a: float = 0.01
    random_non_queries: bool = False
    backbone: Backbone
    training: Training
    seed: int = 123
    """Of the parameters and of everything drawn in training."""
    data_seed: int = 123
    """Of the rows. They are drawn on the device: a CPU and a GPU see different ones."""
    over_lr: Literal["max", "mean"] = "max"
    """How a report chooses among learning rates."""
    fused_loss: bool = False
    """The head and its cross-entropy in training by a kernel of ours that keeps no logits, on a GPU
    and at widths 16, 32, 64 and 128; evaluation is torch's."""

    later: ClassVar[tuple[str, ...]] = ("fused_loss",)
    any_device: ClassVar[bool] = True
    packs: ClassVar[bool] = True

    @model_validator(mode="after")
    def _fits(self) -> MQAR:
        if not self.train or not self.test:
            raise ValueError(
                f"train has {len(self.train)} segments and test {len(self.test)}: each needs one "
                "at least"
            )
        for segment in self.train + self.test:
            check_mqar(segment.seq_len, segment.kv_pairs, self.vocab_size, self.power_a)
        if self.training.compiled and all(s.examples < self.training.batch for s in self.train):
            raise ValueError(
                f"compiled = True compiles the loss of full batches, and batch = "
                f"{self.training.batch} is more than any segment's examples: use a smaller batch"
            )
        first = self.backbone.first
        if first is not None and first.impl != "reference":
            raise ValueError(
                f"the first layer's impl is {first.impl!r}, which no check looks at: it should be "
                "'reference'"
            )
        for mixer in (self.mixer, first or self.mixer):
            mixer.check_width(self.backbone.d_model)
        if self.fused_loss:
            expect_width(self.backbone.d_model)
        return self

    @computed_field
    @property
    def seq_len(self) -> int:
        """The longest test length."""
        return max(segment.seq_len for segment in self.test)

    @computed_field
    @property
    def kv_pairs(self) -> int:
        """The largest number of pairs tested."""
        return max(segment.kv_pairs for segment in self.test)

    @property
    def cost(self) -> float:
        """Training tokens times layers times width."""
        tokens = self.training.epochs * sum(part.examples * part.seq_len for part in self.train)
        return float(tokens * self.backbone.n_layers * self.backbone.d_model)

    @property
    def compute_dtype(self) -> torch.dtype:
        return self.training.compute_dtype

    def turns(self, context: Context) -> Generator[None, None, Metrics]:
        trainer = self.trainer(context)
        steps = trainer.steps()
        # The first steps first: a kernel that tunes itself does it at the first size it meets.
        next(steps)
        start = time.monotonic()
        checked = self.check(context.device)
        trainer.clock += time.monotonic() - start
        yield
        metrics = yield from steps
        state = self.backbone.state_size(self.mixer, self.seq_len)
        return metrics | checked | {"state_bytes": 4 * state}

    def repeated(self, device: torch.device) -> Callable[[], int]:
        return steps_for_a_profiler(self.trainer(Context(device)))

    def trainer(self, context: Context) -> Trainer:
        """The model at its start, with its data. Raises Unsupported as the mixer says."""
        self.refuse_unsupported(context.device)
        if self.fused_loss and (reason := unsupported(context.device)) is not None:
            raise Unsupported(reason)
        model = self.model(context.device)
        problem = Recall(self, context.device)
        return Trainer(model, self.training, problem, seed=self.seed, context=context)

    def model(self, device: torch.device) -> LanguageModel:
        """The backbone around the mixer, a function of the seed alone."""
        model = self.backbone.build(
            self.mixer,
            vocab_size=self.vocab_size,
            max_len=max(segment.seq_len for segment in self.train + self.test),
            # Drawn on the CPU: the same start on every device.
            generator=seeded("cpu", self.seed, "parameters"),
        )
        return model.to(device)

    def check(self, device: torch.device) -> Metrics:
        """What `check_gradients` finds; nothing for a reference. Raises Wrong where a gradient of
        the mixers' parameters is wrong, or where the fused loss, or a gradient of it, is at a
        batch's size."""
        if self.fused_loss:
            self._check_head(device)
        if self.mixer.impl == "reference":
            return {}
        return check_gradients(self, device)

    def _check_head(self, device: torch.device) -> None:
        batch, precision = self.training.batch, self.training.precision
        rows = max(min(batch, part.examples) * part.kv_pairs for part in self.train)
        generator = seeded(device, self.seed, "head")
        shape = (rows, self.backbone.d_model)
        hidden = torch.randn(shape, generator=generator, device=device)
        target = torch.randint(self.vocab_size, (rows,), generator=generator, device=device)
        weight = self.model(device).head.weight.detach()

        def results(form: HeadLoss, dtype: torch.dtype) -> tuple[Tensor, ...]:
            h, w = (x.to(dtype).requires_grad_() for x in (hidden, weight))
            with autocast("fp32" if dtype == torch.float64 else precision, device):
                loss = form(h, w, target)
            return loss.detach(), *torch.autograd.grad(loss, (h, w))

        exact = results(separate, torch.float64)
        with matmul_precision(precision):
            found = [results(form, torch.float32) for form in (separate, head_loss(fused=True))]
        names = ("the loss", "the hidden gradient", "the weight gradient")
        for name, truth, baseline, ours in zip(names, exact, *found, strict=True):
            what = f"{name} of the head with fused_loss = True in {precision}"
            expect_as_close(what, ours, baseline, truth, TOLERANCE)
