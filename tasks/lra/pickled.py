"""Pickles of integer arrays and plain values, read without running what they ask for.

numpy's own reconstruction trusts a pickle: a damaged one can write past an array's memory. Here the
names of numpy that pickles of arrays ask for stand for classes that keep what is said of the array,
and the array is made of its bytes once all of it has been checked.
"""

from __future__ import annotations

import codecs
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def load(path: Path) -> Any:
    """The values of a pickle, strings of Python 2 as bytes; `array` makes arrays of its arrays.

    Raises whatever a damaged pickle raises, UnpicklingError for one that asks for more.
    """
    with path.open("rb") as file:
        return _Plain(file, encoding="bytes").load()


def array(value: Any) -> Array:
    """A list or a pickled array as an array; of a damaged one, whatever it raises."""
    return value.read() if isinstance(value, _Array) else np.asarray(value)


class _Dtype:
    """A pickled dtype: its code, such as u1, and the order of its bytes."""

    def __init__(self, code: str | bytes, *_: Any) -> None:
        self.code, self.order = _text(code), "="

    def __setstate__(self, state: Any) -> None:
        self.order = _text(state[1])


class _Array:
    """A pickled array: shape, dtype, whether it lies by columns, bytes."""

    state: Any = None

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def read(self) -> Array:
        if self.state is None:
            raise ValueError("an array without its bytes")
        _, shape, dtype, by_columns, content = self.state
        name = dtype.order + dtype.code if isinstance(dtype, _Dtype) else repr(dtype)
        if not re.fullmatch("[<>|=][iu][1248]", name):
            raise TypeError(f"an array of {name}, which is no integer")
        return np.frombuffer(content, name).reshape(shape, order="F" if by_columns else "C")


def _text(value: str | bytes) -> str:
    return value.decode("ascii") if isinstance(value, bytes) else value


STAND_INS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("_codecs", "encode"): codecs.encode,
}
"""What pickles of arrays ask for: of numpy before version 2, as the published ones, and since; the
last, for bytes, where Python 3 wrote them in the published protocol."""


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in STAND_INS:
            return STAND_INS[module, name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")
