"""Texts as ids: characters with a vocabulary of the training texts (S4), or bytes (Google)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.lra.examples import Convention, Sequences

Array = NDArray[Any]

SPECIALS = ("<pad>", "<unk>", "<eos>")
UNKNOWN, END = 1, 2
_CODES = 0x110000


class Encoder(NamedTuple):
    """How a text becomes ids."""

    convention: Convention
    max_length: int
    """Of the ids, an end included."""
    table: Array
    """[characters] uint8 or int16: the id of a code point; of a byte, for Google's"""
    vocab_size: int

    def encode(self, texts: Iterable[str]) -> Sequences:
        """Ids of each text, those too long cut and counted."""
        end = [END] if self.convention == "s4" else []
        room = self.max_length - len(end)
        ids: list[Array] = []
        cut = 0
        for text in texts:
            codes = self._codes(text)
            cut += len(codes) > room
            ids.append(np.append(self.table[codes[:room]], np.array(end, self.table.dtype)))
        return Sequences.of(ids, cut)

    def _codes(self, text: str) -> Array:
        return code_points(text) if self.convention == "s4" else utf8(text)


def code_points(text: str) -> Array:
    """uint32"""
    return np.frombuffer(text.encode("utf-32-le"), "<u4")


def utf8(text: str) -> Array:
    """uint8"""
    return np.frombuffer(text.encode("utf-8"), np.uint8)


def byte_encoder(max_length: int) -> Encoder:
    """Google's: a byte's id is one more than the byte, 0 pads, nothing marks the end."""
    return Encoder("google", max_length, np.arange(1, 257, dtype=np.int16), 257)


def character_encoder(texts: Iterable[str], max_length: int, min_count: int = 1) -> Encoder:
    """S4's: pad 0, unknown 1, end 2, then the characters of these texts by how frequent they are.

    Characters are counted in what is left after cutting; those fewer than `min_count` are unknown.
    Ties are in the order of the code points.
    """
    counts = np.zeros(_CODES, np.int64)
    for text in texts:
        codes, times = np.unique(code_points(text[: max_length - 1]), return_counts=True)
        counts[codes] += times
    known = np.flatnonzero(counts >= min_count)
    known = known[np.argsort(-counts[known], kind="stable")]
    size = len(SPECIALS) + len(known)
    table = np.full(_CODES, UNKNOWN, np.uint8 if size <= 256 else np.int16)
    table[known] = np.arange(len(SPECIALS), size)
    return Encoder("s4", max_length, table, size)
