"""What the loaders of the Long Range Arena return: sequences of ids, labels, where they come from.

A dataset is small integers that are meant to stay on the device; batches are made there, by row
numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Int, Shaped
from numpy.typing import NDArray
from torch import Tensor

from tasks.seeds import seeded

Convention = Literal["s4", "google"]
"""How files become ids: as in state-spaces/s4 (and S5, LRU, HGRN), or in google-research/
long-range-arena. Each loader says what it means there."""

PAD = 0
"""The id after the end of a text; no text holds it."""


class Provenance(NamedTuple):
    """Where data come from; belongs in every record made of them."""

    kind: Literal["official", "generated", "surrogate"]
    """`official`: the published files. `generated`: the published algorithm's law, another sample.
    `surrogate`: something else in their place."""
    name: str = ""
    """Of the generator, or of the surrogate."""
    version: int = 0
    seed: int = 0

    def __str__(self) -> str:
        if self.kind == "generated":
            return f"generated ({self.name} version {self.version}, seed {self.seed})"
        return f"surrogate ({self.name})" if self.kind == "surrogate" else self.kind


class PixelScale(NamedTuple):
    """Pixels as scalars: (x / 255 - mean) / std; of colours, one of each a channel."""

    mean: float | tuple[float, ...]
    std: float | tuple[float, ...]


@dataclass(frozen=True)
class Sequences:
    """n sequences, one after the other in one tensor."""

    ids: Shaped[Tensor, " total"]
    """uint8 or int16"""
    offsets: Int[Tensor, " bounds"]
    """[n + 1] int64: sequence i is ids[offsets[i] : offsets[i + 1]]"""
    cut: int = 0
    """How many were longer than the convention's length and lost their end."""

    @classmethod
    def of(cls, parts: Iterable[NDArray[Any]], cut: int = 0) -> Sequences:
        """From one array of ids a sequence, of the same type."""
        arrays = list(parts)
        lengths = torch.tensor([0, *map(len, arrays)])
        return cls(torch.from_numpy(np.concatenate(arrays)), lengths.cumsum(0), cut)

    @classmethod
    def of_equal_length(cls, rows: Shaped[Tensor, "n t"]) -> Sequences:
        """From the rows of a table of ids."""
        offsets = torch.arange(len(rows) + 1, device=rows.device) * rows.shape[1]
        return cls(rows.flatten(), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Int[Tensor, " n"]:
        """int64"""
        return self.offsets.diff()

    def padded(
        self, rows: Int[Tensor, " b"], width: int | None = None
    ) -> tuple[Shaped[Tensor, "b t"], Int[Tensor, " b"]]:
        """These sequences with `PAD` after their ends, in the type of `ids`, and their lengths.

        `width` is t; None: the longest. Raises ValueError if a sequence is longer.
        """
        lengths = self.lengths[rows]
        longest = int(lengths.max())
        if width is None:
            width = longest
        elif longest > width:
            raise ValueError(f"width = {width}; the longest of these sequences has {longest} ids")
        return self.at_width(rows, width)

    def at_width(
        self, rows: Int[Tensor, " b"], width: int
    ) -> tuple[Shaped[Tensor, "b t"], Int[Tensor, " b"]]:
        """`padded` for whoever knows that the longest fits: the host does not wait for a device."""
        lengths = (self.offsets[1:] - self.offsets[:-1])[rows]
        place = torch.arange(width, device=self.ids.device)
        index = (self.offsets[rows, None] + place).clamp(max=len(self.ids) - 1)
        return self.ids[index].where(place < lengths[:, None], PAD), lengths

    def select(self, rows: Int[Tensor, " m"]) -> Sequences:
        """These sequences alone. `cut` is then that of all of them and is not divided."""
        lengths = self.lengths[rows]
        if bool((self.lengths == lengths[0]).all()):
            # Images: an index for every pixel would be eight times as large as they are.
            table = self.ids.view(len(self), -1)
            return replace(Sequences.of_equal_length(table[rows]), cut=self.cut)
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        start = (self.offsets[rows] - offsets[:-1]).repeat_interleave(lengths)
        return Sequences(self.ids[start + torch.arange(len(start))], offsets, self.cut)

    def to(self, device: torch.device) -> Sequences:
        return replace(self, ids=self.ids.to(device), offsets=self.offsets.to(device))


@dataclass(frozen=True)
class Examples:
    """Labelled sequences, or labelled pairs of them."""

    inputs: Sequences
    labels: Int[Tensor, " n"]
    """int64"""
    seconds: Sequences | None = None
    """The second documents, for Retrieval alone."""

    def __post_init__(self) -> None:
        seconds = len(self.inputs) if self.seconds is None else len(self.seconds)
        assert len(self.inputs) == len(self.labels) == seconds

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> Int[Tensor, " n"]:
        """int64: of the longer one of a pair, which sets the width of a batch."""
        if self.seconds is None:
            return self.inputs.lengths
        return torch.maximum(self.inputs.lengths, self.seconds.lengths)

    @property
    def cut(self) -> int:
        """How many sequences lost their end."""
        return self.inputs.cut + (0 if self.seconds is None else self.seconds.cut)

    def select(self, rows: Int[Tensor, " m"]) -> Examples:
        seconds = None if self.seconds is None else self.seconds.select(rows)
        return Examples(self.inputs.select(rows), self.labels[rows], seconds)

    def to(self, device: torch.device) -> Examples:
        seconds = None if self.seconds is None else self.seconds.to(device)
        return Examples(self.inputs.to(device), self.labels.to(device), seconds)


@dataclass(frozen=True)
class Dataset:
    """One task of the arena as one convention reads it."""

    task: str
    convention: Convention
    train: Examples
    val: Examples
    test: Examples
    classes: int
    vocab_size: int
    """Ids are below it, `PAD` and other special ones included; 256 for pixels."""
    max_length: int
    """Of a sequence."""
    provenance: Provenance
    validation: str
    """What `val` is."""
    pixels: PixelScale | None = None
    """Not None: the convention feeds scalars, scaled like this, and embeds no ids."""

    def describe(self) -> Iterator[str]:
        """What `mixerbench data show` prints: convention, provenance, sizes, how many were
        cut. A split that was selected from others tells how many of all of those were."""
        yield f"{self.task}, convention {self.convention}, {self.provenance}"
        yield f"classes {self.classes}, ids {self.vocab_size}, validation: {self.validation}"
        for split in ("train", "val", "test"):
            examples: Examples = getattr(self, split)
            lengths = examples.lengths.double()
            cut = f", {examples.cut} cut to {self.max_length}" if examples.cut else ""
            yield (
                f"{split:<5}  {len(examples):>6} examples, length {lengths.mean():.0f} on average, "
                f"{int(lengths.max())} at most{cut}"
            )


def split_like_s4(examples: Examples, lengths: list[int]) -> list[Examples]:
    """Parts of these lengths, as torch's random_split with seed 42 draws them, in that order."""
    order = torch.randperm(sum(lengths), generator=torch.Generator().manual_seed(42))
    return [examples.select(rows) for rows in order.split(lengths)]


def training_batches(
    lengths: Int[Tensor, " n"], batch: int, *, seed: int, epoch: int, pool: int
) -> list[Int[Tensor, " b"]]:
    """An epoch's batches of row numbers, on the device of `lengths`: every row once.

    Rows are shuffled, sorted by length within `pool` batches, and the batches shuffled: a batch
    holds similar lengths and few pads. A function of seed and epoch alone. The last batch of the
    last pool may be smaller.
    """
    generator = seeded("cpu", seed, "order", epoch)
    shuffled = torch.randperm(len(lengths), generator=generator)
    known = lengths.cpu()
    pools = [rows[known[rows].argsort(stable=True)] for rows in shuffled.split(batch * pool)]
    batches = [part for rows in pools for part in rows.split(batch)]
    order = torch.randperm(len(batches), generator=generator).tolist()
    return [batches[i].to(lengths.device) for i in order]


def evaluation_batches(lengths: Int[Tensor, " n"], batch: int) -> list[Int[Tensor, " b"]]:
    """Batches of row numbers that hold every row once, by length, on the device of `lengths`."""
    return list(lengths.argsort(stable=True).split(batch))
