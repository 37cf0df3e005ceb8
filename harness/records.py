"""The truth: one append-only JSON line for every finished cell, in <results>/<grid>/records.jsonl.

A line is written under a file lock with one O_APPEND write and an fsync, so that processes of any
number may append at once. A process killed in the middle leaves a torn last line: readers skip it,
the next append cuts it off. Imports no torch.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from filelock import FileLock, Timeout
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator

Status = Literal["ok", "wrong", "oom", "unsupported", "timeout", "error"]
FAILURES: tuple[Status, ...] = ("wrong", "timeout", "error")
"""What makes a run fail; oom and unsupported are results."""


def _number(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_number(item) for item in value]
    return math.nan if value is None else value


Metric = Annotated[float | str | list[float], BeforeValidator(_number)]


class Record(BaseModel):
    """What one cell gave. JSON has no NaN: a number that is not finite is written as null, and a
    null metric is read as NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    grid: str
    task: dict[str, Any]
    status: Status
    metrics: dict[str, Metric]
    """Empty unless the status is ok."""
    env: dict[str, Any]
    """What `environment.capture` saw; `device` is `environment.device_name`'s."""
    started: str
    """UTC, as `utc_now` writes it."""
    ended: str
    error: str | None
    """What went wrong, in words; None when the status is ok."""

    @model_validator(mode="after")
    def _metrics_only_when_ok(self) -> Self:
        if self.status == "ok" and self.error is not None:
            raise ValueError("an ok record carries no error")
        if self.status != "ok" and (self.metrics or not self.error):
            raise ValueError(
                f"a record with status {self.status!r} carries an error and no metrics"
            )
        return self

    @property
    def device(self) -> str:
        return str(self.env.get("device"))

    def line(self) -> bytes:
        """The record as one line of strict JSON."""
        text = json.dumps(_finite(self.model_dump()), separators=(",", ":"), allow_nan=False)
        return text.encode() + b"\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def utc_now() -> str:
    """The time in UTC to the millisecond: `2024-04-11T09:00:00.000Z`; sorts as text."""
    return utc(datetime.now(UTC))


def utc(moment: datetime) -> str:
    """As `utc_now` writes it; a time without a zone is the system's."""
    text = moment.astimezone(UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


class Records:
    """The records of one grid: `folder` is <results>/<grid>.

    Reading is incremental: only lines that were appended since the last look are parsed.
    Everything raises ValueError where the folder cannot be written, or where a line other than
    the last is damaged.
    """

    def __init__(self, folder: Path, name: str = "records.jsonl") -> None:
        self.folder = folder
        self.path = folder / name
        self._forget()

    def _forget(self) -> None:
        self._rows: list[Record] = []
        self._newest: dict[tuple[str, str], Record] = {}
        self._newest_ok: dict[tuple[str, str], Record] = {}
        self._devices: dict[str, str] = {}
        self._offset = self._lines = self._inode = 0

    def rows(self) -> list[Record]:
        """Every record, in the file's order."""
        self._read()
        return list(self._rows)

    def torn(self) -> bool:
        """Whether the last line is a torn one."""
        self._read()
        return self.path.exists() and self.path.stat().st_size > self._offset

    def newest(self, key: str, device: str) -> Record | None:
        """The last record, of any status, of the cell on that device."""
        self._read()
        return self._newest.get((key, device))

    def settled(
        self, key: str, device: str, *, since: str | None = None, kind: str | None = None
    ) -> Record | None:
        """The newest ok record of the cell on the device of that name, or on any of that `kind`
        (`cuda`); none that was started before `since`."""
        self._read()
        devices = {device} | {name for name, its in self._devices.items() if its == kind}
        found = [self._newest_ok[key, name] for name in devices if (key, name) in self._newest_ok]
        in_time = [record for record in found if since is None or record.started >= since]
        return max(in_time, key=lambda record: record.ended, default=None)

    def append(self, *records: Record) -> None:
        """Add all of them or none: when this returns, they are on the disk.

        The error of one that cannot be written holds its line, so that it is not lost.
        """
        lines = b"".join(record.line() for record in records)
        try:
            with self._writing():
                fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
                try:
                    _write_lines(fd, lines)
                finally:
                    os.close(fd)
        except ValueError as unwritten:
            kept = f"\n{lines.decode()}" if len(records) == 1 else ""
            raise ValueError(f"{unwritten}{kept}") from unwritten

    def check_writable(self) -> None:
        """Find out before anything is computed."""
        with self._writing():
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644))

    @contextmanager
    def claim(self, key: str, device: str) -> Iterator[bool]:
        """Hold the cell against every other process; False if another one holds it.

        The kernel lets go of it when the process ends, however it ends.
        """
        lock = FileLock(self._claims() / f"{_file_name(key, device)}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def checkpoint(self, key: str, device: str) -> Path:
        """Where the cell keeps what it needs to resume on that device."""
        return self.folder / "checkpoints" / f"{_file_name(key, device)}.pt"

    def drop_stale_checkpoint(self, record: Record, device: str) -> None:
        """Remove the checkpoint on that device which is older than the cell's record, or a part of
        one: it was killed right after, or another device was faster."""
        whole = self.checkpoint(record.key, device)
        for path in (whole, whole.with_suffix(".part")):
            with suppress(FileNotFoundError):
                if utc(datetime.fromtimestamp(path.stat().st_mtime, UTC)) <= record.ended:
                    path.unlink()

    def _claims(self) -> Path:
        claims = self.folder / ".claims"
        claims.mkdir(parents=True, exist_ok=True)
        return claims

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with FileLock(self._claims() / "records.lock"):
                yield
        except OSError as error:
            advice = f"{room(error)}choose another folder with --results"
            why = f"{error.strerror or error}; {advice}"
            raise ValueError(f"cannot write {self.path}: {why}") from error

    def _read(self) -> None:
        # Twice: another process may just have cut a torn line where this one was reading.
        for last_try in (False, True):
            try:
                self._read_new_lines()
                return
            except ValueError:
                self._forget()
                if last_try:
                    raise
                time.sleep(0.05)

    def _read_new_lines(self) -> None:
        try:
            with self.path.open("rb") as file:
                stat = os.fstat(file.fileno())
                if stat.st_ino != self._inode or stat.st_size < self._offset:
                    self._forget()
                    self._inode = stat.st_ino
                file.seek(self._offset)
                new = file.read()
        except FileNotFoundError:
            self._forget()
            return
        except OSError as error:
            why = f"{error.strerror or error}; --results names a folder of grids' folders"
            raise ValueError(f"cannot read {self.path}: {why}") from error
        *lines, last = new.split(b"\n")
        for line in lines:
            self._lines += 1
            self._offset += len(line) + 1
            if line.strip():
                self._add(self._parse(line))
        # Whole but for its line end: a record all the same.
        if record := _parsed(last):
            self._offset += len(last)
            self._add(record)

    def _parse(self, line: bytes) -> Record:
        try:
            return Record.model_validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ValueError(
                f"{self.path}, line {self._lines}, is no record "
                f"({where + ': ' if where else ''}{first['msg']}): restore the line or delete it"
            ) from None

    def _add(self, record: Record) -> None:
        self._rows.append(record)
        self._devices[record.device] = str(record.env.get("device_type"))
        cell = record.key, record.device
        kinds = [self._newest, self._newest_ok] if record.status == "ok" else [self._newest]
        for newest in kinds:
            if cell not in newest or newest[cell].ended <= record.ended:
                newest[cell] = record


def room(error: OSError) -> str:
    """What may help where room is missing."""
    return "make room, or " if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""


def _file_name(key: str, device: str) -> str:
    return f"{key}-{re.sub('[^a-z0-9]+', '-', device.lower()).strip('-')}"


def _parsed(line: bytes) -> Record | None:
    try:
        return Record.model_validate_json(line)
    except ValidationError:
        return None


def _write_lines(fd: int, lines: bytes) -> None:
    """Cut off a torn last line, then append."""
    end = os.fstat(fd).st_size
    if end and os.pread(fd, 1, end - 1) != b"\n":
        last = os.pread(fd, end, 0).rpartition(b"\n")[2]
        if _parsed(last):
            lines = b"\n" + lines
        else:
            end -= len(last)
            os.ftruncate(fd, end)
    written = os.write(fd, lines)
    if written != len(lines):
        os.ftruncate(fd, end)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fsync(fd)
