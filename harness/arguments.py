"""What several commands take from the command line."""

import re
from pathlib import Path
from typing import Annotated

import typer

Grids = Annotated[
    list[str], typer.Argument(help="Names of grids, or my_grids.py:my_grid", show_default=False)
]
Where = Annotated[
    str | None, typer.Option(help="Only these cells: a pandas query over the report's columns")
]
Timeout = Annotated[
    str | None, typer.Option(help="Give up on a cell after this time, as 90s or 20m")
]


def _folder(text: str | Path) -> Path:
    """An empty variable of a shell would be the working directory. The default comes as a Path."""
    if not str(text).strip():
        raise typer.BadParameter(f"{text!r} names no folder: write one, as results")
    return Path(text)


Results = Annotated[
    Path,
    typer.Option(help="Folder of the records: <results>/<grid>/", parser=_folder, metavar="<path>"),
]
Device = Annotated[
    str | None,
    typer.Option(help="cpu, cuda (every GPU) or some, as cuda:0,cuda:2; default: cuda, else cpu"),
]
AnyDevice = Annotated[
    bool,
    typer.Option(
        "--any-device",
        help="Records of every device: a line each for times, one for what was trained",
    ),
]
Trained = Annotated[
    bool, typer.Option("--any-device", help="A cell that another kind of GPU has trained is done")
]
OnlyDevice = Annotated[
    str | None, typer.Option(help="Only records of devices with this in their name, as H100")
]
RESULTS = Path("results")


def seconds(option: str, text: str | None) -> float | None:
    """`90s`, `9m`, `1h30m` in seconds. Raises ValueError, naming the option, for anything else."""
    if text is None:
        return None
    match = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text)
    total = sum(
        int(part or 0) * unit
        for part, unit in zip(match.groups() if match else (), (3600, 60, 1), strict=False)
    )
    if not total:
        wanted = "must be longer than nothing" if match and text else "write a duration"
        raise ValueError(f"{option} {text!r}: {wanted}, as 90s, 9m or 1h30m")
    return float(total)
