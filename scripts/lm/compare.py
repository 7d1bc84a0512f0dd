"""Two runs side by side: do their losses agree?"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import tabulate


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The losses of two runs, step by step.

    Attributes:
      rows: `(step, loss of one, loss of the other, relative difference)`.
    """

    rows: tuple[tuple[int, float, float, float], ...]

    @property
    def worst(self) -> float:
        """The largest relative difference; infinite when one of the losses is no number."""
        return max((row[3] if row[3] == row[3] else float("inf") for row in self.rows), default=float("inf"))

    def table(self, count: int) -> str:
        """Returns about `count` of the rows as text, the first and the last among them."""
        stride = max(1, len(self.rows) // count)
        shown = self.rows[:1] + self.rows[1:-1][stride - 2 :: stride] + self.rows[1:][-1:]
        head = ("step", "never refactored", "refactored", "relative difference")
        return tabulate.tabulate(shown, head, floatfmt=("d", ".6f", ".6f", ".1e"))


def compare(one: Mapping[int, float], other: Mapping[int, float], first: int, last: int) -> Comparison:
    """Compares the losses of the steps from `first` to `last`; a step that a run lacks is a `KeyError`."""
    steps = range(first, last + 1)
    return Comparison(tuple((step, one[step], other[step], abs(other[step] / one[step] - 1)) for step in steps))
