"""The command line. Imports what a command needs when it runs, so that --help is quick."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from harness import cli_data
from harness.arguments import (
    RESULTS,
    AnyDevice,
    Device,
    Grids,
    OnlyDevice,
    Results,
    Timeout,
    Trained,
    Where,
    seconds,
)
from harness.cli_profile import profile
from harness.cli_run import check, run

app = typer.Typer(
    name="mixerbench",
    help="""Compare sequence mixers fairly: the same task, width and data, one record a cell.

    \b
    Example:
      mixerbench run mqar_quick --results local
      mixerbench report mqar_quick --results local""",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(cli_data.app)

app.command()(run)
app.command()(profile)


@app.command()
def submit(
    grids: Grids,
    partition: Annotated[str, typer.Option(help="Slurm's partition", show_default=False)],
    budget: Annotated[
        str,
        typer.Option(help="Time of each job, as 4h; Slurm gets 5 minutes more", show_default=False),
    ],
    array: Annotated[int, typer.Option(min=1, help="Jobs in the array")] = 1,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs of a job; 0: run on its CPU")] = 1,
    cpus: Annotated[int, typer.Option(min=1, help="Cores of a job")] = 8,
    where: Where = None,
    timeout: Timeout = None,
    any_device: Trained = False,
    results: Results = RESULTS,
) -> None:
    """Submit an array of Slurm jobs that share a grid: each runs `mixerbench run` on one folder.

    The folder of the records has to be shared by the nodes and to keep flock among them (NFS 4
    does, unless mounted with nolock or local_lock). What the jobs print is in <results>/.slurm.

    \b
    Example:
      mixerbench submit mqar_fig3 --partition gpu --array 8 --budget 4h
    """
    from harness import slurm

    budget_s = seconds("--budget", budget) or 0.0
    seconds("--timeout", timeout)
    check(grids, where, "cuda" if gpus else "cpu", any_device=any_device)
    command = ["run", *grids, "--budget", budget, "--results", str(results.resolve())]
    command += ["--device", "cuda" if gpus else "cpu"]
    for option, value in (("--where", where), ("--timeout", timeout)):
        command += [option, value] if value else []
    command += ["--any-device"] if any_device else []
    for job in slurm.submit(
        command,
        partition=partition,
        array=array,
        gpus=gpus,
        cpus=cpus,
        budget_s=budget_s,
        folder=results / ".slurm",
    ):
        print(f"job {job.job_id}: {job.paths.stdout}")


@app.command()
def merge(
    grid: Annotated[str, typer.Argument(help="The grid of the records", show_default=False)],
    files: Annotated[
        list[Path],
        typer.Argument(help="Other machines' records.jsonl, or other grids'", show_default=False),
    ],
    results: Results = RESULTS,
) -> None:
    """Add other machines' records to a grid's: each once, all or, where a line is damaged, none.
    Of another grid's records those of the cells that both have.

    \b
    Example:
      mixerbench merge mqar_fig3 from_a/records.jsonl from_b/records.jsonl
      mixerbench merge mqar_variants results/mqar_fig3/records.jsonl
    """
    from harness.merge import merge

    for line in merge(grid, files, results):
        print(line)


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
      mixerbench report mqar_quick speed_quick --results local
    """
    from harness.cells import grid_name
    from harness.frames import frame
    from harness.report import write_report

    names = [grid_name(grid) for grid in grids]
    devices = {"any_device": any_device, "only_device": only_device}
    if len(names) > 1:
        # What is wrong with one of them is said before any is written.
        for name in names:
            frame(name, results, **devices)
    for name in names:
        print(write_report(name, results, **devices))


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


def main() -> None:
    """The console script: what the user got wrong is told without a traceback."""
    try:
        app(prog_name="mixerbench")
    except ValueError as error:
        print(f"mixerbench: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        # The reader, `head` perhaps, has seen enough.
        sys.stderr.close()


if __name__ == "__main__":
    main()
