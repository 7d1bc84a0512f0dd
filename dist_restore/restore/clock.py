"""The phases of one plan or restore, and how long each took."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from dist_restore.distribute.communicator import Communicator
from dist_restore.report.report import PhaseSeconds


class PhaseClock:
    """Times the phases that all workers go through together.

    Args:
      communicator: to the other workers.
    """

    def __init__(self, communicator: Communicator) -> None:
        self._communicator = communicator
        self._seconds: list[tuple[str, float]] = []

    @contextlib.contextmanager
    def phase(self, name: str, nbytes: int = 0) -> Iterator[None]:
        """What follows is done by every worker; see `Communicator.phase`.

        Args:
          name: of the phase, for errors and for the report.
          nbytes: how much is read or sent meanwhile.
        """
        with self.timed(name), self._communicator.phase(name, nbytes):
            yield

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """What follows belongs to a phase, and sends by itself."""
        start = time.perf_counter()
        yield
        self._seconds.append((name, time.perf_counter() - start))

    def chiefs(self) -> PhaseSeconds:
        """The chief's seconds, for the report is the same on all workers. Called by all workers."""
        lines = "\n".join(f"{name} {taken!r}" for name, taken in self._seconds)
        text = self._communicator.broadcast(lines.encode(), "report").decode()
        return PhaseSeconds(tuple((name, float(taken)) for name, taken in map(str.split, text.splitlines())))
