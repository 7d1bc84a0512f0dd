"""Matching by position in an optimizer, for variables that have no name in the checkpoint at all.

A Keras 3 model with its blocks in a list stores their variables only as `optimizer/_trainable_variables/N`, and
an Adafactor its slots as `optimizer/_variables/N`. The whole sequence is the evidence: equal length, equal
shapes, and no name anywhere that disagrees.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Generic

from dist_restore.resolve.families import counters_of_flat, template_of_flat, template_of_list
from dist_restore.resolve.matching import Conflict, Match, Outcome
from dist_restore.resolve.names import Named
from dist_restore.specs import AliasKind, CheckpointIndex, OptimizerInfo, SourceTensor, TargetIndex, TargetVariable

_INDEX = re.compile(r"[0-9]{1,9}\Z")
_OWNERS, _STATE = "trainable_variables", "variables"
Ours = Mapping[int, TargetVariable]
Theirs = Mapping[int, SourceTensor]


def match_positions(
    targets: TargetIndex, sources: CheckpointIndex, found: Mapping[str, Outcome], free: frozenset[str]
) -> dict[str, Outcome]:
    """Finds sources by their place among an optimizer's variables.

    Args:
      targets: all live variables.
      sources: all tensors.
      found: what names decided already; it must agree with the positions.
      free: names of the targets that have no decision yet.

    Returns:
      Outcomes for some of the free targets.
    """
    if not free or not targets.optimizers or not sources.optimizers:
        return {}
    result: dict[str, Outcome] = {}
    for mine, other in _pairs(
        _lists(targets.variables, targets.optimizers), _lists(sources.tensors, sources.optimizers)
    ):
        outside = _lists_outside(targets.variables, mine.owners)
        result.update(_match_owners(mine.owners, other.owners, found, free, outside))
        agree = _all_agree(mine.owners, other.owners, {**found, **result})
        if agree and _same_class(mine.optimizer, other.optimizer):
            result.update(_match_state(mine.state, other.state, free))
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


def _lists_outside(variables: Iterable[TargetVariable], ours: Ours) -> frozenset[str]:
    """Templates of lists of which the optimizer trains some members only: then a position says nothing of them."""
    inside = collections.Counter(template_of_list(t.name) for t in ours.values())
    everywhere = collections.Counter(template_of_list(v.name) for v in variables if v.slot is None)
    return frozenset(t for t, count in inside.items() if "{}" in t and everywhere[t] > count)


def _match_owners(
    ours: Ours, theirs: Theirs, found: Mapping[str, Outcome], free: frozenset[str], outside: frozenset[str]
) -> dict[str, Outcome]:
    nameless = [
        i for i, t in ours.items() if t.name in free and i in theirs and theirs[i].name_kind is AliasKind.POSITIONAL
    ]
    if not nameless:
        return {}
    trouble = _disagreement(ours, theirs, found, nameless)
    if not trouble and any(template_of_list(ours[i].name) in outside for i in nameless):
        trouble = "the checkpoint names it by position only, and the optimizer trains only some members of its list"
    if trouble:
        return {ours[i].name: Conflict((theirs[i],), trouble) for i in nameless}
    evidence = f"position among the optimizer's {len(ours)} variables, all shapes equal and no name against it"
    return {ours[i].name: Match(theirs[i], evidence) for i in nameless}


def _disagreement(ours: Ours, theirs: Theirs, found: Mapping[str, Outcome], nameless: Sequence[int]) -> str:
    """Why the two sequences are not the same one; empty when they are."""
    if ours.keys() != theirs.keys():
        return f"the checkpoint names it by position only, among {len(theirs)} variables; the model has {len(ours)}"
    for index, target in sorted(ours.items()):
        if target.spec.shape != theirs[index].spec.shape:
            return f"the checkpoint names it by position only, and at position {index} the shapes differ"
        outcome = found.get(target.name)
        if isinstance(outcome, Match) and outcome.source.name != theirs[index].name:
            return f"the checkpoint names it by position only, and names say that position {index} has moved"
    differ = next((t for t in (_names_differ(ours[i], theirs[i]) for i in nameless) if t), "")
    return differ or _order_differs([(ours[i], theirs[i]) for i in sorted(nameless)])


def _order_differs(pairs: Sequence[tuple[TargetVariable, SourceTensor]]) -> str:
    """Whether automatic names count in another order than positions do: then one side was built in another order."""
    groups: dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]] = collections.defaultdict(list)
    for target, source in pairs:
        theirs = {template_of_flat(a.name): a.name for a in source.aliases if a.kind is AliasKind.FLAT}
        counted = (a.name for a in target.aliases if a.kind is AliasKind.COUNTED and "/" not in a.name)
        # One name each: the others differ in the model's own counter only, and would be counted twice.
        name = next((n for n in counted if template_of_flat(n) in theirs), None)
        if name is not None:
            template = template_of_flat(name)
            groups[template].append((counters_of_flat(name), counters_of_flat(theirs[template])))
    for members in groups.values():
        places = range(len(members))
        if sorted(places, key=lambda i: members[i][0]) != sorted(places, key=lambda i: members[i][1]):
            return "the checkpoint names it by position only, and its automatic names count in another order"
    return ""


def _names_differ(target: TargetVariable, source: SourceTensor) -> str:
    theirs = [a.name for a in source.aliases if a.kind is AliasKind.FLAT]
    chosen = [a.name for a in target.aliases if a.kind is AliasKind.FLAT]
    counted = [a.name for a in target.aliases if a.kind is AliasKind.COUNTED and "/" not in a.name]
    if not theirs or not (chosen or counted):
        return ""
    # The model's own name may have a counter (`net_1`), so a chosen name need only end the stored one.
    agree = any(t == c or t.endswith(f"_{c}") for t in theirs for c in chosen)
    agree |= bool({template_of_flat(t) for t in theirs} & {template_of_flat(c) for c in counted})
    return "" if agree else f"the checkpoint's slots call it {theirs[0]!r} and the model {(chosen or counted)[0]!r}"


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
    return {ours[i].name: Match(theirs[i], evidence) for i in nameless}


def _alike(target: TargetVariable, source: SourceTensor) -> bool:
    roles = [x.slot.role if x.slot else "" for x in (target, source)]
    return target.spec == source.spec and target.name_kind is source.name_kind and roles[0] == roles[1]
