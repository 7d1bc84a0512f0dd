"""Reads the fields of an op from a rule file or a plan, and says in words what is wrong with them.

Plans come as JSON from elsewhere, so nothing about the values is taken for granted.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from dist_restore.core.errors import RuleError

# TensorFlow's own limit on the number of axes.
MAX_RANK = 254
MAX_PIECES = 1 << 16
_MAX_INT = 1 << 63


def rule_error(op: str, problem: str, fix: str) -> RuleError:
    """The error for an op that is wrong whatever the tensors are."""
    return RuleError(f"{op}: {problem}. {fix}")


def shown(value: object) -> str:
    """A value for a message, cut to a length that a hostile plan cannot choose."""
    if isinstance(value, int) and abs(value) >= _MAX_INT:
        return "a number beyond 64 bits"
    text = repr(value) if isinstance(value, str | int | float | None) else type(value).__name__
    return text if len(text) <= 60 else text[:57] + "..."


@dataclasses.dataclass(frozen=True, slots=True)
class Fields:
    """The fields that were written for one op, read by type.

    Attributes:
      op: name of the op, for messages.
      values: the fields; their keys are known to be right.
    """

    op: str
    values: Mapping[str, object]

    def integer(self, key: str, default: int | None = None) -> int:
        """An integer."""
        return self._integer(key, self.values[key] if default is None else self.values.get(key, default))

    def maybe_integer(self, key: str) -> int | None:
        """An integer, or None when it was not written."""
        return self.integer(key) if key in self.values else None

    def integers(self, key: str, limit: int = MAX_RANK) -> tuple[int, ...]:
        """A list of at most `limit` integers."""
        value = self.values[key]
        if not isinstance(value, Sequence) or isinstance(value, str | bytes):
            raise self._wrong(key, "a list of integers", value)
        if len(value) > limit:
            raise self._wrong(key, f"at most {limit} integers", len(value))
        return tuple(self._integer(key, item) for item in value)

    def maybe_integers(self, key: str, limit: int = MAX_RANK) -> tuple[int, ...] | None:
        """A list of integers, or None when it was not written."""
        return self.integers(key, limit) if key in self.values else None

    def text(self, key: str) -> str:
        """A string."""
        value = self.values[key]
        if not isinstance(value, str):
            raise self._wrong(key, "a string", value)
        return value

    def maybe_texts(self, key: str) -> str | tuple[str, ...] | None:
        """A string or a list of strings, or None when it was not written."""
        value = self.values.get(key)
        if value is None or isinstance(value, str):
            return value
        if not isinstance(value, Sequence) or isinstance(value, bytes):
            raise self._wrong(key, "a string or a list of strings", value)
        found = tuple(str(item) for item in value if isinstance(item, str))
        if len(found) != len(value):
            wrong = next(item for item in value if not isinstance(item, str))
            raise self._wrong(key, "a string or a list of strings", wrong)
        return found

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false", value)
        return value

    def number(self, key: str) -> float:
        """A finite number."""
        return self._number(key, self.values[key])

    def maybe_numbers(self, key: str, limit: int) -> tuple[float, ...] | None:
        """A list of at most `limit` finite numbers, or None when it was not written."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, Sequence) or isinstance(value, str | bytes):
            raise self._wrong(key, "a list of numbers", value)
        if len(value) > limit:
            raise self._wrong(key, f"at most {limit} numbers", len(value))
        return tuple(self._number(key, item) for item in value)

    def _number(self, key: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, "a number", value)
        if (isinstance(value, int) and abs(value) >= _MAX_INT) or not math.isfinite(value):
            raise self._wrong(key, "a finite number", value)
        return float(value)

    def choice(self, key: str, allowed: tuple[str, ...]) -> str:
        """One of the allowed words."""
        value = self.values[key]
        if not isinstance(value, str) or value not in allowed:
            raise self._wrong(key, "one of " + ", ".join(allowed), value)
        return value

    def _integer(self, key: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= _MAX_INT:
            raise self._wrong(key, "an integer", value)
        return value

    def _wrong(self, key: str, expected: str, found: object) -> RuleError:
        return rule_error(
            self.op, f"{key} must be {expected}, found {shown(found)}", f"Correct {key} in the {self.op} op"
        )
