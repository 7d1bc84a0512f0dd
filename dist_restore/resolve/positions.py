"""Matching by position in an optimizer, for variables that have no name in the checkpoint at all.

A Keras 3 model with its blocks in a list stores their variables only as `optimizer/_trainable_variables/N`. The
whole sequence is the evidence: equal length, equal shapes, and no name anywhere that disagrees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dist_restore.resolve.families import template_of_flat
from dist_restore.resolve.matching import Conflict, Match, Outcome
from dist_restore.specs import AliasKind, CheckpointIndex, SourceTensor, TargetIndex, TargetVariable


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
    result: dict[str, Outcome] = {}
    for ours, theirs in _sequence_pairs(targets, sources):
        result.update(_match_sequence(ours, theirs, found, free))
    return result


def _sequence_pairs(
    targets: TargetIndex, sources: CheckpointIndex
) -> list[tuple[dict[int, TargetVariable], dict[int, SourceTensor]]]:
    ours = {o.name: _sequence(targets.variables, o.name) for o in targets.optimizers}
    theirs = {o.name: _sequence(sources.tensors, o.name) for o in sources.optimizers}
    ours = {name: sequence for name, sequence in ours.items() if sequence}
    theirs = {name: sequence for name, sequence in theirs.items() if sequence}
    if len(ours) == 1 and len(theirs) == 1:
        return [(next(iter(ours.values())), next(iter(theirs.values())))]
    return [(ours[name], theirs[name]) for name in sorted(ours.keys() & theirs.keys())]


def _sequence(items: Sequence[TargetVariable] | Sequence[SourceTensor], optimizer: str) -> dict[int, object]:  # type: ignore[type-arg]
    prefix = f"{optimizer}/trainable_variables/" if optimizer else "trainable_variables/"
    found: dict[int, object] = {}
    for item in items:
        names = [item.name, *(a.name for a in item.aliases if a.kind is AliasKind.POSITIONAL)]
        for name in names:
            index = name.removeprefix(prefix)
            if index != name and index.isdigit() and item.slot is None:
                found[int(index)] = item
    return found


def _match_sequence(
    ours: Mapping[int, TargetVariable],
    theirs: Mapping[int, SourceTensor],
    found: Mapping[str, Outcome],
    free: frozenset[str],
) -> dict[str, Outcome]:
    open_positions = [i for i, t in ours.items() if t.name in free]
    nameless = [i for i in open_positions if i in theirs and theirs[i].name_kind is AliasKind.POSITIONAL]
    if not nameless:
        return {}
    trouble = _disagreement(ours, theirs, found, nameless)
    if trouble:
        return {ours[i].name: Conflict((theirs[i],), trouble) for i in nameless}
    evidence = f"position among the optimizer's {len(ours)} variables, all shapes equal and no name against it"
    return {ours[i].name: Match(theirs[i], evidence) for i in nameless}


def _disagreement(
    ours: Mapping[int, TargetVariable],
    theirs: Mapping[int, SourceTensor],
    found: Mapping[str, Outcome],
    nameless: Sequence[int],
) -> str:
    """Why the two sequences are not the same one; empty when they are."""
    if ours.keys() != theirs.keys():
        return f"the checkpoint names it by position only, among {len(theirs)} variables; the model has {len(ours)}"
    for index, target in sorted(ours.items()):
        if target.spec.shape != theirs[index].spec.shape:
            return f"the checkpoint names it by position only, and at position {index} the shapes differ"
        outcome = found.get(target.name)
        if isinstance(outcome, Match) and outcome.source.name != theirs[index].name:
            return f"the checkpoint names it by position only, and names say that position {index} has moved"
    return next((t for t in (_names_differ(ours[i], theirs[i]) for i in nameless) if t), "")


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
