"""Which data a cell of the arena asks for, and that it gets no others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import NonNegativeInt, PositiveInt, model_validator

from mixers.base import Frozen
from tasks.base import Context, Paused, Unsupported
from tasks.lra import files
from tasks.lra.examples import Convention, Dataset
from tasks.lra.generate import listops as listops_generator
from tasks.lra.generate import pathfinder as pathfinder_generator
from tasks.lra.generate.folders import manifest, part_folder
from tasks.lra.generate.strokes import FOLDER, Difficulty
from tasks.lra.image import load_image
from tasks.lra.listops import load_listops
from tasks.lra.pathfinder import Resolution, load_pathfinder
from tasks.lra.retrieval import load_retrieval
from tasks.lra.text import Validation, load_text

Arena = Literal[
    "listops", "text", "retrieval", "image", "pathfinder32", "pathfinder64", "path_x", "path_256"
]
TEXTS = ("listops", "text", "retrieval")
"""Ids of different lengths; the others are images."""
RESOLUTIONS: dict[str, Resolution] = {
    "pathfinder32": 32,
    "pathfinder64": 64,
    "path_x": 128,
    "path_256": 256,
}
GENERATED = "generated"
"""Below the root of the data: what cells have made themselves."""


class Data(Frozen):
    """One task's data; their folder is no part of it (`files.data_root`)."""

    arena: Arena
    convention: Convention = "s4"
    source: Literal["official", "generated", "surrogate", "random"] = "official"
    """`official`: the published files. `generated`: files of the published law, of this size and
    seed, which are made where they are not there. `surrogate`: what somebody put in the place of
    the published files, and says so beside them. `random`: noise of the task's shape, to time a
    step."""
    examples: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None
    """Of generated ones: in train, val and test."""
    seed: NonNegativeInt = 0
    """Of generated ones."""
    difficulty: Difficulty = "hard"
    """Of Pathfinder; the arena's is hard."""
    validation: Validation = "test"
    """Of Text, which has no validation set: the test set, as published runs have it, or a tenth of
    the training set."""
    colour: bool = False
    """Of Image: three channels, which the arena does not have, but HGRN1's and HGRN2's code has."""
    augment: bool = False
    """Of Image in training: a random crop of the image with 4 mirrored pixels around it, and a
    random flip, as in that code."""
    version: PositiveInt = 1
    """Of generated ones: the generator's, which is filled in. Other versions draw other data."""

    later: ClassVar[tuple[str, ...]] = ("version",)

    @model_validator(mode="before")
    @classmethod
    def _filled_in(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and fields.get("source") == "generated":
            return {"version": generator_version(fields.get("arena")), **fields}
        return fields

    @model_validator(mode="after")
    def _belongs_to_the_arena(self) -> Data:
        can_generate = self.arena == "listops" or self.arena in RESOLUTIONS
        if self.source == "generated" and not can_generate:
            raise ValueError(
                f"source = 'generated' does not fit arena = {self.arena!r}: only listops and "
                "pathfinder can be generated"
            )
        if (self.examples is not None) != (self.source == "generated"):
            raise ValueError(
                f"examples = {self.examples} does not fit source = {self.source!r}: give the sizes "
                "of train, val and test where data are generated, and only there"
            )
        if self.examples and self.arena in RESOLUTIONS:
            train, val, test = self.examples
            if not val == test == (train + val + test) // 10:
                raise ValueError(
                    f"examples = {self.examples}: the images are split into eight, one and one "
                    "tenths; use such sizes, as (800, 100, 100)"
                )
        current = generator_version(self.arena) if self.source == "generated" else 1
        if self.version != current:
            raise ValueError(
                f"version = {self.version} does not fit source = {self.source!r} of "
                f"{self.arena}: it is {current} here; leave it out"
            )
        for field, usual, arenas in (
            ("difficulty", "hard", tuple(RESOLUTIONS)),
            ("validation", "test", ("text",)),
            ("colour", False, ("image",)),
            ("augment", False, ("image",)),
        ):
            value = getattr(self, field)
            if value != usual and self.arena not in arenas:
                raise ValueError(
                    f"{field} = {value!r} does not fit arena = {self.arena!r}: leave it out"
                )
        return self

    def load(self, context: Context) -> Dataset:
        """The data, on the CPU. They stay in memory until the process loads others: files that
        change under it meanwhile are not read again.

        Raises Unsupported where they are not there or of another source, with what to do; Paused
        where the cell is stopped while they are made; BadData as the loaders do.
        """
        root = files.data_root(None)
        try:
            if self.source == "generated":
                root = self._generated(root, context)
            dataset = _last_read(self.model_dump_json(), (Path.cwd(), root))
        except files.MissingData as error:
            raise Unsupported(str(error)) from error
        if dataset.provenance.kind != self.source:
            raise Unsupported(
                f"source = {self.source!r}, but the files of {self.arena} are "
                f"{dataset.provenance}: set {files.ROOT_VARIABLE} to a folder with the others"
            )
        return dataset

    def _generated(self, root: Path, context: Context) -> Path:
        """The root of generated files of this size and seed; makes them where they are not."""
        folder, wanted = self._files()
        needs = "basic_train.tsv" if self.arena == "listops" else "metadata"
        try:
            found = files.find(root, folder, needs, "", "")
        except files.MissingData:
            found = None
        # Other files at an inner level would be read in place of these.
        if found is not None and found == root / folder and files.manifest(found) == wanted:
            return root
        digest = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:12]
        own = root / GENERATED / f"{self.arena}-{digest}"
        with part_folder(own / folder, wanted, partial(_stop_or_go_on, context)) as part:
            if part is not None:
                context.progress(f"generating {self.arena}")
                self._generate(part, wanted["counts"], context)
        return own

    def _files(self) -> tuple[str, dict[str, Any]]:
        """The folder below a root, and the manifest that says what is in it."""
        assert self.examples is not None
        assert self.version == generator_version(self.arena), "copied without validation"
        if self.arena == "listops":
            train, val, test = self.examples
            counts = {"train": train, "val": val, "test": test}
            return "listops-1000", manifest("listops", self.version, self.seed, {}, counts)
        resolution = RESOLUTIONS[self.arena]
        settings = {
            "resolution": resolution,
            "difficulty": self.difficulty,
            "contrast": "clipped",
        }
        counts = {"images": sum(self.examples)}
        folder = f"pathfinder{resolution}/{FOLDER[self.difficulty]}"
        return folder, manifest("pathfinder", self.version, self.seed, settings, counts)

    def _generate(self, part: Path, counts: dict[str, int], context: Context) -> None:
        jobs = torch.get_num_threads()

        total = sum(counts.values())
        said = 0

        def progress(done: int) -> None:
            nonlocal said
            _stop_or_go_on(context)
            if 10 * done // total > said:
                said = 10 * done // total
                context.progress(f"generated {done} of {total} for {self.arena}")

        if self.arena == "listops":
            listops_generator.write_listops(part, counts, self.seed, jobs, progress)
            return
        pictures = pathfinder_generator.Pictures(
            RESOLUTIONS[self.arena], self.difficulty, self.seed, "clipped", str(context.device)
        )
        pathfinder_generator.write_pathfinder(part, pictures, counts["images"], jobs, progress)


def _stop_or_go_on(context: Context) -> None:
    if context.should_stop():
        raise Paused


def generator_version(arena: Any) -> int:
    """The version of what draws that task's data; 1 where nothing does."""
    if arena == "listops":
        return listops_generator.VERSION
    return pathfinder_generator.VERSIONS.get(RESOLUTIONS.get(arena, 0), 1)


def official_is_there(arena: str) -> bool:
    """Whether the root of the data holds published files of that task, of those that can be
    generated too (listops, pathfinder). Reads no data. A damaged manifest is the cell's to tell."""
    folder, needs = "listops-1000", "basic_train.tsv"
    if arena in RESOLUTIONS:
        folder, needs = f"pathfinder{RESOLUTIONS[arena]}/{FOLDER['hard']}", "metadata"
    try:
        return files.provenance(files.find(None, folder, needs, "", "")).kind == "official"
    except (files.MissingData, files.BadData):
        return False


@lru_cache(maxsize=1)
def _last_read(data: str, place: tuple[Path, Path]) -> Dataset:
    """`load` of a `Data`, in JSON, which a type checker knows to be hashable, from the second of
    `place`, a root that may be relative to the first. A worker's next cell is most often of the
    same files; nobody writes to a dataset."""
    _, root = place
    return load(Data.model_validate_json(data), root)


def load(data: Data, root: Path | None) -> Dataset:
    """What lies below the root (`files.data_root`). Raises MissingData and BadData as the loaders
    do."""
    loaders: dict[str, Callable[[], Dataset]] = {
        "listops": lambda: load_listops(root, convention=data.convention),
        "text": lambda: load_text(root, convention=data.convention, validation=data.validation),
        "retrieval": lambda: load_retrieval(root, convention=data.convention),
        "image": lambda: load_image(root, convention=data.convention, colour=data.colour),
    }
    if data.arena in loaders:
        return loaders[data.arena]()
    return load_pathfinder(
        root,
        resolution=RESOLUTIONS[data.arena],
        difficulty=data.difficulty,
        convention=data.convention,
    )
