"""Optimizer slots follow their owners: same sources, same ops, by (role, owner) and never by an index."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from dist_restore.core.errors import RuleError
from dist_restore.core.index import (
    AliasKind,
    CheckpointIndex,
    OptimizerInfo,
    Slot,
    SourceTensor,
    TargetIndex,
    TargetVariable,
    in_part,
)
from dist_restore.core.nearest import quote
from dist_restore.naming.slot_roles import SHADOWS, begins_above_zero, begins_with, degree_of, is_copy, role_of_slot
from dist_restore.ops import for_slot, refuses_slot
from dist_restore.planning.entries import PlanEntry, Problem, Proof, Status
from dist_restore.planning.entry_builder import Choice, build_entry, unfilled
from dist_restore.planning.keep_advice import keep_rules
from dist_restore.planning.matching.by_slot_list import SlotLists
from dist_restore.planning.matching.by_state_number import NumberedSlots
from dist_restore.planning.matching.outcome import Match
from dist_restore.planning.same_class import OF_ALL, is_presumed, same_class

_NOT_ZERO = "new elements would begin as zero, by which this optimizer divides where a gradient is zero"


class Owner(msgspec.Struct, frozen=True, gc=False):
    """What was decided for the owner of slots.

    Attributes:
      entry: its plan entry.
      choice: its sources and unbound ops; None when nothing fills it.
    """

    entry: PlanEntry
    choice: Choice | None


class SlotResolver:
    """Finds the sources of slots; one object per resolution."""

    def __init__(
        self,
        sources: CheckpointIndex,
        targets: TargetIndex,
        roles: Iterable[tuple[str, str]],
        dropped: frozenset[str],
        numbered: NumberedSlots,
        listed: SlotLists,
    ) -> None:
        """Prepares the tables.

        Args:
          sources: the checkpoint's index.
          targets: the program's index.
          roles: `[slots]` of the rules: (role in the checkpoint, role in the program).
          dropped: source names that rules dropped.
          numbered: what numbers say, where the checkpoint says no more.
          listed: what the optimizers' lists say, where names are not unique.
        """
        self._by_number, self._listed = numbered, listed
        self._table: dict[tuple[str, str, str], SourceTensor] = {}
        self._of_owner: dict[tuple[str, str], set[str]] = collections.defaultdict(set)
        for tensor in sources.tensors:
            if tensor.slot is not None and tensor.name not in dropped:
                slot = tensor.slot
                self._table[slot.optimizer, slot.role, slot.owner] = tensor
                self._of_owner[slot.role, slot.owner].add(slot.optimizer)
        self._theirs = {o.name: o for o in sources.optimizers if o.roles}
        self._silent = [o for o in sources.optimizers if not o.roles]
        self._numbered = _numbered(sources, self._silent)
        self._ours = {o.name: o for o in targets.optimizers if o.roles}
        self._roles = {ours: theirs for theirs, ours in roles}
        self._targets = targets
        self._lacking: dict[str, Sequence[str]] = {}
        # (optimizer, role, optimizer of the checkpoint) -> what `_refuse_meaning` said: the same for all its slots.
        self._meanings: dict[tuple[str, str, str], str] = {}

    def resolve(self, target: TargetVariable, owner: Owner, pointed: Slot | None = None, role: str = "") -> PlanEntry:
        """The entry of one slot, given what was decided for its owner.

        Args:
          target: the slot.
          owner: what was decided for its owner.
          pointed: a slot of the checkpoint at which a rule points; it says which optimizer is meant.
          role: the role in the checkpoint, where a rule says so.
        """
        slot = target.slot
        assert slot is not None
        if owner.choice is None:
            return self._follow_unfilled(target, owner.entry)
        names = [s.name for s in owner.choice.sources]
        if any(s.slot is not None for s in owner.choice.sources):
            raw = [s.slot.owner for s in owner.choice.sources if s.slot is not None and s.slot.role == "average"]
            if pointed is None or len(raw) < len(names) or slot.role == "average":
                return self._follow_slot(target, owner.choice)
            names = raw  # the rule says that moments of the raw weights are meant
        listed = self._listed.find(target, owner.choice.sources)
        if isinstance(listed, str):
            return self._unmatched(target, listed)
        if listed is not None:
            proof = Proof.ORDER if listed.is_order else owner.choice.proof
            family = self._ours[slot.optimizer].family
            return self._build(target, msgspec.structs.replace(owner.choice, proof=proof), (listed.source,), family)
        if not self._theirs:
            return self._no_slots(target, owner)
        return self._of_optimizer(target, owner, owner.choice, names, pointed, role)

    def _of_optimizer(
        self,
        target: TargetVariable,
        owner: Owner,
        choice: Choice,
        names: Sequence[str],
        pointed: Slot | None,
        role: str,
    ) -> PlanEntry:
        """The entry of a slot that one of the checkpoint's optimizers has, for owners of these names."""
        slot = target.slot
        assert slot is not None
        said, role = bool(role) or slot.role in self._roles, role or self._roles.get(slot.role, slot.role)
        parts = sorted({source.part for source in choice.sources})
        if len(parts) > 1:
            return self._unmatched(target, _of_several(target, role, choice.sources, parts))
        meant = self._theirs.get(pointed.optimizer) if pointed is not None else None
        optimizer = meant or self._pair(slot.optimizer, role, choice.sources)
        if isinstance(optimizer, str):
            return self._unmatched(target, optimizer)
        role = role if said else self._word(optimizer, slot)
        refusal = self._meaning(slot, optimizer)
        if refusal:
            return self._unmatched(target, refusal)
        found = [self._table.get((optimizer.name, role, name)) for name in names]
        tensors = tuple(t for t in found if t is not None)
        if len(tensors) < len(found):
            missing = names[found.index(None)]
            reason = f"the checkpoint has no slot {role!r} of {missing!r}"
            return self._lacks(target, owner, reason, self._stored(role, missing))
        # Where a name that somebody chose hides the class in the checkpoint, it is that of the program (`_same_class`).
        family = optimizer.family or self._ours.get(slot.optimizer, optimizer).family
        if is_presumed(optimizer):  # no proof, and said to be none
            choice = msgspec.structs.replace(choice, proof=Proof.ORDER)
        return self._build(target, choice, tensors, family)

    def _meaning(self, slot: Slot, optimizer: OptimizerInfo) -> str:
        """What `_refuse_meaning` says, asked once for all slots of a role."""
        key = slot.optimizer, slot.role, optimizer.name
        refusal = self._meanings.get(key)
        if refusal is None:
            refusal = self._meanings[key] = self._refuse_meaning(slot.optimizer, slot.role, optimizer)
        return refusal

    def with_advice(self, entries: Iterable[PlanEntry]) -> list[PlanEntry]:
        """The entries of all slots, those that the checkpoint lacks with the rules of which one says what is meant."""
        if not self._lacking:
            return list(entries)
        found = list(entries)
        kept = {e.target for e in found if e.status is Status.KEPT}
        keep = keep_rules(self._lacking.keys(), self._targets.variables, kept | self._of_missing_roles())
        return [_with_advice(e, keep[e.target], self._lacking[e.target]) if e.target in keep else e for e in found]

    def _of_missing_roles(self) -> set[str]:
        """Slots whose role the checkpoint has for no variable at all."""
        stored = {role for role, _ in self._of_owner}
        slots = ((v.name, v.slot.role) for v in self._targets.variables if v.slot is not None)
        return {name for name, role in slots if self._roles.get(role, role) not in stored}

    def _word(self, theirs: OptimizerInfo, slot: Slot) -> str:
        """What the checkpoint calls a role, where a name that somebody chose hides the class that has the words."""
        ours = self._ours.get(slot.optimizer)
        if theirs.family or ours is None or slot.role in theirs.roles:
            return slot.role
        return next((r for r in theirs.roles if role_of_slot(r, ours.family) == slot.role), slot.role)

    def is_copy(self, slot: Slot) -> bool:
        """Whether a slot is made of its variable's values."""
        ours = self._ours.get(slot.optimizer)
        return is_copy(slot.role, ours.family if ours is not None else "")

    def _lacks(self, target: TargetVariable, owner: Owner, reason: str, elsewhere: Sequence[str]) -> PlanEntry:
        """A slot that the checkpoint lacks; the rules that say what is meant are added when all of these are known."""
        slot = target.slot
        assert slot is not None and owner.choice is not None
        if self.is_copy(slot) and len(owner.choice.sources) == 1:
            return self._unmatched(target, f"{reason}{seed_advice(slot, owner.choice.sources[0].name)}")
        self._lacking[target.name] = elsewhere
        return self._unmatched(target, reason)

    def _follow_unfilled(self, target: TargetVariable, entry: PlanEntry) -> PlanEntry:
        reason = f"its owner {entry.target!r} is {entry.status.value}"
        if entry.status is Status.KEPT:
            return unfilled(target, Status.KEPT, f"{reason}, and slots follow their owners", evidence=entry.evidence)
        problem = Problem.AMBIGUOUS if entry.status is Status.AMBIGUOUS else Problem.UNMATCHED
        return unfilled(target, entry.status, reason, evidence=entry.evidence, problem=problem)

    def _pair(self, ours: str, role: str, sources: tuple[SourceTensor, ...]) -> OptimizerInfo | str:
        """The checkpoint's optimizer that belongs to one of the program's, or why there is none."""
        named = in_part(sources[0].part, ours)
        if named in self._theirs:
            return self._theirs[named]
        holders = set.intersection(*(self._of_owner.get((role, s.name), set()) for s in sources))
        if len(holders) == 1:
            return self._theirs[holders.pop()]
        others = [o for o in self._theirs.values() if o.family != SHADOWS]
        if len(others) == 1 and len(self._ours) == 1:
            return others[0]
        return f"the checkpoint holds the optimizers {quote(sorted(self._theirs))}, and none is called {ours!r}"

    def _no_slots(self, target: TargetVariable, owner: Owner) -> PlanEntry:
        """The entry of a slot where the checkpoint has none at all that are known as such."""
        found = self._by_number.find(target)
        if isinstance(found, Match):
            return build_entry(target, Choice((found.source,), (), found.evidence, proof=found.proof))
        alike = [t for t in self._numbered if t.spec.shape == target.spec.shape]
        assert target.slot is not None
        if self._silent and target.slot.role in OF_ALL and found is None:
            name = self._silent[0].name
            return self._lacks(target, owner, f"the checkpoint's optimizer {name!r} keeps no {target.slot.role!r}", ())
        if self._numbered:
            place = self._numbered[0].name.rpartition("/")[0]
            why = f"{found}. It" if found else "the checkpoint"
            reason = (
                f"{why} numbers the variables of {self._silent[0].name!r} and says neither their roles nor "
                f"their owners; {len(alike)} of them have this shape. Their numbers are their places in the list "
                "`optimizer.variables` of the program that wrote it: print the paths there, and write a rule for each, "
                f'from = "{place}/<number>", to = "{target.name}"'
            )
            return self._unmatched(target, reason)
        if self._silent:
            known = f"{self._silent[0].name!r} ({self._silent[0].family or 'class unknown'})"
            return self._lacks(target, owner, f"the checkpoint's optimizer {known} keeps no slots", ())
        return self._unmatched(target, "the checkpoint holds no optimizer slots")

    def _follow_slot(self, target: TargetVariable, owner: Choice) -> PlanEntry:
        """A slot whose owner a rule fills from a slot, such as the average of weights."""
        slot = target.slot
        assert slot is not None
        theirs = [s.slot for s in owner.sources]
        if slot.role == "average" and all(s is not None and s.role == "average" for s in theirs):
            evidence = f"its owner is the average itself ({owner.evidence})"
            return build_entry(target, msgspec.structs.replace(owner, evidence=evidence))
        names = " + ".join(repr(s.name) for s in owner.sources)
        stored = [name for t in theirs if t is not None for name in self._stored(slot.role, t.owner)]
        take = f', or from = "{stored[0]}", to = "{target.name}" for that of the raw weights' if stored else ""
        return self._unmatched(
            target,
            f"its owner is filled from {names}, to which no {slot.role!r} belongs. Say what is meant in a rule: "
            f'keep = "{target.name}"{take}',
        )

    def _stored(self, role: str, owner: str) -> Sequence[str]:
        """Names of the slots of one role and owner, whatever the optimizer."""
        return [self._table[o, role, owner].name for o in sorted(self._of_owner.get((role, owner), ()))]

    def _refuse_meaning(self, ours: str, role: str, theirs: OptimizerInfo) -> str:
        """Why a role may not be taken over between two optimizer classes; empty when it may."""
        mine = self._ours.get(ours, OptimizerInfo(ours, "", "", ()))
        if role in self._roles or same_class(mine, theirs, role):
            return ""
        found = theirs.family or f"unknown (named {theirs.label!r})"
        return (
            f"the optimizer's class changed from {found} to {mine.family or 'unknown'}, and {role!r} need not mean the "
            f"same in both (the checkpoint's roles are {', '.join(theirs.roles)}). If one of them does, say so in the "
            f'rules: [slots] <that role> = "{role}"'
        )

    def _build(
        self, target: TargetVariable, owner: Choice, tensors: tuple[SourceTensor, ...], family: str
    ) -> PlanEntry:
        slot = target.slot
        assert slot is not None
        if any(t.spec.shape != s.spec.shape for t, s in zip(tensors, owner.sources, strict=True)):
            return self._build_odd_shaped(target, owner, tensors)
        # As the checkpoint's optimizer would have it: what is called otherwise in the program is still its value.
        degree = degree_of(self._roles.get(slot.role, slot.role), family)
        refusal = refuses_slot(owner.ops, degree)
        if refusal:
            return self._unmatched(target, _refused(target, slot.role, tensors, refusal, family))
        ops = for_slot(owner.ops, 1 if degree is None else degree)
        evidence = f"slot {slot.role!r} of {slot.owner!r} ({owner.evidence})"
        # New rows of an average are drawn as those of its variable are.
        seed = slot.owner if degree == -1 else ""
        choice = msgspec.structs.replace(owner, sources=tensors, ops=ops, evidence=evidence, seed=seed)
        entry = build_entry(target, choice)
        if entry.status is Status.RESIZED and begins_above_zero(slot.role, family):
            return self._unmatched(target, _refused(target, slot.role, tensors, _NOT_ZERO, family))
        return entry

    def _build_odd_shaped(self, target: TargetVariable, owner: Choice, tensors: tuple[SourceTensor, ...]) -> PlanEntry:
        """Slots of another shape than their owner (Adafactor's rows and columns) follow a rename only."""
        slot = target.slot
        assert slot is not None
        if owner.ops:
            return self._unmatched(target, f"{slot.role!r} has another shape than its owner, so ops cannot follow")
        return build_entry(target, Choice(tensors, (), f"slot {slot.role!r} of {slot.owner!r} ({owner.evidence})"))

    @staticmethod
    def _unmatched(target: TargetVariable, reason: str) -> PlanEntry:
        return unfilled(target, Status.UNMATCHED, f"{reason}.", problem=Problem.UNMATCHED)


def _numbered(sources: CheckpointIndex, silent: Iterable[OptimizerInfo]) -> list[SourceTensor]:
    """Variables of optimizers that have a number only: in `.weights.h5`, and where Keras keeps them in plain lists."""
    places = {f"{o.name}/{edge}" for o in silent for edge in ("variables", "vars")}
    if not places:
        return []
    positional = (t for t in sources.tensors if t.name_kind is AliasKind.POSITIONAL)
    found = [t for t in positional if t.name.rpartition("/")[0] in places]
    return sorted(found, key=lambda t: (len(t.name), t.name))


def _with_advice(entry: PlanEntry, keep: str, elsewhere: Sequence[str]) -> PlanEntry:
    """What to say in the rules where a slot is missing: it begins anew, or another optimizer has it."""
    which = "these" if keep.endswith("{rest}") else "it"
    text = f'To let {which} keep what the program holds now (in a new optimizer, how it begins): keep = "{keep}".'
    if elsewhere:
        text += f' To take that of another optimizer: from = "{elsewhere[0]}", to = "{entry.target}".'
    return msgspec.structs.replace(entry, reason=f"{entry.reason} {text}")


def seed_advice(slot: Slot, source: str) -> str:
    """The rule by which a slot that is a copy of its variable begins as what fills that: for all, if that is so simple.

    To be read behind what is missing.
    """
    there, here = source.split("/"), slot.owner.split("/")
    root = f"{slot.optimizer}/{slot.role}" if slot.optimizer else slot.role
    pattern = len(there) > 1 and there[1:] == here[1:]
    names = (f"{there[0]}/{{rest}}", f"{root}/{here[0]}/{{rest}}") if pattern else (source, f"{root}/{slot.owner}")
    return f'. It must begin as what its variable is: from = "{names[0]}", to = "{names[1]}"'


def _of_several(target: TargetVariable, role: str, sources: Sequence[SourceTensor], parts: Sequence[str]) -> str:
    """Why a slot does not follow an owner that is made of several checkpoints, and the rules that say what is meant."""
    return (
        f"its owner is made of tensors of the checkpoints {quote(parts)}, each with an optimizer's state of its own, "
        f"and {role!r} is not mixed unasked. Say what is meant in a rule: keep = {target.name!r}, or from = the slot "
        f"of one of them, such as of {sources[0].name!r}"
    )


def _refused(target: TargetVariable, role: str, tensors: tuple[SourceTensor, ...], refusal: str, family: str) -> str:
    """Why ops do not carry over to a slot, and the rules of which one says what is meant."""
    assert target.slot is not None
    root = f"{target.slot.optimizer}/" if target.slot.optimizer else ""
    others = [f"{root}{other}/{target.slot.owner}" for other in begins_with(role, family)]
    both = f" and keep = {others[0]!r}, which is divided by it" if others else ""
    sources = [t.name for t in tensors]
    source = repr(sources[0]) if len(sources) == 1 else str(sources)
    return (
        f"{role!r} does not follow its owner by itself: {refusal}. Say what is meant in a rule of its own: "
        f"keep = {target.name!r}{both}, or from = {source}, to = {target.name!r} with the ops"
    )


def refuse_negative(target: TargetVariable, entry: PlanEntry) -> None:
    """Raises where a rule's ops may make squares of gradients negative: an optimizer takes their root.

    Raises:
      RuleError: the slot holds squares, and an op may give a negative number for positive ones.
    """
    if target.slot is None or degree_of(target.slot.role, "") != 2:
        return
    for op in entry.ops:
        if op.may_turn_negative:
            raise RuleError(
                f"{entry.evidence}: {target.name!r} holds squares of gradients, and {op.describe()} may make some of "
                "them negative. Use resize with linear or nearest, or keep the slot."
            )


def slots_of(targets: TargetIndex) -> Mapping[str, list[TargetVariable]]:
    """Owner name -> its slots."""
    table: dict[str, list[TargetVariable]] = collections.defaultdict(list)
    for variable in targets.variables:
        if variable.slot is not None:
            table[variable.slot.owner].append(variable)
    return table
