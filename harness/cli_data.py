"""`mixerbench data`: generate the Long Range Arena's ListOps and Pathfinder, look at any of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from harness.progress import PLAIN_EVERY_S, duration

app = typer.Typer(
    name="data",
    help="""Data of the Long Range Arena: generate what can be generated, look at what is there.

    \b
    Example:
      mixerbench data listops --out data
      mixerbench data pathfinder --out data --resolution 32 --difficulty hard
      mixerbench data show listops --root data""",
    no_args_is_help=True,
    rich_markup_mode=None,
)


class Difficulty(StrEnum):
    easy = "easy"
    intermediate = "intermediate"
    hard = "hard"


class Contrast(StrEnum):
    clipped = "clipped"
    documented = "documented"


class Name(StrEnum):
    listops = "listops"
    text = "text"
    retrieval = "retrieval"
    image = "image"
    pathfinder = "pathfinder"
    path_x = "path_x"


class Reading(StrEnum):
    s4 = "s4"
    google = "google"


Resolution = Literal[32, 64, 128, 256]
Out = Annotated[Path, typer.Option(help="Root of the data; the published folders go below it")]
Seed = Annotated[
    int, typer.Option(min=0, max=2**63 - 1, help="Same seed, same files, on any number of cores")
]
Jobs = Annotated[int | None, typer.Option(min=1, help="Processes; default: one a core")]


@app.command()
def listops(
    out: Out,
    train: Annotated[int, typer.Option(min=1, help="Expressions")] = 96_000,
    val: Annotated[int, typer.Option(min=1, help="Expressions")] = 2_000,
    test: Annotated[int, typer.Option(min=1, help="Expressions")] = 2_000,
    seed: Seed = 0,
    jobs: Jobs = None,
) -> None:
    """Generate ListOps as published.

    Files: <out>/listops-1000/basic_{train,val,test}.tsv

    \b
    Example:
      mixerbench data listops --out data --train 96000 --val 2000 --test 2000 --seed 0
    """
    from harness.environment import cores
    from tasks.lra.generate import listops as generator
    from tasks.lra.generate.folders import manifest, part_folder

    counts = {"train": train, "val": val, "test": test}
    folder = out / "listops-1000"
    wanted = manifest("listops", generator.VERSION, seed, {}, counts)
    with part_folder(folder, wanted) as part:
        if part is None:
            print(f"{folder} is there already, of this seed")
            return
        with _progress("expressions", sum(counts.values()), folder) as progress:
            generator.write_listops(part, counts, seed, jobs or cores(), progress)


@app.command()
def pathfinder(
    out: Out,
    resolution: Annotated[int, typer.Option(help="32, 64, 128 (Path-X) or 256")] = 32,
    difficulty: Annotated[Difficulty, typer.Option(help="The arena's is hard")] = Difficulty.hard,
    images: Annotated[int, typer.Option(min=10)] = 200_000,
    seed: Seed = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda:N; both draw the same images")] = "cpu",
    contrast: Annotated[
        Contrast,
        typer.Option(help="Contrasts brighten dashes up to a limit, or scale them as documented"),
    ] = Contrast.clipped,
    jobs: Jobs = None,
) -> None:
    """Generate Pathfinder as published.

    Files: <out>/pathfinder<resolution>/curv_.../{imgs,metadata}/. Run again to go on after an
    interruption.

    \b
    Example:
      mixerbench data pathfinder --out data --resolution 32 --images 200000 --device cuda:0
    """
    from harness.environment import cores
    from harness.plan import find_devices
    from tasks.lra.generate import pathfinder as generator
    from tasks.lra.generate.folders import manifest, part_folder
    from tasks.lra.generate.strokes import FOLDER

    resolution = _resolution(resolution)
    chosen = find_devices(device)[0]
    pictures = generator.Pictures(resolution, difficulty.value, seed, contrast.value, str(chosen))
    folder = out / f"pathfinder{resolution}" / FOLDER[difficulty.value]
    settings = {"resolution": resolution, "difficulty": difficulty, "contrast": contrast}
    wanted = manifest(
        "pathfinder", generator.VERSIONS[resolution], seed, settings, {"images": images}
    )
    with part_folder(folder, wanted) as part:
        if part is None:
            print(f"{folder} is there already, of these settings")
            return
        with _progress("images", images, folder) as progress:
            generator.write_pathfinder(part, pictures, images, jobs or cores(), progress)


@app.command()
def show(
    name: Annotated[Name, typer.Argument(show_default=False)],
    root: Annotated[
        Path | None, typer.Option(help="Root of the data; default: MIXERBENCH_DATA, else data")
    ] = None,
    convention: Annotated[Reading, typer.Option(help="How files become ids")] = Reading.s4,
    resolution: Annotated[
        int | None, typer.Option(help="Of pathfinder: 32 (the default), 64, 128 (path_x) or 256")
    ] = None,
    difficulty: Annotated[
        Difficulty | None, typer.Option(help="Of pathfinder and path_x; default: hard, the arena's")
    ] = None,
) -> None:
    """Load a task's data and check them.

    \b
    Example:
      mixerbench data show path_x --root lra_release
      mixerbench data show pathfinder --resolution 64 --difficulty easy
    """
    from tasks.lra.data import RESOLUTIONS, Data, load

    drawn_at, hardness = _pathfinder_settings(name, resolution, difficulty)
    of_images = {side: arena for arena, side in RESOLUTIONS.items()}
    arena = of_images[drawn_at] if name in (Name.pathfinder, Name.path_x) else name.value
    data = Data.model_validate(
        {"arena": arena, "convention": convention.value, "difficulty": hardness}
    )
    for line in load(data, root).describe():
        print(line)


def _pathfinder_settings(
    name: Name, resolution: int | None, difficulty: Difficulty | None
) -> tuple[Resolution, Literal["easy", "intermediate", "hard"]]:
    """The arena's, where none is given. Raises ValueError for those that do not fit `name`."""
    for option, value in (("resolution", resolution), ("difficulty", difficulty)):
        if value is not None and name not in (Name.pathfinder, Name.path_x):
            raise ValueError(f"--{option} {value}: {name} has none; leave it out")
    of_arena = 128 if name is Name.path_x else 32
    drawn_at = _resolution(of_arena if resolution is None else resolution)
    if name is Name.path_x and drawn_at != of_arena:
        raise ValueError(f"--resolution {drawn_at}: path_x is of 128; show pathfinder for others")
    return drawn_at, (difficulty or Difficulty.hard).value


def _resolution(given: int) -> Resolution:
    if given not in (32, 64, 128, 256):
        raise ValueError(f"--resolution {given}: it should be 32, 64, 128 or 256")
    return given


@contextmanager
def _progress(what: str, total: int, folder: Path) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, else a line now and then; at the end the time and the place."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{total} {what} to {folder}")
    started = spoke = time.monotonic()
    first: int | None = None
    bar = Progress(
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    line = bar.add_task(what, total=total)

    def progress(done: int) -> None:
        nonlocal spoke, first
        first = done if first is None else first
        bar.update(line, completed=done)
        now = time.monotonic()
        if not console.is_terminal and now - spoke >= PLAIN_EVERY_S and done > first:
            left = (now - started) * (total - done) / (done - first)
            console.print(f"  {done} of {total} {what}, {duration(left)} left")
            spoke = now

    with bar:
        yield progress
    took = time.monotonic() - started
    made = total - (first or 0)
    console.print(f"{folder}: {made} {what} in {duration(took)}, {made / took:.0f} a second")
