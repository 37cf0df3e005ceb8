"""Generated files appear whole or not at all: in a part folder first, which is renamed at the end.

The manifest in a folder says that its files were generated, by what and from which seed; loaders
read it (`tasks.lra.files.provenance`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

MANIFEST = "manifest.json"
_UNFINISHED = "unfinished.json"


def manifest(
    generator: str, version: int, seed: int, settings: dict[str, Any], counts: dict[str, int]
) -> dict[str, Any]:
    """What a manifest says. Two equal ones stand for the same files, byte for byte."""
    return {
        "kind": "generated",
        "generator": generator,
        "version": version,
        "seed": seed,
        "settings": settings,
        "counts": counts,
    }


def is_there(folder: Path, wanted: dict[str, Any]) -> bool:
    """Whether the folder holds exactly these files. Raises ValueError if it holds others."""
    if not folder.exists():
        return False
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(f"{folder} is there and was not generated; choose another folder")
    _same(_read(path), wanted, folder)
    return True


@contextmanager
def part_folder(
    folder: Path, wanted: dict[str, Any], waits: Callable[[], None] = lambda: None
) -> Iterator[Path | None]:
    """A folder beside `folder` to write to; it takes its name at the end, if there is no error.
    None where these files are there, another process's included: one writes, the others wait, and
    call `waits` every second.

    What an interrupted run of the same manifest has written is still in it. Raises ValueError if
    it is another manifest's, or cannot be written.
    """
    try:
        with _part_folder(folder, wanted, waits) as part:
            yield part
    except OSError as error:
        raise ValueError(
            f"cannot write {error.filename or folder}: {error.strerror or error}; choose another "
            "root of the data with --out, or with MIXERBENCH_DATA where a run makes them"
        ) from error


@contextmanager
def _part_folder(
    folder: Path, wanted: dict[str, Any], waits: Callable[[], None]
) -> Iterator[Path | None]:
    with _alone(folder.with_name(folder.name + ".lock"), waits):
        part = folder.with_name(folder.name + ".part")
        if is_there(folder, wanted) or _is_whole(part, wanted, folder):
            yield None
            return
        marker = part / _UNFINISHED
        if marker.is_file():
            _same(_read(marker), wanted, part)
        elif part.exists() and any(part.iterdir()):
            raise ValueError(f"{part} is there and is no interrupted run's; remove it")
        else:
            part.mkdir(exist_ok=True)
            write(marker, json.dumps(wanted))
        yield part
        write(part / MANIFEST, json.dumps(wanted, indent=2) + "\n")
        marker.unlink()
        os.rename(part, folder)


def _is_whole(part: Path, wanted: dict[str, Any], folder: Path) -> bool:
    """Give it its name where a run was killed between its last file and that."""
    if not (part / MANIFEST).is_file():
        return False
    _same(_read(part / MANIFEST), wanted, part)
    (part / _UNFINISHED).unlink(missing_ok=True)
    os.rename(part, folder)
    return True


@contextmanager
def _alone(path: Path, waits: Callable[[], None]) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    while not lock.is_locked:
        waits()
        with suppress(Timeout):
            lock.acquire(timeout=1.0)
    try:
        yield
    finally:
        lock.release()


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not a manifest ({error}); remove {path.parent}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: not a manifest ({found!r}); remove {path.parent}")
    return found


def write(path: Path, text: str) -> None:
    """Write a file that is there whole or not at all."""
    part = path.with_name(path.name + ".tmp")
    part.write_text(text)
    os.replace(part, path)


def _same(found: dict[str, Any], wanted: dict[str, Any], folder: Path) -> None:
    others = [name for name in wanted if found.get(name) != wanted[name]]
    if others:
        name = others[0]
        raise ValueError(
            f"{folder} holds files of {name} = {found.get(name)!r}, not {wanted[name]!r}; "
            "remove it or choose another folder"
        )
