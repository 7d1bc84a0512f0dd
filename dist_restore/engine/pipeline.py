"""Work in order, ahead of its consumer, within a budget of bytes.

Threads do the tasks, and so does the consumer where it would wait for one. It alone starts work, when the budget
allows: where workers take permits themselves, a later piece may take the last one that an earlier piece needs, and
everything waits for ever. Knows bytes and callables; knows neither tensors nor files.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import os
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Generic, NamedTuple, TypeAlias, TypeVar

import numpy as np

Result = TypeVar("Result")
Task: TypeAlias = Callable[[], None]
_Future: TypeAlias = concurrent.futures.Future[None]

# Two threads already reach the memory's speed on the machines measured; more of them help where storage is slow.
_MAX_THREADS = 8


@dataclasses.dataclass(frozen=True, slots=True)
class Started(Generic[Result]):
    """Work whose memory is allocated.

    Attributes:
      tasks: what threads do, in any order; calls that end by themselves.
      finish: makes the result once all tasks are done; called by the consumer's thread.
      memory: bytes that the tasks fill, task n its equal part n, where the result consists of just these.
      brief: whether each task takes a few milliseconds, so that the consumer may do it too.
    """

    tasks: tuple[Task, ...]
    finish: Callable[[], Result]
    memory: np.ndarray | None = None
    brief: bool = False


class _Queued(NamedTuple):
    """A task that waits to be done."""

    future: _Future
    task: Task
    brief: bool


class _ThreadPool:
    """Threads that do tasks, first come, first served; and the consumer, who does brief ones where it would wait.

    Two threads and a consumer that waits and assigns are three on two cores: 1.3 GB took 0.46 s so, and 0.41 with one
    thread and a consumer that helps.

    Args:
      count: how many do tasks at the same time.
      helped: whether the consumer is one of them.
    """

    def __init__(self, count: int, *, helped: bool) -> None:
        self._count = count
        self._waiting: collections.deque[_Queued] = collections.deque()
        self._tokens: queue.SimpleQueue[bool] = queue.SimpleQueue()  # one for each that waits, or more
        self._threads: list[threading.Thread] = []
        self._first = max(1, count - helped)

    def start(self) -> None:
        """Starts the threads; apart from making the pool, so that whoever is interrupted meanwhile can close it."""
        for _ in range(self._first):
            self._grow()

    def submit(self, task: Task, *, brief: bool) -> _Future:
        if not brief and len(self._threads) < self._count:
            self._grow()  # for the consumer, who does none of these
        future: _Future = concurrent.futures.Future()
        self._waiting.append(_Queued(future, task, brief))
        self._tokens.put(True)
        return future

    def help(self, wanted: _Future) -> None:
        """Does what waits, until `wanted` is done or what comes next is for threads.

        Raises:
          BaseException: an interrupt, at once; what tasks raise is kept for who asks for their results.
        """
        try:
            while not wanted.done() and (queued := self._take_brief()) is not None:
                error = _do(queued.future, queued.task)
                del queued
                if error is not None and not isinstance(error, Exception):
                    raise error
                del error
        finally:
            del wanted  # whose error refers to this frame

    def close(self) -> None:
        """Drops what waits, and waits for what is being done."""
        self._waiting.clear()
        for _ in self._threads:
            self._tokens.put(False)
        for thread in self._threads:
            with contextlib.suppress(RuntimeError):  # an interrupt came before it was started
                thread.join()

    def _grow(self) -> None:
        thread = threading.Thread(target=self._work, name="dist_restore", daemon=True)
        self._threads.append(thread)  # first, for an interrupt may come before `start` has returned
        thread.start()

    def _take(self) -> _Queued | None:
        try:
            return self._waiting.popleft()
        except IndexError:  # somebody was quicker
            return None

    def _take_brief(self) -> _Queued | None:
        queued = self._take()
        if queued is None or queued.brief:
            return queued
        self._waiting.appendleft(queued)
        self._tokens.put(True)
        return None

    def _work(self) -> None:
        while self._tokens.get():
            queued = self._take()
            if queued is not None:
                _do(queued.future, queued.task)
            del queued  # and so the memory that its task fills


def _do(future: _Future, task: Task) -> BaseException | None:
    """Does a task; returns what it raised."""
    try:
        task()
    except BaseException as error:
        future.set_exception(error)
        del future, task  # an error refers to this frame, and the task to the memory that it fills
        return error
    future.set_result(None)
    return None


class Pending(Generic[Result]):
    """Work that is being done; by the caller too, where it waits and there is a `pool` to help."""

    def __init__(
        self, started: Started[Result], futures: list[_Future], nbytes: int, pool: _ThreadPool | None = None
    ) -> None:
        self._started: Started[Result] | None = started
        self._futures, self.nbytes, self._pool = futures, nbytes, pool
        self.memory = started.memory

    def wait(self, number: int) -> None:
        """Waits for one task; raises what it raised."""
        if self._pool is not None:
            self._pool.help(self._futures[number])
        self._futures[number].result()

    def result(self) -> Result:
        """Waits for all; raises what a task raised. To be called once: what it held is let go."""
        started, self._started = self._started, None
        assert started is not None
        try:
            for number in range(len(self._futures)):
                self.wait(number)
            return started.finish()
        finally:
            self._futures.clear()
            self.memory = None
            del started


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


def stream(
    works: Iterable[Work[Result]], budget: int, threads: int | None = None, *, helps: bool = False
) -> Generator[Result, None, None]:
    """The results of all work, in order.

    Work is started ahead while all that is in flight stays within the budget; what is larger passes alone. A result
    is in flight until the next one is asked for. Close the iterator (`contextlib.closing`), or exhaust it, and no
    thread is left.

    Args:
      works: in the order of the results.
      budget: bytes.
      threads: how many do tasks at the same time.
      helps: whether the consumer is one of them where it would wait. Not where storage may let it wait for long, nor
        where it has things to do that take long.

    Raises:
      BaseException: what a task raised, at its place in the order.
    """
    with contextlib.closing(stream_pending(works, budget, threads, helps=helps)) as pendings:
        for pending in pendings:
            yield pending.result()


def stream_pending(
    works: Iterable[Work[Result]], budget: int, threads: int | None = None, *, helps: bool = False
) -> Generator[Pending[Result], None, None]:
    """As `stream`, but gives each piece of work in its turn while threads may still be at it.

    Each must be waited for (`Pending.result`) before the next one is asked for.
    """
    with contextlib.closing(_ThreadPool(threads or thread_count(), helped=helps)) as pool:
        pool.start()
        in_flight = _InFlight[Result](pool, helps=helps)
        for work in works:
            while in_flight.nbytes and in_flight.nbytes + work.nbytes > budget:
                yield from in_flight.oldest()
            in_flight.start(work)
        while in_flight.waiting:
            yield from in_flight.oldest()


class _InFlight(Generic[Result]):
    """Work that was started and not consumed yet."""

    def __init__(self, pool: _ThreadPool, *, helps: bool) -> None:
        self.waiting: collections.deque[Pending[Result]] = collections.deque()
        self.nbytes = 0
        self._pool, self._helps = pool, helps

    def start(self, work: Work[Result]) -> None:
        started = work.start()
        futures = [self._pool.submit(task, brief=started.brief) for task in started.tasks]
        self.waiting.append(Pending(started, futures, work.nbytes, self._pool if self._helps else None))
        self.nbytes += work.nbytes

    def oldest(self) -> Iterator[Pending[Result]]:
        """Yields the oldest; its bytes are given back once the consumer asks for more."""
        pending = self.waiting.popleft()
        nbytes = pending.nbytes
        yield pending
        del pending
        self.nbytes -= nbytes
