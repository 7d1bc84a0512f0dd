"""From a plan's problems to the one named error that lists them all. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from dist_restore.core.errors import (
    AmbiguousMatchError,
    DtypeMismatchError,
    RestoreError,
    ShapeMismatchError,
    UnmatchedError,
)
from dist_restore.core.shortening import shorten
from dist_restore.core.text import escape_text
from dist_restore.planning.entries import PlanEntry, Problem
from dist_restore.planning.plan import RestorePlan

_ERRORS: tuple[tuple[Problem, type[RestoreError], str], ...] = (
    (Problem.SHAPE, ShapeMismatchError, "have a source of another shape"),
    (Problem.DTYPE, DtypeMismatchError, "have a source of another dtype"),
    (Problem.AMBIGUOUS, AmbiguousMatchError, "are ambiguous"),
    (Problem.UNMATCHED, UnmatchedError, "have no source"),
)
# Lines per kind of problem; the plan has them all.
MAX_LISTED = 20
MAX_SUGGESTED = 40
# Characters of one name, reason or line; longer ones are cut in the middle.
MAX_SHOWN = 800


def refuse_problems(plan: RestorePlan) -> None:
    """Raises for a plan that `restore()` may not carry out; all problems are in the message.

    Raises:
      ShapeMismatchError, DtypeMismatchError, AmbiguousMatchError, UnmatchedError: the first kind, in this
        order, that occurs.
    """
    problems = plan.problems
    kinds = [(p, error, text) for p, error, text in _ERRORS if any(e.problem is p for e in problems)]
    if not kinds:
        return _refuse_empty(plan)
    parts = [_section([e for e in problems if e.problem is p], text) for p, _, text in kinds]
    parts.append(_advice(plan))
    names = tuple(e.target for e in problems)
    raise kinds[0][1](f"Nothing was changed. From {_short(plan.checkpoint)}:\n" + "\n".join(parts), names=names)


def _refuse_empty(plan: RestorePlan) -> None:
    """A restore that fills nothing is an error, whatever was allowed; a counter of saves alone is nothing."""
    if any(e.filled and e.target != "save_counter" for e in plan.entries):
        return
    sources = ", ".join(repr(u.name) for u in plan.unused[:5])
    targets = ", ".join(repr(e.target) for e in plan.entries[:5])
    raise UnmatchedError(
        f"The restore from {plan.checkpoint!r} would fill nothing. The program has {len(plan.entries)} variables "
        f"({targets}, ...) and the checkpoint {len(plan.unused)} other tensors ({sources}, ...). Check that the "
        "checkpoint is of this model, or write rules that map the names."
    )


def _section(entries: Sequence[PlanEntry], text: str) -> str:
    lines = [f"{len(entries)} variable(s) {text}:"]
    lines += [_line(e) for e in entries[:MAX_LISTED]]
    if len(entries) > MAX_LISTED:
        lines.append(f"  ... and {len(entries) - MAX_LISTED} more; restorer.plan(path).summary() lists them all")
    return "\n".join(lines)


def _line(entry: PlanEntry) -> str:
    near = ", ".join(_short(c) for c in entry.candidates[:3])
    stop = "" if entry.reason.endswith(".") else "."
    tail = f"{stop} Candidates: {near}." if near else ""
    return f"  {_short(entry.target)} {entry.spec}: {_short(entry.reason)}{tail}"


def _short(text: str) -> str:
    """Escaped, and of bounded length: names may be hostile, and a message is read by people."""
    return shorten(escape_text(text), MAX_SHOWN)


def _advice(plan: RestorePlan) -> str:
    rules = plan.suggestions.split("\n")
    shown = rules[:MAX_SUGGESTED]
    while len(shown) < len(rules) and shown and shown[-1]:
        shown.pop()  # no half rule
    more = "\n  ... (all in plan.suggestions)" if len(shown) < len(rules) else ""
    text = "\n".join(f"  {_short(line)}".rstrip() for line in shown).rstrip()
    title = _title(shown)
    keep = 'To let what nothing fills keep its present value, write keep rules or pass unmatched="keep".'
    if all(entry.problem in (Problem.SHAPE, Problem.DTYPE) for entry in plan.problems):  # which the option leaves alone
        keep = "To let such a variable keep its present value, write a keep rule for it."
    return f"{title}\n{text}{more}\n{keep}" if plan.suggestions else keep


def _title(lines: Sequence[str]) -> str:
    if not any(line.startswith("[[rule]]") for line in lines):
        return "For your rule file, once it is clear what is meant:"
    also = " (what is a comment is a guess, or a question)" if any(line.startswith("#") for line in lines) else ""
    return f"Rules that would fix it, for your rule file{also}:"
