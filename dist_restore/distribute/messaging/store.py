"""What workers need in order to talk: a key-value store, and signs of life. Knows no TensorFlow."""

from __future__ import annotations

import enum
from typing import Protocol


class Unreachable(Exception):
    """The chief, which holds the store, did not take or answer a request."""


class Answer(enum.Enum):
    """What a peer's process says when it is asked for a sign of life.

    Attributes:
      ALIVE: it answers; its threads may still be stuck.
      SILENT: nothing, in the time given: it is stopped, or its machine or network is gone.
      GONE: nobody listens at its address any more: the process has ended.
      REPLACED: another process listens there: it was restarted.
    """

    ALIVE = "its process answers"
    SILENT = "its process does not answer: it is stopped, or its machine cannot be reached"
    GONE = "its process has ended"
    REPLACED = "its process was restarted"


class Store(Protocol):
    """What a cluster communicator needs of its surroundings."""

    def set(self, key: str, value: str) -> None:
        """Stores text under a key that nobody has set before.

        Raises:
          Unreachable: the store did not take it.
        """

    def get(self, key: str, seconds: float) -> str | None:
        """The text under a key, as soon as it is there; None if that takes longer.

        Raises:
          Unreachable: the store did not answer.
        """

    def delete(self, key: str) -> None:
        """Removes a key and all keys below it."""

    def probe(self, rank: int, seconds: float) -> Answer:
        """Asks a peer's process for a sign of life."""
