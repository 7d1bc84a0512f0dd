"""Layers whose names that somebody chose are exchanged: the attributes say one thing, the layers' own names another."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Mapping

from dist_restore.core.graph import Scene
from dist_restore.core.specs import AliasKind, SourceTensor, TargetVariable
from dist_restore.naming.automatic_names import Vocabulary
from dist_restore.planning.matching.outcome import Conflict, Match, Outcome


def refuse_exchanged(
    found: Mapping[str, Outcome], ours: Mapping[str, str], theirs: Mapping[str, str], label: Callable[[str], str]
) -> Mapping[str, Outcome]:
    """Refuses what is found in one layer while another one has the name of the program's.

    Args:
      found: all outcomes.
      ours: target -> its full name, or the name that its slots carry.
      theirs: source -> likewise.
      label: what such a name says of a layer, counters apart; empty where that is nothing.
    """
    differ = [
        (n, o)
        for n, o in found.items()
        if isinstance(o, Match) and n in ours and o.source.name in theirs and ours[n] != theirs[o.source.name]
    ]
    if not differ:
        return found
    homes: dict[str, set[str]] = collections.defaultdict(set)
    for name, full in theirs.items():
        homes[label(full)].add(name.rpartition("/")[0])
    result = dict(found)
    for name, match in differ:
        here, there = label(ours[name]), label(theirs[match.source.name])
        others = homes.get(here, set())
        if here and there and here != there and len(others) == 1:
            shown = here.replace("{}", ""), there.replace("{}", "")
            reason = (
                f"its place is that of {match.source.name!r}, which is called {shown[1]!r} in the checkpoint; it is "
                f"called {shown[0]!r} itself, and so is what {next(iter(others))!r} holds there"
            )
            result[name] = Conflict((match.source,), reason)
    return result


def in_full_names(words: Vocabulary) -> Callable[[str], str]:
    """The name of a variable's layer with all above it."""
    return lambda full: words.path(full.rpartition("/")[0]).text


def in_flat_names(words: Vocabulary) -> Callable[[str], str]:
    """The same of a name without separators, with the variable's own."""
    return lambda flat: words.flat(flat).text


def flat_names_of(items: Iterable[SourceTensor | TargetVariable]) -> dict[str, str]:
    """What the slots of variables call them; what Keras counted up as well."""
    kinds = (AliasKind.FLAT, AliasKind.COUNTED)
    found = ((i.name, next((a.name for a in i.aliases if a.kind in kinds and "/" not in a.name), "")) for i in items)
    return {name: flat for name, flat in found if flat}


def names_in_files(scene: Scene) -> dict[str, str]:
    """The same of files that say layers' own names and no full names: variable -> `layer/` and its name."""
    found: dict[str, str] = {}
    for node in scene.everything or scene.nodes:
        if node.layer is not None and node.layer.name and not node.layer.counted:
            own = node.layer.name.replace("/", "|")
            found.update((scene.names[child], f"{own}/{label}") for label, child in node.edges if child in scene.names)
    return found
