"""Generated files appear whole or not at all: in a part folder first, which is renamed at the end.

The manifest in a folder says that its files were generated, by what and from which seed; loaders
read it (`tasks.lra.files.provenance`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
        raise ValueError(f"--out: {folder} is there and was not generated; choose another folder")
    _same(json.loads(path.read_text()), wanted, folder)
    return True


@contextmanager
def part_folder(folder: Path, wanted: dict[str, Any]) -> Iterator[Path]:
    """A folder beside `folder` to write to; it takes its name at the end, if there is no error.

    What an interrupted run of the same manifest has written is still in it. Raises ValueError if
    it is another manifest's.
    """
    part = folder.with_name(folder.name + ".part")
    marker = part / _UNFINISHED
    if part.exists():
        if not marker.is_file():
            raise ValueError(f"--out: {part} is there and is no interrupted run's; remove it")
        _same(json.loads(marker.read_text()), wanted, part)
    else:
        part.mkdir(parents=True)
        write(marker, json.dumps(wanted))
    yield part
    write(part / MANIFEST, json.dumps(wanted, indent=2) + "\n")
    marker.unlink()
    os.rename(part, folder)


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
            f"--out: {folder} holds files of {name} = {found.get(name)!r}, not {wanted[name]!r}; "
            "remove it or choose another folder"
        )
