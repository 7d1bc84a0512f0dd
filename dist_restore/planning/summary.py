"""Text and Markdown tables of what became of each variable, one row per family of names.

Knows rows of names, counts and sizes. Knows neither plans nor ops, so that a plan can use it to describe
itself. Names come from files that anybody may have written: whatever could move a cursor, break a row or turn
text around is escaped before it is shown.

Collapsing is exact. Rows become one row `blocks/{0..3}/kernel` only if the names that this stands for are those
of the rows, and only if the n-th number of a target goes with the n-th number of its source: a permutation of
the blocks is shown row by row.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import textwrap
from collections.abc import Iterable, Sequence

import tabulate

from dist_restore.core.shortening import NAME_WIDTH, shorten, shorten_apart

# The order of the rows: what needs attention first, then what was changed most.
STATUS_ORDER = ("unmatched", "ambiguous", "resized", "kept", "transformed", "renamed", "exact")
PROBLEMS = ("unmatched", "ambiguous")

OPS_WIDTH = 40
MAX_LISTED_NAME = 400  # below the table names are whole, to be copied; longer ones are nobody's to copy
REASON_WIDTH = 110

# A name with more numbers than this, or a longer one, is no family's member: it stays a row of its own, and
# nobody's checkpoint can make the table slow.
_MAX_NUMBERS = 16
_MAX_SPLIT = 400
_MAX_SOURCE_NUMBERS = 64

_DIGITS = re.compile(r"([0-9]+)")
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_MARKDOWN_SPECIAL = re.compile(r"[\\`*\[\]<>&|~!#${}]|(?<![^\W_])_|_(?![^\W_])")


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


# ---- What a plan shows -----------------------------------------------------------------------------------


def plan_table(rows: tuple[TableRow, ...], unused: tuple[tuple[str, str], ...] = ()) -> str:
    """The table of a plan: families, then the reasons of what needs attention, then the coverage.

    Args:
      rows: one per target variable.
      unused: `(name, reason)` of the source tensors that nothing used; listed when given.
    """
    shown = families(rows)
    parts = [_table(shown), _problems(shown), _unused(unused), coverage_lines(rows)]
    return "\n\n".join(part for part in parts if part)


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


def coverage_lines(rows: Iterable[TableRow]) -> str:
    """How much of each group, and of all, comes from the checkpoint: variables and bytes."""
    tallies: dict[str, list[int]] = {}
    for row in rows:
        for name in (row.group, "all"):
            tally = tallies.setdefault(name, [0, 0, 0, 0])
            counts = (row.filled_variables, row.variables, row.bytes_from_sources, row.bytes)
            tally[:] = [old + new for old, new in zip(tally, counts, strict=True)]
    order = sorted(tallies, key=lambda name: (name == "all", name == "other", name))
    return _layout(("coverage", "variables", "bytes"), [_coverage_cells(name, tallies[name]) for name in order])


def human_bytes(count: float) -> str:
    """A size in binary units: `512 B`, `1.5 KiB`, `24.0 MiB`."""
    if count < 1024:
        return f"{count:.0f} B"
    # 1023.96 KiB would be shown as 1024.0 KiB: such counts belong to the next unit.
    power = min(int(math.log(count / 0.99995, 1024)), len(_UNITS) - 1)
    return f"{count / 1024**power:.1f} {_UNITS[power]}"


def share(part: int, whole: int) -> str:
    """A fraction in percent, rounded down, so that `100.0%` means all of it."""
    return f"{(part * 1000 // whole if whole else 1000) / 10:.1f}%"


def _coverage_cells(name: str, tally: Sequence[int]) -> tuple[str, str, str]:
    filled, variables, filled_bytes, size = tally
    return (
        escape_text(name),
        f"{filled}/{variables} ({share(filled, variables)})",
        f"{human_bytes(filled_bytes)}/{human_bytes(size)} ({share(filled_bytes, size)})",
    )


def _table(rows: Iterable[TableRow]) -> str:
    header = ("status", "target", "shape", "source", "ops", "n", "bytes")
    shown = list(rows)
    targets = shorten_apart([escape_text(row.target) for row in shown])
    sources = shorten_apart([_joined([escape_text(name) for name in joined_sources(r.sources)]) for r in shown])
    cells = [_cells(*parts) for parts in zip(shown, targets, sources, strict=True)]
    return _layout(header, cells, right=("n", "bytes"))


def _cells(row: TableRow, target: str, sources: str) -> tuple[str, ...]:
    return (
        escape_text(row.status),
        target,
        str(list(row.shape)),
        sources,
        shorten(_printable(row.ops), OPS_WIDTH),
        str(row.variables),
        human_bytes(row.bytes),
    )


def joined_sources(sources: tuple[str, ...]) -> tuple[str, ...]:
    """The sources, collapsed when they are many (96 layers stacked into one) and in natural order anyway."""
    if len(sources) <= 4 or len(set(sources)) < len(sources):
        return sources
    if list(sources) != sorted(sources, key=natural_key):
        return sources
    return tuple(pattern for pattern, _ in patterns(sources))


def _joined(names: Sequence[str]) -> str:
    """`a/q/kernel + a/k/kernel`, or `a/(q + k)/kernel` where the first form would have its middle cut out."""
    text = " + ".join(names)
    if len(text) <= NAME_WIDTH or len(names) < 2:
        return text
    segments = [name.split("/") for name in names]
    head = _shared(segments)
    tail = _shared([parts[head:][::-1] for parts in segments])
    middles = ["/".join(parts[head : len(parts) - tail]) for parts in segments]
    if not head + tail or not all(middles):
        return text
    before, after = segments[0][:head], segments[0][len(segments[0]) - tail :]
    rest = "/".join([f"({' + '.join(middles)})", *after])
    # What tells the sources from each other is in the middle: what they share gives way first.
    return "/".join([shorten("/".join(before), max(NAME_WIDTH - len(rest) - 1, 10)), rest] if before else [rest])


def _shared(segments: Sequence[Sequence[str]]) -> int:
    same = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*segments, strict=False))
    return sum(1 for _ in same)


def _problems(rows: Iterable[TableRow]) -> str:
    return "\n".join(_problem(row) for row in rows if row.status in PROBLEMS)


def _problem(row: TableRow) -> str:
    more = f" (and {row.variables - 1} more like it)" if row.variables > 1 else ""
    return f"{escape_text(row.status)}: {escape_text(row.target)}\n{_wrapped(row.reason + more)}"


def _unused(unused: tuple[tuple[str, str], ...]) -> str:
    by_reason: dict[str, list[tuple[str, str]]] = {}
    for name, reason in sorted(unused, key=lambda pair: natural_key(pair[0])):
        by_reason.setdefault(_DIGITS.sub("0", reason), []).append((name, reason))
    blocks = [
        f"{shorten(escape_text(row.target), MAX_LISTED_NAME)}\n{_wrapped(row.sources[0])}"
        for group in by_reason.values()
        for row in _unused_families(group)
    ]
    return "\n".join(f"unused: {block}" for block in blocks)


def _unused_families(unused: Iterable[tuple[str, str]]) -> tuple[TableRow, ...]:
    """Names and reasons collapsed together, for a reason may name another tensor of the same block."""
    return families(TableRow(name, (reason,), "", "exact", "", (), "", 1, 0, 0) for name, reason in unused)


def _wrapped(text: str) -> str:
    # Words stay whole, so that a name can still be copied out of a message.
    lines = textwrap.wrap(_printable(text), REASON_WIDTH - 4, break_long_words=False, break_on_hyphens=False)
    return textwrap.indent("\n".join(lines), "    ")


def _layout(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> str:
    align = ["right" if name in right else "left" for name in header]
    text = tabulate.tabulate(
        rows, headers=header, tablefmt="simple", disable_numparse=True, colalign=align if rows else None
    )
    return "\n".join(line.rstrip() for line in str(text).splitlines())


def _rank(status: str) -> int:
    return STATUS_ORDER.index(status) if status in STATUS_ORDER else 0


# ---- Names that anybody may have chosen ------------------------------------------------------------------


def escape_text(name: str) -> str:
    r"""A name with everything unprintable as an escape (`\n`, `\x1b`, `\u202e`), and so readable both ways.

    A backslash is doubled, and blanks at either end are `\x20`, so that different names stay different.
    """
    name = name.replace("\\", "\\\\")
    inner = name.strip(" ")
    if len(inner) < len(name):
        left = len(name) - len(name.lstrip(" ")) if inner else 0
        name = "\\x20" * left + inner + "\\x20" * (len(name) - len(inner) - left)
    return _printable(name)


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def natural_key(name: str) -> tuple[tuple[tuple[int, str, str], ...], str]:
    """Sorts block 2 before block 10, whatever the name and however long its numbers are."""
    parts = _DIGITS.split(name)
    # A number by its length and then its digits: int() refuses very long ones. The name itself breaks ties.
    numbers = ["", *(digits.lstrip("0") for digits in parts[1::2])]
    return tuple((len(n), n, text) for n, text in zip(numbers, parts[::2], strict=True)), name


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table in which every cell shows its text literally, whatever it is."""
    lines = [_markdown_row(header), "|".join(["", *(" --- " for _ in header), ""])]
    return "\n".join([*lines, *(_markdown_row(row) for row in rows)])


def markdown_text(text: str) -> str:
    """The text on one line, so that Markdown renderers show it as it is.

    Character references work where backslashes do not: inside tables, and for `|`, `<` and `&`.
    """
    return _MARKDOWN_SPECIAL.sub(lambda match: f"&#{ord(match[0])};", _printable(text))


def markdown_block(text: str) -> str:
    """The text as a fenced code block that nothing inside it can close."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(markdown_text(cell) for cell in cells) + " |"


# ---- Collapsing ------------------------------------------------------------------------------------------


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
    reason = _DIGITS.sub("0", row.reason) if row.status in PROBLEMS else ""
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
