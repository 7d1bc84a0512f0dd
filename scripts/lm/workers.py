"""What workers that train together must agree on; with one process there is nobody to ask."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TypeVar

import tensorflow as tf

from dist_restore.distribute.communicator import communicator_for

Result = TypeVar("Result")

# What a collective raises when another worker has gone.
LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError, tf.errors.DeadlineExceededError)


def lost(error: tf.errors.OpError) -> str:
    """Says it in one line: TensorFlow's own message has the whole graph in it."""
    lines = [line.strip() for line in error.message.splitlines()] or [type(error).__name__]
    first = next((number for number, line in enumerate(lines) if "abort" in line.lower()), 0)
    # Which ones stand below.
    why = " ".join([lines[first], *(line for line in lines[first + 1 :] if line.startswith("/job:"))])
    return (
        f"another worker has ended, or cannot be reached ({why}). What was saved before stays as it is; start "
        "all workers once more to go on from there"
    )


class Workers:
    """The workers of a strategy. All methods are called by all of them, in the same order.

    Attributes:
      rank: this worker, 0 to `count` - 1; 0 is the chief.
      count: how many there are.
    """

    def __init__(self, strategy: tf.distribute.Strategy) -> None:
        self._strategy = strategy
        with communicator_for(strategy) as talk:
            self.rank, self.count = talk.rank, talk.world_size

    @property
    def is_chief(self) -> bool:
        """Whether this is the worker that decides, prints and writes."""
        return self.rank == 0

    def compare(self, settings: Mapping[str, object]) -> None:
        """Checks that all were started with the same settings.

        Raises:
          ValueError: on all workers, naming what differs and where.
        """
        with communicator_for(self._strategy) as talk:
            mine = json.dumps({name: str(value) for name, value in settings.items()})
            chief, *others = (json.loads(each) for each in talk.gather(mine.encode(), "compare flags"))
        for rank, other in enumerate(others, 1):
            for name in sorted(chief.keys() | other.keys()):
                if chief.get(name) != other.get(name):
                    raise ValueError(
                        f"--{name} is {chief.get(name)} on worker 0 and {other.get(name)} on worker {rank}"
                    )

    def ask_chief(self, phase: str, decide: Callable[[], str]) -> str:
        """Returns what the chief decides; what it raises ends all."""
        with communicator_for(self._strategy) as talk:
            with talk.phase(phase):
                mine = decide() if self.is_chief else ""
            return talk.broadcast(mine.encode(), phase).decode()

    def together(self, phase: str, work: Callable[[], Result], nbytes: int = 0) -> Result:
        """Runs `work` on all workers and returns when all are done; a failure of one ends all.

        Args:
          phase: what to call it when it fails.
          work: what to do.
          nbytes: how much is read or written meanwhile, for how long to wait.
        """
        with communicator_for(self._strategy) as talk, talk.phase(phase, nbytes):
            result = work()
        return result
