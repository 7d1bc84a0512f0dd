"""Slots that a pattern of the rules reaches: it may say which optimizer is meant, never whose slot it is.

A pattern sees paths, and takes a slot for its path's text. So what follows from the slot's owner is found too, and has
the last word; where the pattern takes another tensor, a rule must say it literally. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from dist_restore.core.index import SourceTensor, TargetVariable
from dist_restore.planning.apply_rules import is_seed
from dist_restore.planning.entries import PlanEntry, Problem, Status
from dist_restore.planning.entry_builder import Choice, build_entry, unfilled
from dist_restore.planning.slots import Owner, SlotResolver


def settle_slot(target: TargetVariable, ruled: Choice, owner: Owner, resolver: SlotResolver) -> PlanEntry:
    """The entry of a slot that a pattern reaches.

    Args:
      target: the slot.
      ruled: what the pattern gives it.
      owner: what was decided for its owner.
      resolver: finds what follows from that.
    """
    if owner.entry.problem is not Problem.NONE:
        return resolver.resolve(target, owner)
    if is_seed(target, ruled.sources):
        return _seeded(target, ruled, owner, resolver)
    if _is_of_one(target, ruled, owner):
        return build_entry(target, ruled)
    followed = _follow(target, ruled, owner, resolver)
    same = followed.filled and followed.sources == _names(ruled.sources)
    if same and _same_ops(ruled, owner, followed):
        return followed
    return _ambiguous(target, ruled, followed, same=same)


def _is_of_one(target: TargetVariable, ruled: Choice, owner: Owner) -> bool:
    """Whether it is the slot of one of the checkpoints of which its owner is the mean: the pattern says of which."""
    if owner.choice is None or [op.NAME for op in owner.choice.ops] != ["mean"] or len(ruled.sources) > 1 or ruled.ops:
        return False
    (source,), mine = ruled.sources, target.slot
    theirs = [s for s in owner.choice.sources if s.part == source.part]
    if len(theirs) > 1 or not theirs or not source.part or source.slot is None or mine is None:
        return False
    return source.slot.owner == theirs[0].name and source.slot.role == mine.role


def _follow(target: TargetVariable, ruled: Choice, owner: Owner, resolver: SlotResolver) -> PlanEntry:
    slot, pointed = target.slot, ruled.sources[0].slot
    assert slot is not None
    followed = resolver.resolve(target, owner, pointed)
    if followed.filled or pointed is None or pointed.role == slot.role:
        return followed
    # Between two roles a pattern must spell both out, which is as good as [slots] where their classes are the same.
    other = resolver.resolve(target, owner, pointed, role=pointed.role)
    return other if other.filled else followed


def _same_ops(ruled: Choice, owner: Owner, followed: PlanEntry) -> bool:
    """Whether what the rule does to a slot is what follows from its owner: of the owner's own rule it always is."""
    if not ruled.ops or (owner.choice is not None and owner.choice.evidence == ruled.evidence):
        return True
    return owner.choice is not None and owner.choice.ops == ruled.ops == followed.ops


def _seeded(target: TargetVariable, ruled: Choice, owner: Owner, resolver: SlotResolver) -> PlanEntry:
    """A slot that begins as what its variable is: an average of it."""
    slot, choice = target.slot, owner.choice
    assert slot is not None
    if not resolver.is_copy(slot) and _is_named_after(ruled, owner):
        return build_entry(target, ruled)
    if not resolver.is_copy(slot):
        why = f"{slot.role!r} is made of gradients, and no variable's values mean the same"
        return _refuse(target, ruled, why, ())
    followed = resolver.resolve(target, owner)
    if followed.filled:
        return _ambiguous(target, ruled, followed, same=False)
    if choice is None or choice.sources != ruled.sources or (ruled.ops and choice.ops != ruled.ops):
        why = f"its owner {slot.owner!r} is {_made_of(owner.entry)}, and it must begin as that does"
        return _refuse(target, ruled, why, owner.entry.sources)
    evidence = f"{ruled.evidence}: it begins as its variable ({choice.evidence})"
    return build_entry(target, msgspec.structs.replace(choice, evidence=evidence, seed=slot.owner))


def _is_named_after(ruled: Choice, owner: Owner) -> bool:
    """Whether it is state of a class that nobody knows, named after what fills its owner: `a/kernel/mine`."""
    theirs = _names(owner.choice.sources) if owner.choice is not None else ()
    mine = _names(ruled.sources)
    return len(theirs) == len(mine) == 1 and not ruled.ops and mine[0].startswith(f"{theirs[0]}/")


def _ambiguous(target: TargetVariable, ruled: Choice, followed: PlanEntry, *, same: bool) -> PlanEntry:
    if same:
        return _refuse(target, ruled, "ops of a pattern are not meant for slots, which follow their owners", ())
    if followed.filled:
        return _refuse(target, ruled, f"following its owner it is {_made_of(followed)}", followed.sources)
    return _refuse(target, ruled, f"following its owner nothing fills it: {followed.reason.rstrip('.')}", ())


def _refuse(target: TargetVariable, ruled: Choice, why: str, others: Sequence[str]) -> PlanEntry:
    names = _names(ruled.sources)
    source = repr(names[0]) if len(names) == 1 else str(list(names))
    reason = (
        f"{ruled.evidence} takes it by its path from {source}, but {why}. Let the pattern leave slots out (they follow "
        f"their owners by themselves), or put a rule before it that spells the name out: from = {source}, to = "
        f"{target.name!r}, or keep = {target.name!r}."
    )
    entry = unfilled(target, Status.AMBIGUOUS, reason, evidence=ruled.evidence, problem=Problem.AMBIGUOUS)
    return msgspec.structs.replace(entry, candidates=tuple(dict.fromkeys([*names, *others])))


def _made_of(entry: PlanEntry) -> str:
    return f"made of {' + '.join(map(repr, entry.sources))}" if entry.filled else entry.status.value


def _names(sources: Sequence[SourceTensor]) -> tuple[str, ...]:
    return tuple(s.name for s in sources)
