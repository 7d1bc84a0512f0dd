"""Evidence of names: equal names that somebody chose, below roots that are aligned.

Nothing that is not unique is accepted, and a positional name never outvotes a semantic one: what is left over
is reported with its candidates. A function of the two indexes alone.
"""

from __future__ import annotations

import collections
import enum
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from dist_restore.core.index import Alias, AliasKind, SourceTensor, TargetVariable
from dist_restore.planning.matching.lists import Lists, list_members, rests_on_index, template_of_flat
from dist_restore.planning.matching.outcome import Conflict, Match, Outcome
from dist_restore.planning.matching.roots import PATH_KINDS, Alignment
from dist_restore.planning.name_table import Side, own_names

_SEMANTIC = (AliasKind.SEMANTIC,)
_EQUAL = "equal names"


class _How(enum.Enum):
    """How a target comes to claim a source."""

    OWN = "by its canonical name"
    ROOT = "by a name below an aligned root"
    ALIAS = "by another name"
    FLAT = "by a name that has lost its separators"


class _Claim(msgspec.Struct, frozen=True, gc=False):
    """A source that a name of a target points to."""

    source: SourceTensor
    name: str
    how: _How
    evidence: str


def by_name(targets: Side[TargetVariable], sources: Side[SourceTensor], alignment: Alignment) -> dict[str, Outcome]:
    """Finds a source for every target that has one by name.

    Args:
      targets: variables, those without a decision apart; slots left out.
      sources: tensors, those without a decision apart; slots left out.
      alignment: the sources' names in the program's terms.

    Returns:
      Target name -> match or conflict; targets without any candidate are absent.
    """
    if not targets.open:
        return {}
    plain = _by_path(targets, sources, alignment)
    if plain is not None:
        return plain
    claims = _claims(targets, sources, alignment)
    found = {t.name: _judge(claims[t.name], alignment) for t in targets.open if t.name in claims}
    found.update(_shared_flat(targets, sources, claims, found))
    families = _FlatFamilies(targets.open, sources)
    if _unique_flat(sources):
        _refuse_unequal_flat(found, claims, families)
    _refuse_shared(found, claims)
    _refuse_unequal_lists(found, claims, (_lists(targets, sources, alignment), families), targets.open)
    return found


def _by_path(
    targets: Side[TargetVariable], sources: Side[SourceTensor], alignment: Alignment
) -> dict[str, Outcome] | None:
    """The same where all have one name only, and lists are equal: several times faster for 50,000 variables.

    Returns:
      None where some name needs more than a look.
    """
    mine, theirs = targets.own_names(_SEMANTIC), alignment.names
    others = targets.own_names(PATH_KINDS) is not mine or _unique_flat(sources)
    if alignment.moved or others or list_members(mine.keys() ^ theirs.keys()):
        return None
    if any([name != target.name for name, target in mine.items()]) or any([len(own) != 1 for own in theirs.values()]):
        return None
    found = {name: own[0] for name, own in theirs.items() if name in mine}
    if len({id(source) for source in found.values()}) != len(found):
        return None
    return {name: Match(found[name], _EQUAL, name=name) for name in mine if name in found}


def _claims(
    targets: Side[TargetVariable], sources: Side[SourceTensor], alignment: Alignment
) -> dict[str, list[_Claim]]:
    """Target -> every claim that a semantic name of it makes, its canonical name first."""
    claims: dict[str, list[_Claim]] = collections.defaultdict(list)
    theirs = alignment.names
    for name, target in targets.own_names(_SEMANTIC).items():
        found = theirs.get(name)
        if found is not None:
            claims[target.name] += [_claim(target, name, source, alignment) for source in found]
    flat = _unique_flat(sources)
    mine = targets.own_names((AliasKind.FLAT,)) if flat else {}
    for target in targets.open if mine else ():
        for alias in _flat_aliases(target.aliases):
            if alias.name in flat and alias.name in mine:
                evidence = f"equal name {alias.name!r}, which its slots carry"
                claims[target.name].append(_Claim(flat[alias.name], alias.name, _How.FLAT, evidence))
    return dict(claims)


def _claim(target: TargetVariable, name: str, source: SourceTensor, alignment: Alignment) -> _Claim:
    if name in alignment.moved:
        return _Claim(source, name, _How.ROOT, alignment.moved[name])
    if name == target.name:
        return _Claim(source, name, _How.OWN, _EQUAL)
    return _Claim(source, name, _How.ALIAS, f"equal name {name!r}")


def _judge(claims: Sequence[_Claim], alignment: Alignment) -> Outcome:
    """A match where all claims point to one source, and nothing is doubtful about it."""
    if len(claims) == 1 and claims[0].how is not _How.ROOT:
        return Match(claims[0].source, claims[0].evidence, name=claims[0].name)
    candidates = {id(c.source): c.source for c in claims}
    if len(candidates) > 1:
        roots = all(c.how is _How.ROOT for c in claims)
        parts = "; ".join(f"{c.evidence} points to {c.source.name!r}" for c in claims[:4])
        return Conflict(tuple(candidates.values()), f"its names disagree: {parts}", of_roots=roots)
    doubts = [alignment.doubtful.get(c.name, "") if c.how is _How.ROOT else "" for c in claims]
    if all(doubts):
        return Conflict((claims[0].source,), doubts[0], of_roots=True)
    return _match(claims)


def _match(claims: Sequence[_Claim]) -> Match:
    """All claims say the same: the best of them is one without an index."""
    better = (c.name for c in claims if not rests_on_index(c.name)) if len(claims) > 1 else iter(())
    name = next(better, claims[0].name)
    return Match(claims[0].source, claims[0].evidence, name=name)


def _refuse_unequal_flat(
    found: dict[str, Outcome],
    claims: Mapping[str, Sequence[_Claim]],
    families: _FlatFamilies,
) -> None:
    """Refuses what rests on a flattened name alone, where its family differs in number: numbers mislead there."""
    flat = [n for n in found if n in claims and claims[n][-1].how is _How.FLAT]  # they come last
    weak = [n for n in flat if isinstance(found[n], Match) and all(c.how is _How.FLAT for c in claims[n])]
    for name in weak:
        counts = families.unequal(sorted(c.name for c in claims[name]))
        if counts and any(c.isdigit() for c in name):
            found[name] = Conflict(
                (claims[name][0].source,),
                f"the model holds {counts[0][0]} variables of this family and the checkpoint {counts[0][1]}, so one "
                "was inserted or removed and equal numbers mislead",
            )


class _FlatFamilies:
    """How many variables of each family of flattened names there are on both sides."""

    def __init__(self, targets: Sequence[TargetVariable], sources: Side[SourceTensor]) -> None:
        self._targets, self._sources = targets, sources

    @functools.cached_property
    def _ours(self) -> Mapping[str, int]:
        # A target has several such names where Keras counted the model's own name up: each counts once.
        names = ({template_of_flat(a.name) for a in _flat_aliases(t.aliases)} for t in self._targets)
        return collections.Counter(template for own in names for template in own)

    @functools.cached_property
    def _theirs(self) -> Mapping[str, int]:
        return collections.Counter(template_of_flat(name) for name in _unique_flat(self._sources))

    def unequal(self, names: Iterable[str]) -> list[tuple[int, int]]:
        """The numbers on both sides of the families of these names, where they differ."""
        templates = dict.fromkeys(template_of_flat(name) for name in names)
        counts = [(self._ours.get(t, 0), self._theirs.get(t, 0)) for t in templates]
        return [(mine, other) for mine, other in counts if mine != other]


def _unique_flat(sources: Side[SourceTensor]) -> Mapping[str, SourceTensor]:
    return sources.own_names((AliasKind.FLAT,))


def _shared_flat(
    targets: Side[TargetVariable],
    sources: Side[SourceTensor],
    claims: Mapping[str, Sequence[_Claim]],
    found: Mapping[str, Outcome],
) -> Iterator[tuple[str, Outcome]]:
    """Targets of which nothing but a flattened name is known, and that have it with others that nothing else tells."""
    flat = _unique_flat(sources)
    nameless = [t for t in targets.open if t.name not in claims] if flat else []
    shared = [(t, [a.name for a in _flat_aliases(t.aliases) if a.name in flat]) for t in nameless]
    if not any(names for _, names in shared):
        return
    taken = {id(o.source) for o in found.values() if isinstance(o, Match) and not rests_on_index(o.name)}
    for target, names in shared:
        name = next((n for n in names if id(flat[n]) not in taken), "")
        if name:
            reason = f"several variables of the model have the name {name!r}, which its slots carry"
            yield target.name, Conflict((flat[name],), reason)


def _flat_aliases(aliases: Iterable[Alias]) -> list[Alias]:
    return [a for a in aliases if a.kind is AliasKind.FLAT]


def _refuse_shared(found: dict[str, Outcome], claims: Mapping[str, Sequence[_Claim]]) -> None:
    """Where targets claim one source, and not each by a path that the source has itself, none of them gets it."""
    sources = [id(claim.source) for own in claims.values() for claim in own]
    if len(set(sources)) == len(sources):
        return
    shared: dict[int, dict[str, _How]] = collections.defaultdict(dict)
    for target, own in claims.items():
        for claim in own:
            shared[id(claim.source)].setdefault(target, claim.how)
    for names in shared.values():
        weak = any(how in (_How.ALIAS, _How.FLAT) for how in names.values())
        # A source has no path for each of `w` and `_w`: that is one attribute, spelled in two ways.
        if len(names) > 1 and (weak or len({n.replace("/_", "/").lstrip("_") for n in names}) < len(names)):
            for name in names:
                if isinstance(found[name], Match):
                    others = ", ".join(repr(n) for n in sorted(names) if n != name)
                    reason = f"{others} claims the same source by another name"
                    found[name] = Conflict((claims[name][0].source,), reason)


def _lists(targets: Side[TargetVariable], sources: Side[SourceTensor], alignment: Alignment) -> Lists:
    # Generators: where all open lists are equal, nobody asks for the rest.
    def ours() -> Iterator[str]:
        yield from own_names(targets.all, PATH_KINDS)

    def theirs() -> Iterator[str]:
        yield from (new for name in own_names(sources.all, PATH_KINDS) for new in alignment.in_program(name))

    return Lists(targets.own_names(PATH_KINDS), alignment.names, ours(), theirs())


def _refuse_unequal_lists(
    found: dict[str, Outcome],
    claims: Mapping[str, Sequence[_Claim]],
    places: tuple[Lists, _FlatFamilies],
    targets: Sequence[TargetVariable],
) -> None:
    """Refuses what rests on an index in a list that is not the same on both sides."""
    lists, families = places
    for target in () if lists.all_equal else targets:
        own = claims.get(target.name, ())
        # What slots call it is no index, and enough where nobody was counted in or out.
        if any(c.how is _How.FLAT and not families.unequal([c.name]) for c in own):
            continue
        names = dict.fromkeys([target.name, *(c.name for c in own)])
        reason = next(filter(None, map(lists.unequal, names)), "")
        if reason:
            candidates = tuple({id(c.source): c.source for c in own}.values())
            found[target.name] = Conflict(candidates, reason, of_indexes=True)
