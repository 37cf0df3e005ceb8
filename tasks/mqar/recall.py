"""What a cell of MQAR learns: its rows on the device, the loss and the accuracy at the queries."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from tasks.backbone import LanguageModel
from tasks.graphs import Function
from tasks.mqar.data import UNLABELLED, mqar_batch
from tasks.mqar.loss import head_loss
from tasks.seeds import seeded

if TYPE_CHECKING:
    from tasks.mqar.task import MQAR, Segment


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
        self.head_loss = head_loss(fused=task.fused_loss)

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
        assert isinstance(model, LanguageModel)
        rows = Rows(*batch)
        hidden = query_hidden(model, rows).flatten(0, 1)
        return self.head_loss(hidden, model.head.weight, rows.targets.flatten())

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
    return model.logits(query_hidden(model, batch))


def query_hidden(model: LanguageModel, batch: Rows) -> Tensor:
    """[b kv_pairs d]: the stream before the head, at the labelled positions."""
    return model.hidden(batch.inputs, at=batch.positions)
