"""What the layers in Keras' containers are called: by themselves, or by the full names of the variables below them."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping, Sequence

from dist_restore.core.graph import LayerName, Leaf, Node
from dist_restore.naming.automatic_names import looks_automatic
from dist_restore.naming.keras_containers import LAYER_CONTAINERS, NUMBERED_LAYER, POSITIONAL_CONTAINERS, SKIPPED

# Variables that are asked for their layer's name; a nested model of more has other evidence.
MAX_ASKED = 1000


def layer_names(nodes: Sequence[Node]) -> dict[int, dict[int, LayerName]]:
    """Container node -> child -> the layer's own name, where it is known and no sibling has the same.

    In Keras 2 the model itself is the container: `layer-3` is an edge of it.
    """
    containers = {container for node in nodes for edge, container in node.edges if edge in LAYER_CONTAINERS}
    members = {child for container in containers for _, child in nodes[container].edges}
    names = {child: nodes[child].layer or _infer_layer_name(nodes, child) for child in members}
    found = {c: _sibling_names({child: names[child] for _, child in nodes[c].edges}) for c in containers}
    for index, node in enumerate(nodes):
        if node.edges and (inside := _numbered_layers(node)):
            known = {child: nodes[child].layer or _layer_name_of_keras_2(nodes, child) for child in inside}
            found[index] = {**found.get(index, {}), **_sibling_names(known)}
    return found


def _numbered_layers(node: Node) -> set[int]:
    return {child for name, child in node.edges if name.startswith("layer") and NUMBERED_LAYER.match(name)}


def _layer_name_of_keras_2(nodes: Sequence[Node], index: int) -> LayerName | None:
    """The first part of all names below, which have as many parts as there are edges: `a/kernel` of `layer-1/kernel`.

    The variables of a functional model leave its name out, so that nothing tells it.
    """
    if _numbered_layers(nodes[index]):
        return None
    names = {
        leaf.full_name.split("/")[-depth - 1] if leaf.full_name.count("/") >= depth else ""
        for leaf, depth in _leaves_below(nodes, index)
    }
    name = names.pop() if len(names) == 1 else ""
    return LayerName(name, looks_automatic(name)) if name else None


def _sibling_names(names: Mapping[int, LayerName | None]) -> dict[int, LayerName]:
    counts = collections.Counter(n.name for n in names.values() if n is not None)
    return {child: n for child, n in names.items() if n is not None and counts[n.name] == 1}


def _infer_layer_name(nodes: Sequence[Node], index: int) -> LayerName | None:
    """What the variables below say about the layer's name: `seq/dense/kernel`, one edge below, is `dense`."""
    guesses = set[str]()
    for leaf, depth in _leaves_below(nodes, index):
        guesses.add(_layer_segment(leaf.full_name, depth))
        if len(guesses) > 1:
            return None
    guess = guesses.pop() if guesses else ""
    return LayerName(guess, looks_automatic(guess)) if guess else None


def _layer_segment(full_name: str, depth: int) -> str:
    parts = full_name.split("/")
    if len(parts) > depth:
        return parts[-depth - 1]
    # Layers built inside another's call lose the scopes in between: Keras 3 calls them all `outer/kernel`.
    return parts[-2] if len(parts) >= 2 else ""


def _leaves_below(nodes: Sequence[Node], index: int) -> Iterator[tuple[Leaf, int]]:
    stack, seen = [(index, 0)], {index}
    while stack and len(seen) <= MAX_ASKED:
        current, depth = stack.pop()
        leaf = nodes[current].leaf
        if leaf is not None:
            yield leaf, depth
        for name, child in nodes[current].edges:
            if child not in seen and name not in POSITIONAL_CONTAINERS and name not in SKIPPED:
                seen.add(child)
                stack.append((child, depth + 1))
