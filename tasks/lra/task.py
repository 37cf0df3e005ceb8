"""The Long Range Arena as a task: one encoder around the mixer, one label a sequence or pair."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import ClassVar, Literal

import torch
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from mixers.base import Mixer
from mixers.directions import Directions
from tasks.backbone import Backbone
from tasks.base import Context, Metrics, Task
from tasks.graphs import Function
from tasks.lra.batches import LARGEST, Batch, Split, channels, tokens_of, varied, width_of
from tasks.lra.data import TEXTS, Data
from tasks.lra.examples import Dataset
from tasks.lra.listops import root_operators
from tasks.lra.model import Classifier, Pair, Pool
from tasks.recipe import Training
from tasks.seeds import seeded
from tasks.training import Trainer, steps_for_a_profiler

SORT_POOL = 64


class LRA(Task):
    """One task of the arena; `tasks.lra.recipes` holds the published settings."""

    name: Literal["lra"] = "lra"
    recipe: str
    """A label: whose settings these are."""
    data: Data
    directions: Directions = "both"
    pool: Pool = "mean"
    pair: Pair | None = None
    """Of Retrieval, and of it alone."""
    buckets: PositiveInt | None = None
    """Batches of sequences that differ in length are as wide as the next of that many equal steps
    up to the longest length there is, so that a graph is captured for each of them and no more.
    None: as wide as their longest sequence."""
    sort_pool: PositiveInt = SORT_POOL
    """Training batches are sorted by length within this many of them, so that they hold few pads;
    1: as drawn. A batch norm sees each batch's lengths alone: there sorting is another training."""
    backbone: Backbone
    training: Training
    seed: int = 0
    """Of the parameters and of everything drawn in training."""

    later: ClassVar[tuple[str, ...]] = ("sort_pool",)
    any_device: ClassVar[bool] = True
    packs: ClassVar[bool] = True

    @model_validator(mode="after")
    def _fits(self) -> LRA:
        self.mixer.check_width(self.backbone.d_model)
        if (self.pair is not None) != (self.data.arena == "retrieval"):
            raise ValueError(
                f"pair = {self.pair!r} does not fit arena = {self.data.arena!r}: retrieval has "
                "'nli' or 'concat', the others have None"
            )
        scan = getattr(self.mixer, "scan", "1d")
        image = self.data.arena not in TEXTS
        if scan != "1d" and not (image and self.directions == "both" and self.pool != "cls"):
            raise ValueError(
                f"scan = {scan!r} takes whole images: use it with an image task, directions = "
                "'both' and a pool that adds no token"
            )
        if self.pool == "cls" and self.directions == "causal":
            raise ValueError(
                "pool = 'cls' reads out the first token, which sees no other one in directions = "
                "'causal': use another pool"
            )
        self._check_source()
        return self

    def _check_source(self) -> None:
        if self.data.source == "random":
            raise ValueError("source = 'random' is for timing a step: use LRAStep")

    @property
    def cost(self) -> float:
        """Epochs times tokens of the longest example times layers times width."""
        *_, longest = LARGEST[self.data.arena]
        size = self.backbone.n_layers * self.backbone.d_model
        return float(self.training.epochs * longest * size)

    def turns(self, context: Context) -> Generator[None, None, Metrics]:
        """`accuracy` is the test set's at the epoch that `training.report` says, where the best one
        is that of the best validation accuracy."""
        # The recipes are made of this class.
        from tasks.lra.recipes import changes

        changed = changes(self)
        trainer = self.trainer(context)
        metrics = yield from trainer.steps()
        problem, model = trainer.problem, trainer.model
        assert isinstance(problem, Classification)
        assert isinstance(model, Classifier)
        val, test = trainer.history["accuracy"], trainer.history["test_accuracy"]
        best = max(range(len(val)), key=val.__getitem__)
        chosen = {"accuracy": metrics.pop("test_accuracy"), "val_accuracy": metrics.pop("accuracy")}
        # The trainer's own are of what it chooses by: the validation set.
        del metrics["best_accuracy"], metrics["last_accuracy"], metrics["accuracy_by_epoch"]
        seen = trainer.epoch / trainer.train_s
        sequences = len(problem.train) * (2 if self.pair else 1)
        return (
            chosen
            | metrics
            | {
                "accuracy_by_epoch": test,
                "val_accuracy_by_epoch": val,
                "val_accuracy_last": val[-1],
                "val_accuracy_best": val[best],
                "test_accuracy_last": test[-1],
                "test_accuracy_best_val": test[best],
                "best_epoch": best + 1,
                "tokens_per_s": seen * problem.train.tokens,
                "sequences_per_s": seen * sequences,
                "recipe_changes": changed,
            }
            | problem.told()
            | model.parameter_counts()
        )

    def repeated(self, device: torch.device) -> Callable[[], int]:
        return steps_for_a_profiler(self.trainer(Context(device)))

    @property
    def compute_dtype(self) -> torch.dtype:
        return self.training.compute_dtype

    def trainer(self, context: Context) -> Trainer:
        """The model at its start, with its data. Raises Unsupported as mixer or data say."""
        self.refuse_unsupported(context.device)
        dataset = self.dataset(context)
        if dataset.train.cut or dataset.test.cut:
            context.progress(
                f"{dataset.train.cut} sequences of training and {dataset.test.cut} of the test are "
                f"longer than {dataset.max_length} and lose their end"
            )
        model = self.model(self.mixer, dataset, context.device)
        problem = Classification(self, dataset, context.device)
        return Trainer(model, self.training, problem, seed=self.seed, context=context)

    def dataset(self, context: Context) -> Dataset:
        return self.data.load(context)

    def model(self, mixer: Mixer, dataset: Dataset, device: torch.device) -> Classifier:
        """The classifier around `mixer`, a function of the seed alone."""
        model = Classifier(
            self.backbone,
            mixer,
            vocab_size=dataset.vocab_size,
            channels=None if dataset.pixels is None else channels(dataset),
            classes=dataset.classes,
            max_len=width_of(dataset.max_length, dataset.max_length, self.buckets),
            directions=self.directions,
            pool=self.pool,
            pair=self.pair,
            # Drawn on the CPU: the same start on every device.
            generator=seeded("cpu", self.seed, "parameters"),
        )
        return model.to(device)


class Classification:
    """The `Problem` of one cell: its data on the device, cross-entropy, accuracy."""

    def __init__(self, task: LRA, dataset: Dataset, device: torch.device) -> None:
        self.task, self.dataset, self.device = task, dataset, device
        self.train, self.test = (
            Split(examples, dataset, device) for examples in (dataset.train, dataset.test)
        )
        # Text may validate on its test set: it is not scored twice.
        same = dataset.val is dataset.test
        self.val = self.test if same else Split(dataset.val, dataset, device)
        self.batches: list[Batch] = []
        self.epoch = 0
        self.operators: dict[str, Tensor] = {}
        if task.data.arena == "listops" and dataset.provenance.name != "noise":
            known = root_operators(dataset.test, dataset.convention)
            self.operators = {n: rows.to(device) for n, rows in known.items() if rows.any()}

    def start_epoch(self, epoch: int) -> list[tuple[int, int]]:
        task, self.epoch = self.task, epoch
        self.batches = self.train.training(
            task.training.batch,
            seed=task.seed,
            epoch=epoch if task.training.order == "shuffled" else 0,
            buckets=task.buckets,
            pool=task.sort_pool,
        )
        return [(len(rows), width) for rows, width in self.batches]

    def batch(self, step: int) -> tuple[Tensor, ...]:
        ids, *rest = self.train.tensors(self.batches[step])
        if self.task.data.augment:
            ids = varied(ids, seeded(self.device, self.task.seed, "augment", self.epoch, step))
        return ids, *rest

    def logits(self, model: nn.Module, *inputs: Tensor) -> Tensor:
        """[b classes] of a batch without its labels."""
        assert isinstance(model, Classifier)
        if self.task.pair is None:
            ids, *lengths = inputs
            return model(tokens_of(self.dataset, ids), *lengths)
        first, second, *lengths = inputs
        return model.of_pairs(
            tokens_of(self.dataset, first), tokens_of(self.dataset, second), *lengths
        )

    def loss(self, model: nn.Module, *batch: Tensor) -> Tensor:
        *inputs, labels = batch
        return F.cross_entropy(self.logits(model, *inputs), labels)

    def score(self, model: nn.Module, *batch: Tensor) -> Tensor:
        """Which examples are classified rightly, [b]."""
        *inputs, labels = batch
        return self.logits(model, *inputs).argmax(-1) == labels

    def evaluate(self, score: Function) -> dict[str, Tensor]:
        """`accuracy` is the validation set's. Every example counts once."""
        test = self._right(score, self.test)
        val = test if self.val is self.test else self._right(score, self.val)
        scores = {"accuracy": val.double().mean(), "test_accuracy": test.double().mean()}
        for name, rows in self.operators.items():
            scores[f"accuracy_{name}"] = (test & rows).sum().double() / rows.sum()
        return scores

    def _right(self, score: Function, split: Split) -> Tensor:
        right = torch.zeros(len(split), dtype=torch.bool, device=self.device)
        for batch in split.evaluation(self.task.training.batch, self.task.buckets):
            right[batch[0]] = score(*split.tensors(batch))
        return right

    def told(self) -> Metrics:
        """What the data are."""
        return {
            "provenance": str(self.dataset.provenance),
            "validation_set": self.dataset.validation,
            "train_examples": len(self.train),
            "val_examples": len(self.val),
            "test_examples": len(self.test),
            "train_cut": self.dataset.train.cut,
            "test_cut": self.dataset.test.cut,
            "chance": 1 / self.dataset.classes,
        }
