"""What a model is fed: batches of a few widths, pixels scaled, images varied."""

from __future__ import annotations

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from tasks.lra.data import Data
from tasks.lra.examples import (
    Dataset,
    Examples,
    Provenance,
    Sequences,
    evaluation_batches,
    training_batches,
)
from tasks.lra.image import COLOUR_SCALE
from tasks.lra.pathfinder import CENTRED
from tasks.seeds import seeded

SIDE, BORDER = 32, 4
"""Of an image that is varied, and of the mirrored pixels around it."""

Batch = tuple[Tensor, int]
"""Row numbers on the device, and the width."""


def width_of(longest: int, max_length: int, buckets: int | None) -> int:
    """The least of `buckets` equal steps up to max_length (or just above it) that holds the
    longest; the longest itself where `buckets` is None."""
    if buckets is None:
        return longest
    step = -(-max_length // buckets)
    return -(-longest // step) * step


class Split:
    """The examples of a split on the device, their lengths on the host too: it need not wait."""

    def __init__(self, examples: Examples, dataset: Dataset, device: torch.device) -> None:
        self.lengths = examples.lengths.cpu()
        self.examples = examples.to(device)
        self.dataset, self.device = dataset, device
        self.equal = bool((self.lengths == self.lengths[0]).all()) and examples.seconds is None

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def tokens(self) -> int:
        """Of all its sequences, both of a pair."""
        return token_count(self.examples, self.dataset)

    def training(
        self, batch: int, *, seed: int, epoch: int, buckets: int | None, pool: int
    ) -> list[Batch]:
        rows = training_batches(self.lengths, batch, seed=seed, epoch=epoch, pool=pool)
        return self._on_device(rows, buckets)

    def evaluation(self, batch: int, buckets: int | None) -> list[Batch]:
        return self._on_device(evaluation_batches(self.lengths, batch), buckets)

    def _on_device(self, batches: list[Tensor], buckets: int | None) -> list[Batch]:
        longest = [int(self.lengths[rows].max()) for rows in batches]
        widths = [width_of(n, self.dataset.max_length, buckets) for n in longest]
        # One copy to the device an epoch.
        rows = torch.cat(batches).to(self.device).split([len(rows) for rows in batches])
        return list(zip(rows, widths, strict=True))

    def tensors(self, batch: Batch) -> tuple[Tensor, ...]:
        """Ids and labels; where lengths differ, the lengths before the labels; of pairs ids, ids,
        lengths, lengths, labels. Ids as they are stored: small."""
        rows, width = batch
        inputs, labels = self.examples.inputs, self.examples.labels[rows]
        if self.equal:
            return inputs.ids.view(len(self), -1)[rows], labels
        ids, lengths = inputs.at_width(rows, width)
        if self.examples.seconds is None:
            return ids, lengths, labels
        second, second_lengths = self.examples.seconds.at_width(rows, width)
        return ids, second, lengths, second_lengths, labels


def token_count(examples: Examples, dataset: Dataset) -> int:
    """Tokens of all sequences; a pixel is one, whatever its channels."""
    parts = [examples.inputs, *([examples.seconds] if examples.seconds is not None else [])]
    return sum(len(part.ids) for part in parts) // channels(dataset)


def channels(dataset: Dataset) -> int:
    """Numbers of a pixel."""
    mean = dataset.pixels.mean if dataset.pixels else 0.0
    return len(mean) if isinstance(mean, tuple) else 1


def tokens_of(dataset: Dataset, ids: Shaped[Tensor, "b n"]) -> Shaped[Tensor, "b t *c"]:
    """What the model embeds: int64 ids [b t], or scaled pixels [b t c] in fp32."""
    if dataset.pixels is None:
        return ids.long()
    mean, std = (
        # By `full`: a captured graph copies nothing from the host.
        torch.stack([torch.full((), value, device=ids.device) for value in values])
        for values in (
            x if isinstance(x, tuple) else (x,) for x in (dataset.pixels.mean, dataset.pixels.std)
        )
    )
    return (ids.unflatten(1, (-1, len(mean))).float() / 255 - mean) / std


def varied(images: Shaped[Tensor, "b n"], generator: torch.Generator) -> Shaped[Tensor, "b n"]:
    """Each image (32 x 32, channels innermost) cropped at random from itself with 4 mirrored pixels
    around it, and flipped left to right by a coin."""
    count, device = len(images), images.device
    place = torch.arange(SIDE, device=device)

    def shifted() -> Int[Tensor, "b side"]:
        shift = torch.randint(-BORDER, BORDER + 1, (count, 1), generator=generator, device=device)
        at = place + shift
        at = torch.where(at < 0, -1 - at, at)
        return torch.where(at >= SIDE, 2 * SIDE - 1 - at, at)

    rows, columns = shifted(), shifted()
    flip = torch.rand(count, 1, generator=generator, device=device) < 0.5
    columns = torch.where(flip, columns.flip(1), columns)
    pixels = images.view(count, SIDE, SIDE, -1)
    image = torch.arange(count, device=device)[:, None, None]
    return pixels[image, rows[:, :, None], columns[:, None, :]].reshape(count, -1)


LARGEST = {
    "listops": (10, 18, 2048),
    "text": (2, 135, 4096),
    "retrieval": (2, 98, 4000),
    "image": (10, 256, 1024),
    "pathfinder32": (2, 256, 1024),
    "pathfinder64": (2, 256, 4096),
    "path_x": (2, 256, 16_384),
    "path_256": (2, 256, 65_536),
}
"""Classes, vocabulary and most tokens of each task."""


def noise(data: Data, rows: int, length: int | None = None) -> Dataset:
    """Random examples of the task's largest shape, or of `length` tokens, on the CPU, to time a
    step."""
    classes, vocab_size, longest = LARGEST[data.arena]
    length = length or longest
    image = data.arena.startswith(("image", "path"))
    scale = COLOUR_SCALE if data.colour else CENTRED
    generator = seeded("cpu", data.arena, "noise")
    size = (rows, length * (3 if data.colour else 1))

    def sequences() -> Sequences:
        ids = torch.randint(1, vocab_size, size, generator=generator, dtype=torch.uint8)
        return Sequences.of_equal_length(ids)

    examples = Examples(
        sequences(),
        torch.randint(classes, (rows,), generator=generator),
        sequences() if data.arena == "retrieval" else None,
    )
    return Dataset(
        task=data.arena,
        convention=data.convention,
        train=examples,
        val=examples,
        test=examples,
        classes=classes,
        vocab_size=vocab_size,
        max_length=length,
        provenance=Provenance("surrogate", "noise"),
        validation="the same",
        pixels=scale if image and data.convention == "s4" else None,
    )
