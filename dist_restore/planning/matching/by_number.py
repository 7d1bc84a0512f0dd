"""Evidence of a variable's place in its layer, for files that number a layer's variables (`.weights.h5`).

A number is evidence only together with the layer: its name, its class, how many variables it has and of which shapes.
Where that leaves two answers (gamma or beta, both a vector), the target is refused with what would decide.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from dist_restore.core.index import Alias, AliasKind, Group, SourceTensor, TargetVariable
from dist_restore.core.tensors import TensorSpec
from dist_restore.planning.entries import Proof
from dist_restore.planning.matching.by_counter import by_counter
from dist_restore.planning.matching.by_name import by_name
from dist_restore.planning.matching.lists import template_of_counted
from dist_restore.planning.matching.numbers import PAIR
from dist_restore.planning.matching.outcome import Conflict, Match, Outcome
from dist_restore.planning.matching.roots import align
from dist_restore.planning.name_table import Side

_ORDER = re.compile(r"(?:^|.*/)(?:_operations/|layer-)(\d+)/[^/]+\Z")
_Layer = Sequence[TargetVariable] | Sequence[SourceTensor]
# What a layer's name leads to: the layer in the file and what that rests on, or outcomes for all its variables.
_Named: TypeAlias = "tuple[list[SourceTensor], Proof] | dict[str, Outcome]"


def by_number(targets: Side[TargetVariable], free: Sequence[SourceTensor]) -> dict[str, Outcome]:
    """Finds sources among numbered variables.

    Args:
      targets: variables without a decision, and all of them; slots left out.
      free: tensors that rules have not decided, slots left out.

    Returns:
      Outcomes for some of the open targets.
    """
    placed = [t for t in free if t.place is not None]
    if not placed or not targets.open:
        return {}
    wanted = {t.name for t in targets.open if t.group is Group.MODEL}
    ours = _by_parent(v for v in targets.all if v.group is Group.MODEL)
    named = _match_layers(ours, placed, free)
    found: dict[str, Outcome] = {}
    for parent, layer in named.items():
        found.update(layer if isinstance(layer, dict) else _judge(ours[parent], *layer))
    found.update(_by_order(ours, placed))
    return {name: outcome for name, outcome in found.items() if name in wanted}


def _by_parent(variables: Iterable[TargetVariable]) -> dict[str, list[TargetVariable]]:
    layers: dict[str, list[TargetVariable]] = collections.defaultdict(list)
    for variable in variables:
        if not variable.keep_reason:
            layers[variable.name.rpartition("/")[0]].append(variable)
    return dict(layers)


def _match_layers(
    ours: Mapping[str, Sequence[TargetVariable]], placed: Sequence[SourceTensor], free: Sequence[SourceTensor]
) -> dict[str, _Named]:
    """Matches layers by name, as if each were one variable: the same evidence, and the same refusals."""
    theirs: dict[str, list[SourceTensor]] = collections.defaultdict(list)
    for tensor in placed:
        if tensor.place is not None and tensor.place.layer[0].kind is not AliasKind.POSITIONAL:
            theirs[tensor.place.layer[0].name].append(tensor)
    if not theirs:
        return {}
    stand_ins = [_target(parent, layer) for parent, layer in ours.items()]
    layers = [_source(layer) for layer in theirs.values()]
    # The layers whose variables have names take part: they say where the root is, and how many there are.
    others: dict[str, list[SourceTensor]] = collections.defaultdict(list)
    for tensor in free:
        if tensor.place is None:
            others[tensor.name.rpartition("/")[0]].append(tensor)
    layers += [_named_source(parent, layer) for parent, layer in others.items() if parent not in theirs]
    mine, other = Side(stand_ins, stand_ins), Side(layers, layers)
    alignment = align(stand_ins, other, ())
    found = by_name(mine, other, alignment)
    used = {id(o.source) for o in found.values() if isinstance(o, Match)}
    counted = by_counter(stand_ins, found, [t for t in layers if id(t) not in used], alignment)
    return _layers_of({**found, **counted}, ours, theirs)


def _layers_of(
    outcomes: Mapping[str, Outcome],
    ours: Mapping[str, Sequence[TargetVariable]],
    theirs: Mapping[str, list[SourceTensor]],
) -> dict[str, _Named]:
    found: dict[str, _Named] = {}
    for stand_in, outcome in outcomes.items():
        parent = _parent(stand_in)
        if isinstance(outcome, Match) and _parent(outcome.source.name) in theirs:
            found[parent] = theirs[_parent(outcome.source.name)], outcome.proof
        elif isinstance(outcome, Conflict):
            tensors = tuple(t for s in outcome.candidates for t in theirs.get(_parent(s.name), ()))
            conflict = Conflict(tensors, outcome.reason)
            found[parent] = {v.name: conflict for v in ours[parent]} if tensors else {}
    return found


_STAND_IN = "#"


def _parent(name: str) -> str:
    return name.rpartition("/")[0]


def _target(parent: str, layer: Sequence[TargetVariable]) -> TargetVariable:
    first = layer[0]
    aliases = (_shorter(a) for a in first.aliases if a.kind is not AliasKind.FLAT)
    return TargetVariable(
        _below(parent),
        _spec(layer),
        tuple(a for a in aliases if a.name != _below(parent)),
        first.name_kind,
        first.group,
    )


def _source(layer: Sequence[SourceTensor]) -> SourceTensor:
    place = layer[0].place
    assert place is not None
    names = [Alias(_below(a.name), a.kind) for a in place.layer if a.kind is not AliasKind.POSITIONAL]
    group = Alias(_below(_parent(layer[0].key)), AliasKind.POSITIONAL)
    return SourceTensor(names[0].name, _spec(layer), (*names[1:], group), names[0].kind)


def _named_source(parent: str, layer: Sequence[SourceTensor]) -> SourceTensor:
    return SourceTensor(_below(parent), _spec(layer), (), layer[0].name_kind)


def _shorter(alias: Alias) -> Alias:
    return Alias(_below(_parent(alias.name)), alias.kind)


def _below(parent: str) -> str:
    return f"{parent}/{_STAND_IN}" if parent else _STAND_IN


def _spec(layer: _Layer) -> TensorSpec:
    """All shapes in one, in an order of their own, so that equal ones are equal layers."""
    return TensorSpec(tuple(n for shape in sorted(v.spec.shape for v in layer) for n in (-1, *shape)), "float32")


def _judge(ours: Sequence[TargetVariable], theirs: Sequence[SourceTensor], proof: Proof) -> dict[str, Outcome]:
    trouble = _trouble(ours, theirs)
    if trouble:
        layer = _parent(ours[0].name)
        reason = (
            f"the file numbers the {len(theirs)} variables of this layer and does not name them, and {trouble}; a rule "
            f'for each variable of {layer!r} must say which it is, such as from = "{theirs[0].name}"'
        )
        return {v.name: Conflict(tuple(theirs), reason) for v in ours}
    shapes = {t.spec.shape: t for t in theirs}
    evidence = f"place in a layer of equal name, its {len(ours)} shapes equal and each there once"
    return {v.name: Match(shapes[v.spec.shape], evidence, proof) for v in ours}


def _trouble(ours: Sequence[TargetVariable], theirs: Sequence[SourceTensor]) -> str:
    """Why numbers do not tell; empty when they do."""
    place = theirs[0].place
    classes = {v.layer_class for v in ours} - {""}
    if place is not None and place.layer_class and classes and classes != {place.layer_class}:
        return f"its class there is {place.layer_class!r}, here {', '.join(map(repr, sorted(classes)))}"
    if len(ours) != len(theirs):
        return f"the model's has {len(ours)}"
    if _spec(ours) != _spec(theirs):
        return "their shapes are not those of the model's"
    if len({t.spec.shape for t in theirs}) < len(theirs):
        return "some of them have one shape"
    if len({v.name.rpartition("/")[2] for v in ours} & PAIR) == 1:
        return "gamma and beta look the same where one of them is left out"
    return ""


@dataclasses.dataclass(frozen=True, slots=True)
class _Ordered:
    """Layers of one class in their order, on both sides."""

    ours: list[tuple[str, list[TargetVariable]]]
    theirs: list[tuple[str, list[SourceTensor]]]


def _by_order(ours: Mapping[str, list[TargetVariable]], placed: Sequence[SourceTensor]) -> dict[str, Outcome]:
    """Matches layers that the file calls by class and order only, where Keras made their names up here as well."""
    groups: dict[str, list[SourceTensor]] = collections.defaultdict(list)
    for tensor in placed:
        assert tensor.place is not None
        if tensor.place.layer[0].kind is AliasKind.POSITIONAL:
            groups[tensor.place.layer[0].name].append(tensor)
    if not groups:
        return {}
    classes = _classes(ours, groups)
    reasons = [_not_in_order(c) for c in classes.values()]
    trouble = next((r for r in reasons if r), "")
    found: dict[str, Outcome] = {}
    for ordered in classes.values():
        found.update(_refused(ordered, trouble) if trouble else _accepted(ordered))
    return found


def _classes(ours: Mapping[str, list[TargetVariable]], groups: Mapping[str, list[SourceTensor]]) -> dict[str, _Ordered]:
    found: dict[str, _Ordered] = collections.defaultdict(lambda: _Ordered([], []))
    for parent, layer in ours.items():
        found[layer[0].layer_class].ours.append((parent, layer))
    for name, tensors in groups.items():
        place = tensors[0].place
        assert place is not None
        found[place.layer_class].theirs.append((name, tensors))
    for ordered in found.values():
        ordered.ours.sort(key=lambda item: (_operation(item[1]), item[0]))
        ordered.theirs.sort(key=lambda item: (template_of_counted(f"{item[0]}/{_STAND_IN}")[1], item[0]))
    return dict(found)


def _operation(layer: Sequence[TargetVariable]) -> int:
    """The layer's place among the model's; -1 where it is no member of a functional model itself."""
    names = [a.name for a in layer[0].aliases if a.kind is AliasKind.POSITIONAL]
    names = [n for n in names if n.count("_operations/") + n.count("layer-") == 1]
    found = [match for match in map(_ORDER.match, names) if match is not None]
    return int(found[0].group(1)) if found else -1


def _not_in_order(layers: _Ordered) -> str:
    """Why order does not tell for a class; empty when it does."""
    if len(layers.ours) != len(layers.theirs):
        return f"the model has {len(layers.ours)} layers of a class of which the file has {len(layers.theirs)}"
    if any(layer[0].name_kind is not AliasKind.COUNTED or _operation(layer) < 0 for _, layer in layers.ours):
        return "the model's layers have names of their own, or are no members of a functional model"
    counters = [template_of_counted(layer[0].name)[1] for _, layer in layers.ours]
    if any(a >= b for a, b in itertools.pairwise(counters)):
        return "the model's automatic names count in another order than its layers have"
    for (_, mine), (_, other) in zip(layers.ours, layers.theirs, strict=True):
        if {_last(v.name): v.spec.shape for v in mine} != {_last(t.name): t.spec.shape for t in other}:
            return "the variables of the layers are not the same, or not named by the layers' class"
    return ""


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _accepted(layers: _Ordered) -> dict[str, Outcome]:
    evidence = f"order of layers of one class, all {len(layers.ours)} of equal shapes and with automatic names"
    found: dict[str, Outcome] = {}
    for (_, mine), (_, other) in zip(layers.ours, layers.theirs, strict=True):
        tensors = {_last(t.name): t for t in other}
        found.update((v.name, Match(tensors[_last(v.name)], evidence, Proof.ORDER)) for v in mine)
    return found


def _refused(layers: _Ordered, trouble: str) -> dict[str, Outcome]:
    candidates = tuple(t for _, tensors in layers.theirs for t in tensors)
    reason = f"the file calls its layers by class and order only, and {trouble}; a rule must say which layer is which"
    return {v.name: Conflict(candidates, reason) for _, layer in layers.ours for v in layer} if candidates else {}
