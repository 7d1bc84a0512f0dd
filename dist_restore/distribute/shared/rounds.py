"""Values that are read by one worker each, and assigned by all: own ones go out in buckets, those of others come in.

Every worker runs the same rounds. One that cannot go on says so in its next bucket and keeps taking part until all
have heard it: a collective that is left alone blocks the others, and one that is aborted breaks a process's collectives
for good (TF 2.21). Knows values and buckets; knows no variables.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TypeAlias

import msgspec
import numpy as np

from dist_restore.core import crc32c as checksum
from dist_restore.core.arrays import bytes_of
from dist_restore.core.errors import RestoreError
from dist_restore.core.phases import during
from dist_restore.distribute.messaging.exchange import Exchange, Round
from dist_restore.distribute.messaging.liveness import BrokenExchangeError, ticks
from dist_restore.distribute.shared.schedule import IN_FLIGHT, TRAILER, Part, Schedule, parts_by_round
from dist_restore.engine.chunks import PIECE
from dist_restore.engine.pipeline import Pending
from dist_restore.engine.values import Value, Values, buffer_for
from dist_restore.planning.entries import PlanEntry

Assign: TypeAlias = Callable[[Values], None]


def share(
    schedule: Schedule, rank: int, works: Iterator[Pending[Values]], exchange: Exchange, assign: Assign, seconds: float
) -> bool:
    """Sends own values, receives those of others, and hands all over to be assigned. Called by all workers.

    Args:
      schedule: the same on all workers.
      rank: this worker.
      works: reads the units of this worker's lane, in their order.
      exchange: fresh, for this alone.
      assign: called with values that are whole, on this thread.
      seconds: how long to wait for one round.

    Returns:
      Whether all values were handed over; `False` when another worker said that it cannot go on.

    Raises:
      BaseException: what `works` or `assign` raised, after all others have heard that this worker cannot go on.
      RestoreError: the others did not come to a round in time, or the exchange broke.
    """
    return _Sharing(schedule, rank, works, exchange, assign, seconds).run()


class _Sharing:
    def __init__(
        self,
        schedule: Schedule,
        rank: int,
        works: Iterator[Pending[Values]],
        exchange: Exchange,
        assign: Assign,
        seconds: float,
    ) -> None:
        self._schedule, self._exchange, self._assign, self._seconds = schedule, exchange, assign, seconds
        self._outbox = _Outbox(schedule, rank, works)
        self._inboxes = [_Inbox(schedule, lane.owner) for lane in schedule.lanes if lane.owner != rank]
        self._in_flight: collections.deque[Future[Round]] = collections.deque()
        self._error: BaseException | None = None
        self._stopped = False

    def run(self) -> bool:
        for number in range(self._schedule.rounds):
            self._start()
            # All workers look at a round when they have started so many after it: so all stop after the same one.
            if number >= IN_FLIGHT:
                self._finish_oldest()
            if self._stopped:
                break
        while self._in_flight:
            self._finish_oldest()
        if self._error is not None:
            raise self._error
        return not self._stopped

    def _start(self) -> None:
        bucket = np.empty(self._schedule.bucket, np.uint8)
        self._attempt(lambda: self._assign_any(self._outbox.fill(bucket)))
        self._in_flight.append(self._exchange.start(failed=self._error is not None, bucket=bucket))

    def _finish_oldest(self) -> None:
        future = self._in_flight.popleft()
        try:
            round_ = self._wait(future)
        except KeyboardInterrupt as error:
            # The others hear of it in the next round; a second Ctrl-C leaves at once.
            self._error = self._error or error
            round_ = self._wait(future)
        if self._stopped:
            return
        self._stopped = bool(round_.failed)
        if not self._stopped:
            self._attempt(lambda: self._take(round_))

    def _take(self, round_: Round) -> None:
        for inbox in self._inboxes:
            self._assign_any(inbox.take(round_.buckets[inbox.owner]))

    def _attempt(self, work: Callable[[], None]) -> None:
        """Does what may fail here, unless something has: the rounds go on until all have heard of it."""
        if self._error is not None:
            return
        try:
            work()
        except BaseException as error:
            self._error = error

    def _assign_any(self, values: Values) -> None:
        if values:
            self._assign(values)

    def _wait(self, future: Future[Round]) -> Round:
        with during("broadcast"):
            for _ in ticks(future, self._seconds):
                pass
            if not future.done():
                raise BrokenExchangeError(
                    f"the other workers did not come to the next exchange of tensors in {self._seconds:.1f} s. "
                    "One of them is stuck, or its storage is slower than `timeout` allows."
                )
            return future.result()


class _Outbox:
    """This worker's stream."""

    def __init__(self, schedule: Schedule, rank: int, works: Iterator[Pending[Values]]) -> None:
        self._rounds = parts_by_round(schedule.lane(rank), schedule.bucket, schedule.rounds)
        self._works = works
        self._read: Values = []
        self._value: _Sent | None = None

    def fill(self, bucket: np.ndarray) -> Values:
        """Fills the next bucket; returns the values that end in it."""
        done: Values = []
        for part in next(self._rounds):
            self._value = self._value or self._next(part.placement.entry)
            with during("read"):
                self._value.write(part, bucket)
            if part.is_last:
                done.append(self._value.value())
                self._value = None
        return done

    def _next(self, entry: PlanEntry) -> _Sent:
        with during("read"):
            if not self._read:
                pending = next(self._works)
                if pending.memory is not None:
                    return _Sent(entry, pending.memory, pending)
                self._read = pending.result()
        # One by one, so that the memory of each is held by its user alone.
        value = self._read.pop(0)
        return _Sent(entry, bytes_of(np.ascontiguousarray(value.buffer.array)), value)


class _Sent:
    """An own value on its way out; a large one sets out while it is still being read."""

    def __init__(self, entry: PlanEntry, data: np.ndarray, what: Value | Pending[Values]) -> None:
        self._entry, self._data = entry, data
        self._pending = None if isinstance(what, Value) else what
        self._value = what if isinstance(what, Value) else None
        self._trailer = np.empty(TRAILER, np.uint8)

    def write(self, part: Part, bucket: np.ndarray) -> None:
        for data, begin, end, at in _pieces(part, self._data, self._trailer):
            if data is self._trailer:
                self._trailer[:] = np.array([self.value().crc32c], "<u4").view(np.uint8)
            elif self._pending is not None:
                self._await(begin, end)
            bucket[at : at + end - begin] = data[begin:end]

    def _await(self, begin: int, end: int) -> None:
        assert self._pending is not None
        for number in range(begin // PIECE, -(-end // PIECE)):
            self._pending.wait(number)

    def value(self) -> Value:
        """The whole value, with its checksum; what was read has been compared with what is stored."""
        if self._value is None:
            assert self._pending is not None
            (self._value,) = self._pending.result()
            self._pending = None
        if self._value.entry.target != self._entry.target:
            raise RestoreError(f"internal: {self._value.entry.target!r} came instead of {self._entry.target!r}")
        if self._value.crc32c is None:
            self._value = msgspec.structs.replace(self._value, crc32c=checksum.extend(0, self._data))
        return self._value


class _Inbox:
    """Another worker's stream."""

    def __init__(self, schedule: Schedule, owner: int) -> None:
        self.owner = owner
        self._rounds = parts_by_round(schedule.lane(owner), schedule.bucket, schedule.rounds)
        self._value: _Received | None = None

    def take(self, bucket: np.ndarray) -> Values:
        """Takes a bucket apart; returns the values that end in it."""
        done: Values = []
        for part in next(self._rounds):
            self._value = self._value or _Received(part.placement.entry)
            self._value.read(part, bucket)
            if part.is_last:
                done.append(self._value.whole(self.owner))
                self._value = None
        return done


class _Received:
    """A value of another worker that is coming in."""

    def __init__(self, entry: PlanEntry) -> None:
        self._entry, self._buffer = entry, buffer_for(entry)
        self._data, self._trailer = bytes_of(self._buffer.array), np.empty(TRAILER, np.uint8)

    def read(self, part: Part, bucket: np.ndarray) -> None:
        for data, begin, end, at in _pieces(part, self._data, self._trailer):
            data[begin:end] = bucket[at : at + end - begin]

    def whole(self, owner: int) -> Value:
        crc, sent = checksum.extend(0, self._data), int(self._trailer.view("<u4")[0])
        if crc != sent:
            raise RestoreError(
                f"{self._entry.target!r}: worker {owner} sent bytes with the checksum {sent:08x}, and {crc:08x} came: "
                "the network or a memory is faulty. Restore again.",
                names=(self._entry.target,),
            )
        return Value(self._entry, self._buffer, crc)


def _pieces(part: Part, data: np.ndarray, trailer: np.ndarray) -> Iterator[tuple[np.ndarray, int, int, int]]:
    """`(memory, begin, end, begin in the bucket)` of what a part has of a value, and of its checksum."""
    begin, end, size = part.begin, part.begin + part.size, len(data)
    if begin < size:
        yield data, begin, min(end, size), part.at
    if end > size:
        first = max(begin, size)
        yield trailer, first - size, end - size, part.at + first - begin
