"""Evidence of an optimizer's list, for variables that have no name and no path of their own in the checkpoint.

A Keras 3 model with its blocks in a list stores their variables only as `optimizer/_trainable_variables/N`, and
an Adafactor its slots as `optimizer/_variables/N`. What is without a name on both sides is compared in order, whatever
lies between: equally many, equal shapes one by one, and no name anywhere that disagrees. That is order, and no proof.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Generic

from dist_restore.core.index import AliasKind, CheckpointIndex, OptimizerInfo, SourceTensor, TargetIndex, TargetVariable
from dist_restore.naming.automatic_names import Vocabulary
from dist_restore.planning.entries import Proof
from dist_restore.planning.matching.list_names import Names
from dist_restore.planning.matching.lists import template_of_list
from dist_restore.planning.matching.outcome import Conflict, Match, Outcome
from dist_restore.planning.name_table import Named

_INDEX = re.compile(r"[0-9]{1,9}\Z")
_OWNERS, _STATE = "trainable_variables", "variables"
_BY_PLACE = "the checkpoint names it by position only"
Ours = Mapping[int, TargetVariable]
Theirs = Mapping[int, SourceTensor]


def by_optimizer_list(
    targets: TargetIndex,
    sources: CheckpointIndex,
    found: Mapping[str, Outcome],
    open_: frozenset[str],
    free: frozenset[str],
    words: Vocabulary,
    full_names: tuple[Mapping[str, str], Mapping[str, str]] = ({}, {}),
) -> dict[str, Outcome]:
    """Finds sources by their place among an optimizer's variables.

    Args:
      targets: all live variables.
      sources: all tensors.
      found: what rules and names decided already; it must agree with the places.
      open_: names of the targets that have no decision yet.
      free: names of the tensors that nothing uses.
      words: what automatic names are made of.
      full_names: of the model's variables, and of the checkpoint's, what they call themselves.

    Returns:
      Outcomes for some of the open targets.
    """
    if not open_ or not targets.optimizers or not sources.optimizers:
        return {}
    result: dict[str, Outcome] = {}
    ours = _lists(targets.variables, targets.optimizers)
    outside = _lists_outside(targets.variables, [owner for lists in ours.values() for owner in lists.owners.values()])
    for mine, other in _pairs(ours, _lists(sources.tensors, sources.optimizers)):
        names = Names([*mine.owners.values()], [*other.owners.values()], words, full_names)
        case = _Case(mine.owners, other.owners, found, open_, free, names)
        result.update(case.match(outside))
        agree = _all_agree(mine.owners, other.owners, {**found, **result})
        if agree and _same_class(mine.optimizer, other.optimizer):
            result.update(_match_state(mine.state, other.state, open_))
    return result


@dataclasses.dataclass(frozen=True, slots=True)
class _Lists(Generic[Named]):
    """An optimizer's two lists, by index: the variables that it trains, and all of its own."""

    optimizer: OptimizerInfo
    owners: dict[int, Named] = dataclasses.field(default_factory=dict)
    state: dict[int, Named] = dataclasses.field(default_factory=dict)


def _lists(items: Iterable[Named], optimizers: Iterable[OptimizerInfo]) -> dict[str, _Lists[Named]]:
    """Optimizer's name -> its lists, for those that train something."""
    found: dict[str, _Lists[Named]] = {o.name: _Lists(o) for o in optimizers}
    places = {_below(name, _OWNERS): lists.owners for name, lists in found.items()}
    places.update((_below(name, _STATE), lists.state) for name, lists in found.items())
    for item in items:
        for name in (item.name, *(a.name for a in item.aliases if a.kind is AliasKind.POSITIONAL)):
            head, _, index = name.rpartition("/")
            if head in places and _INDEX.match(index):
                places[head][int(index)] = item
    return {name: lists for name, lists in found.items() if lists.owners}


def _below(optimizer: str, edge: str) -> str:
    return f"{optimizer}/{edge}" if optimizer else edge


def _pairs(
    ours: Mapping[str, _Lists[TargetVariable]], theirs: Mapping[str, _Lists[SourceTensor]]
) -> list[tuple[_Lists[TargetVariable], _Lists[SourceTensor]]]:
    if len(ours) == 1 and len(theirs) == 1:
        return [*zip(ours.values(), theirs.values(), strict=True)]
    return [(ours[name], theirs[name]) for name in sorted(ours.keys() & theirs.keys())]


def _lists_outside(variables: Iterable[TargetVariable], trained: Iterable[TargetVariable]) -> frozenset[str]:
    """Templates of lists of which optimizers train some members only: then a position says nothing of them."""
    inside = collections.Counter(template_of_list(name) for name in {t.name for t in trained})
    everywhere = collections.Counter(template_of_list(v.name) for v in variables if v.slot is None)
    return frozenset(t for t, count in inside.items() if "{}" in t and everywhere[t] > count)


@dataclasses.dataclass(frozen=True, slots=True)
class _Case:
    """The owners of two optimizers, and what is known of them."""

    ours: Ours
    theirs: Theirs
    found: Mapping[str, Outcome]
    open_: frozenset[str]
    free: frozenset[str]
    names: Names

    def match(self, outside: frozenset[str]) -> dict[str, Outcome]:
        mine = [t for _, t in sorted(self.ours.items()) if t.name in self.open_]
        # What TensorFlow does not save by itself has no other way into a checkpoint; all else has a name there.
        mine = [t for t in mine if t.note] or mine
        other = [s for _, s in sorted(self.theirs.items()) if self._is_nameless(s)]
        if not mine or not other:
            return {}
        trouble = self._trouble(mine, other)
        if not trouble and any(template_of_list(t.name) in outside for t in mine):
            trouble = f"{_BY_PLACE}, and the optimizer trains only some members of its list"
        if trouble:
            return {t.name: Conflict(self._candidates(t, other), trouble) for t in mine}
        evidence = f"position among the optimizer's {len(self.ours)} variables, all shapes equal and no name against it"
        return {t.name: Match(s, evidence, Proof.ORDER) for t, s in zip(mine, other, strict=True)}

    def _is_nameless(self, source: SourceTensor) -> bool:
        return source.name in self.free and source.name_kind is AliasKind.POSITIONAL

    def _candidates(self, target: TargetVariable, other: Sequence[SourceTensor]) -> tuple[SourceTensor, ...]:
        place = next((i for i, t in self.ours.items() if t.name == target.name), -1)
        same = self.theirs.get(place)
        first = [same] if same is not None and same in other else []
        return (*first, *[s for s in other if s.spec.shape == target.spec.shape and s not in first][:7])

    def _trouble(self, mine: Sequence[TargetVariable], other: Sequence[SourceTensor]) -> str:
        """Why the order does not tell; empty when it does."""
        if len(mine) != len(other):
            return f"{_BY_PLACE}: {len(other)} variables without a name, and the model has {len(mine)}"
        differ = next((i for i, (t, s) in enumerate(zip(mine, other, strict=True)) if t.spec.shape != s.spec.shape), -1)
        if differ >= 0:
            return f"{_BY_PLACE}, and the shapes differ from {mine[differ].name!r} on"
        if self._is_moved(dict(zip([t.name for t in mine], [s.name for s in other], strict=True))):
            return f"{_BY_PLACE}, and names say that others have moved"
        pairs = [*zip(mine, other, strict=True)]
        differs = next(filter(None, (self.names.differ(t, s) for t, s in pairs)), "")
        differs = differs or ("its automatic names count in another order" if self.names.count_otherwise(pairs) else "")
        return differs and f"{_BY_PLACE}, and {differs}"

    def _is_moved(self, pairs: Mapping[str, str]) -> bool:
        """Whether what is matched comes in another order in the two lists."""
        places = {source.name: place for place, source in self.theirs.items()}
        matched = [self._source_of(t.name, pairs) for _, t in sorted(self.ours.items())]
        order = [places[name] for name in matched if name in places]
        return order != sorted(order)

    def _source_of(self, target: str, pairs: Mapping[str, str]) -> str:
        outcome = self.found.get(target)
        return pairs.get(target) or (outcome.source.name if isinstance(outcome, Match) else "")


def _all_agree(ours: Ours, theirs: Theirs, found: Mapping[str, Outcome]) -> bool:
    """Whether every variable of an optimizer comes from the same place in the other one."""
    outcomes = {i: found.get(t.name) for i, t in ours.items()}
    return ours.keys() == theirs.keys() and all(
        isinstance(o, Match) and o.source.name == theirs[i].name for i, o in outcomes.items()
    )


def _same_class(ours: OptimizerInfo, theirs: OptimizerInfo) -> bool:
    return bool(ours.family and ours.family == theirs.family) or bool(ours.label and ours.label == theirs.label)


def _match_state(ours: Ours, theirs: Theirs, free: frozenset[str]) -> dict[str, Outcome]:
    """State that neither side can name: only where the two optimizers hold just the same."""
    nameless = [i for i, t in ours.items() if t.name in free and t.name_kind is AliasKind.POSITIONAL]
    same = ours.keys() == theirs.keys() and all(_alike(t, theirs[i]) for i, t in ours.items())
    if not nameless or not same:
        return {}
    evidence = f"position among the {len(ours)} variables of an optimizer of the same class, all shapes equal"
    return {ours[i].name: Match(theirs[i], evidence, Proof.ORDER) for i in nameless}


def _alike(target: TargetVariable, source: SourceTensor) -> bool:
    roles = [x.slot.role if x.slot else "" for x in (target, source)]
    return target.spec == source.spec and target.name_kind is source.name_kind and roles[0] == roles[1]
