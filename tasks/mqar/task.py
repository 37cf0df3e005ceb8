"""MQAR as a task: data of one or more difficulties, a two-layer model, accuracy at the queries."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import PositiveInt, computed_field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from mixers.base import Frozen, Mixer
from tasks.backbone import Backbone, LanguageModel
from tasks.base import Context, Metrics, Task, Unsupported
from tasks.graphs import Function
from tasks.mqar.data import UNLABELLED, check_mqar, mqar_batch
from tasks.recipe import Training, autocast, matmul_precision
from tasks.training import Trainer, seeded, steps_for_a_profiler
from tasks.workload import expect_close, relative_error

CHECKED_ROWS = 4
TOLERANCE = 2**-8
"""Of a gradient's relative error: some peers' kernels multiply in TF32 whatever torch is told."""


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

    any_device: ClassVar[bool] = True
    packs: ClassVar[bool] = True

    @model_validator(mode="after")
    def _fits(self) -> MQAR:
        if not self.train or not self.test:
            raise ValueError("train and test should each hold at least one segment")
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

    def turns(self, context: Context) -> Generator[None, None, Metrics]:
        trainer = self.trainer(context)
        steps = trainer.steps()
        # The first steps first: a kernel that tunes itself does it at the first size it meets.
        next(steps)
        start = time.monotonic()
        self.check(context.device)
        trainer.clock += time.monotonic() - start
        yield
        metrics = yield from steps
        state = self.backbone.state_size(self.mixer, self.seq_len)
        return metrics | {"state_bytes": 4 * state}

    def repeated(self, device: torch.device) -> Callable[[], int]:
        return steps_for_a_profiler(self.trainer(Context(device)))

    def trainer(self, context: Context) -> Trainer:
        """The model at its start, with its data. Raises Unsupported as the mixer says."""
        reason = self.mixer.unsupported(context.device, self.compute_dtype)
        if reason is not None:
            raise Unsupported(reason)
        model = self.model(self.mixer, context.device)
        problem = Recall(self, context.device)
        return Trainer(model, self.training, problem, seed=self.seed, context=context)

    def model(self, mixer: Mixer, device: torch.device) -> LanguageModel:
        """The backbone around `mixer`, a function of the seed alone."""
        model = self.backbone.build(
            mixer,
            vocab_size=self.vocab_size,
            max_len=max(segment.seq_len for segment in self.train + self.test),
            # Drawn on the CPU: the same start on every device.
            generator=seeded("cpu", self.seed, "parameters"),
        )
        return model.to(device)

    def check(self, device: torch.device) -> None:
        """Raise Wrong where the implementation's gradients, over the mixers' parameters, differ
        from fp64's by more than twice what the reference's do in the cell's precision, plus
        TOLERANCE; on four rows without dropout."""
        if self.mixer.impl == "reference":
            return
        reference = self.mixer.model_copy(update={"impl": "reference"})
        exact = self._gradients(reference, device, torch.float64)
        baseline, ours = (
            self._gradients(mixer, device, torch.float32) for mixer in (reference, self.mixer)
        )
        what = f"the gradient in {self.training.precision}"
        allowed = 2 * relative_error(baseline, exact) + TOLERANCE
        expect_close(what, self.mixer, relative_error(ours, exact), allowed)

    def _gradients(self, mixer: Mixer, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Of the loss by the mixers' parameters, in a row; in fp64 without autocast."""
        model = self.model(mixer, device).to(dtype).eval()
        few = self.train[0].model_copy(update={"examples": CHECKED_ROWS})
        problem = Recall(self.model_copy(update={"train": (few,), "test": (few,)}), device)
        problem.start_epoch(0)
        precision = "fp32" if dtype == torch.float64 else self.training.precision
        with autocast(precision, device), matmul_precision(precision):
            loss = problem.loss(model, *problem.batch(0))
        parameters = [p for name, p in model.named_parameters() if ".mixer." in name]
        gradients = torch.autograd.grad(loss, parameters)
        return torch.cat([gradient.flatten() for gradient in gradients])

    @property
    def compute_dtype(self) -> torch.dtype:
        """The type that the mixer's operator sees."""
        autocast = self.training.precision == "bf16_autocast"
        return torch.bfloat16 if autocast else torch.float32


class Rows(NamedTuple):
    """The rows of a segment with their labelled positions gathered."""

    inputs: Tensor
    """[n t] int64"""
    positions: Tensor
    """[n kv_pairs] int64, increasing"""
    targets: Tensor
    """[n kv_pairs] int64"""

    def slice(self, rows: slice | Tensor) -> Rows:
        return Rows(self.inputs[rows], self.positions[rows], self.targets[rows])

    def count(self, rows: slice | Tensor) -> int:
        if isinstance(rows, Tensor):
            return len(rows)
        return len(range(*rows.indices(len(self.inputs))))

    def batches(self, size: int) -> list[slice]:
        """Of `size` rows in order; the last one may be smaller."""
        return [slice(start, start + size) for start in range(0, len(self.inputs), size)]


class Recall:
    """The `Problem` of one cell: its data on the device, loss and accuracy at the queries."""

    def __init__(self, task: MQAR, device: torch.device) -> None:
        self.task, self.device = task, device
        self.train = [self._rows(segment, "train", i) for i, segment in enumerate(task.train)]
        self.test = [self._rows(segment, "test", i) for i, segment in enumerate(task.test)]
        self.batches: list[tuple[Rows, slice | Tensor]] = []

    def _rows(self, segment: Segment, split: str, index: int) -> Rows:
        task = self.task
        inputs, labels = mqar_batch(
            segment.examples,
            segment.seq_len,
            segment.kv_pairs,
            task.vocab_size,
            task.power_a,
            task.random_non_queries,
            generator=seeded(self.device, task.data_seed, split, index),
            device=self.device,
        )
        # Every row has exactly kv_pairs labels, so the gather is a rectangle.
        positions = (labels != UNLABELLED).nonzero()[:, 1].view(-1, segment.kv_pairs)
        return Rows(inputs, positions, labels.gather(1, positions))

    def start_epoch(self, epoch: int) -> list[tuple[int, int, int]]:
        size = self.task.training.batch
        batches: list[tuple[Rows, slice | Tensor]] = []
        if self.task.training.order == "fixed":
            batches = [(rows, part) for rows in self.train for part in rows.batches(size)]
        else:
            generator = seeded("cpu", self.task.seed, "order", epoch)
            for rows in self.train:
                shuffled = torch.randperm(len(rows.inputs), generator=generator)
                parts = shuffled.to(self.device).split(size)
                batches += [(rows, part) for part in parts]
            order = torch.randperm(len(batches), generator=generator).tolist()
            batches = [batches[i] for i in order]
        self.batches = batches
        return [
            (rows.count(part), rows.inputs.shape[1], rows.targets.shape[1])
            for rows, part in batches
        ]

    def batch(self, step: int) -> Rows:
        rows, part = self.batches[step]
        return rows.slice(part)

    def loss(self, model: nn.Module, *batch: Tensor) -> Tensor:
        rows = Rows(*batch)
        return F.cross_entropy(query_logits(model, rows).flatten(0, 1), rows.targets.flatten())

    def score(self, model: nn.Module, *batch: Tensor) -> Tensor:
        """How many queries are answered rightly."""
        rows = Rows(*batch)
        return (query_logits(model, rows).argmax(-1) == rows.targets).sum()

    def evaluate(self, score: Function) -> dict[str, Tensor]:
        """`accuracy` is the mean over examples; with several segments, each one's too."""
        per_segment = [self._accuracy(score, rows) for rows in self.test]
        examples = [segment.examples for segment in self.task.test]
        weighted = torch.stack([a * n for a, n in zip(per_segment, examples, strict=True)])
        scores = {"accuracy": weighted.sum() / sum(examples)}
        if len(self.test) > 1:
            for segment, accuracy in zip(self.task.test, per_segment, strict=True):
                scores[f"accuracy_{segment.seq_len}_{segment.kv_pairs}"] = accuracy
        return scores

    def _accuracy(self, score: Function, rows: Rows) -> Tensor:
        correct = torch.zeros((), dtype=torch.int64, device=self.device)
        for part in rows.batches(self.task.test_batch):
            correct += score(*rows.slice(part))
        return correct.double() / rows.targets.numel()


def query_logits(model: nn.Module, batch: Rows) -> Tensor:
    """[b kv_pairs vocab]: the head at the labelled positions only.

    Same loss and gradients as over all positions, since unlabelled ones are not scored; at
    (64, 4) it is a sixteenth of the head's work.
    """
    assert isinstance(model, LanguageModel)
    hidden = model.hidden(batch.inputs)
    index = batch.positions[..., None].expand(-1, -1, hidden.shape[-1])
    return model.logits(hidden.gather(1, index))
