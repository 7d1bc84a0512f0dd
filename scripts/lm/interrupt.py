"""Ctrl-C as a question that is asked before each step, so that what is saved is whole and all workers stop together."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

# Where different workers get different ones, the first of these is said to be the reason.
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """While entered, takes the first Ctrl-C (or SIGTERM) as a wish to stop; a second one stops at once.

    Attributes:
      wishes: of `SIGNALS`, how many have come: 1.0 or 0.0 for each.
    """

    def __init__(self) -> None:
        self.wishes = [0.0] * len(SIGNALS)
        self._before: dict[int, signal.Handlers] = {}

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._give_back()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.wishes[SIGNALS.index(signal.Signals(number))] = 1.0
        self._give_back()
        print("\nstopping after the next step (once more to stop at once)", flush=True)

    def _give_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def exit_code(wishes: list[float]) -> int:
    """Returns what a shell expects of a program that ends for such a reason; 0 where nobody has a wish."""
    return next((128 + number for number, wish in zip(SIGNALS, wishes, strict=True) if wish), 0)
