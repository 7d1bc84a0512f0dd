"""`.weights.h5`: one HDF5 group per layer, called by attribute, or by class and order, with numbered variables in it.

A Keras 3 file says each layer's own name beside its variables, a tf_keras file does not, and neither says what the
variables are called. Keras itself loads by class and order, and so loads swapped layers crossed. Here a layer is
its attribute or its own name, and a variable is named only where the layer's class leaves no doubt; all others keep
their number, as positional names, for `resolve` to judge.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping

from dist_restore.checkpoints.keras.config import LayerConfig
from dist_restore.checkpoints.keras.hdf5 import Dataset, Group
from dist_restore.checkpoints.keras.layers import class_of
from dist_restore.checkpoints.keras.scene import in_order
from dist_restore.core.dtypes import CODES
from dist_restore.core.errors import CheckpointCorruptError
from dist_restore.core.index import Alias, AliasKind, OptimizerInfo, Place, SourceTensor
from dist_restore.naming.automatic_names import looks_automatic, without_counter
from dist_restore.naming.layer_variables import variable_names
from dist_restore.naming.optimizer_classes import KERAS_3
from dist_restore.naming.slot_roles import INSIDE, LOSS_SCALE, family_of

VARS = "vars"
_LAYERS, _OPTIMIZER = "layers", "optimizer"
_RANK = {AliasKind.SEMANTIC: 0, AliasKind.COUNTED: 1, AliasKind.POSITIONAL: 2}


@dataclasses.dataclass(frozen=True, slots=True)
class _Place:
    """A layer on the way down.

    Attributes:
      names: ways to say where it is, with how much each says; the first is the canonical one.
      own: own names of the layers down to it, the model's first; empty where one is unknown.
      own_kind: how much these say.
      layer_class: in snake case; empty where the file does not say.
      config: from the archive.
      members: names that somebody chose for those of the layers that are members of a list or dict.
    """

    names: tuple[Alias, ...]
    own: tuple[str, ...] = ()
    own_kind: AliasKind = AliasKind.SEMANTIC
    layer_class: str = ""
    config: LayerConfig | None = None
    members: tuple[str, ...] = ()


def is_weights(root: Group) -> bool:
    """Whether a file is of this kind."""
    return any(VARS in group.groups for group in root.walk())


def name_weights(root: Group, config: LayerConfig | None) -> tuple[tuple[SourceTensor, Dataset], ...]:
    """Names all variables.

    Args:
      root: of the file.
      config: of the model, where there is an archive around the file.

    Raises:
      CheckpointCorruptError: config and file contradict each other.
    """
    own = _own_name(root, config)
    start = _Place((Alias("", AliasKind.SEMANTIC),), (own,) if own else (), config=config)
    found = list(_visit(root, start))
    counts = collections.Counter(tensor.name for tensor, _ in found)
    named = ((t if counts[t.name] == 1 else _by_key(t), d) for t, d in found)
    return tuple(sorted(named, key=lambda pair: pair[0].name))


def numbered_optimizers(root: Group, config: LayerConfig | None) -> tuple[OptimizerInfo, ...]:
    """A compiled model's optimizer and those inside: their variables have numbers only, no roles and no owners."""
    groups = [*_nested(root.groups.get(_OPTIMIZER))]
    rows = tuple(_rows(root, config)) if groups else ()
    classes = config.optimizers if config is not None else ()
    if classes and classes[0] != LOSS_SCALE and len(classes) < len(groups):
        classes = (LOSS_SCALE, *classes)  # `compile` wraps the optimizer by itself, and the config has the one inside
    found: list[OptimizerInfo] = []
    for number, group in enumerate(groups):
        label = _own_name(group, None)
        family = classes[number] if number < len(classes) else family_of(label)
        # Only Keras 3 (from 3.6 on) says names; tf_keras does not.
        found.append(OptimizerInfo(group.path, family, label, (), (KERAS_3,) if label else (), rows))
    return tuple(found)


def _nested(group: Group | None) -> Iterator[Group]:
    """An optimizer, and those inside, each in the one before."""
    while group is not None and VARS in group.groups:
        yield group
        group = group.groups.get(INSIDE)


def _rows(group: Group, config: LayerConfig | None, name: str = "") -> Iterator[tuple[str, ...]]:
    """Layers of which the file says the order: those of one class in a list; all of a model whose config it has."""
    members: Mapping[str, LayerConfig] = {}
    if VARS not in group.groups and group.path:
        members = config.members if config is not None and name == _LAYERS else {}
        yield from _row(group, members)
    for below, child in group.groups.items():
        if below != VARS and child.path != _OPTIMIZER:
            yield from _rows(child, config if below == _LAYERS else members.get(below), below)


def _row(container: Group, members: Mapping[str, LayerConfig]) -> Iterator[tuple[str, ...]]:
    if members.keys() >= container.groups.keys():
        yield tuple(container.groups[name].path for name in members if name in container.groups)
        return
    classes: dict[str, list[str]] = collections.defaultdict(list)
    for name in sorted(container.groups, key=in_order):
        classes[without_counter(name)].append(container.groups[name].path)
    yield from (tuple(found) for found in classes.values() if len(found) > 1)


def _by_key(tensor: SourceTensor) -> SourceTensor:
    return SourceTensor(tensor.key, tensor.spec, (), AliasKind.POSITIONAL, key=tensor.key)


def _own_name(group: Group, config: LayerConfig | None) -> str:
    stored = group.groups[VARS].attributes.get("name", ()) if VARS in group.groups else ()
    name = stored[0] if len(stored) == 1 and stored[0] and "/" not in stored[0] else ""
    if config is not None and name and config.name and name != config.name:
        raise CheckpointCorruptError(
            f"The group {group.path or '/'!r} is of a layer called {name!r}, and config.json calls it {config.name!r}. "
            "They are of different saves; use another file."
        )
    return name or (config.name if config is not None and "/" not in config.name else "")


def _visit(group: Group, place: _Place) -> Iterator[tuple[SourceTensor, Dataset]]:
    if VARS in group.groups:
        yield from _variables(group.groups[VARS], place)
    for name, child in group.groups.items():
        if name == VARS:
            continue
        if VARS in child.groups:
            yield from _visit(child, _attribute(name, child, place))
        else:
            yield from _visit_container(name, child, place)


def _attribute(name: str, child: Group, parent: _Place) -> _Place:
    own = _own_name(child, None)
    names = tuple(_below(alias, name.lstrip("_") or name) for alias in parent.names)
    return _longer(parent, own, names, class_of(own), looks_automatic(own), None)


def _visit_container(name: str, container: Group, parent: _Place) -> Iterator[tuple[SourceTensor, Dataset]]:
    """Layers in a list or dict: the file says their classes and their order within each class."""
    listed = tuple(_below(alias, name.lstrip("_") or name) for alias in parent.names)
    single = len({without_counter(member) for member in container.groups}) == 1
    for member, child in container.groups.items():
        config = parent.config.members.get(member) if parent.config is not None and name == _LAYERS else None
        own, base = _own_name(child, config), without_counter(member)
        index = member.removeprefix(base).lstrip("_") or "0"
        # A list that somebody called `layers` is one of a layer; a model's own `layers` says order only.
        ordered = single and not (name == _LAYERS and _is_model(parent))
        by_index = tuple(
            _below(a, index if ordered else member, AliasKind.SEMANTIC if ordered else None) for a in listed
        )
        automatic = without_counter(own) == base
        by_name = tuple(_below(a, own, _kind(automatic)) for a in parent.names) if name == _LAYERS and own else ()
        if name == _LAYERS and not own:
            by_index = tuple(_below(a, member, None) for a in listed)
        if VARS in child.groups:
            found = _longer(parent, own, by_name + by_index, base, automatic, config)
            chosen = own and not automatic and not (name == _LAYERS and not ordered)
            yield from _visit(child, dataclasses.replace(found, members=(*parent.members, own)) if chosen else found)
        else:
            yield from _visit(child, _Place(by_index, members=parent.members))


def _is_model(place: _Place) -> bool:
    return place.names[0].name == "" or place.layer_class in ("functional", "sequential", "model")


def _longer(
    parent: _Place, own: str, names: tuple[Alias, ...], base: str, automatic: bool, config: LayerConfig | None
) -> _Place:
    chain = (*parent.own, own) if own and parent.own else ()
    kind = max(parent.own_kind, _kind(automatic), key=_RANK.__getitem__)
    return _Place(names[:8], chain, kind, base, config, parent.members)


def _kind(automatic: bool) -> AliasKind:
    return AliasKind.COUNTED if automatic else AliasKind.SEMANTIC


def _below(alias: Alias, name: str, kind: AliasKind | None = AliasKind.SEMANTIC) -> Alias:
    """A name one step longer; None stands for a step that says nothing."""
    steps = (alias.kind, AliasKind.POSITIONAL if kind is None else kind)
    return Alias(f"{alias.name}/{name}" if alias.name else name, max(steps, key=_RANK.__getitem__))


def _variables(group: Group, place: _Place) -> Iterator[tuple[SourceTensor, Dataset]]:
    keys = sorted(group.datasets, key=lambda key: (int(key) if key.isdecimal() and len(key) < 10 else -1, key))
    numbered = [str(i) for i in range(len(keys))] == keys
    names = dict(zip(keys, keys, strict=True))
    if numbered:
        options = place.config.options if place.config is not None else None
        specs = [group.datasets[key].spec for key in keys]
        quantized = any(s.dtype in CODES for s in specs)  # such a layer has other variables
        known = None if quantized else variable_names(place.layer_class, [s.shape for s in specs], options)
        names = dict(zip(keys, known, strict=True)) if known is not None else {}
    for key in keys:
        dataset = group.datasets[key]
        yield _tensor(f"{group.path}/{key}", key, names.get(key, ""), dataset, place), dataset


def _layer_names(place: _Place) -> tuple[Alias, ...]:
    own = (Alias("/".join(place.own), place.own_kind),) if len(place.own) > 1 else ()
    return place.names + own if place.names[0].kind is not AliasKind.POSITIONAL else place.names


def _tensor(path: str, key: str, name: str, dataset: Dataset, place: _Place) -> SourceTensor:
    kind = AliasKind.SEMANTIC if name else AliasKind.POSITIONAL
    last = name.lstrip("_") or name or f"{VARS}/{key}"
    aliases = [_below(alias, last, kind) for alias in place.names]
    if len(place.own) > 1:
        aliases.append(_below(Alias("/".join(place.own), place.own_kind), last, kind))
    aliases.append(Alias(path, AliasKind.POSITIONAL))
    own, rest = aliases[0], {a.name: a for a in reversed(aliases) if a.name != aliases[0].name}
    place_in_layer = Place(_layer_names(place), place.layer_class) if own.kind is AliasKind.POSITIONAL else None
    members = tuple(sorted(set(place.members)))
    rest_of_names = tuple(rest.values())
    return SourceTensor(
        own.name, dataset.spec, rest_of_names, own.kind, key=path, place=place_in_layer, members=members
    )
