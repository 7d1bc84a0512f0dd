"""The groups of a `.weights.h5` as an object graph, so that layers are found as Keras itself would find them.

A group is an attribute of its layer, or a member of a list: these are called by class and a counter of the class, so
that members of one class are in order and others are not. `layers` is what a model calls the list of its layers; of a
subclassed model only those are in it that no attribute before it in the alphabet holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from dist_restore.checkpoints.keras.config import LayerConfig
from dist_restore.checkpoints.keras.hdf5 import Group
from dist_restore.core.graph import LayerName, Leaf, Node, Scene
from dist_restore.core.index import SourceTensor
from dist_restore.naming.automatic_names import looks_automatic, without_counter

_VARS, _LAYERS, _OPTIMIZER = "vars", "layers", "optimizer"
_COUNTER = re.compile(r"_([0-9]{1,9})\Z")


def scene_of(root: Group, tensors: Iterable[SourceTensor], config: LayerConfig | None) -> Scene:
    """The object graph of a file whose variables have been named."""
    builder = _Builder({tensor.key: tensor for tensor in tensors})
    builder.layer(root, "", config)
    return Scene(tuple(builder.nodes), builder.names, by_layer=True)


class _Builder:
    def __init__(self, tensors: Mapping[str, SourceTensor]) -> None:
        self._tensors = tensors
        self.nodes: list[Node] = []
        self.names: dict[int, str] = {}

    def layer(self, group: Group, kind: str, config: LayerConfig | None) -> int:
        """Adds a layer and all below it; gives its number."""
        index = self._add()
        edges = [*self._variables(group)]
        for name, child in group.groups.items():
            if name == _VARS or (name == _OPTIMIZER and not index):
                continue
            if _VARS in child.groups:
                edges.append((name, self.layer(child, _class_of(_own_name(child)), None)))
            else:
                members = config.members if config is not None and name == _LAYERS else {}
                edges.append((name, self._row(child, members)))
        own = _own_name(group) or (config.name if config is not None else "")
        self.nodes[index] = Node(tuple(edges), layer=LayerName(own, looks_automatic(own), kind))
        return index

    def _add(self) -> int:
        self.nodes.append(Node())
        return len(self.nodes) - 1

    def _variables(self, group: Group) -> Iterable[tuple[str, int]]:
        variables = group.groups.get(_VARS)
        for key in variables.datasets if variables is not None else ():
            tensor = self._tensors.get(f"{variables.path}/{key}") if variables is not None else None
            if tensor is not None:
                index = self._add()
                self.nodes[index] = Node((), Leaf(tensor.key, ""))
                self.names[index] = tensor.name
                numbered = tensor.name.endswith(f"{_VARS}/{key}")
                yield f"#{key}" if numbered else tensor.name.rpartition("/")[2], index

    def _row(self, group: Group, configs: Mapping[str, LayerConfig]) -> int:
        index = self._add()
        edges = []
        for place, name in enumerate(sorted(group.groups, key=in_order)):
            child = group.groups[name]
            nested = _VARS in child.groups
            number = self.layer(child, without_counter(name), configs.get(name)) if nested else self._row(child, {})
            edges.append((str(place), number))
        self.nodes[index] = Node(tuple(edges))
        return index


def _class_of(own_name: str) -> str:
    """The class that an automatic name gives away; a name that somebody chose may sound like another one."""
    return without_counter(own_name) if looks_automatic(own_name) else ""


def in_order(name: str) -> tuple[str, int]:
    """By class, and within it by the counter."""
    found = _COUNTER.search(name)
    return without_counter(name), int(found.group(1)) if found else 0


def _own_name(group: Group) -> str:
    stored = group.groups[_VARS].attributes.get("name", ()) if _VARS in group.groups else ()
    return stored[0] if len(stored) == 1 else ""
