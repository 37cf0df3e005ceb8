"""Work on shards, on all cores, with results in order."""

from __future__ import annotations

import itertools
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import TypeVar

Name = TypeVar("Name")
Result = TypeVar("Result")


def in_order(work: Callable[[Name], Result], names: Iterable[Name], jobs: int) -> Iterator[Result]:
    """work(name) for each name, in order, on `jobs` processes; names may be endless.

    Two names a process are under way ahead of the result that is waited for. With one job the work
    is done in this process.
    """
    if jobs == 1:
        yield from map(work, names)
        return
    context = multiprocessing.get_context("forkserver")
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_ignore_interrupts)
    waiting: deque[Future[Result]] = deque()
    names = iter(names)
    try:
        while True:
            ahead = itertools.islice(names, 2 * jobs - len(waiting))
            waiting.extend(pool.submit(work, name) for name in ahead)
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _ignore_interrupts() -> None:
    # Ctrl-C is the parent's.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
