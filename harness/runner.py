"""Run a grid's cells in worker processes, on every place at once, until each has its record.

Whatever happens to a worker costs its own cell: a crash or a time-out becomes a record, and a new
worker goes on. What befalls cells side by side in one process is no record: each is tried alone.
The records are the only state: what a run leaves undone, the next one does.
"""

from __future__ import annotations

import signal
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import Any

from harness.cells import Cell, Options
from harness.placement import Fleet, Place, Slot, ThisMachine, Workers, in_order, slots
from harness.processes import Message, on_interrupt
from harness.progress import Display, duration
from harness.records import FAILURES, Record, Records, Status, utc_now
from harness.selection import drop_stale_checkpoints, failed, labels, pending

GRACE_S = 10.0
"""How long cells get to save a checkpoint once they are asked to stop."""

_TICK_S = 0.1
_HELD_RETRY_S = 1.0

# A CUDA error poisons its process, and memory that ran out is fragmented.
_NEEDS_NEW_WORKER = ("oom", "error")


@dataclass
class Summary:
    """What became of a grid's cells."""

    total: int
    settled_before: int = 0
    statuses: Counter[Status] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    """A line for each cell that is wrong, timeout or error."""
    stopped_by: str | None = None
    """`budget`, `SIGINT` or `SIGTERM`, where the run was asked to stop before its end."""

    @property
    def left(self) -> int:
        """Cells without a record of this run or an ok record from before."""
        return self.total - self.settled_before - self.statuses.total()


def run_grid(cells: Sequence[Cell], options: Options, fleet: Fleet | None = None) -> Summary:
    """Measure the pending cells of one grid, the timed ones last, alone and in fresh processes.

    `fleet`: this machine if None. Raises ValueError where no record can be written or no worker
    starts.
    """
    fleet = fleet or ThisMachine(options)
    todo = pending(cells, options)
    drop_stale_checkpoints(cells, options)
    summary = Summary(total=len(cells), settled_before=len(cells) - len(todo))
    if todo:
        grid, device = todo[0].grid, options.machine.device_name
        Records(options.results / grid).check_writable()
        with Display(grid, len(todo)) as display:
            display.note(f"{grid}: {len(todo)} of {len(cells)} cells to run on {device}")
            _Run(todo, labels(cells), options, fleet, summary, display).to_the_end()
    return summary


class _Run:
    def __init__(
        self,
        cells: list[Cell],
        names: dict[str, str],
        options: Options,
        fleet: Fleet,
        summary: Summary,
        display: Display,
    ) -> None:
        self.cells, self.names, self.options = cells, names, options
        self.fleet, self.summary, self.display = fleet, summary, display
        self.records = Records(options.results / cells[0].grid)
        self.slots: list[Slot] = []
        self.workers = Workers(fleet, cells[0].grid, options)
        self.failed_before = failed(cells, options)
        self.lost: set[str] = set()
        self.overdue: set[Place] = set()
        """Where a cell was overdue, and others had to end with its process."""
        self.alone: list[Cell] = []
        """Those that failed beside others."""
        self.queue: deque[Cell] = deque()
        self.held: deque[tuple[float, Cell]] = deque()
        self.pack = 1
        self.fresh_process = self.waiting = False
        self.signals: list[str] = []
        self.stop_by: float | None = None

    def to_the_end(self) -> None:
        with on_interrupt(lambda number, _: self.signals.append(signal.Signals(number).name)):
            try:
                pack, untimed = self.fleet.pack, [cell for cell in self.cells if not cell.timed]
                self._phase([cell for cell in untimed if pack == 1 or not cell.packs])
                self._phase([cell for cell in untimed if pack > 1 and cell.packs], pack=pack)
                self._phase(self.alone)
                self._phase([cell for cell in self.cells if cell.timed], timed=True)
            finally:
                for slot in self.slots:
                    slot.kill()
                self.workers.close()

    def _phase(self, cells: list[Cell], *, pack: int = 1, timed: bool = False) -> None:
        if not cells:
            return
        places = [p for p in self.fleet.places(timed=timed) if p.name not in self.lost]
        # Timed cells are alone on the machine: a neighbour shares its host, its bus and its power.
        places = places[:1] if timed else places
        self.slots = slots(places, pack)
        self.queue.extend(in_order(cells, self.slots, self.failed_before))
        self.pack, self.fresh_process = pack, timed
        while True:
            self._notice_a_stop()
            if self.stop_by is None:
                self._hand_out()
            busy = any(slot.cell for slot in self.slots)
            if not busy and (self.stop_by is not None or not (self.queue or self.held)):
                break
            self._listen()
            self._notice_overdue_cells()
        for slot in self.slots:
            slot.retire()
        self.workers.close()

    def _hand_out(self) -> None:
        while not self.queue and self.held and self.held[0][0] <= time.monotonic():
            self.queue.append(self.held.popleft()[1])
        for slot in self.slots:
            if slot.cell is None and self.queue:
                self._give(slot, self.queue.popleft())

    def _give(self, slot: Slot, cell: Cell) -> None:
        self.overdue.discard(slot.place)
        slot.give(cell, slot.worker or self.workers.start(slot.place, self.pack))
        self.display.working(slot.name, self.names[cell.key], "")

    def _listen(self) -> None:
        signs = [sign for slot in self.slots if slot.worker for sign in slot.worker.signs]
        if signs:
            # Once each: workers may share a process.
            wait(dict.fromkeys(signs), _TICK_S)
        else:
            time.sleep(_TICK_S)
        for slot in list(self.slots):
            if slot.worker is None:
                continue
            # Asked first: what the worker said before it ended is then all there to be read.
            ended = slot.worker.has_ended()
            for message in list(slot.worker.messages()):
                self._take(slot, message)
            if ended and slot.worker:
                self._bury(slot)

    def _take(self, slot: Slot, message: Message) -> None:
        assert slot.cell or message[0] == "ready", message
        match message:
            case ("ready", env):
                slot.env = env
            case ("started", started):
                slot.begin(started, self.options.timeout_s)
            case ("progress", line) if slot.cell:
                self.display.working(slot.name, self.names[slot.cell.key], line)
            case ("finished" | "settled", status, headline):
                self._count(slot, status, headline)
                if self.fresh_process or status in _NEEDS_NEW_WORKER:
                    slot.retire()
            case ("held",):
                self._wait_for_another_run(slot)
            case ("alone", status, why):
                self._try_alone(slot, why)
                if status == "error":
                    slot.retire()
            case ("paused",):
                self._clear(slot)
            case ("fatal", reason):
                raise ValueError(reason)
            case _:
                raise AssertionError(message)

    def _wait_for_another_run(self, slot: Slot) -> None:
        assert slot.cell
        self.held.append((time.monotonic() + _HELD_RETRY_S, slot.cell))
        self._clear(slot)
        if not self.queue and not self.waiting:
            self.waiting = True
            self.display.note("waiting for cells that another run has begun")

    def _try_alone(self, slot: Slot, why: str) -> None:
        assert slot.cell
        self.display.note(f"{self.names[slot.cell.key]}: later, alone: {why}")
        self.alone.append(slot.cell)
        self._clear(slot)

    def _count(self, slot: Slot, status: Status, headline: str) -> None:
        assert slot.cell
        label = self.names[slot.cell.key]
        self.summary.statuses[status] += 1
        if status in FAILURES:
            kept = self.records.checkpoint(slot.cell.key, self.options.machine.device_name).exists()
            hint = "; its checkpoint is kept, --fresh starts over" if kept else ""
            self.summary.failures.append(f"{status:<7} {slot.cell.key}  {label}: {headline}{hint}")
        self.display.finished(label, status, headline, time.monotonic() - slot.given_at)
        self._clear(slot)

    def _clear(self, slot: Slot) -> None:
        slot.clear()
        self.display.idle(slot.name)

    def _bury(self, slot: Slot) -> None:
        """A worker has ended by itself, or was killed."""
        assert slot.worker
        how, env = slot.worker.how_it_ended(), slot.env
        slot.worker = slot.env = None
        if slot.cell is None:
            return
        if self.stop_by is not None and not slot.timed_out:
            self._clear(slot)
            return
        if env is None:
            self._leave_out(slot, how)
        elif self.pack > 1 and slot.place in self.overdue and not slot.timed_out:
            self.queue.append(slot.cell)
            self._clear(slot)
        elif self.pack > 1:
            self._try_alone(slot, "overdue" if slot.timed_out else how)
        elif slot.served and slot.started is None:
            self.queue.appendleft(slot.cell)
            self._clear(slot)
        elif slot.timed_out:
            limit = duration(self.options.timeout_s or 0)
            self._record_loss(slot, env, "timeout", f"not done after --timeout {limit}")
        else:
            self._record_loss(slot, env, "error", how)

    def _leave_out(self, slot: Slot, how: str) -> None:
        """No worker gets ready there: the cell goes to another slot."""
        assert slot.cell
        if len(self.slots) == 1:
            raise ValueError(f"{slot.name}: {how} before it was ready: see above")
        self.display.note(f"{slot.name} is left out: {how} before it was ready")
        self.queue.appendleft(slot.cell)
        self._clear(slot)
        self.slots.remove(slot)
        if not any(other.place == slot.place for other in self.slots):
            self.lost.add(slot.place.name)

    def _record_loss(self, slot: Slot, env: dict[str, Any], status: Status, error: str) -> None:
        assert slot.cell
        started = slot.started or utc_now()
        record = self.records.newest(slot.cell.key, self.options.machine.device_name)
        # It may have died between its record and telling of it.
        if record is None or record.started < started:
            record = Record(
                key=slot.cell.key,
                grid=slot.cell.grid,
                task=slot.cell.task,
                status=status,
                metrics={},
                env=env,
                started=started,
                ended=utc_now(),
                error=error,
            )
            self.records.append(record)
        self._count(slot, record.status, record.error or "")

    def _notice_overdue_cells(self) -> None:
        now = time.monotonic()
        for slot in self.slots:
            if slot.overdue_at is not None and now > slot.overdue_at:
                slot.timed_out = True
                self.overdue.add(slot.place)
                slot.kill()

    def _notice_a_stop(self) -> None:
        now, deadline = time.monotonic(), self.options.deadline
        if self.stop_by is None:
            budget_spent = deadline is not None and now >= deadline
            if not self.signals and not budget_spent:
                return
            self.summary.stopped_by = self.signals[0] if self.signals else "budget"
            self.stop_by = now + GRACE_S
            again = "; Ctrl-C again to stop at once" if self.signals else ""
            self.display.note(f"stopping ({self.summary.stopped_by}): saving cells{again}")
            for slot in self.slots:
                if slot.worker and slot.cell:
                    slot.worker.stop()
        elif now > self.stop_by or len(self.signals) > 1:
            for slot in self.slots:
                slot.kill()
