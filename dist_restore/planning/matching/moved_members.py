"""Variables in a list whose own names, which somebody chose, have other places there than in the checkpoint."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator, Mapping

from dist_restore.naming.automatic_names import Vocabulary
from dist_restore.planning.matching.outcome import Conflict, Match, Outcome


def refuse_moved_members(
    found: Mapping[str, Outcome], ours: Mapping[str, str], theirs: Mapping[str, str], words: Vocabulary
) -> Mapping[str, Outcome]:
    """Refuses a place in a list where another member of it has the variable's name.

    Args:
      found: all outcomes.
      ours: target -> the name that the variable gave itself.
      theirs: source -> likewise.
      words: what of a name is automatic.
    """
    differ = [*_differing(found, ours, theirs)]
    if not differ:
        return found
    places = _single((_list_of(name), words.path(full).text, name) for name, full in theirs.items())
    once = _single((_list_of(name), words.path(full).text, name) for name, full in ours.items())
    result = dict(found)
    for name, match in differ:
        called = words.path(ours[name]).text
        there = places.get((_list_of(match.source.name), called), "")
        if there and there != match.source.name and once.get((_list_of(name), called)) == name:
            reason = (
                f"its place in a list is that of {match.source.name!r}, which is called {theirs[match.source.name]!r} "
                f"in the checkpoint; it is called {ours[name]!r} itself, and so is {there!r} there"
            )
            result[name] = Conflict((match.source,), reason)
    return result


def _differing(
    found: Mapping[str, Outcome], ours: Mapping[str, str], theirs: Mapping[str, str]
) -> Iterator[tuple[str, Match]]:
    """Members of lists that are matched with a member of another name."""
    for name, outcome in found.items():
        if isinstance(outcome, Match) and _list_of(name) and _list_of(outcome.source.name):
            mine, other = ours.get(name, ""), theirs.get(outcome.source.name, "")
            if mine and other and mine != other:
                yield name, outcome


def _list_of(name: str) -> str:
    """The list that a variable is a member of itself; empty where it is none."""
    place, _, last = name.rpartition("/")
    return place if last.isdigit() else ""


def _single(items: Iterable[tuple[str, str, str]]) -> dict[tuple[str, str], str]:
    """(list, name) -> the one member of that list that has the name."""
    members: dict[tuple[str, str], list[str]] = collections.defaultdict(list)
    for place, called, name in items:
        if place:
            members[place, called].append(name)
    return {key: own[0] for key, own in members.items() if len(own) == 1}
