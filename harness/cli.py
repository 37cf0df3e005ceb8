"""The command line. Imports what a command needs when it runs, so that --help is quick."""

import itertools
import re
import shlex
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness import cli_data

if TYPE_CHECKING:
    from harness.cells import Cell, Options
    from harness.runner import Summary

INTERRUPTED = {"SIGINT": 130, "SIGTERM": 143}

app = typer.Typer(
    name="mixerbench",
    help="Compare sequence mixers fairly: the same task, width and data, one record a cell.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(cli_data.app)

Grids = Annotated[
    list[str], typer.Argument(help="Names of grids, or my_grids.py:my_grid", show_default=False)
]
Results = Annotated[Path, typer.Option(help="Folder of the records: <results>/<grid>/")]
Device = Annotated[
    str | None,
    typer.Option(help="cpu, cuda (every GPU) or cuda:N; default: cuda where there is a GPU"),
]
AnyDevice = Annotated[
    bool, typer.Option("--any-device", help="Put records of different devices side by side")
]
OnlyDevice = Annotated[
    str | None, typer.Option(help="Only records of devices with this in their name, as H100")
]
RESULTS = Path("results")


@app.command()
def run(
    grids: Grids,
    where: Annotated[
        str | None, typer.Option(help="Only these cells: a pandas query over the report's columns")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Stop cleanly after this time, as 90s, 9m or 1h30m")
    ] = None,
    device: Device = None,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Cells at once, on the CPU (default: its cores) or on each GPU"),
    ] = None,
    pack: Annotated[
        int | None,
        typer.Option(
            min=1, help="Models trained side by side in one process (default: 1 on the CPU, 4)"
        ),
    ] = None,
    timeout: Annotated[
        str | None, typer.Option(help="Give up on a cell after this time, as 90s or 20m")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the cells")] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Measure again what has a record, from the start")
    ] = False,
    fresh_since: Annotated[
        str | None,
        typer.Option(help="Go on with a --fresh run of that time: what is older does not count"),
    ] = None,
    results: Results = RESULTS,
) -> None:
    """Measure the cells that have no ok record for this device yet; run again to resume.

    Cells that are timed run last, one by one. A cell that fails is tried again by the next run.
    Ctrl-C saves the running cells and stops; so does the end of the budget, within ten seconds.

    Exit status: 0 all is well, cells left by the budget included; 1 a cell failed (wrong, timeout
    or error); 2 nothing could be run; 130 Ctrl-C.

    \b
    Examples:
      mixerbench run mqar_quick --budget 9m
      mixerbench run speed_quick --where 'seq_len <= 256 and mixer == "hgrn2"'
    """
    started, limit = time.monotonic(), seconds("--budget", budget)
    timeout_s = seconds("--timeout", timeout)
    since = _since(fresh, fresh_since)
    from harness import processes
    from harness.cells import Options, user_folder

    # Also in the workers, which unpickle the classes of a user's file.
    sys.path.extend(str(folder) for spec in grids if (folder := user_folder(spec)))
    processes.start_server()
    # While the server imports torch.
    from harness import runner, selection

    plan = processes.make_plan(grids, device)
    options = Options(
        machine=plan.machine,
        results=results,
        jobs=jobs,
        pack=pack,
        timeout_s=timeout_s,
        deadline=None if limit is None else started + limit,
        fresh_since=since,
    )
    cells = [cell for grid in plan.grids.values() for cell in grid]
    if where is not None:
        cells = selection.select(cells, where)
        if not cells:
            raise ValueError(f"--where {where!r} chooses none of the cells")
    by_grid = {name: [cell for cell in cells if cell.grid == name] for name in plan.grids}
    if dry_run:
        for name, chosen in by_grid.items():
            _list(name, chosen, options)
        return
    status = 0
    for place, (name, chosen) in enumerate(by_grid.items()):
        summary = runner.run_grid(chosen, options)
        _tell(name, summary, options)
        if summary.failures:
            status = 1
        if summary.stopped_by:
            not_begun = list(by_grid.values())[place + 1 :]
            left = summary.left + sum(len(selection.pending(c, options)) for c in not_begun)
            # A --fresh of its own would start over.
            again = ["--fresh-since", since or ""]
            words = [again if word == "--fresh" else [word] for word in sys.argv[1:]]
            command = shlex.join(["mixerbench", *itertools.chain(*words)])
            print(f"{left} cells left; to go on: {command}")
            status = INTERRUPTED.get(summary.stopped_by, status)
            break
    raise typer.Exit(status)


def _since(fresh: bool, fresh_since: str | None) -> str | None:
    """From when on records count, in UTC."""
    from harness.records import utc, utc_now

    if fresh_since is None:
        return utc_now() if fresh else None
    if fresh:
        raise ValueError("--fresh starts over, --fresh-since goes on: use one of them")
    try:
        return utc(datetime.fromisoformat(fresh_since))
    except ValueError:
        raise ValueError(
            f"--fresh-since {fresh_since!r}: write a time as 2024-04-11T09:00:00Z"
        ) from None


def _list(grid: str, cells: "list[Cell]", options: "Options") -> None:
    from harness.selection import labels, pending

    todo = {cell.key for cell in pending(cells, options)}
    names = labels(cells)
    print(f"{grid} on {options.machine.device_name}: {len(todo)} of {len(cells)} cells would run")
    for cell in cells:
        timed = "  timed" if cell.timed else ""
        print(f"  {'run' if cell.key in todo else 'ok':<3}  {cell.key}  {names[cell.key]}{timed}")


def _tell(grid: str, summary: "Summary", options: "Options") -> None:
    counts = [f"{count} {status}" for status, count in sorted(summary.statuses.items())]
    if summary.settled_before:
        counts.append(f"{summary.settled_before} ok from before")
    if summary.left:
        counts.append(f"{summary.left} left")
    print(f"{grid} on {options.machine.device_name}: {', '.join(counts) or 'no cells'}")
    for failure in summary.failures:
        print(f"  {failure}")
    print(f"  records: {options.results / grid / 'records.jsonl'}")


@app.command()
def report(
    grids: Grids,
    results: Results = RESULTS,
    any_device: AnyDevice = False,
    only_device: OnlyDevice = None,
) -> None:
    """Rebuild each grid's report from its records: report.md, tables and figures beside them.

    \b
    Example:
      mixerbench report mqar_quick speed_quick
    """
    from harness.cells import grid_name
    from harness.report import write_report

    for grid in grids:
        path = write_report(
            grid_name(grid), results, any_device=any_device, only_device=only_device
        )
        print(path)


@app.command()
def compare(
    grid: Annotated[str, typer.Argument(help="A grid of timed cells", show_default=False)],
    baseline: Annotated[
        str, typer.Option(help='A mixer, a mixer and an implementation ("gla/fla"), or a series')
    ] = "attention",
    results: Results = RESULTS,
    any_device: AnyDevice = False,
    only_device: OnlyDevice = None,
) -> None:
    """Compare a grid's times with a baseline's: speed-up, interval, noise floor and verdict.

    \b
    Example:
      mixerbench compare speed_quick --baseline gla
    """
    from harness.cells import grid_name
    from harness.compare import compare, show

    table = compare(
        grid_name(grid),
        results,
        baseline=baseline,
        any_device=any_device,
        only_device=only_device,
    )
    show(table)


@app.command()
def grids(device: Device = None) -> None:
    """List the grids: name, number of cells, what it shows.

    \b
    Example:
      mixerbench grids --device cpu
    """
    from harness import plan

    first = plan.find_devices(device)[0]
    rows = [
        (name, len(plan.build(name, grid, first)), grid.__doc__ or "")
        for name, grid in plan.built_in().items()
    ]
    width = max(len(name) for name, _, _ in rows)
    for name, count, caption in rows:
        print(f"{name:<{width}}  {count:>5} cells  {caption.strip().partition(chr(10))[0]}")


@app.command()
def doctor(device: Device = None) -> None:
    """Show the device, the versions, and for every mixer and implementation whether it runs here.

    \b
    Example:
      mixerbench doctor
    """
    from harness.doctor import examine

    for line in examine(device):
        print(line)


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
        raise ValueError(f"{option} {text!r}: write a duration as 90s, 9m or 1h30m")
    return float(total)


def main() -> None:
    """The console script: what the user got wrong is one line, not a traceback."""
    try:
        app()
    except ValueError as error:
        print(f"mixerbench: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        # The reader, `head` perhaps, has seen enough.
        sys.stderr.close()


if __name__ == "__main__":
    main()
