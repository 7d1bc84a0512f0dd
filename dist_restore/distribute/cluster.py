"""Workers of a cluster agree through a key-value store. Knows messages and ranks; knows no tensors.

The chief is in the middle: the others write to it (`up`), and all read what it writes (`down`).

    broadcast      the chief writes one `down`, the others read it
    gather         every worker writes one `up`; the chief reads all and writes one `down`: the payloads, or a verdict
    a failure      goes `up` in the next gather; the verdict comes `down` in place of whatever is read next

So every worker learns the same verdict, and waits for one key at a time. A round is a gather with the broadcasts
before it; when the chief has heard everybody in a round, everybody has read all of the round before, and its keys
go. A worker that gave up says so in the next round, for a peer that was only slow: nobody goes on alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from threading import Event
from types import TracebackType
from typing import NoReturn, TypeVar

from dist_restore.distribute.coordination import Store, Unreachable
from dist_restore.distribute.messages import Failure, Message
from dist_restore.distribute.waiting import Liveness, Lost, in_thread, until
from dist_restore.errors import WorkerError

Result = TypeVar("Result")

CHIEF = 0
# Slower than this is a stall: a tenth of a spinning disk.
SLOWEST_BYTES_PER_SECOND = 10e6
# An abandoned helper thread ends after so long at the latest.
SLICE_SECONDS = 10.0
RETRY_SECONDS = 0.5
# For last words to a chief that may not listen any more.
PARTING_SECONDS = 2.0
# By so much later than the chief do the others give up, so that it is the chief that names the culprit.
MARGIN_SECONDS = 5.0


class ClusterCommunicator:
    """See `Communicator`; made afresh for every restore, on all workers.

    Args:
      store: where messages are left.
      rank: this worker.
      world_size: number of workers.
      name: what this talk is called in the store; the same on all workers, and never used before.
      timeout: seconds that any one wait may take, when no bytes are at stake.
    """

    def __init__(self, store: Store, rank: int, world_size: int, *, name: str, timeout: float) -> None:
        self.rank, self.world_size = rank, world_size
        self._store, self._name, self._timeout = store, name, timeout
        self._liveness = Liveness(store.probe)
        self._round, self._step = 0, 0
        self._said = False
        self._phase = "begin"
        self._verdict: Failure | None = None
        self._ended = Event()

    def broadcast(self, payload: bytes, phase: str, nbytes: int = 0) -> bytes:
        """See `Communicator.broadcast`."""
        self._begin(phase)
        if self.rank == CHIEF:
            self._announce(Message(phase, (payload,)))
            return payload
        return self._next(phase, nbytes).payloads[0]

    def gather(self, payload: bytes, phase: str, nbytes: int = 0) -> tuple[bytes, ...]:
        """See `Communicator.gather`."""
        self._begin(phase)
        return self._exchange(Message(phase, (payload,)), nbytes)

    def run_everywhere(self, phase: str, work: Callable[[], Result], nbytes: int = 0) -> Result:
        """See `Communicator.run_everywhere`."""
        self._begin(phase)
        try:
            result = work()
        except Exception as error:
            if self._verdict:
                raise  # From a call inside `work`: all workers have it already.
            self._fail(error, phase, nbytes)
        self._begin(phase)
        self._exchange(Message(phase, (b"",)), nbytes)
        return result

    def close(self) -> None:
        """Ends the talk: the chief, which holds the store, stays until all have read everything."""
        if self._ended.is_set():
            return
        self._begin("end")
        if self.rank == CHIEF:
            self._collect(Message("end"), 0)
            self._call(lambda: self._store.delete(self._name))
        else:
            self._say(Message("end"))
        self._ended.set()

    def __enter__(self) -> ClusterCommunicator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        elif not self._ended.is_set():
            self._part(Failure.of(error, self.rank, self._phase))

    def _begin(self, phase: str) -> None:
        if self._verdict:
            raise self._verdict.error()
        self._phase = phase

    def _exchange(self, mine: Message, nbytes: int) -> tuple[bytes, ...]:
        if self.rank == CHIEF:
            payloads = self._collect(mine, nbytes)
            self._announce(Message(mine.phase, payloads))
        else:
            self._say(mine)
            payloads = self._next(mine.phase, nbytes).payloads
        self._round, self._step, self._said = self._round + 1, 0, False
        return payloads

    def _fail(self, error: Exception, phase: str, nbytes: int) -> NoReturn:
        """Tells the others what happened here, and raises what all raise."""
        mine = Message(phase, failure=Failure.of(error, self.rank, phase))
        try:
            if self.rank == CHIEF:
                self._collect(mine, nbytes)
            self._say(mine)
            while True:  # Broadcasts that the chief made before it heard of this.
                self._next("", nbytes)
        except WorkerError as verdict:
            raise verdict from error

    def _collect(self, mine: Message, nbytes: int) -> tuple[bytes, ...]:
        """The chief hears everybody; if anybody failed or is lost, all get that verdict."""
        messages = {CHIEF: mine}
        try:
            self._hear_all(messages, nbytes)
        except Lost as lost:
            text = f"no sign of it within {self._limit(nbytes):.0f} s; {lost}" if not str(lost) else str(lost)
            self._judge(Failure(lost.ranks[0], mine.phase, text, others=lost.ranks[1:]))
        failures = [f for _, m in sorted(messages.items()) for f in _failures(m, mine.phase, _)]
        if failures:
            self._judge(_first(failures))
        if self._round:
            self._call(lambda: self._store.delete(f"{self._name}/{self._round - 1}"))
        return tuple(m.payloads[0] if m.payloads else b"" for _, m in sorted(messages.items()))
