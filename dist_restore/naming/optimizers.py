"""The optimizers in an object graph: whose slot each of their variables is, by what Keras, tf_keras and Sonnet write.

Knows nodes and edges; knows no paths.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from dist_restore.core.graph import Node
from dist_restore.naming import tf_keras_slots as keras2_slots
from dist_restore.naming.optimizer_classes import KERAS_2, KERAS_3, LEGACY, settle, structure_of
from dist_restore.naming.slot_roles import SHADOWS, family_of, role_of_edge, role_of_slot
from dist_restore.naming.unlisted_slots import owners_in_list, unlisted_slots


@dataclasses.dataclass(frozen=True, slots=True)
class OptimizerNode:
    """An optimizer in a graph.

    Attributes:
      node: where it is.
      label: its own name, where its variables carry it.
      family: lower-case class name; empty where nothing gives it away.
      slots: (role, node of the owner, node of the slot).
      unclear: (nodes of the owners of which one is meant, node of the slot).
      structure: what tells the class by itself; see `optimizer_classes`.
    """

    node: int
    label: str
    family: str
    slots: tuple[tuple[str, int, int], ...]
    unclear: tuple[tuple[tuple[int, ...], int], ...] = ()
    structure: tuple[str, ...] = ()


def find_optimizers(nodes: Sequence[Node]) -> Iterator[OptimizerNode]:
    """The optimizers of a graph, each known by the lists that its library makes."""
    lists = _Lists(nodes)
    # Most nodes are variables, which have neither edges nor slots.
    for index, node in [(i, n) for i, n in enumerate(nodes) if n.edges or n.slots]:
        edges = dict(node.edges)
        if node.slots:
            yield _slotted_optimizer(nodes, index)
        elif _is_keras_3(edges):
            yield _keras_optimizer(nodes, index, edges)
        elif edges.keys() >= keras2_slots.NEW_STYLE:
            read = _keras_2_optimizer(nodes, index, edges)
            if read.slots:
                yield read
        elif edges and (found := lists.optimizer(index)) is not None:
            yield found


def keras_3_optimizers(nodes: Sequence[Node]) -> list[int]:
    """The nodes that are optimizers of Keras 3, as `find_optimizers` tells them, without their slots."""
    # A list of thousands is none, and is not made a dict of.
    objects = ((i, node) for i, node in enumerate(nodes) if node.edges and not node.edges[0][0].isdecimal())
    return [i for i, node in objects if not node.slots and _is_keras_3(dict(node.edges))]


def _is_keras_3(edges: Mapping[str, int]) -> bool:
    return "_variables" in edges and "_trainable_variables" in edges


class _Lists:
    """Finds optimizers that keep a list of slots for each role, and whose slots' names end in their owners': Sonnet's.

    Of what such an optimizer trains there is no list beside them, and the order in one is that of a call.
    """

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._nodes = nodes

    @functools.cached_property
    def _owners(self) -> Mapping[str, Sequence[int]]:
        found: dict[str, list[int]] = collections.defaultdict(list)
        for index, node in enumerate(self._nodes):
            if node.leaf is not None:
                found[node.leaf.full_name].append(index)
        return found

    def optimizer(self, index: int) -> OptimizerNode | None:
        """The optimizer at a node, if it is one."""
        lists = [(edge, self._nodes[c].edges) for edge, c in self._nodes[index].edges if self._is_list(c)]
        scopes = [(edge, items, scope) for edge, items in lists if (scope := self._scope(items))]
        labels = {scope.split("/")[-2] for _, _, scope in scopes}
        if len(labels) != 1:
            return None
        label = labels.pop()
        family = self._nodes[index].family or family_of(label)
        slots, unclear = [], []
        for edge, items, scope in scopes:
            for _, slot in items:
                owners = self._owners[self._name(slot)[len(scope) + 1 :]]
                if len(owners) == 1:
                    slots.append((role_of_slot(edge, family), owners[0], slot))
                else:
                    unclear.append((tuple(owners), slot))
        return OptimizerNode(index, label, family, tuple(slots), tuple(unclear))

    def _is_list(self, index: int) -> bool:
        edges = self._nodes[index].edges
        return bool(edges) and edges[0][0] == "0" and self._nodes[edges[0][1]].leaf is not None

    def _scope(self, items: Sequence[tuple[str, int]]) -> str:
        """What all names in a list begin with, and after which an owner's name follows; `adam/m`, or empty."""
        parts = self._name(items[0][1]).split("/")
        for count in range(2, len(parts)):
            scope = "/".join(parts[:count])
            names = [self._name(child) for _, child in items]
            if all(name.startswith(f"{scope}/") and name[len(scope) + 1 :] in self._owners for name in names):
                return scope
        return ""

    def _name(self, index: int) -> str:
        leaf = self._nodes[index].leaf
        return leaf.full_name if leaf is not None else ""


def _keras_2_optimizer(nodes: Sequence[Node], index: int, edges: Mapping[str, int]) -> OptimizerNode:
    label, said, slots = _read_slots(nodes, index, edges)
    structure = structure_of(KERAS_2, edges)
    return OptimizerNode(index, label, nodes[index].family or settle(said, structure), slots, structure=structure)


def _read_slots(nodes: Sequence[Node], index: int, edges: Mapping[str, int]) -> keras2_slots.Reading:
    state = _states(nodes, edges["_variables"])
    own = {item.node for item in state}
    lists = {
        edge: [item for item in _states(nodes, container) if item.node in own]
        for edge, container in nodes[index].edges
        if edge != "_variables"
    }
    return keras2_slots.read_slots({e: m for e, m in lists.items() if m}, state, _owners(nodes))


def _states(nodes: Sequence[Node], container: int) -> list[keras2_slots.State]:
    members = ((name, child, nodes[child].leaf) for name, child in nodes[container].edges)
    found = ((int(n), child, leaf) for n, child, leaf in members if n.isdecimal() and leaf)
    return [keras2_slots.State(place, child, leaf.full_name, leaf.parts_of) for place, child, leaf in found]


def _owners(nodes: Sequence[Node]) -> keras2_slots.Owners:
    """The variables that are no state of an optimizer of Keras 2: by full names and, those in parts, by shapes."""
    state = set(state_of_keras_2(nodes))
    state |= {slot for node in nodes for _, _, slot in node.slots}
    names: dict[str, list[int]] = collections.defaultdict(list)
    shapes: dict[tuple[int, ...], list[int]] = collections.defaultdict(list)
    for index, node in enumerate(nodes):
        if node.leaf is not None and index not in state:
            names[node.leaf.full_name].append(index)
            if node.leaf.parts_of is not None:
                shapes[node.leaf.parts_of].append(index)
    return keras2_slots.Owners(_single(names), _single(shapes))


_Key = TypeVar("_Key")


def _single(groups: Mapping[_Key, Sequence[int]]) -> dict[_Key, int]:
    """The groups of one."""
    return {key: indexes[0] for key, indexes in groups.items() if len(indexes) == 1}


def state_of_keras_2(nodes: Sequence[Node]) -> Iterator[int]:
    """What optimizers of Keras 2 of the new style keep."""
    for node in [n for n in nodes if len(n.edges) > 1]:  # most nodes have none
        edges = dict(node.edges)
        if edges.keys() >= keras2_slots.NEW_STYLE and "_trainable_variables" not in edges:
            own = {child for _, child in node.edges}
            yield from (child for name, child in nodes[edges["_variables"]].edges if child not in own)


def _keras_optimizer(nodes: Sequence[Node], index: int, edges: Mapping[str, int]) -> OptimizerNode:
    # Keras 3 keeps one list per role, each beside _trainable_variables: equal index, equal owner.
    owners = dict(nodes[edges["_trainable_variables"]].edges)
    state = {child for _, child in nodes[edges["_variables"]].edges}
    label = _label(nodes, edges.get("_iterations"))
    structure = structure_of(KERAS_3, edges)
    family = nodes[index].family or settle(family_of(label), structure)
    slots = [
        (role_of_edge(edge), known[position], child)
        for edge, container in nodes[index].edges
        if edge not in ("_variables", "_trainable_variables")
        for known in [owners_in_list(nodes, container, owners)]
        for position, child in nodes[container].edges
        if child in state and position in known
    ]
    slots += [*unlisted_slots(nodes, index, slots)]
    return OptimizerNode(index, label, family, tuple(slots), structure=structure)


def _slotted_optimizer(nodes: Sequence[Node], index: int) -> OptimizerNode:
    leaves = [nodes[slot].leaf for _, _, slot in nodes[index].slots]
    # Keras 2 calls a slot `Adam/dense/kernel/m`, TF1 `dense/kernel/Adam` and `dense/kernel/Adam_1`.
    names = [leaf.full_name.split("/") for leaf in leaves if leaf is not None]
    families = {family_of(parts[0]) or family_of(parts[-1]) for parts in names}
    families.discard("")  # slots of a variable in parts have the variable's name
    if {name for _, name, _ in nodes[index].slots} == {"average"}:
        families, own = {SHADOWS}, SHADOWS  # a wrapper, which keeps averages of weights whatever its class is called
    else:
        own = nodes[index].family
    # Where a loss scale may skip the step, names of slots begin with its condition's.
    guesses = families or {family_of(_own_label(nodes, index))}
    structure = _structure(nodes[index])
    family = own or settle(guesses.pop() if len(guesses) == 1 else "", structure)
    labels = {parts[0] for parts in names}
    label = labels.pop() if len(labels) == 1 and family_of(names[0][0]) else _own_label(nodes, index) or family
    slots = tuple((role_of_slot(name, family), owner, slot) for owner, name, slot in nodes[index].slots)
    return OptimizerNode(index, label, family, slots, structure=structure)


def _structure(node: Node) -> tuple[str, ...]:
    """What tells the class of an optimizer that says itself which slots it has."""
    edges = dict(node.edges)
    if edges.keys() >= keras2_slots.NEW_STYLE:
        return structure_of(KERAS_2, edges)
    return structure_of(LEGACY, [*edges, *(name for _, name, _ in node.slots)])


def _own_label(nodes: Sequence[Node], index: int) -> str:
    """The name that an optimizer of Keras 2 was given, where its slots' names hold it."""
    pairs = [(nodes[slot].leaf, nodes[owner].leaf) for owner, _, slot in nodes[index].slots]
    labels = {keras2_slots.label_of(s.full_name, o.full_name) for s, o in pairs if s is not None and o is not None}
    return labels.pop() if len(labels) == 1 else ""


def _label(nodes: Sequence[Node], iterations: int | None) -> str:
    leaf = nodes[iterations].leaf if iterations is not None else None
    return leaf.full_name.split("/")[0] if leaf is not None and "/" in leaf.full_name else ""
