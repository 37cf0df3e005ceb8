"""The GPUs of a Ray cluster as the places of a run.

Each is held for the whole run by an actor (harness/seat.py), which runs the workers there. The
driver alone keeps records, claims and checkpoints: what a cell saves or gives goes to it at once,
and a checkpoint on to whichever node goes on. A node that is lost costs the cells that were on it
what they had not saved, and is out of this run.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

from harness.cells import CARRIED, CHECKOUT, PACKAGES, Cell, Machine, Setup
from harness.claims import claimed
from harness.placement import Place
from harness.processes import Message
from harness.records import Records
from harness.seat import Said, Seat

START_S = 120.0
"""How long a node gets to unpack the code and to import torch."""
FREE_S = 5.0
"""How long what a run before this one had gets to be free."""
_KNOCK_S = 10.0


@contextmanager
def connect(
    address: str, device: str | None, folders: Iterable[Path], deadline: float | None
) -> Iterator[Cluster]:
    """Take what is free of the cluster at `address` (`auto` or `host:port`), from a node of it.

    `folders`: of the user's grids, whose Python files the nodes get beside this checkout's
    packages. Raises ValueError where Ray is missing or has nothing to run on.
    """
    ray = _ray()
    if device not in (None, "cpu", "cuda"):
        raise ValueError(f"--device {device!r}: with --ray use cuda or cpu, Ray chooses which")
    with TemporaryDirectory() as code:
        _gather(Path(code), folders)
        try:
            _knock(address)
            given = {name: os.environ[name] for name in CARRIED if name in os.environ}
            environment = {"working_dir": code, "env_vars": given}
            ray.init(address, runtime_env=environment, logging_level=logging.WARNING)
        except (OSError, RuntimeError, ValueError) as error:
            told = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise ValueError(f"--ray {address!r}: {told}") from error
        try:
            yield Cluster(device, deadline)
        finally:
            ray.shutdown()


def _ray() -> ModuleType:
    try:
        return import_module("ray")
    except ImportError:
        raise ValueError("--ray needs Ray: pip install -e '.[ray]'") from None


def _knock(address: str) -> None:
    """Ray itself would try for minutes where nobody listens."""
    host, _, port = address.rpartition(":")
    if port.isdecimal():
        socket.create_connection((host, int(port)), timeout=_KNOCK_S).close()


def _gather(code: Path, folders: Iterable[Path]) -> None:
    """What runs on the nodes is what the driver has, committed or not."""
    ignore = shutil.ignore_patterns("__pycache__")
    for package in PACKAGES:
        shutil.copytree(CHECKOUT / package, code / package, ignore=ignore)
    for folder in folders:
        for file in folder.glob("*.py"):
            shutil.copy(file, code)


class Cluster:
    """The fleet of a run through Ray: a seat on each free GPU, or with `cpu` on each free core."""

    pack = 1
    """A seat holds the checkpoint, the record and the claim of one cell at a time."""

    def __init__(self, device: str | None, deadline: float | None) -> None:
        ray = _ray()
        self._device = device or ("cuda" if "GPU" in ray.cluster_resources() else "cpu")
        seats = self._take()
        limit = START_S if deadline is None else min(START_S, deadline - time.monotonic())
        looks = {seat.look.remote(self._device): seat for seat in seats}
        ready, late = ray.wait(list(looks), num_returns=len(looks), timeout=max(limit, 0.0))
        for look in late:
            ray.kill(looks[look])
        if late:
            _tell(f"{len(late)} of {len(looks)} seats were not ready in {limit:.0f} s: left out")
        found = {look: answer for look in ready if (answer := _answer(look))}
        self._seats = self._name([(looks[look], *answer) for look, answer in found.items()])
        self.machine = self._only_kind()

    def _take(self) -> list[Any]:
        ray = _ray()
        resource = "GPU" if self._device == "cuda" else "CPU"
        total = int(ray.cluster_resources().get(resource, 0))
        until = time.monotonic() + FREE_S
        while (count := int(ray.available_resources().get(resource, 0))) < total:
            if time.monotonic() > until:
                break
            time.sleep(0.2)
        if not count:
            raise ValueError(
                f"--ray: the cluster has no free {resource} ({total} in all): wait, or start a "
                "node with `ray start`"
            )
        one = {"num_gpus": 1, "num_cpus": 0} if resource == "GPU" else {"num_cpus": 1}
        # A seat that is lost stays lost: the records say what is left to do.
        actor = ray.remote(Seat)
        return [actor.options(**one, max_restarts=0).remote() for _ in range(count)]

    def _name(self, found: list[tuple[Any, str, Machine]]) -> dict[Place, tuple[Any, Machine]]:
        on_node = Counter(node for _, node, _ in found)
        numbers: Counter[str] = Counter()
        named = {}
        for seat, node, machine in found:
            threads = max(1, machine.cores // on_node[node])
            place = Place(f"{node}/{numbers[node]}", machine.devices[0], threads)
            named[place] = seat, machine
            numbers[node] += 1
        return named

    def _only_kind(self) -> Machine:
        machines = {place.name: machine for place, (_, machine) in self._seats.items()}
        if not machines:
            raise ValueError("--ray: no seat of the cluster got ready: see above")
        if len({machine.device_name for machine in machines.values()}) > 1:
            listed = ", ".join(f"{name} has {m.device_name}" for name, m in machines.items())
            raise ValueError(f"--ray: devices of one kind are needed, but {listed}")
        return next(iter(machines.values()))

    def places(self, *, timed: bool) -> list[Place]:
        """Every seat."""
        if timed and self._device == "cpu":
            raise ValueError(
                "--ray --device cpu: a timed cell needs a machine to itself, and a seat is one "
                "core: run it there without --ray"
            )
        return list(self._seats)

    def start(self, place: Place, setup: Setup) -> list[RemoteWorker]:
        """A worker on that seat."""
        return [RemoteWorker(self._seats[place][0], setup)]


def _answer(look: Any) -> tuple[str, Machine] | None:
    ray = _ray()
    try:
        answer: Any = ray.get(look)
    except ray.exceptions.RayError as error:
        answer = str(error)
    if isinstance(answer, str):
        _tell(f"a seat is left out: {answer}")
        return None
    return answer


def _tell(line: str) -> None:
    print(f"mixerbench: {line}", file=sys.stderr)


class RemoteWorker:
    """The driver's end of a worker on a seat. It holds the claim of the cell that is there."""

    def __init__(self, seat: Any, setup: Setup) -> None:
        self._seat, self._setup = seat, setup
        self._records = Records(setup.options.results / setup.grid)
        self._claim = ExitStack()
        self._checkpoint = Path()
        self._messages: deque[Message] = deque()
        self._ended: str | None = None
        self._answers = deque([seat.begin.remote(setup)])

    @property
    def signs(self) -> list[Any]:
        """None to wait on: the parent looks in ten times a second."""
        return []

    def give(self, cell: Cell) -> None:
        why_not = self._claim.enter_context(claimed(cell, self._records, self._setup))
        if why_not:
            self._messages.append(why_not)
            self._claim.close()
            return
        device = self._setup.options.machine.device_name
        self._checkpoint = path = self._records.checkpoint(cell.key, device)
        checkpoint = path.read_bytes() if path.exists() else None
        self._answers.append(self._seat.give.remote(cell, checkpoint))

    def stop(self) -> None:
        self._seat.stop.remote()

    def has_ended(self) -> bool:
        if self._ended is None:
            self._listen()
        return self._ended is not None

    def messages(self) -> Iterator[Message]:
        while self._messages:
            yield self._messages.popleft()

    def how_it_ended(self) -> str:
        return self._ended or "the worker lives"

    def retire(self) -> None:
        self._seat.retire.remote()

    def kill(self) -> None:
        self._seat.kill.remote()

    def _listen(self) -> None:
        ray = _ray()
        if not self._answers:
            self._answers.append(self._seat.said.remote())
        if not ray.wait([self._answers[0]], timeout=0)[0]:
            return
        try:
            said: Any = ray.get(self._answers.popleft())
        except ray.exceptions.RayError as error:
            # Its words hold addresses, which are no matter of a record's.
            _tell(str(error))
            ray.kill(self._seat)
            said = Said([], f"its seat was lost ({type(error).__name__})", over=True)
        self._settle(said)

    def _settle(self, said: Said) -> None:
        if said.record:
            self._records.append(said.record)
        if said.record and said.record.status == "ok":
            self._checkpoint.unlink(missing_ok=True)
        elif said.checkpoint is not None:
            self._checkpoint.parent.mkdir(parents=True, exist_ok=True)
            part = self._checkpoint.with_suffix(".part")
            part.write_bytes(said.checkpoint)
            os.replace(part, self._checkpoint)
        if said.over:
            self._claim.close()
        self._messages.extend(said.messages)
        self._ended = said.ended
