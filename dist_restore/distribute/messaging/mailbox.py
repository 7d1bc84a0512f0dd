"""Messages left for each other in the store, and waited for with an eye on those who should write them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from threading import Event
from typing import TypeVar

from dist_restore.distribute.messaging.liveness import Liveness, Lost, in_thread, ticks
from dist_restore.distribute.messaging.messages import Message
from dist_restore.distribute.messaging.store import Store, Unreachable

Result = TypeVar("Result")

CHIEF = 0
# How long one request waits: at first not long, to learn soon who else is missing. A helper thread that nobody waits
# for any more ends with its request.
FIRST_SLICE_SECONDS = 1.0
SLICE_SECONDS = 10.0
RETRY_SECONDS = 0.5
PEEK_SECONDS = 0.2


class Mailbox:
    """One worker's access to the store, which the chief's process holds.

    Args:
      store: where messages are left.
      rank: this worker.
    """

    def __init__(self, store: Store, rank: int) -> None:
        self._store, self._rank = store, rank
        self._liveness = Liveness(store.probe)
        self._closed = Event()

    def post(self, messages: Mapping[str, Message], seconds: float) -> None:
        """Leaves messages under their keys.

        Raises:
          Lost: the chief did not take them.
        """
        texts = {key: message.pack() for key, message in messages.items()}
        self._ask_chief([functools.partial(self._store.set, key, text) for key, text in texts.items()], seconds)

    def drop(self, key: str, seconds: float) -> None:
        """Removes all messages below a key.

        Raises:
          Lost: the chief did not answer.
        """
        self._ask_chief([functools.partial(self._store.delete, key)], seconds)

    def take(self, keys: Mapping[int, str], seconds: float) -> dict[int, Message]:
        """Waits for a message of each of these ranks.

        Raises:
          Lost: one of them is dead, or did not write in time.
        """
        found: dict[int, Message] = {}
        fetching = in_thread(lambda: self._fetch(keys, found))
        for _ in ticks(fetching, seconds):
            self._bury(keys, found)
            if len(found) == len(keys):
                break
        if fetching.done():
            fetching.result()
        missing = [rank for rank in keys if rank not in found]
        if missing:
            raise self._too_late(missing, seconds)
        return found

    def peek(self, key: str) -> Message | None:
        """A message, if it is there."""
        with contextlib.suppress(Unreachable):
            text = self._store.get(key, PEEK_SECONDS)
            return Message.unpack(text) if text is not None else None
        return None

    def close(self) -> None:
        """Lets helper threads end that nobody waits for any more."""
        self._closed.set()

    def _ask_chief(self, requests: Sequence[Callable[[], None]], seconds: float) -> None:
        asking = in_thread(lambda: [self._persist(request) for request in requests])
        for _ in ticks(asking, seconds):
            for rank, answer in self._liveness.dead([CHIEF] if self._rank != CHIEF else []):
                raise Lost([rank], f"it is dead; {answer.value}", late=False)
        if not asking.done():
            raise self._too_late([CHIEF], seconds)
        asking.result()

    def _too_late(self, ranks: Sequence[int], seconds: float) -> Lost:
        answer = self._liveness.ask(ranks[0])
        return Lost(ranks, f"it did not come this far in {seconds:.1f} s; {answer.value}", late=True)

    def _bury(self, keys: Mapping[int, str], found: dict[int, Message]) -> None:
        """Gives up ranks that are dead; but one that wrote before it ended has done its part."""
        for rank, answer in self._liveness.dead([rank for rank in keys if rank not in found]):
            message = self.peek(keys[rank])
            if message is None:
                raise Lost([rank], f"it is dead; {answer.value}", late=False)
            found[rank] = message

    def _fetch(self, keys: Mapping[int, str], found: dict[int, Message]) -> None:
        """Goes round those who have not written; which of them it waits for does not matter, for all are needed."""
        seconds = FIRST_SLICE_SECONDS
        while (missing := [rank for rank in keys if rank not in found]) and not self._closed.is_set():
            for rank in missing:
                text = self._persist(functools.partial(self._store.get, keys[rank], seconds))
                if text is not None:
                    found[rank] = Message.unpack(text)
            seconds = min(2 * seconds, SLICE_SECONDS)

    def _persist(self, request: Callable[[], Result]) -> Result:
        """Repeats a request that did not get through: whether the chief is dead is for `Liveness` to say."""
        while True:
            try:
                return request()
            except Unreachable:
                if self._closed.wait(RETRY_SECONDS):
                    raise
