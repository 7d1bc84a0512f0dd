"""A plan run backwards: exact rules, name by name, from what its targets were to what its sources were.

A plan knows every shape, so that whatever has an inverse gets it: unequal parts, reshapes, pads. Where something is
lost on the way, or would be rounded, that is an error and not a rule.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import NoReturn

from dist_restore.core.errors import RuleError
from dist_restore.ops import Cast, Op, PartOp, describe, inverse, stages
from dist_restore.planning.entries import PlanEntry
from dist_restore.planning.plan import RestorePlan
from dist_restore.planning.rules.inverse import inexact, inverse_drops
from dist_restore.planning.rules.rule import Rule
from dist_restore.planning.rules.rule_set import RuleSet


def inverse_of_plan(plan: RestorePlan, rules: RuleSet) -> RuleSet:
    """The rules that lead from a checkpoint of the plan's targets back to one of its sources.

    Args:
      plan: of the way there.
      rules: by which it was made; what they drop is kept on the way back.

    Raises:
      RuleError: an entry cannot be undone; the message names its target and why.
    """
    groups: dict[tuple[str, ...], list[PlanEntry]] = collections.defaultdict(list)
    for entry in plan.entries:
        if entry.filled:
            groups[entry.sources].append(entry)
    _refuse_shared(groups)
    found = [_undo(entries) for entries in groups.values()]
    return RuleSet((*found, *inverse_drops(rules.rules)), (), f"inverse of {rules.origin}" if rules.origin else "")


def _refuse_shared(groups: dict[tuple[str, ...], list[PlanEntry]]) -> None:
    counts = collections.Counter(name for sources in groups for name in dict.fromkeys(sources))
    for sources, entries in groups.items():
        for name in sources:
            if counts[name] > 1 or sources.count(name) > 1:
                _refuse(entries[0], f"{name!r} was used more than once, and the copies may differ by now")


def _undo(entries: list[PlanEntry]) -> Rule:
    entries = sorted(entries, key=_part)
    _require_all_parts(entries)
    chains = [_undone(entry) for entry in entries]
    if any(chain != chains[0] for chain in chains):
        _refuse(entries[0], f"what undoes it does not undo {entries[1].target!r}, which is another part of its source")
    sources = entries[0].sources
    return Rule(from_=tuple(e.target for e in entries), to=sources, ops=chains[0])


def _part(entry: PlanEntry) -> int:
    return next((op.part or 0 for op in entry.ops if isinstance(op, PartOp)), 0)


def _require_all_parts(entries: Sequence[PlanEntry]) -> None:
    """Every part of a tensor must be somewhere, and once."""
    entry = entries[0]
    cut = next((op for op in entry.ops if isinstance(op, PartOp)), None)
    wanted = 1 if cut is None else _count(cut, entry)
    if [_part(e) for e in entries] != list(range(wanted)):
        what = "of its source are not all among the targets" if wanted > 1 else "are copies, which may differ by now"
        _refuse(entry, f"the {wanted} part(s) {what}")


def _count(cut: PartOp, entry: PlanEntry) -> int:
    """How many parts a bound op makes; only the first op of several sources sees one tensor, and specs are equal."""
    before = tuple(op for op in entry.ops[: entry.ops.index(cut)] if not isinstance(op, Cast))
    return cut.pieces(stages(before, entry.source_specs)[-1], 1)


def _undone(entry: PlanEntry) -> tuple[Op, ...]:
    for op in entry.ops:
        reason = inexact(op)
        if reason:
            _refuse(entry, reason)
    dtype = entry.source_specs[0].dtype
    moves = tuple(op for op in entry.ops if not isinstance(op, Cast))
    found = inverse(moves, entry.source_specs) if moves else ()
    if found is None:
        _refuse(entry, f"{describe(entry.ops)} loses something, and cannot be undone")
    # First of all, so that everything else happens in the dtype in which it was done.
    return found if dtype == entry.spec.dtype else (Cast(dtype), *found)


def _refuse(entry: PlanEntry, reason: str) -> NoReturn:
    raise RuleError(f"{entry.target!r} ({entry.evidence or 'equal names'}) has no way back: {reason}.")
