"""One cell, one worker: what has to hold before a cell is measured, wherever that is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime

from harness.cells import Cell, Options, Setup
from harness.processes import Message
from harness.records import Record, Records, utc
from harness.throttling import slowed

ANY_DEVICE = "any device"
"""Whose claim runs with `any_device` hold besides their own device's."""
LONGEST_HEADLINE = 160


@contextmanager
def claimed(cell: Cell, records: Records, setup: Setup) -> Iterator[Message | None]:
    """Hold the cell against every other process; give None, or the message that tells why it is
    not to be measured. A checkpoint that a --fresh run must not see is gone then.
    """
    options = setup.options
    device = options.machine.device_name
    others = records.claim(cell.key, ANY_DEVICE) if options.any_device else nullcontext(True)
    with records.claim(cell.key, device) as mine, others as ours:
        if not (mine and ours):
            yield ("held",)
            return
        if record := _settled_elsewhere(cell, records, setup):
            yield ("settled", record.status, headline(record))
            return
        checkpoint, since = records.checkpoint(cell.key, device), options.fresh_since
        if since and checkpoint.exists():
            changed = datetime.fromtimestamp(checkpoint.stat().st_mtime, UTC)
            if utc(changed) < since:
                checkpoint.unlink()
        yield None


def _settled_elsewhere(cell: Cell, records: Records, setup: Setup) -> Record | None:
    """A record that another run has written since this one read them: also of a failure, so that
    two runs side by side do not repeat each other's."""
    options = setup.options
    newest = records.newest(cell.key, options.machine.device_name)
    if newest and newest.started >= setup.run_started:
        return newest
    return settled(cell, records, options)


def settled(cell: Cell, records: Records, options: Options) -> Record | None:
    """The cell's newest ok record; None where it is a time that a slowed GPU gave."""
    machine, since = options.machine, options.fresh_since
    kind = machine.device_type if options.any_device else None
    record = records.settled(cell.key, machine.device_name, since=since, kind=kind)
    return None if record and cell.timed and slowed(record.env) else record


def headline(record: Record) -> str:
    """The error's first line, or the first metrics."""
    if record.error is not None:
        line = record.error.splitlines()[0]
        return line if len(line) <= LONGEST_HEADLINE else f"{line[:LONGEST_HEADLINE]}..."
    numbers = [(name, value) for name, value in record.metrics.items() if isinstance(value, float)]
    return "  ".join(f"{name} {value:.4g}" for name, value in numbers[:2])
