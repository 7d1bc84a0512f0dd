"""What all witnesses say together: names and the walk are heard for each target, and the stronger one decides.

A name that somebody chose outvotes places; an index in a list is a place. Where two of equal strength disagree, that is
a conflict that names both.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence

from dist_restore.core.index import SourceTensor, TargetVariable
from dist_restore.planning.entries import Proof
from dist_restore.planning.matching.by_walk import Walked
from dist_restore.planning.matching.lists import rests_on_index, template_of_list
from dist_restore.planning.matching.outcome import Conflict, Match, Outcome


def hear(targets: Sequence[TargetVariable], named: Mapping[str, Outcome], walked: Walked) -> dict[str, Outcome]:
    """One outcome per target.

    Args:
      targets: those that are open.
      named: what names say.
      walked: what the object graphs say.
    """
    if not walked.outcomes:
        return dict(named)
    found: dict[str, Outcome] = {}
    for target in targets:
        name, walk = named.get(target.name), walked.outcomes.get(target.name)
        outcome = _hear_one(target, name, walk, sure=target.name in walked.sure)
        if outcome is not None:
            found[target.name] = outcome
    return found


def _hear_one(target: TargetVariable, name: Outcome | None, walk: Outcome | None, *, sure: bool) -> Outcome | None:
    if name is None or walk is None:
        return name or walk
    if isinstance(walk, Match) and sure:
        return walk if not _same(name, walk) else _agreed(name, walk)
    if isinstance(name, Conflict):
        # Rules have settled some members, or equal names would not mislead: the rest is in order.
        return walk if (name.of_indexes or name.of_roots) and isinstance(walk, Match) else name
    if isinstance(walk, Conflict):
        return name if _is_hard(name) or name.source.spec.shape != target.spec.shape else walk
    if _same(name, walk):
        return _agreed(name, walk)
    if _is_hard(name) and walk.proof is not Proof.NAME:
        return name
    reason = (
        f"its name points to {name.source.name!r} ({name.evidence}), and its place in the object graph to "
        f"{walk.source.name!r}"
    )
    return Conflict((name.source, walk.source), reason)


def _same(name: Outcome | None, walk: Match) -> bool:
    return isinstance(name, Match) and name.source is walk.source


def _agreed(name: Outcome | None, walk: Match) -> Match:
    """Both say the same: the name's words, and the weaker proof where the name rests on an index."""
    assert isinstance(name, Match)
    return name if _is_hard(name) or walk.proof is Proof.NAME else Match(name.source, name.evidence, walk.proof)


def _is_hard(match: Match) -> bool:
    return not rests_on_index(match.name)


def refuse_other_members(found: Mapping[str, Outcome], targets: Iterable[TargetVariable]) -> dict[str, Outcome]:
    """Refuses an index in a list where the file calls the layer there otherwise than the model does.

    Args:
      found: all outcomes.
      targets: their targets.
    """
    result = dict(found)
    for target in targets:
        outcome = result.get(target.name) if target.members else None
        if isinstance(outcome, Match) and _are_others(target.members, outcome.source.members):
            names = ", ".join(map(repr, outcome.source.members)), ", ".join(map(repr, target.members))
            reason = f"its place in a list is that of the layer {names[0]} in the file, and of {names[1]} in the model"
            result[target.name] = Conflict((outcome.source,), reason)
    return result


def _are_others(ours: Sequence[str], theirs: Sequence[str]) -> bool:
    mine, other = set(ours), set(theirs)
    return bool(mine and other) and not (mine <= other or other <= mine)


def refuse_shared(found: Mapping[str, Outcome]) -> dict[str, Outcome]:
    """Refuses what rests on less than a name where another target has the same source."""
    sources = [id(outcome.source) for outcome in found.values() if isinstance(outcome, Match)]
    if len(set(sources)) == len(sources):
        return dict(found)
    holders: dict[int, list[str]] = collections.defaultdict(list)
    for target, outcome in found.items():
        if isinstance(outcome, Match):
            holders[id(outcome.source)].append(target)
    result = dict(found)
    for names in holders.values():
        for name in names if len(names) > 1 else ():
            outcome = found[name]
            if isinstance(outcome, Match) and outcome.proof is not Proof.NAME:
                others = ", ".join(repr(n) for n in sorted(names) if n != name)
                reason = f"only its place points to {outcome.source.name!r}, which {others} gets as well"
                result[name] = Conflict((outcome.source,), reason)
    return result


def mark_indexes(
    found: Mapping[str, Outcome],
    targets: Sequence[TargetVariable],
    walked: Walked,
    called: Callable[[str], str] = lambda name: "",
) -> dict[str, Outcome]:
    """Marks as order what rests on an index in a list whose members are alike, where no object graph says more.

    Args:
      found: outcomes of names.
      targets: those that are open.
      walked: what the object graphs say; a layer whose name they do not have may be another one.
      called: name of a target -> what its layer is called, where both sides say the same.
    """
    result = dict(found)
    for members in _alike(found, targets, walked.outcomes, called):
        for target, match in members if len(members) > 1 or members[0][0].name in walked.unnamed else ():
            if not _says_members(target, match.source):
                result[target.name] = Match(match.source, match.evidence, Proof.ORDER)
    return result


def _alike(
    found: Mapping[str, Outcome],
    targets: Sequence[TargetVariable],
    known: Mapping[str, Outcome],
    called: Callable[[str], str],
) -> Iterable[list[tuple[TargetVariable, Match]]]:
    """Families of targets whose names differ in indexes only, of those of which the object graphs say nothing."""
    families: dict[tuple[str, str, tuple[int, ...], str], list[tuple[TargetVariable, Match]]] = {}
    template = functools.cache(_template_of_head)
    for target in targets:
        outcome = found.get(target.name)
        if not isinstance(outcome, Match) or target.name in known:
            continue
        head, _, last = outcome.name.rpartition("/")
        own = "" if last.isdigit() else last
        above = template(head)
        if above or not own:
            key = above or head, own, target.spec.shape, called(target.name)
            if key in families:
                families[key].append((target, outcome))
            else:
                families[key] = [(target, outcome)]
    return families.values()


def _template_of_head(head: str) -> str:
    """A name without its indexes; empty where it has none. Siblings share it, of which there are few."""
    return template_of_list(head) if rests_on_index(head) else ""


def _says_members(target: TargetVariable, source: SourceTensor) -> bool:
    """Whether both sides have names for the members of a list, and the same ones."""
    return bool(target.members) and target.members == source.members
