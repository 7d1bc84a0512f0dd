"""Rows of a table, and families of them: names that differ in their numbers only are one row.

Collapsing is exact. Rows become one row `blocks/{0..3}/kernel` only if the names that this stands for are those
of the rows, and only if the n-th number of a target goes with the n-th number of its source: a permutation of
the blocks is shown row by row.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable, Sequence

from dist_restore.core.text import escape_text, natural_key

# The order of the rows: what needs attention first, then what was changed most.
STATUS_ORDER = ("unmatched", "ambiguous", "resized", "kept", "transformed", "renamed", "exact")
PROBLEMS = ("unmatched", "ambiguous")

# A name with more numbers than this, or a longer one, is no family's member: it stays a row of its own, and
# nobody's checkpoint can make the table slow.
_MAX_NUMBERS = 16
_MAX_SPLIT = 400
_MAX_SOURCE_NUMBERS = 64

_DIGITS = re.compile(r"([0-9]+)")


@dataclasses.dataclass(frozen=True, slots=True)
class TableRow:
    """One target variable, or one family of them, as the table shows it.

    Attributes:
      target: name, or pattern of a family (`blocks/{0..3}/kernel`).
      sources: names or patterns of what fills it, in the order in which the ops take them.
      ops: the ops in words; empty when there are none.
      status: what becomes of the target, one of `STATUS_ORDER`.
      group: what the target is part of: `model`, `optimizer` or `other`.
      shape: sizes of the target's axes.
      dtype: TensorFlow's name of the target's dtype.
      variables: how many variables this row stands for.
      filled_variables: how many of them get a value from the checkpoint.
      bytes: size of these variables.
      evidence: what decided it.
      reason: one sentence for people.
      filled_bytes: how many of the bytes come from the checkpoint; `None` when that is all or none of them.
    """

    target: str
    sources: tuple[str, ...]
    ops: str
    status: str
    group: str
    shape: tuple[int, ...]
    dtype: str
    variables: int
    filled_variables: int
    bytes: int
    evidence: str = ""
    reason: str = ""
    filled_bytes: int | None = None

    @property
    def bytes_from_sources(self) -> int:
        """How many of the bytes come from the checkpoint."""
        if self.filled_bytes is not None:
            return self.filled_bytes
        return self.bytes if self.filled_variables else 0


def families(rows: Iterable[TableRow]) -> tuple[TableRow, ...]:
    """Collapses rows whose names differ only in numbers; problems first, then by status, then by name."""
    members: dict[_Key, list[_Member]] = {}
    for row in rows:
        key, member = _classify(row)
        members.setdefault(key, []).append(member)
    collapsed = (row for family in members.values() for row in _collapse(family))
    return tuple(sorted(collapsed, key=lambda row: (_rank(row.status), natural_key(row.target))))


def collapse(names: Iterable[str]) -> str:
    """The names as one line for a message, escaped: `model/blocks/{0..3}/kernel, model/head/kernel`."""
    return ", ".join(escape_text(pattern) for pattern, _ in patterns(names))


def patterns(names: Iterable[str]) -> tuple[tuple[str, int], ...]:
    """The names in natural order, collapsed: `(pattern, how many names it stands for)`."""
    rows = (TableRow(name, (), "", "exact", "", (), "", 1, 0, 0) for name in dict.fromkeys(names))
    return tuple((row.target, row.variables) for row in families(rows))


def without_numbers(text: str) -> str:
    """The text with 0 for each number: what says the same of several names is one text."""
    return _DIGITS.sub("0", text)


def _rank(status: str) -> int:
    return STATUS_ORDER.index(status) if status in STATUS_ORDER else 0


@dataclasses.dataclass(frozen=True, slots=True)
class _Pattern:
    """A name without its numbers: the texts around them, and to how many digits each is padded with zeros."""

    texts: tuple[str, ...]
    widths: tuple[int, ...]

    def render(self, values: Sequence[Sequence[int]]) -> str:
        numbers = (_number_set(v, width) for v, width in zip(values, self.widths, strict=True))
        return self.texts[0] + "".join(n + text for n, text in zip(numbers, self.texts[1:], strict=True))


_Key = tuple[object, ...]
_Cell = tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class _Member:
    """A row, and the numbers in its target and in its sources."""

    row: TableRow
    pattern: _Pattern
    numbers: tuple[int, ...]
    source_patterns: tuple[_Pattern, ...]
    source_numbers: tuple[int, ...]


def _classify(row: TableRow) -> tuple[_Key, _Member]:
    pattern, numbers = _split(row.target)
    sources = [_split(name) for name in row.sources]
    if sum(len(values) for _, values in sources) > _MAX_SOURCE_NUMBERS:
        sources = [(_Pattern((name,), ()), ()) for name in row.sources]
    source_patterns = tuple(p for p, _ in sources)
    reason = without_numbers(row.reason) if row.status in PROBLEMS else ""
    # Patterns as plain tuples: hashing dataclasses takes most of the time of a table of 50,000 rows.
    names = tuple((p.texts, p.widths) for p in (pattern, *source_patterns))
    key = (row.status, row.group, row.ops, row.dtype, row.shape, reason, names)
    return key, _Member(row, pattern, numbers, source_patterns, tuple(n for _, values in sources for n in values))


def _split(name: str) -> tuple[_Pattern, tuple[int, ...]]:
    parts = _DIGITS.split(name) if len(name) <= _MAX_SPLIT else [name]
    if len(parts) > 2 * _MAX_NUMBERS + 1:
        parts = [name]
    digits = parts[1::2]
    widths = tuple(len(d) if d[0] == "0" and len(d) > 1 else 0 for d in digits)
    return _Pattern(tuple(parts[::2]), widths), tuple(map(int, digits))


def _collapse(family: list[_Member]) -> list[TableRow]:
    if len(family) == 1:
        return [family[0].row]
    subfamilies: dict[_Key, list[_Member]] = {}
    for key, member in zip(_pairings(family), family, strict=True):
        subfamilies.setdefault(key, []).append(member)
    return [_merged(cell, members) for sub in subfamilies.values() for cell, members in _products(sub)]


def _pairings(family: list[_Member]) -> list[_Key]:
    """For each member what it must share with those that it can be one row with, on account of its sources."""
    columns = list(zip(*(m.numbers for m in family), strict=True))
    varying = [c for c in columns if len(set(c)) > 1]
    sources = zip(*(m.source_numbers for m in family), strict=True)
    apart = [keys for values in sources if (keys := _apart(values, varying)) is not None]
    return list(zip(*apart, strict=True)) if apart else [()] * len(family)


def _apart(values: tuple[int, ...], columns: list[tuple[int, ...]]) -> Sequence[int] | None:
    """`None` if these numbers of the sources rise with one number of the targets; else what keeps rows apart."""
    if len(set(values)) == 1 or any(_rises(column, values) for column in columns):
        return None
    for column in columns:
        if len(set(zip(column, values, strict=True))) == len(set(column)):
            # A permutation, or blocks used twice: those with the same distance between the two numbers rise.
            return [value - number for number, value in zip(column, values, strict=True)]
    return values


def _rises(column: tuple[int, ...], values: tuple[int, ...]) -> bool:
    pairs = sorted(set(zip(column, values, strict=True)))
    return all(a < c and b < d for (a, b), (c, d) in itertools.pairwise(pairs))


def _products(family: list[_Member]) -> list[tuple[_Cell, list[_Member]]]:
    """Parts the members into full products of number sets: the last number's set is made as large as can be first."""
    cells: list[tuple[_Cell, list[_Member]]] = [(tuple((n,) for n in m.numbers), [m]) for m in family]
    for axis in reversed(range(len(family[0].numbers))):
        merged: dict[_Cell, tuple[list[int], list[_Member]]] = {}
        for cell, members in cells:
            values, together = merged.setdefault(cell[:axis] + cell[axis + 1 :], ([], []))
            values.extend(cell[axis])
            together.extend(members)
        cells = [((*rest[:axis], tuple(sorted(v)), *rest[axis:]), m) for rest, (v, m) in merged.items()]
    return cells


def _merged(cell: _Cell, members: list[_Member]) -> TableRow:
    if len(members) == 1:
        return members[0].row
    first = min(members, key=lambda m: m.numbers)
    return dataclasses.replace(
        first.row,
        target=first.pattern.render(cell),
        sources=_source_names(first.source_patterns, [m.source_numbers for m in members]),
        variables=sum(m.row.variables for m in members),
        filled_variables=sum(m.row.filled_variables for m in members),
        bytes=sum(m.row.bytes for m in members),
        filled_bytes=sum(m.row.bytes_from_sources for m in members),
    )


def _source_names(found: Sequence[_Pattern], numbers: Iterable[tuple[int, ...]]) -> tuple[str, ...]:
    values = [sorted(set(column)) for column in zip(*numbers, strict=True)]
    names = []
    for pattern in found:
        count = len(pattern.widths)
        names.append(pattern.render(values[:count]))
        values = values[count:]
    return tuple(names)


def _number_set(values: Sequence[int], width: int) -> str:
    """Sorted numbers in short: `7`, `{0..23}`, `{0..3,7,9..11}`."""
    if len(values) == 1:
        return str(values[0]).zfill(width)
    starts = [i for i, value in enumerate(values) if i == 0 or value != values[i - 1] + 1]
    bounds = zip(starts, [*starts[1:], len(values)], strict=True)
    runs = ((values[begin], values[end - 1]) for begin, end in bounds)
    texts = (f"{str(a).zfill(width)}..{str(b).zfill(width)}" if a < b else str(a).zfill(width) for a, b in runs)
    return "{" + ",".join(texts) + "}"
