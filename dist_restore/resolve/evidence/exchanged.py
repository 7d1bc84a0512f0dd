"""Layers whose names that somebody chose are exchanged: the attributes say one thing, the layers' own names another."""

from __future__ import annotations

import collections
from collections.abc import Mapping

from dist_restore.automatic_names import Vocabulary
from dist_restore.graph import Scene
from dist_restore.resolve.evidence.outcome import Conflict, Match, Outcome


def refuse_exchanged(
    found: Mapping[str, Outcome], ours: Mapping[str, str], theirs: Mapping[str, str], words: Vocabulary
) -> Mapping[str, Outcome]:
    """Refuses what is found in one layer while another one has the name of the program's.

    Args:
      found: all outcomes.
      ours: target -> its full name.
      theirs: source -> its full name.
      words: what automatic names are made of.
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
        homes[_layer(full, words)].add(name.rpartition("/")[0])
    result = dict(found)
    for name, match in differ:
        here, there = _layer(ours[name], words), _layer(theirs[match.source.name], words)
        others = homes.get(here, set())
        if here and there and here != there and len(others) == 1:
            reason = (
                f"its place is that of {match.source.name!r}, whose layer is called {there!r} in the checkpoint; its "
                f"own is called {here!r}, and so is {next(iter(others))!r} there"
            )
            result[name] = Conflict((match.source,), reason)
    return result


def _layer(full: str, words: Vocabulary) -> str:
    """The name of a variable's layer with all above it; empty where Keras made it up, or there is none."""
    text = words.path(full.rpartition("/")[0]).text
    return "" if text.endswith("{}") else text


def names_in_files(scene: Scene) -> dict[str, str]:
    """The same of files that say layers' own names and no full names: variable -> `layer/` and its name."""
    found: dict[str, str] = {}
    for node in scene.everything or scene.nodes:
        if node.layer is not None and node.layer.name and not node.layer.counted:
            own = node.layer.name.replace("/", "|")
            found.update((scene.names[child], f"{own}/{label}") for label, child in node.edges if child in scene.names)
    return found
