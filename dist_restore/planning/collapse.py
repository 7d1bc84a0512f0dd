"""State of an optimizer that must not begin anew where what it belongs to is restored.

Most slots may begin as a fresh optimizer has them, and the next steps are a little larger or smaller. These may not,
because the next steps or the end of training would destroy restored weights with them:

- an average of weights, and the weights that ScheduleFreeAdamW calls momentum, are weights, and become the model's;
- Ftrl computes a weight from its `linear` alone, whatever the weight was;
- what an update is divided by may not be zero where what is divided is not.

A rule that spells the name of such a slot out is taken at its word. Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import msgspec

from dist_restore.core.index import OptimizerInfo, Slot, TargetIndex, TargetVariable
from dist_restore.naming.optimizer_classes import KERAS_2
from dist_restore.naming.slot_roles import begins_with, is_copy
from dist_restore.planning.apply_rules import Decisions
from dist_restore.planning.entries import PlanEntry, Problem, Status
from dist_restore.planning.slots import seed_advice

_NO_INFO = OptimizerInfo("", "", "", ())


def refuse_collapse(
    entries: Iterable[PlanEntry], targets: TargetIndex, decisions: Decisions, begin: Collection[str]
) -> list[PlanEntry]:
    """The entries; those of slots that would destroy restored weights are refused, with the rule that mends it.

    Args:
      entries: of the plan.
      targets: the program's index.
      decisions: of the rules.
      begin: slots of optimizers that made no step on either side: what they hold is right.
    """
    done = list(entries)
    slots = {v.name: v for v in targets.variables if v.slot is not None}
    if not slots:
        return done
    judge = _Judge({e.target: e for e in done}, targets)
    right = decisions.kept_literally | {n for n, a in decisions.assigned.items() if a.literal} | {*begin}
    return [_judged(e, slots[e.target], judge) if e.target in slots and e.target not in right else e for e in done]


def _judged(entry: PlanEntry, target: TargetVariable, judge: _Judge) -> PlanEntry:
    if entry.status is Status.KEPT:
        reason = judge.kept(target)
    elif entry.status is Status.RESIZED:
        reason = judge.resized(entry, target)
    else:
        return entry
    return _refused(entry, reason) if reason else entry


def _refused(entry: PlanEntry, reason: str) -> PlanEntry:
    return msgspec.structs.replace(
        entry,
        sources=(),
        source_specs=(),
        ops=(),
        elements=0,
        status=Status.UNMATCHED,
        reason=reason,
        problem=Problem.UNMATCHED,
        candidates=entry.sources,
        unchecked=(),
    )


class _Judge:
    """Knows what became of each variable."""

    def __init__(self, entries: Mapping[str, PlanEntry], targets: TargetIndex) -> None:
        self._entries = entries
        self._optimizers = {o.name: o for o in targets.optimizers}

    def kept(self, target: TargetVariable) -> str:
        """Why a slot may not keep its value; empty where it may."""
        slot = target.slot
        assert slot is not None
        info = self._optimizers.get(slot.optimizer, _NO_INFO)
        if is_copy(slot.role, info.family):
            return "" if self._begins_right(slot, info) else self._why_copied(target, slot, info)
        if (info.family, slot.role) == ("ftrl", "linear") and not self._is_kept(slot.owner):
            return (
                "ftrl computes its variable from 'linear' alone, so that with one that begins as zero the next step "
                f"would throw the restored {slot.owner!r} away. {_at_your_word(target)}"
            )
        restored = [r for r in begins_with(slot.role, info.family) if self._is_filled(_sibling(slot, r))]
        if not restored:
            return ""
        other = _sibling(slot, restored[0])
        return (
            f"{slot.role!r} would begin anew beside a restored {restored[0]!r}, which {info.family} divides by its "
            f"root: where a gradient is zero, the next step has no bound. Keep both, with a rule before the others: "
            f'keep = "{_root(slot, restored[0])}/{{rest}}" for {other!r}. {_at_your_word(target)}'
        )

    def resized(self, entry: PlanEntry, target: TargetVariable) -> str:
        """Why new elements of a slot may not keep their values; empty where they may."""
        slot = target.slot
        assert slot is not None
        info = self._optimizers.get(slot.optimizer, _NO_INFO)
        if slot.role != "average" or _copies_at_first(info) or self._starts_at_zero(slot):
            return ""
        if not any(op.keeps for op in entry.ops):
            return ""
        return (
            f"new elements of an average keep what they hold, which is zero and not what {slot.owner!r} has there, and "
            'the optimizer overwrites its variable with it in the end. Fill both with "mean", "normal" or "zeros" in '
            f"the rule for {slot.owner!r}. {_at_your_word(target)}"
        )

    def _begins_right(self, slot: Slot, info: OptimizerInfo) -> bool:
        """Whether what a copy of a variable holds by itself is its variable, or soon will be."""
        if slot.role != "average" or _copies_at_first(info):
            return self._is_kept(slot.owner)
        return self._starts_at_zero(slot)

    def _starts_at_zero(self, slot: Slot) -> bool:
        """Whether the optimizer's counter is not restored: Keras 3 copies weights into averages at iteration 0."""
        return self._is_kept(f"{slot.optimizer}/iterations" if slot.optimizer else "iterations")

    def _why_copied(self, target: TargetVariable, slot: Slot, info: OptimizerInfo) -> str:
        owner = self._entries.get(slot.owner)
        what = "the average of a variable" if slot.role == "average" else "a copy of its variable, which is trained"
        reason = (
            f"{slot.role!r} is {what} and becomes the variable's value again, but what it holds now is not that of "
            f"{slot.owner!r}"
        )
        if owner is not None and owner.filled and len(owner.sources) == 1:
            return f"{reason}{seed_advice(slot, owner.sources[0])}. {_at_your_word(target)}"
        return (
            f"{reason}. In the program, assign the variable's value to it before the restore, and then say so: "
            f'keep = "{target.name}".'
        )

    def _is_kept(self, name: str) -> bool:
        entry = self._entries.get(name)
        return entry is not None and entry.status is Status.KEPT

    def _is_filled(self, name: str) -> bool:
        entry = self._entries.get(name)
        return entry is not None and entry.filled


def _copies_at_first(info: OptimizerInfo) -> bool:
    """Whether averages are made as copies of their variables: tf_keras's are, those of Keras 3 are zero."""
    return info.structure[:1] == (KERAS_2,)


def _root(slot: Slot, role: str) -> str:
    return f"{slot.optimizer}/{role}" if slot.optimizer else role


def _sibling(slot: Slot, role: str) -> str:
    return f"{_root(slot, role)}/{slot.owner}"


def _at_your_word(target: TargetVariable) -> str:
    return f'To have it all the same, spell it out: keep = "{target.name}".'
