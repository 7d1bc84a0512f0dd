"""Matching by place in Keras' own lists of layers, for variables below a layer whose name nobody chose.

A checkpoint does not hold the name of a model inside a functional model: its variables are `operations/2/...`.
Where Keras made the live name up as well, the place is all that there is. The whole list is the evidence.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping, Sequence

from dist_restore.naming import LAYER_CONTAINERS
from dist_restore.resolve.families import template_of_counted
from dist_restore.resolve.matching import Conflict, Match, Outcome
from dist_restore.resolve.names import Named
from dist_restore.specs import AliasKind, SourceTensor, TargetVariable


def match_containers(targets: Iterable[TargetVariable], sources: Iterable[SourceTensor]) -> dict[str, Outcome]:
    """Finds sources by their place.

    Args:
      targets: variables without a decision.
      sources: tensors that nothing uses.

    Returns:
      Outcomes for some of the targets: all matches, or all conflicts where the lists are not the same.
    """
    ours = _by_place([t for t in targets if t.name_kind is AliasKind.COUNTED])
    theirs = _by_place([s for s in sources if s.name_kind is AliasKind.POSITIONAL])
    both = ours.keys() & theirs.keys()
    if ours.keys() == theirs.keys() and all(_alike(ours[p], theirs[p]) for p in both):
        evidence = f"place in Keras' list of layers, all {len(ours)} shapes equal"
        return {ours[place].name: Match(theirs[place], evidence) for place in sorted(both)}
    reason = "the checkpoint names it by its layer's place only, and the lists of layers are not the same"
    return {ours[place].name: Conflict((theirs[place],), reason) for place in sorted(both)}


def _by_place(items: Sequence[Named]) -> Mapping[str, Named]:
    """Place, from the first list of layers on -> the one item there."""
    found: dict[str, list[Named]] = collections.defaultdict(list)
    for item in items:
        places = {_place(a.name) for a in item.aliases if a.kind is AliasKind.POSITIONAL}
        for place in sorted(places - {""})[:1]:
            found[place].append(item)
    return {place: items[0] for place, items in found.items() if len(items) == 1}


def _place(name: str) -> str:
    parts = name.split("/")
    start = next((i for i, part in enumerate(parts) if part in LAYER_CONTAINERS), len(parts))
    return "/".join(parts[start:])


def _alike(target: TargetVariable, source: SourceTensor) -> bool:
    """Whether shape and the variable's own name agree, and the layer's up to its counter."""
    ours, theirs = (template_of_counted(x.name)[0].split("/")[-2:] for x in (target, source))
    return target.spec.shape == source.spec.shape and ours == theirs
