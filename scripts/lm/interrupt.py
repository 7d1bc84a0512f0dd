"""Ctrl-C as a question that is asked between two steps, so that what is saved is whole."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType


class StopRequest:
    """While entered, takes the first Ctrl-C (or SIGTERM) as a wish to stop; a second one stops at once.

    Attributes:
      exit_code: what a shell expects of a program that ends for this reason; 0 while nobody asked.
    """

    def __init__(self) -> None:
        self.exit_code = 0
        self._before: dict[int, signal.Handlers] = {}

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._give_back()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.exit_code = 128 + number
        self._give_back()
        print("\nstopping after this step (once more to stop at once)", flush=True)

    def _give_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
