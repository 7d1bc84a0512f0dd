"""Layers whose names that somebody chose are exchanged: the attributes say one thing, the layers' own names another."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from dist_restore.core.graph import Scene
from dist_restore.core.index import AliasKind, SourceTensor, TargetVariable
from dist_restore.naming.automatic_names import Vocabulary
from dist_restore.planning.matching.outcome import Conflict, Match, Outcome


class Reading(NamedTuple):
    """How one kind of name is read.

    Attributes:
      label: what a name says of a layer, counters apart; empty where that is nothing.
      chosen: what of it somebody chose, given the last part of the variable's own name.
    """

    label: Callable[[str], str]
    chosen: Callable[[str, str], str]


def refuse_exchanged(
    found: Mapping[str, Outcome], ours: Mapping[str, str], theirs: Mapping[str, str], reading: Reading
) -> Mapping[str, Outcome]:
    """Refuses what is found in one layer while another one has the name of the program's.

    Args:
      found: all outcomes.
      ours: target -> its full name, or the name that its slots carry.
      theirs: source -> likewise.
      reading: how such names are read.
    """
    label = reading.label
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
        home = _common(homes.get(here, ()))
        if here and there and here != there and home and not _is_below(match.source.name, home):
            own = name.rpartition("/")[2].lstrip("_")
            if not reading.chosen(ours[name], own) and reading.chosen(theirs[match.source.name], own):
                continue  # a name that was given up: what is left of it others may have as well
            shown = here.replace("{}", ""), there.replace("{}", "")
            reason = (
                f"its place is that of {match.source.name!r}, which is called {shown[1]!r} in the checkpoint; it is "
                f"called {shown[0]!r} itself, and so is what {home!r} holds there"
            )
            result[name] = Conflict((match.source,), reason)
    return result


def _common(places: Iterable[str]) -> str:
    """The place below which all of some are: several layers of one block may be called alike."""
    parts = [place.split("/") for place in places]
    if not parts:
        return ""
    least = min(map(len, parts))
    same = [i for i in range(least) if len({own[i] for own in parts}) > 1]
    return "/".join(parts[0][: same[0] if same else least])


def _is_below(name: str, place: str) -> bool:
    return name.startswith(f"{place}/")


def in_full_names(words: Vocabulary) -> Reading:
    """The name of a variable's layer with all above it."""
    return Reading(
        lambda full: words.path(full.rpartition("/")[0]).text,
        lambda full, own: words.chosen_in_path(full.rpartition("/")[0]),
    )


def in_files(words: Vocabulary) -> Reading:
    """The same of a file, which does not say what is automatic: only what the program's words do not make up."""

    def chosen(full: str) -> str:
        return "/".join(p for p in words.path(full).text.split("/")[:-1] if not p.endswith("{}"))

    return Reading(chosen, lambda full, own: chosen(full))


def in_flat_names(words: Vocabulary) -> Reading:
    """The same of a name without separators, with the variable's own."""
    return Reading(
        lambda flat: words.flat(flat).text,
        lambda flat, own: words.chosen_in_flat(flat).removesuffix(own).rstrip("_"),
    )


def flat_names_of(items: Iterable[SourceTensor | TargetVariable]) -> dict[str, str]:
    """What the slots of variables call them; what Keras counted up as well."""
    kinds = (AliasKind.FLAT, AliasKind.COUNTED)
    found = ((i.name, next((a.name for a in i.aliases if a.kind in kinds and "/" not in a.name), "")) for i in items)
    return {name: flat for name, flat in found if flat}


def names_in_files(scene: Scene) -> dict[str, str]:
    """The same of files that say layers' own names and no full names: variable -> the names of all layers above it."""
    nodes, found = scene.everything or scene.nodes, dict[str, str]()
    # Not that of the model itself, which may change: in a file it is the root, of live objects the outermost layer.
    stack: list[tuple[int, tuple[str, ...] | None]] = [(0, () if scene.by_layer else None)]
    seen = {0}
    while stack:
        index, above = stack.pop()
        layer = nodes[index].layer
        if layer is not None and above is not None and index and layer.name:
            above = (*above, layer.name.replace("/", "|"))
        elif layer is not None and above is None:
            above = ()
        for label, child in nodes[index].edges:
            if child in scene.names:
                found.update({scene.names[child]: "/".join((*above, label))} if above else {})
            elif child not in seen:
                seen.add(child)
                stack.append((child, above))
    return found
