"""Text and Markdown tables of what became of each variable, one row per family of names.

Knows rows of names, counts and sizes. Knows neither plans nor ops, so that a plan can use it to describe
itself. Names come from files that anybody may have written, and are shown escaped.
"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterable, Sequence

import tabulate

from dist_restore.core.shortening import NAME_WIDTH, shorten, shorten_apart
from dist_restore.core.text import escape_text, human_bytes, natural_key, printable
from dist_restore.planning.row_families import PROBLEMS, TableRow, families, patterns, without_numbers

OPS_WIDTH = 40
MAX_LISTED_NAME = 400  # below the table names are whole, to be copied; longer ones are nobody's to copy
REASON_WIDTH = 110


def plan_table(rows: tuple[TableRow, ...], unused: tuple[tuple[str, str], ...] = ()) -> str:
    """The table of a plan: families, then the reasons of what needs attention, then the coverage.

    Args:
      rows: one per target variable.
      unused: `(name, reason)` of the source tensors that nothing used; listed when given.
    """
    shown = families(rows)
    parts = [_table(shown), _problems(shown), _unused(unused), coverage_lines(rows)]
    return "\n\n".join(part for part in parts if part)


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
        shorten(printable(row.ops), OPS_WIDTH),
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
        by_reason.setdefault(without_numbers(reason), []).append((name, reason))
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
    lines = textwrap.wrap(printable(text), REASON_WIDTH - 4, break_long_words=False, break_on_hyphens=False)
    return textwrap.indent("\n".join(lines), "    ")


def _layout(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> str:
    align = ["right" if name in right else "left" for name in header]
    text = tabulate.tabulate(
        rows, headers=header, tablefmt="simple", disable_numparse=True, colalign=align if rows else None
    )
    return "\n".join(line.rstrip() for line in str(text).splitlines())
