"""Matching by names: equal semantic names first, then the order of names that only count.

Nothing that is not unique is accepted, and a positional name never outvotes a semantic one: what is left over
is reported with its candidates. A function of the two indexes alone.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from dist_restore.resolve.alignment import PATH_KINDS, Alignment, align
from dist_restore.resolve.families import (
    list_members,
    template_of_counted,
    template_of_flat,
    unequal_family,
)
from dist_restore.specs import AliasKind, SourceTensor, TargetVariable


@dataclasses.dataclass(frozen=True, slots=True)
class Match:
    """A source for a target, and what it rests on."""

    source: SourceTensor
    evidence: str


@dataclasses.dataclass(frozen=True, slots=True)
class Conflict:
    """Why a target got no source although there are candidates."""

    candidates: tuple[SourceTensor, ...]
    reason: str


Outcome: TypeAlias = Match | Conflict


def match_names(
    targets: Sequence[TargetVariable], sources: Sequence[SourceTensor], settled: Iterable[tuple[str, str]]
) -> dict[str, Outcome]:
    """Finds a source for every target that has one by name.

    Args:
      targets: variables without a decision, slots left out.
      sources: tensors without a decision, slots left out.
      settled: (target, source) pairs that rules decided.

    Returns:
      Target name -> match or conflict; targets without any candidate are absent.
    """
    alignment = align(targets, sources, settled)
    found = _by_semantic_names(targets, sources, alignment)
    found = _refuse_shared(found)
    found = _refuse_unequal_lists(found, targets, alignment)
    _by_counted_names(found, targets, alignment)
    return found


def _by_semantic_names(
    targets: Sequence[TargetVariable], sources: Sequence[SourceTensor], alignment: Alignment
) -> dict[str, Outcome]:
    flat = _unique_flat(sources)
    ours = collections.Counter(template_of_flat(a.name) for t in targets for a in _flat_aliases(t.aliases))
    theirs = collections.Counter(template_of_flat(name) for name in flat)
    found: dict[str, Outcome] = {}
    for target in targets:
        claims = _claims(target, alignment, flat)
        candidates = tuple(dict.fromkeys(source for source, _ in claims))
        if len(candidates) == 1:
            found[target.name] = _accept(target, *claims[0], ours, theirs)
        elif candidates:
            found[target.name] = Conflict(candidates, _disagreement(target, claims))
    return found


def _claims(
    target: TargetVariable, alignment: Alignment, flat: Mapping[str, SourceTensor]
) -> list[tuple[SourceTensor, str]]:
    """Every (source, evidence) that a semantic name of the target points to."""
    names = [target.name] if target.name_kind is AliasKind.SEMANTIC else []
    names += [a.name for a in target.aliases if a.kind is AliasKind.SEMANTIC]
    claims = []
    for name in names:
        evidence = alignment.moved.get(name) or ("equal names" if name == target.name else f"equal name {name!r}")
        claims += [(source, evidence) for source in alignment.names.get(name, ())]
    for alias in _flat_aliases(target.aliases):
        if alias.name in flat:
            claims.append((flat[alias.name], f"equal name {alias.name!r}, which its slots carry"))
    return claims


def _accept(
    target: TargetVariable,
    source: SourceTensor,
    evidence: str,
    ours: Mapping[str, int],
    theirs: Mapping[str, int],
) -> Outcome:
    """Accepts a claim, unless it rests on a flattened name whose family differs in number."""
    if "slots carry" not in evidence:
        return Match(source, evidence)
    templates = {template_of_flat(a.name) for a in _flat_aliases(target.aliases)}
    counts = [(ours[t], theirs[t]) for t in sorted(templates) if theirs.get(t)]
    if all(a == b for a, b in counts) or not any(c.isdigit() for c in target.name):
        return Match(source, evidence)
    return Conflict(
        (source,),
        f"the model holds {counts[0][0]} variables of this family and the checkpoint {counts[0][1]}, so one was "
        "inserted or removed and equal numbers mislead",
    )


def _disagreement(target: TargetVariable, claims: Sequence[tuple[SourceTensor, str]]) -> str:
    parts = "; ".join(f"{evidence} points to {source.name!r}" for source, evidence in claims[:4])
    return f"its names disagree: {parts}"


def _unique_flat(sources: Sequence[SourceTensor]) -> dict[str, SourceTensor]:
    found: dict[str, list[SourceTensor]] = collections.defaultdict(list)
    for source in sources:
        for alias in _flat_aliases(source.aliases):
            found[alias.name].append(source)
    return {name: items[0] for name, items in found.items() if len(items) == 1}


def _flat_aliases(aliases: Iterable) -> list:  # type: ignore[type-arg]
    return [a for a in aliases if a.kind is AliasKind.FLAT]


def _refuse_shared(found: Mapping[str, Outcome]) -> dict[str, Outcome]:
    """Where two targets claim one source, and not each by a path that the source has itself, neither gets it."""
    claims: dict[str, list[str]] = collections.defaultdict(list)
    for target, outcome in found.items():
        if isinstance(outcome, Match):
            claims[outcome.source.name].append(target)
    result = dict(found)
    for names in claims.values():
        weak = [n for n in names if _evidence(found[n]) != "equal names" and "root" not in _evidence(found[n])]
        if len(names) > 1 and weak:
            for name in names:
                source = found[name].source  # type: ignore[union-attr]
                others = ", ".join(repr(n) for n in names if n != name)
                result[name] = Conflict((source,), f"{others} claims the same source by another name")
    return result


def _evidence(outcome: Outcome) -> str:
    return outcome.evidence if isinstance(outcome, Match) else ""


def _refuse_unequal_lists(
    found: Mapping[str, Outcome], targets: Sequence[TargetVariable], alignment: Alignment
) -> dict[str, Outcome]:
    ours = list_members(t.name for t in targets if t.name_kind in PATH_KINDS)
    theirs = list_members(alignment.names)
    result = dict(found)
    for target in targets:
        unequal = unequal_family(target.name, ours, theirs)
        if unequal is None:
            continue
        container, here, there = unequal
        outcome = found.get(target.name)
        candidates = (outcome.source,) if isinstance(outcome, Match) else outcome.candidates if outcome else ()
        result[target.name] = Conflict(
            candidates,
            f"{container!r} holds {here} members in the model and {there} in the checkpoint, so one was inserted "
            "or removed and equal indexes mislead; a rule must say where",
        )
    return result


def _by_counted_names(found: dict[str, Outcome], targets: Sequence[TargetVariable], alignment: Alignment) -> None:
    """Matches automatic layer names (`dense_4`) by their order, where both sides have equally many."""
    ours: dict[str, list[tuple[tuple[int, ...], TargetVariable]]] = collections.defaultdict(list)
    for target in targets:
        if target.name not in found and target.name_kind is AliasKind.COUNTED:
            template, counters = template_of_counted(target.name)
            ours[template].append((counters, target))
    theirs: dict[str, list[tuple[tuple[int, ...], SourceTensor]]] = collections.defaultdict(list)
    for name, items in alignment.names.items() if ours else ():
        template, counters = template_of_counted(name)
        if template in ours and len(items) == 1:
            theirs[template].append((counters, items[0]))
    for template, members in ours.items():
        _match_by_order(found, members, theirs.get(template, []))


def _match_by_order(
    found: dict[str, Outcome],
    members: list[tuple[tuple[int, ...], TargetVariable]],
    candidates: list[tuple[tuple[int, ...], SourceTensor]],
) -> None:
    members.sort(key=lambda m: m[0])
    candidates.sort(key=lambda c: c[0])
    shapes_fit = [t.spec.shape for _, t in members] == [s.spec.shape for _, s in candidates]
    for position, (_, target) in enumerate(members):
        if shapes_fit:
            evidence = f"order of automatic names, {position + 1} of {len(members)}, all shapes equal"
            found[target.name] = Match(candidates[position][1], evidence)
        elif candidates:
            found[target.name] = Conflict(
                tuple(s for _, s in candidates),
                f"its layer has an automatic name, so only the order could tell: the model has {len(members)} of this "
                f"name and the checkpoint {len(candidates)}, or their shapes differ",
            )
