"""Rules run backwards by their text alone: `from` and `to` change places, and each op is replaced by what undoes it.

Knows no shapes, so that reshapes, and pads with something behind, have no inverse here; `inverse_plan` has them.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Sequence

from dist_restore.core.errors import RuleError
from dist_restore.ops import (
    Cast,
    Concat,
    Fill,
    Op,
    Pad,
    PermuteHeads,
    RemapRows,
    Scale,
    Slice,
    Split,
    Stack,
    Transpose,
    Unstack,
)
from dist_restore.planning.rules.patterns import Pattern, compile_pattern
from dist_restore.planning.rules.rule import Rule


def inverse_of_rules(rules: Iterable[tuple[str, Rule]]) -> tuple[Rule, ...]:
    """The rules that lead back: from a checkpoint of the new names to a model of the old ones.

    `keep` and `drop` change places. Casts are left out, for they follow from the variables' dtypes; none may be lossy.
    `split` without `sizes` undoes `concat`, so that unequal parts are refused when the rules are used.

    Args:
      rules: each with what messages call it.

    Raises:
      RuleError: a rule has no inverse; the message has its number and why.
    """
    return tuple(_inverse(rule, where) for where, rule in rules)


def inverse_slots(slots: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """`[slots]` with its two sides exchanged."""
    found = tuple((ours, theirs) for theirs, ours in slots)
    if len({theirs for theirs, _ in found}) < len(found):
        raise RuleError("[slots] has no inverse: one role fills several.")
    return found


def inverse_drops(rules: Iterable[Rule]) -> Iterator[Rule]:
    """What rules drop on the way there is kept on the way back."""
    for rule in rules:
        if rule.drop:
            yield Rule(keep=rule.drop, optional=True, regex=rule.regex)


def inexact(op: Op) -> str:
    """Why an op does not give back every bit, though it has an inverse; empty when it does."""
    if isinstance(op, Scale) and math.frexp(abs(op.by))[0] != 0.5:
        return f"scale by {op.by} rounds, and so does its inverse (only powers of two do not)"
    return "a cast is lossy" if isinstance(op, Cast) and op.lossy else ""


def _inverse(rule: Rule, where: str) -> Rule:
    try:
        if rule.keep or rule.drop:
            return dataclasses.replace(rule, keep=rule.drop, drop=rule.keep)
        if rule.regex:
            raise RuleError("regular expressions cannot be run backwards; write it with captures such as {i}")
        _require_one_to_one(rule)
        ops = tuple(op for op in map(_undo, reversed(rule.ops)) if op is not None)
        return dataclasses.replace(rule, from_=rule.targets, to=rule.sources, ops=ops)
    except RuleError as error:
        raise RuleError(f"{where} ({rule.describe()}) has no inverse: {error}.") from error


def _require_one_to_one(rule: Rule) -> None:
    """Each name on one side must tell the names on the other."""
    sides = [[compile_pattern(text) for text in names] for names in (rule.sources, rule.targets)]
    told = [set(_told(patterns)) for patterns in sides]
    captures = {name for patterns in sides for p in patterns for place in p.places for name in _names(place)}
    for side, patterns in enumerate(sides):
        missing = sorted(captures - told[side])
        if missing:
            texts = ", ".join(p.text for p in patterns)
            raise RuleError(f"{texts!r} does not tell what {{{missing[0]}}} is")
    drivers = [patterns[0] for patterns in sides]
    if not any(not d.computed and captures <= d.bare for d in drivers):
        raise RuleError("neither side has each capture alone, such as {i}, in its first name")
    cuts = sum(isinstance(op, (Split, Unstack)) for op in rule.ops)
    joins = sum(isinstance(op, (Concat, Stack)) for op in rule.ops)
    if len(rule.targets) > 1 and cuts != 1:
        raise RuleError("one source fills several targets, and the copies may differ by now")
    if len(rule.sources) > 1 and joins != 1:
        raise RuleError("several sources are not joined by one concat or stack")


def _told(patterns: Iterable[Pattern]) -> Iterator[str]:
    """The captures whose value follows from a name: alone, or in arithmetic that gives no number twice."""
    for pattern in patterns:
        yield from pattern.bare
        for place in pattern.places:
            names = _names(place)
            # Of one capture that occurs once, without //, all sums and products are linear.
            if len(names) == 1 and "//" not in place and not _times_zero(place):
                yield names[0]


def _names(place: str) -> list[str]:
    return re.findall(r"[A-Za-z_]\w*", place)


def _times_zero(place: str) -> bool:
    return re.search(r"\b0+\s*\*|\*\s*0+\b", place) is not None


def _undo(op: Op) -> Op | None:
    """What undoes an op whatever its input's shape is; None for what needs nothing."""
    reason = inexact(op)
    if reason:
        raise RuleError(reason)
    if isinstance(op, Cast):
        return None
    if isinstance(op, Transpose):
        perm = [axis % len(op.perm) for axis in op.perm]
        return Transpose(tuple(sorted(range(len(perm)), key=perm.__getitem__)))
    if isinstance(op, Concat):
        return Split(op.axis)
    if isinstance(op, Split):
        return Concat(op.axis)
    if isinstance(op, Stack):
        return Unstack(op.axis)
    if isinstance(op, Unstack):
        return Stack(op.axis)
    if isinstance(op, Scale):
        return Scale(1 / op.by)
    if isinstance(op, PermuteHeads):
        return dataclasses.replace(op, layout=op.layout.opposite)
    if isinstance(op, Pad) and not any(op.after):
        return Slice(op.before, (-1,) * len(op.before))
    if isinstance(op, RemapRows):
        return _undo_remap(op)
    raise RuleError(f"{op.NAME} needs shapes to be undone, or loses something; convert with a plan instead")


def _undo_remap(op: RemapRows) -> RemapRows:
    rows = op.rows.inverse() if op.rows is not None else None
    if rows is None:
        raise RuleError("remap_rows drops or repeats rows, or its vocabularies are not known")
    return RemapRows(new_rows=Fill.ZEROS, old_vocab=op.new_vocab, new_vocab=op.old_vocab, axis=op.axis, rows=rows)
