"""Waiting for peers without ever hanging: helper threads, signs of life, limits. Knows ranks; knows no messages."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import TypeVar

from dist_restore.core.errors import RestoreError
from dist_restore.distribute.messaging.store import Answer

Result = TypeVar("Result")

# How often a wait looks up for signs of life.
TICK_SECONDS = 1.0
PROBE_SECONDS = 1.0
# Each costs 0.3 ms when it is answered, and PROBE_SECONDS when it is not.
PROBES_PER_TICK = 4
# For how long a peer must have given the same bad answer until it is given up. A refused connection may be a hiccup
# of the network; a silent peer may be a machine that swaps, but TF breaks all collectives for good after 10 s of it.
GRACE = {Answer.GONE: 3.0, Answer.SILENT: 30.0, Answer.REPLACED: 0.0}


class BrokenExchangeError(RestoreError):
    """An exchange of tensors did not come about, because of another worker: it is to say why."""


# Slower than this is a stall: a tenth of a spinning disk.
SLOWEST_BYTES_PER_SECOND = 10e6


def scaled(timeout: float, nbytes: int) -> float:
    """Seconds that a wait may take while so many bytes are read or sent."""
    return timeout + nbytes / SLOWEST_BYTES_PER_SECOND


class Lost(Exception):
    """Peers that were waited for in vain.

    Attributes:
      ranks: which.
      late: whether the time was over; else they are known to be dead.
    """

    def __init__(self, ranks: Sequence[int], why: str, *, late: bool) -> None:
        super().__init__(why)
        self.ranks, self.late = tuple(ranks), late


class Liveness:
    """Asks peers for signs of life, and remembers since when they have given none.

    Args:
      probe: asks one rank, for so many seconds.
    """

    def __init__(self, probe: Callable[[int, float], Answer]) -> None:
        self._probe = probe
        self._since: dict[int, tuple[Answer, float]] = {}
        self._turn = 0

    def dead(self, ranks: Sequence[int]) -> Iterator[tuple[int, Answer]]:
        """Asks some of these ranks, in turn; yields those that are given up."""
        for _ in range(min(PROBES_PER_TICK, len(ranks))):
            self._turn += 1
            rank = ranks[self._turn % len(ranks)]
            answer = self.ask(rank)
            if answer in GRACE and self._seconds(rank, answer) >= GRACE[answer]:
                yield rank, answer

    def ask(self, rank: int) -> Answer:
        """What a rank's process says now."""
        return self._probe(rank, PROBE_SECONDS)

    def _seconds(self, rank: int, answer: Answer) -> float:
        """For how long a rank has given this answer; 0 for the first time."""
        now = time.monotonic()
        if rank not in self._since or self._since[rank][0] is not answer:
            self._since[rank] = (answer, now)
        return now - self._since[rank][1]


def in_thread(work: Callable[[], Result]) -> Future[Result]:
    """Runs `work` in a thread that keeps no process alive.

    `ThreadPoolExecutor` would: its threads are joined at exit, and one that waits for a stopped chief never ends.
    """
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="dist_restore_wait", daemon=True).start()
    return future


def ticks(future: Future[Result], seconds: float) -> Iterator[None]:
    """Yields after every tick in which `future` was not done; ends when it is, or after so many seconds."""
    deadline = time.monotonic() + seconds
    while not future.done():
        left = deadline - time.monotonic()
        concurrent.futures.wait([future], max(0.0, min(TICK_SECONDS, left)))
        if not future.done():
            if left <= TICK_SECONDS:
                return
            yield
