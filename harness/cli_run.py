"""`mixerbench run`: from the command line to the runner, and what is said of it."""

import itertools
import shlex
import sys
import time
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.arguments import RESULTS, Device, Grids, Results, Timeout, Trained, Where, seconds

if TYPE_CHECKING:
    from harness.cells import Cell, Options
    from harness.placement import Fleet
    from harness.runner import Summary

INTERRUPTED = {"SIGINT": 130, "SIGTERM": 143}


def run(
    grids: Grids,
    where: Where = None,
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
            min=1,
            help="Cells side by side in one process, where they can (default: 4 on a GPU, else 1)",
        ),
    ] = None,
    timeout: Timeout = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the cells")] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Measure again what has a record, from the start")
    ] = False,
    fresh_since: Annotated[
        str | None,
        typer.Option(
            help="Go on with a --fresh run that began then, as 2024-04-11T09:00:00Z: older records "
            "do not count"
        ),
    ] = None,
    any_device: Trained = False,
    ray: Annotated[
        str | None,
        typer.Option(help="Run on the GPUs of this Ray cluster: auto or HOST:PORT; see README"),
    ] = None,
    report: Annotated[
        bool, typer.Option("--report", help="When all is measured, rebuild the report")
    ] = False,
    results: Results = RESULTS,
) -> None:
    """Measure the cells that have no ok record for this device yet; run again to resume.

    Every GPU takes cells, the longest first; small models train side by side in one process. Cells
    that are timed run last, one by one, on the first device. A cell that fails is tried again by
    the next run, and so is a timed one whose GPU its heat or its power supply had slowed down.
    Ctrl-C saves the running cells and stops; so does the end of the budget, within ten seconds.
    Unless the run was stopped, --report rebuilds the report of this device's records, with
    --any-device of all.

    Exit status: 0 all is well, cells left by the budget included; 1 a cell failed (wrong, timeout
    or error), or a report could not be written; 2 nothing could be run; 130 Ctrl-C.

    \b
    Examples:
      mixerbench run mqar_quick --results local --budget 9m
      mixerbench run lra_smoke --results local --report
      mixerbench run speed_quick --where 'seq_len <= 256 and mixer == "hgrn2"'
      mixerbench run mqar_fig3 --device cuda:0,cuda:1 --pack 1 --timeout 1h
      mixerbench run mqar_fig3 --ray auto --budget 2h
      mixerbench run mqar_fig3 --any-device    # what another kind of GPU has trained is done
    """
    started, limit = time.monotonic(), seconds("--budget", budget)
    timeout_s = seconds("--timeout", timeout)
    since = _since(fresh, fresh_since)
    if report and dry_run:
        raise ValueError("--report: --dry-run measures nothing to report; leave one of them out")
    for option, value in (("--jobs", jobs), ("--pack", pack)):
        if ray and value:
            raise ValueError(f"{option} {value}: with --ray every GPU (or core) runs one cell")
    folders = _start_server(grids)
    # While the server imports torch.
    from harness import cluster, processes, selection
    from harness.cells import Options

    deadline = None if limit is None else started + limit
    with cluster.connect(ray, device, folders, deadline) if ray else nullcontext() as fleet:
        plan = processes.make_plan(grids, device, fleet.machine if fleet else None)
        options = Options(
            machine=plan.machine,
            results=results,
            jobs=jobs,
            pack=pack,
            timeout_s=timeout_s,
            deadline=deadline,
            fresh_since=since,
            any_device=any_device,
        )
        cells = [cell for grid in plan.grids.values() for cell in grid]
        if where is not None:
            cells = selection.select(cells, where)
        if any_device:
            _check_trained(cells)
        by_grid = {name: [cell for cell in cells if cell.grid == name] for name in plan.grids}
        if dry_run:
            for name, chosen in by_grid.items():
                _list(name, chosen, options)
            return
        raise typer.Exit(_run_all(by_grid, options, fleet, report=report))


def _check_trained(cells: "list[Cell]") -> None:
    if bound := [cell for cell in cells if not cell.any_device]:
        raise ValueError(
            f"--any-device: {len(bound)} of the cells, such as {bound[0].key} of "
            f"{bound[0].grid}, measure the device itself: leave it out"
        )


def check(grids: list[str], where: str | None, device: str, *, any_device: bool = False) -> None:
    """Raise the ValueError of a run elsewhere, on `device`, that would find no such grid, could not
    read `where` or could not go by another device's records."""
    _start_server(grids)
    from harness import processes, selection
    from harness.cells import Machine

    there = Machine((device,), device_name=device, cores=1, checkout={})
    planned = processes.make_plan(grids, None, there).grids.values()
    cells = [cell for grid in planned for cell in grid]
    if where is not None:
        cells = selection.select(cells, where)
    if any_device:
        _check_trained(cells)


def _start_server(grids: list[str]) -> list[Path]:
    """The server of processes, which finds the user's files; their folders."""
    from harness import processes
    from harness.cells import user_folder

    folders = [folder for spec in grids if (folder := user_folder(spec))]
    # Also in the workers, which unpickle the classes of a user's file.
    sys.path.extend(map(str, folders))
    processes.start_server()
    return folders


def _run_all(
    by_grid: "dict[str, list[Cell]]", options: "Options", fleet: "Fleet | None", *, report: bool
) -> int:
    """Run grid after grid, and report on them if nothing stopped that; the exit status."""
    from harness import runner, selection
    from harness.records import Records

    if fleet and any(cell.timed for cells in by_grid.values() for cell in cells):
        # Refuses what it cannot place before anything is measured.
        fleet.places(timed=True)
    status = 0
    for place, (name, chosen) in enumerate(by_grid.items()):
        records = Records(options.results / name)
        if records.torn():
            print(f"{records.path}: the last line is torn; its cell has no record", file=sys.stderr)
        summary = runner.run_grid(chosen, options, fleet)
        _tell(name, summary, options)
        if summary.failures:
            status = 1
        if summary.stopped_by:
            not_begun = list(by_grid.values())[place + 1 :]
            left = summary.left + sum(len(selection.pending(c, options)) for c in not_begun)
            if left:
                # A --fresh of its own would start over.
                again = ["--fresh-since", options.fresh_since or ""]
                words = [again if word == "--fresh" else [word] for word in sys.argv[1:]]
                command = shlex.join(["mixerbench", *itertools.chain(*words)])
                print(f"{left} cells left; to go on: {command}")
            return INTERRUPTED.get(summary.stopped_by, status)
    if report and not _report(list(by_grid), options):
        status = 1
    return status


def _report(grids: list[str], options: "Options") -> bool:
    """Write the report of every grid, of earlier runs' cells too; whether all could be."""
    from harness.report import write_report

    device = None if options.any_device else options.machine.device_name
    whole = True
    for grid in grids:
        try:
            print(
                write_report(
                    grid, options.results, any_device=options.any_device, only_device=device
                )
            )
        except ValueError as error:
            print(f"no report of {grid}: {error}", file=sys.stderr)
            whole = False
    return whole


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
