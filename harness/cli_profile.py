"""`mixerbench profile`: one cell's kernels, without a record."""

import pickle
import sys
from pathlib import Path
from typing import Annotated

import typer

from harness.arguments import Device, Where

LONGEST_NAME = 72


def profile(
    grid: Annotated[str, typer.Argument(help="A grid, or my_grids.py:my_grid", show_default=False)],
    where: Where = None,
    device: Device = None,
    skip: Annotated[
        int, typer.Option(min=0, help="Calls before, which compile, tune and capture")
    ] = 5,
    calls: Annotated[int, typer.Option(min=1, help="Calls that are profiled")] = 15,
    top: Annotated[int, typer.Option(min=1, help="Kernels to show")] = 25,
    csv: Annotated[
        Path | None, typer.Option(help="Write all kernels there too", show_default=False)
    ] = None,
) -> None:
    """Show what one cell spends its time on, kernel by kernel (on a CPU: operator by operator).

    A call is a training step, or the few that one graph holds (`steps_together`), or one call of
    what is timed; numbers are of one step. Batches of several widths need a larger --skip. It runs
    on the first of the devices. Nothing is recorded: a profiler slows what it watches.

    \b
    Example:
      mixerbench profile mqar_quick --where 'mixer == "gla" and d_model == 32 and lr < 4e-3'
    """
    from harness import plan, profiling, selection
    from harness.cells import user_folder
    from tasks.base import Unsupported

    if folder := user_folder(grid):
        sys.path.append(str(folder))
    found = plan.plan([grid], device)
    (cells,) = found.grids.values()
    if where is not None:
        cells = selection.select(cells, where)
    if len(cells) != 1:
        some = "\n".join(f"  {name}" for name in list(selection.labels(cells).values())[:10])
        chosen = f"--where {where!r} chooses" if where else f"{grid} has"
        raise ValueError(f"{chosen} {len(cells)} cells; choose one by --where, as of\n{some}")
    task = pickle.loads(cells[0].payload)
    where_it_runs = plan.find_devices(found.machine.devices[0])[0]
    try:
        result = profiling.profile(task, where_it_runs, skip=skip, calls=calls)
    except Unsupported as reason:
        raise ValueError(f"{cells[0].key} cannot be profiled: {reason}") from None
    shown = result.table.head(top).copy()
    shown["kernel"] = shown["kernel"].str.slice(0, LONGEST_NAME)
    shown["share"] = shown["share"].map("{:.1%}".format)
    print(shown.to_string(index=False, float_format="{:.4g}".format))
    print(
        f"{found.machine.device_name}: {len(result.table)} kernels, {result.busy_ms:.4g} ms of "
        f"{result.wall_ms:.4g} ms a step (profiled; {result.together:g} launched together)"
    )
    if csv is not None:
        result.table.to_csv(csv, index=False)
        print(csv)
