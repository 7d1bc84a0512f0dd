"""Work in order, ahead of its consumer, within a budget of bytes.

Threads do the tasks; the consumer alone starts work, when the budget allows. (Where workers take permits
themselves, a later piece may take the last one that an earlier piece needs, and everything waits for ever.) Knows bytes
and callables; knows neither tensors nor files.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Generic, TypeAlias, TypeVar

import numpy as np

Result = TypeVar("Result")
Task: TypeAlias = Callable[[], None]

# Two threads already reach the memory's speed on the machines measured; more of them help where storage is slow.
_MAX_THREADS = 8


@dataclasses.dataclass(frozen=True, slots=True)
class Started(Generic[Result]):
    """Work whose memory is allocated.

    Attributes:
      tasks: what threads do, in any order; calls that end by themselves within a fraction of a second.
      finish: makes the result once all tasks are done; called by the consumer's thread.
      memory: bytes that the tasks fill, task n its equal part n, where the result consists of just these.
    """

    tasks: tuple[Task, ...]
    finish: Callable[[], Result]
    memory: np.ndarray | None = None


class Pending(Generic[Result]):
    """Work that threads are at."""

    def __init__(self, started: Started[Result], futures: list[concurrent.futures.Future[None]], nbytes: int) -> None:
        self._started: Started[Result] | None = started
        self._futures, self.nbytes = futures, nbytes
        self.memory = started.memory

    def wait(self, number: int) -> None:
        """Waits for one task; raises what it raised."""
        self._futures[number].result()

    def result(self) -> Result:
        """Waits for all; raises what a task raised. To be called once: what it held is let go."""
        for future in self._futures:
            future.result()
        self._futures.clear()  # a future's work item refers to the memory that the task fills
        started, self._started, self.memory = self._started, None, None
        assert started is not None
        return started.finish()


@dataclasses.dataclass(frozen=True, slots=True)
class Work(Generic[Result]):
    """One piece of work.

    Attributes:
      nbytes: memory that it holds from its start until the consumer has done with its result.
      start: allocates that memory; called by the consumer's thread.
    """

    nbytes: int
    start: Callable[[], Started[Result]]


def thread_count() -> int:
    """How many threads read and check."""
    return max(2, min(_MAX_THREADS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2))


def stream(works: Iterable[Work[Result]], budget: int, threads: int | None = None) -> Generator[Result, None, None]:
    """The results of all work, in order.

    Work is started ahead while all that is in flight stays within the budget; what is larger passes alone. A result
    is in flight until the next one is asked for. Close the iterator (`contextlib.closing`), or exhaust it, and no
    thread is left.

    Args:
      works: in the order of the results.
      budget: bytes.
      threads: how many do the tasks.

    Raises:
      BaseException: what a task raised, at its place in the order.
    """
    with contextlib.closing(stream_pending(works, budget, threads)) as pendings:
        for pending in pendings:
            yield pending.result()


def stream_pending(
    works: Iterable[Work[Result]], budget: int, threads: int | None = None
) -> Generator[Pending[Result], None, None]:
    """As `stream`, but gives each piece of work in its turn while threads may still be at it.

    Each must be waited for (`Pending.result`) before the next one is asked for.
    """
    with _threads(threads or thread_count()) as pool:
        flight = _Flight[Result](pool)
        for work in works:
            while flight.nbytes and flight.nbytes + work.nbytes > budget:
                yield from flight.land()
            flight.start(work)
        while flight.waiting:
            yield from flight.land()


@contextlib.contextmanager
def _threads(count: int) -> Iterator[concurrent.futures.ThreadPoolExecutor]:
    pool = concurrent.futures.ThreadPoolExecutor(count, "dist_restore")
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _Flight(Generic[Result]):
    """Work that was started and not consumed yet."""

    def __init__(self, pool: concurrent.futures.ThreadPoolExecutor) -> None:
        self.waiting: collections.deque[Pending[Result]] = collections.deque()
        self.nbytes = 0
        self._pool = pool

    def start(self, work: Work[Result]) -> None:
        started = work.start()
        self.waiting.append(Pending(started, [self._pool.submit(task) for task in started.tasks], work.nbytes))
        self.nbytes += work.nbytes

    def land(self) -> Iterator[Pending[Result]]:
        """Yields the oldest; its bytes are given back once the consumer asks for more."""
        pending = self.waiting.popleft()
        nbytes = pending.nbytes
        yield pending
        del pending
        self.nbytes -= nbytes
