"""Workers of a cluster agree by messages. Knows who says what in which order; knows no store and no tensors.

The chief is in the middle: the others write to it (`up`), and all read what it writes (`down`).

    broadcast   the chief writes one `down`, the others read it
    gather      every worker writes one `up`; the chief reads all and writes one `down`: their payloads, or a verdict
    a failure   goes `up` in the next gather; its verdict comes `down` in place of whatever is read next

So all workers learn the same verdict, and each waits for one thing at a time. A round is a gather with the broadcasts
before it. When the chief has heard everybody in a round, everybody has read all of the round before, which goes. Who
gives up says so in its next round, for a peer that was merely slow: nobody goes on alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import NoReturn, TypeVar

from dist_restore.core.errors import WorkerError
from dist_restore.core.phases import phase_of
from dist_restore.distribute.messaging.exchange import Exchange
from dist_restore.distribute.messaging.liveness import Lost, scaled
from dist_restore.distribute.messaging.mailbox import CHIEF, Mailbox
from dist_restore.distribute.messaging.messages import Failure, Message
from dist_restore.distribute.messaging.store import Store

Result = TypeVar("Result")

# By so much later than the chief do the others give up, so that it is the chief that names the culprit.
MARGIN_SECONDS = 5.0
# For last words to a chief that may not listen any more, and for those of others that the chief waits for.
PARTING_SECONDS = 2.0
LINGER_SECONDS = 10.0


class ClusterCommunicator:
    """See `Communicator`; made afresh for every restore, on all workers.

    Args:
      store: where messages are left.
      rank: this worker.
      world_size: number of workers.
      name: what this session is called in the store: the same on all workers, and never used before.
      timeout: seconds that any one wait may take when no bytes are at stake.
      exchange: makes what passes tensors' bytes, for the ranks that send any.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        world_size: int,
        *,
        name: str,
        timeout: float,
        exchange: Callable[[Sequence[int]], Exchange],
    ) -> None:
        self.rank, self.world_size = rank, world_size
        self.exchange = exchange
        self._mailbox = Mailbox(store, rank)
        self._name, self._timeout = name, timeout
        self._round, self._step = 0, 0
        self._wrote = -1  # The last round in which this worker wrote `up`.
        self._phase = "begin"
        self._closed = False
        self._failure: Failure | None = None

    def broadcast(self, payload: bytes, phase: str, nbytes: int = 0) -> bytes:
        """See `Communicator.broadcast`."""
        self._begin(phase)
        if self.rank != CHIEF:
            return self._read(nbytes)[0]
        self._announce(Message(phase, (payload,)), nbytes)
        return payload

    def gather(self, payload: bytes, phase: str, nbytes: int = 0) -> tuple[bytes, ...]:
        """See `Communicator.gather`."""
        self._begin(phase)
        return self._exchange(Message(phase, (payload,)), nbytes)

    @contextlib.contextmanager
    def phase(self, name: str, nbytes: int = 0) -> Iterator[None]:
        """See `Communicator.phase`."""
        self._begin(name)
        try:
            yield
        except Exception as error:
            if self._failure:
                raise  # Out of a call inside the block: all workers have it.
            self._fail(error, name, nbytes)
        self.gather(b"", name, nbytes)

    def close(self) -> None:
        """Ends the session. The chief, whose process holds the store, stays until all others have read everything."""
        if self._closed:
            return
        self._begin("end")
        if self.rank == CHIEF:
            farewells = self._trying(lambda: self._mailbox.take(self._from_others(self._bye), self._limit(0)))
            self._judge(farewells)
            self._trying(lambda: self._mailbox.drop(self._name, self._limit(0)))
        else:
            self._trying(lambda: self._mailbox.post({self._bye(self.rank): Message("end")}, self._limit(0)))
        self._end()

    def __enter__(self) -> ClusterCommunicator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        elif not self._closed:
            self._part(Failure.of(error, self.rank, self._phase))

    def _begin(self, phase: str) -> None:
        if self._failure:
            raise self._failure.error()
        self._phase = phase

    def _exchange(self, mine: Message, nbytes: int) -> tuple[bytes, ...]:
        self._write(mine, nbytes)
        if self.rank == CHIEF:
            payloads = self._hear(mine, nbytes)
            self._announce(Message(mine.phase, payloads), nbytes)
        else:
            payloads = self._read(nbytes)
        self._round, self._step = self._round + 1, 0
        return payloads

    def _fail(self, error: Exception, phase: str, nbytes: int) -> NoReturn:
        """Tells the others what happened here; raises what all raise."""
        mine = Message(phase, failure=Failure.of(error, self.rank, phase_of(error) or phase))
        try:
            self._write(mine, nbytes)
            if self.rank == CHIEF:
                self._hear(mine, nbytes)
            while True:  # The chief may have broadcast more before it heard of this.
                self._read(nbytes, any_phase=True)
        except WorkerError as verdict:
            raise verdict from error

    def _write(self, message: Message, nbytes: int) -> None:
        self._wrote = self._round
        self._trying(lambda: self._mailbox.post({self._up(self.rank): message}, self._limit(nbytes)))

    def _announce(self, message: Message, nbytes: int) -> None:
        key, self._step = self._down(), self._step + 1
        self._trying(lambda: self._mailbox.post({key: message}, self._limit(nbytes)))

    def _hear(self, mine: Message, nbytes: int) -> tuple[bytes, ...]:
        """The chief hears everybody; if anybody failed or is lost, all get that verdict."""
        heard = self._trying(lambda: self._mailbox.take(self._from_others(self._up), self._limit(nbytes)))
        messages = {CHIEF: mine, **heard}
        self._judge(messages)
        if self._round:
            self._trying(lambda: self._mailbox.drop(f"{self._name}/{self._round - 1}", self._limit(0)))
        return tuple(b"".join(messages[rank].payloads) for rank in range(self.world_size))

    def _judge(self, messages: Mapping[int, Message]) -> None:
        found = (self._failure_in(message, rank) for rank, message in sorted(messages.items()))
        # Who says why comes before those who only noticed.
        failures = sorted((failure for failure in found if failure), key=lambda f: (f.is_echo, f.rank))
        if failures:
            verdict = failures[0].and_others(f.rank for f in failures)
            self._part(verdict)
            raise verdict.error()

    def _failure_in(self, message: Message, rank: int) -> Failure | None:
        if message.failure or message.phase == self._phase:
            return message.failure
        text = f"it makes the calls of phase {message.phase!r}; all workers must make the same calls in the same order"
        return Failure(rank, self._phase, text)

    def _read(self, nbytes: int, *, any_phase: bool = False) -> tuple[bytes, ...]:
        """What the chief says next; raises if that is a verdict."""
        key, self._step = self._down(), self._step + 1
        message = self._trying(lambda: self._take_from_chief(key, self._limit(nbytes)))
        if message.failure:
            self._end(message.failure)
            raise message.failure.error()
        failure = None if any_phase else self._failure_in(message, CHIEF)
        if failure:
            self._part(failure)
            raise failure.error()
        return message.payloads

    def _take_from_chief(self, key: str, seconds: float) -> Message:
        try:
            return self._mailbox.take({CHIEF: key}, seconds)[CHIEF]
        except Lost as lost:
            # The chief came later than this worker, and waits for somebody else: it will say for whom.
            if not lost.late or not self._mailbox.peek(self._up(CHIEF)):
                raise
            return self._mailbox.take({CHIEF: key}, seconds + MARGIN_SECONDS)[CHIEF]

    def _trying(self, request: Callable[[], Result]) -> Result:
        """Whoever is lost on the way is a failure for all."""
        try:
            return request()
        except Lost as lost:
            failure = Failure(lost.ranks[0], self._phase, str(lost), others=lost.ranks[1:])
            self._part(failure)
            raise failure.error() from lost

    def _part(self, failure: Failure) -> None:
        """Tells the others that there is nothing more to come from here, and why."""
        last = Message(self._phase, failure=failure)
        if self.rank == CHIEF:
            # The second is for who has read this round to its end already.
            self._leave({self._down(): last, self._down(self._round + 1, 0): last})
            self._await_farewells(failure)
            self._end(failure)
        else:
            round_ = self._round + (self._wrote == self._round)
            self._end(failure, {self._up(self.rank, round_): last})

    def _await_farewells(self, failure: Failure) -> None:
        """The store goes with the chief: those who can should have read the verdict by then."""
        others = self._from_others(self._bye)
        able = {rank: key for rank, key in others.items() if rank not in (failure.rank, *failure.others)}
        with contextlib.suppress(Lost):
            self._mailbox.take(able, min(LINGER_SECONDS, self._timeout))

    def _end(self, failure: Failure | None = None, last: Mapping[str, Message] | None = None) -> None:
        if failure and self.rank != CHIEF:
            self._leave({**(last or {}), self._bye(self.rank): Message(self._phase, failure=failure)})
        self._failure, self._closed = failure, True
        self._mailbox.close()

    def _leave(self, messages: Mapping[str, Message]) -> None:
        with contextlib.suppress(Lost):
            self._mailbox.post(messages, PARTING_SECONDS)

    def _limit(self, nbytes: int) -> float:
        return scaled(self._timeout, nbytes)

    def _from_others(self, key: Callable[[int], str]) -> dict[int, str]:
        return {rank: key(rank) for rank in range(self.world_size) if rank != CHIEF}

    def _up(self, rank: int, round_: int | None = None) -> str:
        return f"{self._name}/{self._round if round_ is None else round_}/up/{rank}"

    def _down(self, round_: int | None = None, step: int | None = None) -> str:
        return f"{self._name}/{self._round if round_ is None else round_}/down/{self._step if step is None else step}"

    def _bye(self, rank: int) -> str:
        return f"{self._name}/bye/{rank}"
