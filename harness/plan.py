"""From the names on the command line to devices and cells. Imports torch and every task."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pickle
import re
import traceback
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import torch
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from harness import grids
from harness.cells import Cell, Machine, Plan, grid_name, user_folder
from harness.environment import checkout, cores, device_name
from tasks.base import Task

Grid = Callable[[torch.device], list[Task]]


def plan(specs: list[str], device: str | None, machine: Machine | None = None) -> Plan:
    """Build the cells of every grid that is named, for `device` or for another machine's.

    A spec is a grid's name, or `my_grids.py:my_grid`, whose folder is on `sys.path`. Raises
    ValueError, in one line, for whatever the user could have meant otherwise.
    """
    # The code of a run through Ray is this checkout's too.
    machine = replace(machine, checkout=checkout()) if machine else find_machine(device)
    found: dict[str, Grid] = {}
    for spec in specs:
        name = grid_name(spec)
        if name in found:
            raise ValueError(f"grid {spec!r}: a grid {name!r} is named already; run one at a time")
        found[name] = find_grid(spec)
    first = torch.device(machine.devices[0])
    return Plan(machine, {name: build(name, grid, first) for name, grid in found.items()})


def find_machine(device: str | None) -> Machine:
    """This machine, seen through the devices that are chosen."""
    devices = find_devices(device)
    return Machine(tuple(map(str, devices)), device_name(devices[0]), cores(), checkout())


def find_devices(device: str | None) -> list[torch.device]:
    """`cpu`; GPUs, as `cuda:0` or `cuda:0,cuda:2`; `cuda` for every GPU that is visible; None: cuda
    if there is one."""
    count = torch.cuda.device_count()
    wanted = ("cuda" if count else "cpu") if device is None else device
    if wanted == "cpu":
        return [torch.device("cpu")]
    numbers = _gpus(wanted)
    if not count:
        raise ValueError(
            f"--device {wanted!r}: torch {torch.__version__} sees no GPU; use --device cpu"
        )
    if max(numbers, default=0) >= count:
        raise ValueError(f"--device {wanted!r}: the GPUs here are cuda:0 to cuda:{count - 1}")
    devices = [torch.device("cuda", n) for n in numbers or range(count)]
    names = {str(device): device_name(device) for device in devices}
    if len(set(names.values())) > 1:
        listed = ", ".join(f"{device} is {name}" for device, name in names.items())
        raise ValueError(
            f"--device {wanted!r}: these GPUs differ ({listed}): choose those of one kind, "
            "as --device cuda:0,cuda:1"
        )
    return devices


def _gpus(wanted: str) -> list[int]:
    """The numbers in `cuda:0,cuda:2`; none of `cuda`."""
    names = [] if wanted == "cuda" else wanted.split(",")
    numbers = [re.fullmatch(r"cuda:(\d+)", name) for name in names]
    if not all(numbers) or len(set(names)) < len(names):
        raise ValueError(
            f"--device {wanted!r}: use cpu, cuda (every GPU) or different GPUs, as cuda:0,cuda:2"
        )
    return [int(number[1]) for number in numbers if number]


def built_in() -> dict[str, Grid]:
    """The grids of the suite by name."""
    return {grid.__name__: grid for grid in grids.GRIDS}


def meant(name: str) -> str:
    """Which grid a misspelt name may be for, as a sentence to append, or nothing."""
    close = difflib.get_close_matches(name, built_in(), n=1)
    return f" Did you mean {close[0]}?" if close else ""


def find_grid(spec: str) -> Grid:
    """The grid function of that name, or of a user's file."""
    if user_folder(spec) is not None:
        return _user_grid(spec)
    known = built_in()
    if spec in known:
        return known[spec]
    raise ValueError(
        f"no grid is called {spec!r}.{meant(spec)} Grids: {', '.join(known)}; "
        "or a function of your own, as my_grids.py:my_grid"
    )


def _user_grid(spec: str) -> Grid:
    file, _, name = spec.partition(":")
    path = Path(file).resolve()
    if name in built_in():
        raise ValueError(f"grid {spec!r}: {name} is a grid of the suite; rename yours")
    if not path.is_file():
        raise ValueError(f"grid {spec!r}: there is no file {file}")
    try:
        module = importlib.import_module(path.stem)
    except Exception as error:
        raise ValueError(f"grid {spec!r}: importing {file} failed: {_told(error, path)}") from error
    if Path(module.__file__ or "").resolve() != path:
        raise ValueError(f"grid {spec!r}: a module {path.stem!r} is there already; rename {file}")
    grid = getattr(module, name, None)
    if not inspect.isfunction(grid):
        functions = inspect.getmembers(module, inspect.isfunction)
        own = [key for key, value in functions if value.__module__ == path.stem]
        named = f"name one of the functions of {file}: {', '.join(own)}"
        raise ValueError(
            f"grid {spec!r}: {named if own else f'{file} has no function; define a grid there'}"
        )
    return grid


def build(name: str, grid: Grid, device: torch.device) -> list[Cell]:
    """Call the grid and turn its tasks into cells; two equal cells are an error."""
    try:
        made = grid(device)
        if not isinstance(made, Iterable):
            raise TypeError(f"it returned {made!r}; a grid returns a list of tasks")
        tasks = list(made)
    except ValidationError as error:
        raise ValueError(f"grid {name}: {_fields(error)}") from error
    except Exception as error:
        source = Path(inspect.getsourcefile(grid) or "")
        raise ValueError(f"grid {name}: {_told(error, source)}") from error
    cells: dict[str, Cell] = {}
    for place, task in enumerate(tasks):
        if not isinstance(task, Task):
            raise ValueError(f"grid {name}: item {place} is a {type(task).__name__}, not a Task")
        if task.key in cells:
            first = list(cells).index(task.key)
            raise ValueError(
                f"grid {name}: tasks {first} and {place} are one cell, {task.key}: "
                f"{task.canonical()}"
            )
        cells[task.key] = _cell(name, task)
    return list(cells.values())


def _cell(grid: str, task: Task) -> Cell:
    try:
        payload = pickle.dumps(task)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"grid {grid}: a {type(task).__name__} cannot be sent to a worker ({error}); "
            "define its class at the top level of a module"
        ) from error
    return Cell(
        key=task.key,
        grid=grid,
        task=task.model_dump(mode="json"),
        payload=payload,
        timed=task.timed,
        any_device=task.any_device,
        packs=task.packs,
        cost=task.cost,
    )


def _fields(error: ValidationError) -> str:
    """One line a field: what it is, what it was, what would be right; names that are not known
    first, since a typo also makes the name that was meant missing."""
    details = sorted(error.errors(), key=lambda detail: detail["type"] != "extra_forbidden")
    return "\n  ".join(_field(error.title, detail) for detail in details)


def _field(title: str, detail: ErrorDetails) -> str:
    place = ".".join([title, *map(str, detail["loc"])])
    # There the input is all that was given, not the field's value.
    whole = not detail["loc"] or detail["type"] == "missing"
    return (
        f"{place}: {detail['msg']}" if whole else f"{place} = {detail['input']!r}: {detail['msg']}"
    )


def _told(error: Exception, path: Path) -> str:
    """The error and the line of the user's file that it came from."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).resolve() == path
    ]
    where = f" ({path.name}, line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {error}{where}"
