"""Evidence of automatic names (`dense_4`): the order in which layers were made, for files without an object graph.

Layers are compared as wholes, by the names and shapes of all their variables, and only where both sides have equally
many of a class. Where the program or the file knows another order of the same layers too, both must say the same.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Generic

from dist_restore.core.index import AliasKind, Group, SourceTensor, TargetVariable
from dist_restore.planning.entries import Proof
from dist_restore.planning.matching.lists import template_of_counted
from dist_restore.planning.matching.outcome import Conflict, Match, Outcome
from dist_restore.planning.matching.roots import Alignment
from dist_restore.planning.name_table import Named

_PLACE = re.compile(r"(?:^|/)(?:_operations/|_layers/|layer-)([0-9]{1,9})(?=/)")
_GROUP = re.compile(r"(?:^|/)layers/[a-z0-9_]*?(?:_([0-9]{1,9}))?/vars/[^/]+\Z")


@dataclasses.dataclass(frozen=True)
class _Layer(Generic[Named]):
    """A layer with an automatic name.

    Attributes:
      name: of the layer.
      counters: the numbers in it.
      variables: name within the layer -> variable.
    """

    name: str
    counters: tuple[int, ...]
    variables: Mapping[str, Named]

    @property
    def signature(self) -> list[tuple[str, tuple[int, ...]]]:
        return sorted((last, item.spec.shape) for last, item in self.variables.items())

    @property
    def place(self) -> tuple[int, ...]:
        """Its place in another order than that of the counters; empty where none is known."""
        return next(filter(None, map(_place, self.variables.values())), ())


def by_counter(
    targets: Sequence[TargetVariable],
    known: Mapping[str, Outcome],
    sources: Iterable[SourceTensor],
    alignment: Alignment,
    *,
    paths: bool = False,
) -> dict[str, Outcome]:
    """Finds sources by the order of automatic names.

    Args:
      targets: variables that rules did not decide, slots left out.
      known: what has been found for them already.
      sources: tensors that nothing uses.
      alignment: the sources' names in the program's terms.
      paths: whether the sources' names are what Keras calls variables, and attributes are not in them.
    """
    open_ = [t for t in targets if t.name not in known]
    counted = [t for t in open_ if t.name_kind is AliasKind.COUNTED]
    if not counted and not (paths and any(map(_path_of, open_))):
        return {}
    free = {id(s) for s in sources}
    root = _missing_root(targets, alignment.names)
    names = ((f"{root}{n}", items[0]) for n, items in alignment.names.items() if len(items) == 1)
    found = dict(_pair_families(((t.name, t) for t in counted), ((n, s) for n, s in names if id(s) in free)))
    if paths:
        rest = ((path, t) for t in open_ if t.name not in found for path in _path_of(t))
        theirs = ((n, items[0]) for n, items in alignment.names.items() if len(items) == 1 and id(items[0]) in free)
        found.update(_pair_families(rest, theirs))
    return found


def _path_of(target: TargetVariable) -> list[str]:
    """What Keras calls a variable: an attribute of a layer (`query_dense`) may hold one of another name (`query`)."""
    return [a.name for a in target.aliases if a.kind is AliasKind.COUNTED and "/" in a.name][:1]


def _pair_families(
    ours: Iterable[tuple[str, TargetVariable]], theirs: Iterable[tuple[str, SourceTensor]]
) -> Iterator[tuple[str, Outcome]]:
    others = _families(theirs)
    for template, layers in _families(ours).items():
        yield from _pair(layers, others.get(template, []))


def _families(named: Iterable[tuple[str, Named]]) -> dict[str, list[_Layer[Named]]]:
    """Template of a layer's name -> the layers, in the order of their counters."""
    parents: dict[str, dict[str, Named]] = collections.defaultdict(dict)
    for name, item in named:
        parent, _, last = name.rpartition("/")
        parents[parent][last] = item
    found: dict[str, list[_Layer[Named]]] = collections.defaultdict(list)
    for parent, variables in parents.items():
        template, counters = template_of_counted(f"{parent}/")
        found[template].append(_Layer(parent, counters, variables))
    return {t: sorted(layers, key=lambda x: (x.counters, x.name)) for t, layers in found.items()}


def _pair(
    ours: Sequence[_Layer[TargetVariable]], theirs: Sequence[_Layer[SourceTensor]]
) -> Iterator[tuple[str, Outcome]]:
    trouble = _trouble(ours, theirs)
    if trouble and theirs:
        for layer in ours:
            for last, target in layer.variables.items():
                candidates = tuple(x.variables[last] for x in theirs if last in x.variables)
                if candidates:
                    yield target.name, Conflict(candidates, trouble)
    if trouble:
        return
    for position, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        evidence = f"order of automatic names, {position + 1} of {len(ours)}, all shapes equal"
        for last, target in mine.variables.items():
            yield target.name, Match(other.variables[last], evidence, Proof.ORDER)


def _trouble(ours: Sequence[_Layer[TargetVariable]], theirs: Sequence[_Layer[SourceTensor]]) -> str:
    if len(ours) != len(theirs) or [x.signature for x in ours] != [x.signature for x in theirs]:
        return (
            f"its layer has an automatic name, so only the order could tell: the model has {len(ours)} layers of this "
            f"name and the checkpoint {len(theirs)}, or their shapes differ"
        )
    groups: dict[tuple[tuple[str, tuple[int, ...]], ...], list[int]] = collections.defaultdict(list)
    for index, layer in enumerate(ours):
        groups[tuple(layer.signature)].append(index)
    if all(_same_order([ours[i].place for i in g], [theirs[i].place for i in g]) for g in groups.values()):
        return ""
    return "its layer has an automatic name, and automatic names count in another order than the layers have"


def _same_order(ours: Sequence[tuple[int, ...]], theirs: Sequence[tuple[int, ...]]) -> bool:
    """Whether places are in one order; a side that knows none has that of its counters."""
    known = [places if all(places) and len(set(places)) == len(places) else None for places in (ours, theirs)]
    orders = [_order(places) if places is not None else list(range(len(ours))) for places in known]
    return orders[0] == orders[1]


def _order(places: Sequence[tuple[int, ...]]) -> list[int]:
    return sorted(range(len(places)), key=places.__getitem__)


def _place(item: SourceTensor | TargetVariable) -> tuple[int, ...]:
    for alias in item.aliases:
        if alias.kind is AliasKind.POSITIONAL:
            group = _GROUP.search(alias.name)
            if group is not None:
                return (int(group.group(1) or 0),)
            numbers = _PLACE.findall(alias.name)
            if numbers:
                return tuple(int(number) for number in numbers)
    return ()


def _missing_root(targets: Iterable[TargetVariable], theirs: Iterable[str]) -> str:
    """The one root of the program's models, where the checkpoint has no such root: a file of weights alone.

    Equal names cannot show it where all are automatic, for these are equal by chance only.
    """
    ours = [t.name for t in targets if t.group is Group.MODEL or t.name_kind is AliasKind.COUNTED]
    roots = {name.partition("/")[0] for name in ours}
    root = roots.pop() if len(roots) == 1 and min(name.count("/") for name in ours) > 1 else ""
    return "" if not root or any(name.startswith(f"{root}/") for name in theirs) else f"{root}/"
