"""Where the arena's files are, what is wrong with them, and where they come from."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from tasks.lra.examples import Provenance
from tasks.lra.generate.folders import MANIFEST

ROOT_VARIABLE = "MIXERBENCH_DATA"
ARCHIVE = (
    "Unpack https://storage.googleapis.com/long-range-arena/lra_release.gz (in truth a tar.gz)."
)
LEVELS = ("lra_release/lra_release", "lra_release", "")
"""The archive unpacks doubly nested and holds some folders twice; everybody uses the inner ones."""


class MissingData(ValueError):
    """Files are not there; the message says which, where they were sought and how to get them."""


class BadData(ValueError):
    """A file is not what it should be; the message names it."""


def data_root(root: Path | None) -> Path:
    """`root`, else the folder that the environment variable MIXERBENCH_DATA names, else ./data."""
    return root or Path(os.environ.get(ROOT_VARIABLE) or "data")


def find(root: Path | None, folder: str, needs: str, tree: str, get: str) -> Path:
    """The folder under the root, at whichever level of the archive, that holds the path `needs`.

    `tree` tells what should be there and `get` how to get it. Raises MissingData.
    """
    top = data_root(root)
    candidates = [top / level / folder for level in LEVELS]
    parts = Path(folder).parts
    if top.name in parts:
        candidates.append(top.joinpath(*parts[parts.index(top.name) + 1 :]))
    for candidate in candidates:
        if (candidate / needs).exists():
            return candidate
    tried = "\n".join(f"  {candidate / needs}" for candidate in candidates)
    raise MissingData(
        f"{folder}/{needs} is not there. Tried:\n{tried}\nExpected:\n{tree}\n{get}\n"
        f"The root is {top}; set {ROOT_VARIABLE} to another."
    )


def manifest(folder: Path) -> dict[str, Any]:
    """What our generators, or whoever put a surrogate there, wrote beside the files; else {}."""
    path = folder / MANIFEST
    if not os.path.lexists(path):
        return {}
    content = read(path)
    try:
        found = json.loads(content)
        kind = found["kind"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadData(
            f"{path}: not a manifest ({error}); it should hold a kind: remove "
            "the folder or generate it again"
        ) from error
    if kind not in ("generated", "surrogate"):
        raise BadData(f"{path}: kind is {kind!r}; it should be generated or surrogate")
    return found


def provenance(folder: Path) -> Provenance:
    """As the manifest says; files without one are taken for the published ones."""
    found = manifest(folder)
    if not found:
        return Provenance("official")
    path = folder / MANIFEST
    name = found.get("generator" if found["kind"] == "generated" else "name")
    if not name or not isinstance(name, str):
        raise BadData(f"{path}: it should name the generator, or the surrogate, not {name!r}")
    version, seed = (_whole(path, key, found.get(key, 0), 0) for key in ("version", "seed"))
    return Provenance(found["kind"], name, version, seed)


def expected(folder: Path, official: dict[str, int]) -> dict[str, int]:
    """How many rows each file should hold: the published numbers, or the manifest's counts."""
    found = manifest(folder)
    if not found:
        return official
    path, counts = folder / MANIFEST, found.get("counts", {})
    if not isinstance(counts, dict) or set(counts) != set(official):
        raise BadData(f"{path}: counts are {counts!r}; they should be of {sorted(official)}")
    return {key: _whole(path, f"counts of {key}", count, 1) for key, count in counts.items()}


def _whole(path: Path, name: str, value: Any, least: int) -> int:
    # A bool is an int to Python.
    if type(value) is not int or value < least:
        raise BadData(f"{path}: {name} = {value!r}; it should be an integer from {least} on")
    return value


def check_count(path: Path, found: int, wanted: int, what: str = "rows") -> None:
    """Raises BadData, naming the file, if it holds another number."""
    if found != wanted:
        raise BadData(f"{path}: {found} {what}; there should be {wanted}")


def check_tenths(path: Path, count: int, what: str) -> None:
    """Raises BadData for so few examples that a tenth of them is none."""
    if count < 10:
        raise BadData(f"{path}: {count} {what}; there should be at least 10, to split in tenths")


def read(path: Path) -> bytes:
    """All of a file. Raises BadData for one that cannot be read, is no file or is empty."""
    check_not_empty(path)
    with _opened(path) as file:
        return file.read()


def check_not_empty(path: Path) -> None:
    """Raises BadData for what cannot be looked at or is no file, and for a file of no bytes."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise BadData(f"{path}: cannot be read ({error.strerror})") from None
    if not path.is_file():
        raise BadData(f"{path}: not a file, which it should be")
    if size == 0:
        raise BadData(f"{path}: the file is empty (0 bytes)")


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise BadData(f"{path}: cannot be read ({error.strerror})") from None


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line, without what ends it: a newline alone, not the others that
    Python knows. Raises BadData for a line that is not UTF-8."""
    # Decoded one by one, so that the line is known that cannot be.
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise BadData(f"{path}, line {number}: not UTF-8 ({error})") from error
            yield number, text.removesuffix("\n")


def check_balance(path: Path, labels: Sequence[int], classes: int, within: float) -> None:
    """Raises BadData if a class is further from its equal share than `within`."""
    for label in range(classes):
        share = sum(1 for other in labels if other == label) / len(labels)
        if abs(share - 1 / classes) > within:
            raise BadData(
                f"{path}: unbalanced labels: {100 * share:.1f}% are {label}; "
                f"there should be about {100 / classes:.0f}%"
            )
