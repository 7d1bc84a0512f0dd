"""Attributes that a program makes from automatic names: `setattr(self, layer.name, layer)` names nothing.

Such a name is a counter: with the lines that make the layers in another order it belongs to another one. Attributes
that somebody chose may be called so too, so that what they say is believed, and said to be an order.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping

from dist_restore.core.graph import LayerName, Node, Scene
from dist_restore.planning.entries import Proof
from dist_restore.planning.matching.outcome import Match, Outcome


def mark_borrowed(found: Mapping[str, Outcome], scene: Scene) -> Mapping[str, Outcome]:
    """Marks as order what rests on attributes that are called as two or more layers of one class below are, by counter.

    Args:
      found: all outcomes.
      scene: the program.
    """
    nodes = scene.everything or scene.nodes
    counted = {i: node.layer for i, node in enumerate(nodes) if node.layer is not None and node.layer.counted}
    starts = [child for node in nodes if len(node.edges) > 1 for child in _borrowed(node, counted)] if counted else []
    if not starts:
        return found
    marked = dict(found)
    for index in _below(starts, nodes):
        outcome = found.get(scene.names.get(index, ""))
        if isinstance(outcome, Match) and outcome.proof is Proof.NAME:
            marked[scene.names[index]] = Match(outcome.source, outcome.evidence, Proof.ORDER, outcome.name)
    return marked


def _borrowed(node: Node, counted: Mapping[int, LayerName]) -> list[int]:
    by_class: dict[str, set[int]] = collections.defaultdict(set)
    for label, child in node.edges:
        layer = counted.get(child)
        if layer is not None and layer.name == label:
            by_class[layer.kind].add(child)
    return [child for members in by_class.values() if len(members) > 1 for child in sorted(members)]


def _below(starts: list[int], nodes: tuple[Node, ...]) -> set[int]:
    seen, stack = set(starts), list(starts)
    while stack:
        below = [child for _, child in nodes[stack.pop()].edges if child not in seen]
        seen.update(below)
        stack += below
    return seen
