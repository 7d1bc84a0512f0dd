"""An object graph as values: nodes with named edges, some of which hold a variable. Checkpoints and live ones alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import msgspec


class Leaf(msgspec.Struct, frozen=True, gc=False):
    """A variable at a node.

    Attributes:
      key: under which it is stored.
      full_name: the name that it gave itself.
      parts_of: its shape, where it is stored in parts (`ShardedVariable`).
    """

    key: str
    full_name: str
    parts_of: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class LayerName:
    """A layer's own name.

    Attributes:
      name: empty where only the class is known.
      counted: whether Keras made it up from the class and a counter.
      kind: the class in snake case; empty where it is not known.
      own: whether the class is the user's, and only called like one of Keras' (live layers only).
    """

    name: str
    counted: bool
    kind: str = ""
    own: bool = False


class Node(msgspec.Struct, frozen=True, gc=False):
    """One object.

    Attributes:
      edges: (name, index of the child) pairs.
      leaf: set when the object is a variable.
      layer: the layer's own name, where it is known (live objects only).
      family: lower-case class name of an optimizer, where it is known (live objects only).
      slots: (index of the owner, slot name, index of the slot) of optimizers that say so themselves.
      numbered: variables in the order in which Keras' files number them (live layers of the user's own classes only).
    """

    edges: tuple[tuple[str, int], ...] = ()
    leaf: Leaf | None = None
    layer: LayerName | None = None
    family: str = ""
    slots: tuple[tuple[int, str, int], ...] = ()
    numbered: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """What one side consists of, as TensorFlow tracks it: evidence that names, which are made from it, may have lost.

    Attributes:
      nodes: the objects; the root is node 0. Of live objects only the edges that TensorFlow saves.
      names: node -> canonical name of the variable there.
      everything: of live objects, the nodes with all edges that lead to variables.
      by_layer: whether it tells layers by their own names and classes, and has neither full names nor all orders.
    """

    nodes: tuple[Node, ...]
    names: Mapping[int, str]
    everything: tuple[Node, ...] = ()
    by_layer: bool = False

    def full_names(self) -> dict[str, str]:
        """Canonical name -> the name that the variable gave itself."""
        nodes = self.nodes
        return {name: leaf.full_name for i, name in self.names.items() if (leaf := nodes[i].leaf) is not None}

    def order(self) -> dict[str, int]:
        """Canonical name -> its place among the variables, object after object, each with what is below it."""
        found: dict[str, int] = {}
        stack, seen = [0] if self.nodes else [], {0}
        while stack:
            index = stack.pop()
            if index in self.names:
                found[self.names[index]] = len(found)
            below = list(dict.fromkeys(child for _, child in self.nodes[index].edges if child not in seen))
            seen.update(below)
            stack += reversed(below)
        return found
