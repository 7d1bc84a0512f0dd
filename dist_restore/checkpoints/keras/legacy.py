"""Legacy `.h5` files (Keras 2 and 3): variables under their full names, listed in attributes, and optimizers' too."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from dist_restore.checkpoints.keras.hdf5 import Dataset, Group
from dist_restore.core.errors import CheckpointCorruptError
from dist_restore.core.index import Alias, AliasKind, OptimizerInfo, Slot, SourceTensor
from dist_restore.naming.automatic_names import looks_automatic
from dist_restore.naming.names import slot_name
from dist_restore.naming.slot_roles import ENDINGS, degree_of, family_of, role_of_slot

_MODEL, _OPTIMIZER = "model_weights", "optimizer_weights"
_LAYERS, _WEIGHTS = "layer_names", "weight_names"
# A cell is an attribute of its layer; Keras calls its variables by the cell's own, automatic name.
_CELL = re.compile(r"/(lstm|gru|simple_rnn)_cell(_\d+)?/")
_COUNTERS = {"iteration": "iterations", "iterations": "iterations", "iter": "iterations"}
_Pairs = tuple[tuple[SourceTensor, Dataset], ...]


def is_legacy(root: Group) -> bool:
    """Whether a file is of this kind."""
    return _has(_model(root), _LAYERS)


def name_legacy(root: Group) -> tuple[_Pairs, tuple[OptimizerInfo, ...], tuple[tuple[str, str], ...]]:
    """Names all variables, and the slots whose owner their names prove.

    Raises:
      CheckpointCorruptError: an attribute names what is not there.
    """
    layers = enumerate(_texts(_model(root), _LAYERS))
    found = [pair for place, layer in layers for pair in _layer(_model(root), layer, place)]
    found += _layer(_model(root), "top_level_model_weights", -1)
    counts = collections.Counter(tensor.name for tensor, _ in found)
    model = [(t if counts[t.name] == 1 else _by_key(t), d) for t, d in found]
    state, optimizers = _optimizer(root.groups.get(_OPTIMIZER), [t for t, _ in model])
    return tuple(sorted(model + state, key=lambda pair: pair[0].name)), optimizers, ()


def _by_key(tensor: SourceTensor) -> SourceTensor:
    return SourceTensor(tensor.key, tensor.spec, (), AliasKind.POSITIONAL, key=tensor.key)


def _model(root: Group) -> Group:
    return root.groups.get(_MODEL, root)


def _has(group: Group, name: str) -> bool:
    return name in group.attributes or f"{name}0" in group.attributes


def _texts(group: Group, name: str) -> tuple[str, ...]:
    """An attribute; one of more than 64 KB is kept in numbered parts."""
    if name in group.attributes:
        return group.attributes[name]
    found: list[str] = []
    for part in itertools.count():
        if f"{name}{part}" not in group.attributes:
            return tuple(found)
        found += group.attributes[f"{name}{part}"]
    return ()


def _datasets(group: Group) -> Iterator[tuple[str, Dataset]]:
    """Name in the group's list -> the array."""
    names = _texts(group, _WEIGHTS)
    if len(set(names)) < len(names):
        raise CheckpointCorruptError(f"The group {group.path!r} lists a variable twice; use another file.")
    for name in names:
        below = group
        for part in name.split("/")[:-1]:
            below = below.groups.get(part, _NOTHING)
        dataset = below.datasets.get(name.rpartition("/")[2])
        if dataset is None:
            raise CheckpointCorruptError(
                f"The group {group.path!r} lists the variable {name[:200]!r}, and holds none of this name. The file is "
                "damaged; use another one."
            )
        yield name, dataset


_NOTHING = Group("", {}, {}, {})


def _layer(model: Group, layer: str, place: int) -> Iterator[tuple[SourceTensor, Dataset]]:
    group = model.groups.get(layer)
    if group is None:
        if layer == "top_level_model_weights":
            return
        raise CheckpointCorruptError(
            f"The file lists the layer {layer[:200]!r}, and has no such group; use another file."
        )
    top = layer == "top_level_model_weights"
    for stored, dataset in _datasets(group):
        full = _plain(stored)
        name = full if top else _below_layer(layer, full)
        own = "" if top else f"layer-{place}/{name.rpartition('/')[2]}"
        yield _tensor(name, full, f"{group.path}/{stored}", own, dataset), dataset


def _plain(stored: str) -> str:
    return stored.partition(":")[0]


def _below_layer(layer: str, full: str) -> str:
    """The variable's path from its layer on: tf_keras may leave the layer out, or put the model before."""
    parts, own = full.split("/"), layer.split("/")
    if parts[: len(own)] == own:
        return full
    if parts[1 : 1 + len(own)] == own:
        return "/".join(parts[1:])
    return f"{layer}/{full}"


def _tensor(name: str, full: str, key: str, place: str, dataset: Dataset) -> SourceTensor:
    """One variable; `place` says which of the layers it is in, as a name that says order only."""
    names = dict.fromkeys((full, *(_CELL.sub("/cell/", n) for n in (name, full)), key))
    names.pop(name, None)
    aliases = tuple(Alias(n, AliasKind.POSITIONAL if n == key else _kind(n)) for n in names)
    aliases += (Alias(place, AliasKind.POSITIONAL),) if place else ()
    return SourceTensor(name, dataset.spec, aliases, _kind(name), key=key)


def _kind(name: str) -> AliasKind:
    automatic = any(looks_automatic(part) for part in name.split("/")[:-1])
    return AliasKind.COUNTED if automatic else AliasKind.SEMANTIC


@dataclasses.dataclass(frozen=True, slots=True)
class _Owners:
    """The variables of the model by the names that slots carry."""

    by_path: Mapping[str, str]
    by_flat: Mapping[str, str]


def _optimizer(
    group: Group | None, model: Sequence[SourceTensor]
) -> tuple[list[tuple[SourceTensor, Dataset]], tuple[OptimizerInfo, ...]]:
    if group is None or not _has(group, _WEIGHTS):
        return [], ()
    stored = list(_datasets(group))
    labels = {_plain(name).partition("/")[0] for name, _ in stored if "/" in name}
    label = labels.pop() if len(labels) == 1 else ""
    family, owners = family_of(label), _owners(model)
    state = [(_state(f"{group.path}/{n}", _plain(n), d, label, family, owners), d) for n, d in stored]
    counts = collections.Counter(t.name for t, _ in state)
    state = [(t if counts[t.name] == 1 else _by_key(t), d) for t, d in state]
    roles = sorted({t.slot.role for t, _ in state if t.slot is not None})
    return state, (OptimizerInfo("optimizer", family, label, tuple(roles)),)


def _owners(model: Iterable[SourceTensor]) -> _Owners:
    paths: dict[str, set[str]] = collections.defaultdict(set)
    for tensor in model:
        for name in (tensor.name, *(a.name for a in tensor.aliases if a.kind is not AliasKind.POSITIONAL)):
            paths[name].add(tensor.name)
    flat: dict[str, set[str]] = collections.defaultdict(set)
    for name, owners in paths.items():
        flat[name.replace("/", "_")] |= owners
    return _Owners(*({n: next(iter(o)) for n, o in table.items() if len(o) == 1} for table in (paths, flat)))


def _state(key: str, full: str, dataset: Dataset, label: str, family: str, owners: _Owners) -> SourceTensor:
    """A slot where the name proves role and owner; a counter; else a name that says nothing."""
    alias = (Alias(key, AliasKind.POSITIONAL),)
    rest = full.removeprefix(f"{label}/") if label else full
    slot = _slot(rest, family, owners)
    if slot is not None:
        return SourceTensor(slot_name(slot), dataset.spec, alias, slot=slot, key=key)
    if rest in _COUNTERS or rest == "learning_rate":
        return SourceTensor(f"optimizer/{_COUNTERS.get(rest, rest)}", dataset.spec, alias, key=key)
    return SourceTensor(key, dataset.spec, (), AliasKind.POSITIONAL, key=key)


def _slot(rest: str, family: str, owners: _Owners) -> Slot | None:
    head, _, path = rest.partition("/")
    if path in owners.by_path:  # tf_keras: `m/dense/kernel`
        return Slot(role_of_slot(head, family), owners.by_path[path], "optimizer")
    owner, _, last = rest.rpartition("/")
    if owner in owners.by_path and last:  # Keras 2: `dense/kernel/m`
        return Slot(role_of_slot(last, family), owners.by_path[owner], "optimizer")
    cuts = [i for i, c in enumerate(rest) if c == "_"]
    found = [(rest[:i], rest[i + 1 :]) for i in cuts]  # Keras 3: `dense_kernel_momentum`
    named = [(o, ENDINGS.get(r, r)) for o, r in found if o in owners.by_flat]
    known = [Slot(r, owners.by_flat[o], "optimizer") for o, r in named if _is_role(r, family)]
    return known[0] if len(known) == 1 else None


def _is_role(role: str, family: str) -> bool:
    return degree_of(role, family) is not None
