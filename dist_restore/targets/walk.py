"""Live objects as a graph of nodes, so that `naming` can name them as it names a checkpoint's.

Edges are those of the public `tf.train.TrackableView`, which are what `tf.train.Checkpoint` saves, and besides
the plain lists, dicts and helper objects of Keras 3 layers, which it does not.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence

import msgspec
import tensorflow as tf

from dist_restore.core.graph import LayerName, Leaf, Node
from dist_restore.core.index import Unbuilt
from dist_restore.core.text import snake_case
from dist_restore.targets import tf_keras as keras2
from dist_restore.targets.build import Builder
from dist_restore.targets.children import (
    children,
    is_bare,
    is_counted,
    is_optimizer,
    is_own_class,
    is_variable,
    layer_classes,
    numbered_variables,
)
from dist_restore.targets.facts import Facts, LiveLeaf
from dist_restore.targets.objects import is_stateful
from dist_restore.targets.unbuilt import find_fresh, find_unbuilt
from dist_restore.tf_internals.keras_variables import KerasVariable, unwrap
from dist_restore.tf_internals.sharded import parts_of

# Counters may be created under no strategy; models are not.
_ENOUGH = 64
# An optimizer may hold one that it does not build, and so on.
_MAX_NESTED = 4


@dataclasses.dataclass(frozen=True, slots=True)
class LiveGraph:
    """What a walk found.

    Attributes:
      nodes: for `naming.name_graph`.
      leaves: what is restored at each that has anything.
      bare: whether the root has no name.
      unbuilt: the nodes that have no variables yet.
      fresh: the nodes of optimizers that made no step.
      tracked: the nodes as a checkpoint of them would have them: edges that TensorFlow saves, and its own full names.
    """

    nodes: tuple[Node, ...]
    leaves: Mapping[int, LiveLeaf]
    bare: bool
    unbuilt: Mapping[int, Unbuilt]
    fresh: frozenset[int]
    tracked: tuple[Node, ...]


def walk(root: object, strategy: tf.distribute.Strategy | None) -> LiveGraph:
    """Walks everything below a Checkpoint, model, module or mapping, and builds optimizers. Called by all workers."""
    if isinstance(root, tf.train.Checkpoint):
        _ = root.save_counter  # creates it: it is saved and restored like any other state
    walker = _Walker()
    walker.visit(root)
    for _ in range(_MAX_NESTED):
        if not walker.build_optimizers(strategy):
            break
        walker = _Walker()  # what was built has more below it now
        walker.visit(root)
    return walker.graph(root)


def first_strategy(root: object) -> tf.distribute.Strategy | None:
    """The strategy under which something below was created, by a look at the first variables; None for the default."""
    some = itertools.islice(_Walker().variables(root), _ENOUGH)
    found = (getattr((parts_of(v) or (v,))[0], "distribute_strategy", None) for v in some)
    return next((s for s in found if s is not None and not is_default(s)), None)


def is_default(strategy: tf.distribute.Strategy) -> bool:
    """Whether it is what variables have that were created under no strategy."""
    return type(strategy).__name__ == "_DefaultDistributionStrategy"


class _Walker:
    """Numbers objects by identity and records their edges, in the order in which they are found."""

    def __init__(self) -> None:
        self._objects: list[object] = []
        self._others: list[tuple[int, object]] = []  # those that are no variables
        self._numbers: dict[int, int] = {}
        self._edges: list[list[tuple[str, int, bool]]] = []
        self._slots: dict[int, tuple[tuple[int, str, int], ...]] = {}
        self._optimizers: list[tuple[int, object]] = []
        self._layers = layer_classes()

    def visit(self, root: object) -> None:
        self._number(root)
        for cursor, item in enumerate(self._objects):  # grows on the way
            # Most objects are variables; to ask each of them for all that it is not took a third of the walk's time.
            if not is_variable(item):
                self._others.append((cursor, item))
                edges = self._edges[cursor]
                edges += [(name, self._number(child), tracked) for name, child, tracked in children(item)]
        self._find_slots()

    def _find_slots(self) -> None:
        """The slots of tf_keras's optimizers, which say no owners in their edges, and of legacy ones no edges."""
        optimizers = [(i, o) for i, o in self._others if keras2.is_optimizer(o)]
        variables = [o for o in self._objects if is_variable(o)] if optimizers else []
        for index, optimizer in optimizers:
            found = keras2.slots(optimizer, variables)
            self._slots[index] = tuple([(self._number(o), name, self._number(slot)) for name, o, slot in found])

    def variables(self, root: object) -> Iterator[object]:
        """The variables below an object, as they are found."""
        seen = self._number(root)
        for item in self._objects:  # grows on the way
            for _, child, _ in children(item):
                self._number(child)
                # As they are found: a list may hold thousands, and the caller needs few.
                yield from filter(is_variable, self._objects[seen:])
                seen = len(self._objects)

    def build_optimizers(self, strategy: tf.distribute.Strategy | None) -> bool:
        """Builds those without slots for what they train, where that is clear; whether any was new."""
        self._optimizers = [(i, o) for i, o in self._others if is_optimizer(o)]
        return Builder(self._objects, self._edges).build([i for i, _ in self._optimizers], strategy)

    def graph(self, root: object) -> LiveGraph:
        facts = Facts(self._objects, self._others, self._edges, self._slots, root)
        stateless = {i for i, o in self._others if not is_stateful(o)}
        leaves = {i: facts.leaf(i) for i in range(len(self._objects)) if i not in stateless}
        nodes = tuple([self._node(i, leaves.get(i)) for i in range(len(self._objects))])
        fresh = find_fresh(self._optimizers)
        short = Builder(self._objects, self._edges).find_short(sorted(fresh))
        unbuilt = {**short, **find_unbuilt(self._others)}
        tracked = self._tracked(nodes, facts)
        return LiveGraph(nodes, leaves, is_bare(root), unbuilt, fresh, tracked)

    def _number(self, item: object) -> int:
        item = item.value if isinstance(item, KerasVariable) else item  # as `unwrap`, without its call
        number = self._numbers.setdefault(id(item), len(self._objects))
        if number == len(self._objects):
            self._objects.append(item)  # holds the object, so that its id stays its own
            self._edges.append([])
        return number

    def _node(self, index: int, live: LiveLeaf | None) -> Node:
        item = self._objects[index]
        leaf = Leaf(f"live/{index}", live.own_name) if live is not None else None
        if live is not None and not self._edges[index]:
            return Node((), leaf)
        edges = tuple([(name, child) for name, child, _ in self._edges[index]])
        layer = (
            LayerName(item.name, is_counted(item), snake_case(type(item).__name__), is_own_class(item))
            if isinstance(item, self._layers)
            else None
        )
        family = type(keras2.stands_for(item)).__name__.lower() if is_optimizer(item) else ""
        return Node(edges, leaf, layer, family, self._slots.get(index, ()), self._numbered(item))

    def _numbered(self, item: object) -> tuple[int, ...]:
        if not isinstance(item, self._layers):
            return ()
        found = tuple([self._numbers.get(id(unwrap(variable)), -1) for variable in numbered_variables(item)])
        return found if -1 not in found else ()

    def _tracked(self, nodes: Sequence[Node], facts: Facts) -> tuple[Node, ...]:
        """The nodes as a checkpoint has them: with TensorFlow's own names, and the edges that it saves."""
        found = list(nodes)
        for index in facts.with_paths():
            name, leaf = str(getattr(self._objects[index], "name", "")).partition(":")[0], nodes[index].leaf
            if name and leaf is not None and name != leaf.full_name:
                found[index] = msgspec.structs.replace(nodes[index], leaf=Leaf(leaf.key, name))
        for index, _ in self._others:
            own = self._edges[index]
            if nodes[index].leaf is None and not all([tracked for _, _, tracked in own]):
                edges = tuple([(name, child) for name, child, tracked in own if tracked])
                found[index] = msgspec.structs.replace(nodes[index], edges=edges)
        return tuple(found)
