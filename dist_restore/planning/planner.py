"""Two indexes and the rules -> a plan. Pure: a function of its arguments alone, run by the chief only.

Rules come first; then the engine of evidence; and for slots the decision for their owner. What is left is reported with
its nearest candidates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping

import msgspec

from dist_restore.core.errors import RuleError
from dist_restore.core.gc_pause import uncollected
from dist_restore.core.index import CheckpointIndex, SourceTensor, TargetIndex, TargetVariable
from dist_restore.core.nearest import quote
from dist_restore.core.tensors import TensorSpec
from dist_restore.ops import source_boxes
from dist_restore.planning.apply_rules import Assignment, Decisions, apply_rules
from dist_restore.planning.beginnings import beginnings, begun
from dist_restore.planning.collapse import refuse_collapse
from dist_restore.planning.entries import PlanEntry, Problem, Status, Unused
from dist_restore.planning.entry_builder import Choice, build_entry, unfilled
from dist_restore.planning.join_checkpoints import decisions_of, join_outcomes
from dist_restore.planning.matching import Case, Conflict, Match, Outcome, match
from dist_restore.planning.matching.by_slot_list import SlotLists
from dist_restore.planning.matching.by_state_number import NumberedSlots
from dist_restore.planning.matching.optimizer_state import OptimizerState
from dist_restore.planning.name_table import NameTable
from dist_restore.planning.order import refuse_order
from dist_restore.planning.plan import RestorePlan
from dist_restore.planning.rules.rule_set import RuleSet
from dist_restore.planning.slot_patterns import settle_slot
from dist_restore.planning.slots import Owner, SlotResolver, refuse_negative
from dist_restore.planning.suggest import Suggester
from dist_restore.planning.unbuilt import refuse_unbuilt

# Below this share of a tensor only that part is read, and no checksum covers it (design, section 7).
UNCHECKED_SHARE = 0.5
_OWN_COUNTERS = "each of several checkpoints counts its own saves; from = ... in a rule takes over one of the counters"


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """What the caller allows.

    Attributes:
      keep_unmatched: whether a target that nothing fills may keep its value.
      verify_slices: whether tensors of which little is needed are read whole, to be checked.
      refuse_order: whether what rests on order alone is ambiguous.
    """

    keep_unmatched: bool = False
    verify_slices: bool = False
    refuse_order: bool = False


@uncollected()
def resolve(sources: CheckpointIndex, targets: TargetIndex, rules: RuleSet, options: Options) -> RestorePlan:
    """Makes the plan.

    Raises:
      RuleError: a rule that matches nothing, contradicts another, or has ops that cannot apply.
    """
    return _Resolution(sources, targets, rules, options).run()


# The formats that have what `tf.train.Checkpoint` saves, of which the notes speak.
_OBJECTS = frozenset({"tf2", "tf1", "saved_model"})


def _without_notes(targets: TargetIndex) -> TargetIndex:
    variables = [msgspec.structs.replace(v, note="") if v.note else v for v in targets.variables]
    return dataclasses.replace(targets, variables=tuple(variables))


class _Resolution:
    """The state of one resolution: decisions, choices per owner, entries."""

    def __init__(self, sources: CheckpointIndex, targets: TargetIndex, rules: RuleSet, options: Options) -> None:
        self._sources, self._rules, self._options = sources, rules, options
        self._targets = targets if _OBJECTS & {*sources.formats} else _without_notes(targets)
        self._decisions = Decisions()
        self._suggester = Suggester(sources)
        self._where = [rules.where(index) for index in range(len(rules.rules))]  # once, not for each variable
        self._state = OptimizerState(self._targets, sources)

    def run(self) -> RestorePlan:
        source_table = NameTable(self._sources.tensors, self._side())
        target_table = NameTable(self._targets.variables, "the model")
        self._decisions = apply_rules(self._rules, source_table, target_table)
        owners = self._owners()
        entries = [*(owner.entry for owner in owners.values()), *self._slots(owners)]
        begin = beginnings(self._sources, self._targets, entries)
        entries = [begun(e) if e.target in begin else e for e in entries] if begin else entries
        refuse_unbuilt(self._sources, self._targets, entries, self._decisions.dropped)
        if self._options.refuse_order:
            entries = refuse_order(entries)
        if self._options.keep_unmatched:
            entries = [_allow_keep(e) for e in entries]
        entries = refuse_collapse(entries, self._targets, self._decisions, begin)
        return self._plan(entries)

    def _side(self) -> str:
        """How messages call the sources; rules begin with one of the names of several checkpoints."""
        names = quote([part.name for part in self._sources.parts])
        return (
            f"the checkpoints {names} (names in them begin with one of these and a colon)"
            if names
            else "the checkpoint"
        )

    def _owners(self) -> dict[str, Owner]:
        """Entries of everything that is no slot."""
        owned = [v for v in self._targets.variables if v.slot is None]
        outcomes = self._match(owned)
        return {v.name: self._owner(v, outcomes.get(v.name)) for v in owned}

    def _match(self, owned: list[TargetVariable]) -> Mapping[str, Outcome]:
        decided = self._decisions.assigned.keys() | self._decisions.kept.keys()
        open_targets = [v for v in owned if v.name not in decided]
        if not open_targets:
            return {}
        if not self._sources.parts:
            return match(Case(self._sources, self._targets, self._state, self._decisions, owned, open_targets))
        outcomes = []
        for part in self._sources.parts:
            state, decisions = OptimizerState(self._targets, part.index), decisions_of(part, self._decisions)
            case = Case(part.index, self._targets, state, decisions, owned, open_targets)
            outcomes.append((part, match(case)))
        return join_outcomes(outcomes, self._sources.tensors, open_targets)

    def _owner(self, variable: TargetVariable, outcome: Outcome | None) -> Owner:
        assignment = self._decisions.assigned.get(variable.name)
        if assignment is not None:
            return self._filled(variable, self._ruled_choice(assignment))
        rule = self._decisions.kept.get(variable.name)
        if rule is not None:
            where = self._rules.where(rule)
            return Owner(unfilled(variable, Status.KEPT, "kept by a rule", evidence=where), None)
        own = self._state.keep_reason(variable)
        if own:
            return Owner(unfilled(variable, Status.KEPT, own, evidence="what the file says of its optimizer"), None)
        if not isinstance(outcome, Match):
            return Owner(self._unfilled(variable, outcome), None)
        doubt = self._state.doubt(variable, outcome.source)
        if doubt:
            return Owner(self._unfilled(variable, Conflict((outcome.source,), doubt)), None)
        return self._filled(variable, Choice((outcome.source,), (), outcome.evidence, proof=outcome.proof))

    def _filled(self, variable: TargetVariable, choice: Choice) -> Owner:
        entry = build_entry(variable, choice)
        return Owner(entry, choice if entry.filled else None)

    def _ruled_choice(self, assignment: Assignment) -> Choice:
        evidence = self._where[assignment.rule]
        if assignment.called:
            evidence = f"{evidence}, as {quote(assignment.called)}"
        return Choice(assignment.sources, assignment.ops, evidence, assignment.part, assignment.parts)

    def _unfilled(self, variable: TargetVariable, outcome: Conflict | None) -> PlanEntry:
        if outcome is not None:
            names = tuple(t.name for t in outcome.candidates[:8])
            reason = f"{outcome.reason}."
            return unfilled(variable, Status.AMBIGUOUS, reason, problem=Problem.AMBIGUOUS, candidates=names)
        if variable.keep_reason:
            counters = sum(t.tracker_only for t in self._sources.tensors) if variable.tracker_only else 0
            reason = _OWN_COUNTERS if counters > 1 else variable.keep_reason
            return unfilled(variable, Status.KEPT, reason, evidence=_why_kept(variable))
        return unfilled(variable, Status.UNMATCHED, self._why_unmatched(variable), problem=Problem.UNMATCHED)

    def _why_unmatched(self, variable: TargetVariable) -> str:
        for name in [part.named(variable.name) for part in self._sources.parts] or [variable.name]:
            rule = self._decisions.used.get(name)
            if rule is not None:
                return f"the source of this name is used by {self._rules.where(rule)} for another target."
            rule = self._decisions.dropped.get(name)
            if rule is not None:
                return f"the source of this name is dropped by {self._rules.where(rule)}."
        known = self._state.unmatched_reason(variable)
        if known:
            return f"{known}."
        parts = quote([part.name for part in self._sources.parts])
        whose = f"none of the checkpoints {parts} has a" if parts else "the checkpoint has no"
        return f"{whose} tensor of this name."

    def _slots(self, owners: Mapping[str, Owner]) -> list[PlanEntry]:
        slots, roles = [v for v in self._targets.variables if v.slot is not None], self._slot_roles()
        if not slots:
            return []
        dropped = frozenset(self._decisions.dropped)
        listed = SlotLists(self._targets, self._sources, _plain(owners))
        resolver = SlotResolver(self._sources, self._targets, roles, dropped, self._numbered(owners), listed)
        found = [self._slot(v, owners, resolver) for v in slots]
        return resolver.with_advice(found)

    def _numbered(self, owners: Mapping[str, Owner]) -> NumberedSlots:
        ruled = {name: [s.name for s in a.sources] for name, a in self._decisions.assigned.items()}
        return NumberedSlots(self._state.numbers, _plain(owners), ruled, self._decisions.dropped)

    def _slot(self, variable: TargetVariable, owners: Mapping[str, Owner], resolver: SlotResolver) -> PlanEntry:
        assert variable.slot is not None
        owner = owners.get(variable.slot.owner)
        assignment = self._decisions.assigned.get(variable.name)
        if assignment is not None and not assignment.literal and owner is not None:
            return settle_slot(variable, self._ruled_choice(assignment), owner, resolver)
        if self._decisions.decided(variable.name) is not None:
            entry = self._owner(variable, None).entry
            refuse_negative(variable, entry)
            return entry
        if owner is None:
            return unfilled(variable, Status.UNMATCHED, "its owner is not in the model.", problem=Problem.UNMATCHED)
        return resolver.resolve(variable, owner)

    def _slot_roles(self) -> tuple[tuple[str, str], ...]:
        theirs = {role for o in self._sources.optimizers for role in o.roles}
        ours = {role for o in self._targets.optimizers for role in o.roles}
        for source, target in self._rules.slots:
            if source not in theirs or target not in ours:
                raise RuleError(
                    f'[slots] {source} = "{target}" matched nothing. The checkpoint has the roles '
                    f"{quote(sorted(theirs)) or 'none'}, the program {quote(sorted(ours)) or 'none'}."
                )
        return self._rules.slots

    def _plan(self, entries: Iterable[PlanEntry]) -> RestorePlan:
        marked = sorted(self._mark_unchecked(list(entries)), key=lambda e: e.target)
        used = {name for e in marked for name in e.sources}
        done = tuple(self._suggester.with_candidates(marked, self._targets, used))
        by_target = {e.target: e for e in marked if e.problem is not Problem.NONE}
        unused = tuple(self._unused(t, by_target) for t in self._sources.tensors if t.name not in used)
        unused += tuple(Unused(name, reason) for name, reason in self._sources.ignored)
        return RestorePlan(
            checkpoint=self._sources.path,
            checkpoint_fingerprint=self._sources.fingerprint,
            target_fingerprint=self._targets.fingerprint,
            entries=done,
            unused=unused,
            suggestions=self._suggester.text(done, self._targets, used, self._decisions.assigned.keys()),
            checkpoints=tuple((part.name, part.index.path) for part in self._sources.parts),
        )

    def _mark_unchecked(self, entries: list[PlanEntry]) -> list[PlanEntry]:
        partial = frozenset() if self._options.verify_slices else partially_read(entries)
        if not partial:
            return entries
        return [
            msgspec.structs.replace(e, unchecked=tuple(n for n in e.sources if n in partial)) if e.sources else e
            for e in entries
        ]

    def _unused(self, tensor: SourceTensor, problems: Mapping[str, PlanEntry]) -> Unused:
        rule = self._decisions.dropped.get(tensor.name)
        if rule is not None:
            return Unused(tensor.name, f"dropped by {self._rules.where(rule)}")
        if tensor.name in self._decisions.missed:
            rule, name = self._decisions.missed[tensor.name]
            return Unused(tensor.name, f"{self._rules.where(rule)} maps it to {name}, which it cannot fill")
        known = self._state.unused_reason(tensor)
        if known:
            return Unused(tensor.name, known)
        if tensor.slot is not None:
            return Unused(tensor.name, f"slot {tensor.slot.role!r} of {tensor.slot.owner!r}, which no target has")
        if tensor.tracker_only:
            return Unused(tensor.name, "the checkpoint's own counter of saves")
        own = tensor.name.partition(":")[2] if self._sources.parts else tensor.name
        if own in self._decisions.assigned:
            where = self._rules.where(self._decisions.assigned[own].rule)
            return Unused(tensor.name, f"{where} fills the variable of this name from another tensor")
        entry = problems.get(own)
        if entry is not None and entry.spec.shape != tensor.spec.shape:
            shapes = f"{list(tensor.spec.shape)}, and that of the variable {list(entry.spec.shape)}"
            return Unused(tensor.name, f"the variable of this name has another shape: the tensor's is {shapes}")
        return Unused(tensor.name, "no variable of the model has this name")


def _plain(owners: Mapping[str, Owner]) -> Mapping[str, SourceTensor]:
    """What fills variables as it is."""
    choices = {name: owner.choice for name, owner in owners.items() if owner.choice is not None}
    return {name: c.sources[0] for name, c in choices.items() if not c.ops and len(c.sources) == 1}


def _allow_keep(entry: PlanEntry) -> PlanEntry:
    if entry.problem is not Problem.UNMATCHED:
        return entry
    return msgspec.structs.replace(entry, status=Status.KEPT, evidence="unmatched=keep", problem=Problem.NONE)


def partially_read(entries: Collection[PlanEntry]) -> frozenset[str]:
    """Source names of which less than half is needed by all entries together."""
    if not any(e.ops for e in entries):
        return frozenset()
    needed: dict[str, int] = {}
    specs: dict[str, TensorSpec] = {}
    whole: set[str] = set()
    for entry in entries:
        if entry.filled and not entry.ops:
            whole.update(entry.sources)
        elif entry.filled:
            for name, spec, box in zip(
                entry.sources, entry.source_specs, source_boxes(entry.ops, entry.source_specs), strict=True
            ):
                specs[name] = spec
                needed[name] = needed.get(name, 0) + (box.elements if box is not None else 0)
    short = (n for n, count in needed.items() if count < UNCHECKED_SHARE * specs[n].elements)
    return frozenset(short) - whole


def _why_kept(variable: TargetVariable) -> str:
    return "not in the checkpoint" if variable.spec.is_object else "not in any checkpoint"
