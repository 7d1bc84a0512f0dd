"""Classes of the user's that are called as one of Keras': numbers in a file have no names from Keras' class then."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dist_restore.core.graph import Node, Scene
from dist_restore.naming.layer_variables import KNOWN
from dist_restore.planning.matching.outcome import Conflict, Match, Outcome


def refuse_misnamed(found: Mapping[str, Outcome], scene: Scene) -> Mapping[str, Outcome]:
    """Refuses names that a file's numbers got from a class of Keras, where the program's class has another order.

    Args:
      found: all outcomes, of a file that numbers a layer's variables.
      scene: the program.
    """
    nodes = scene.everything or scene.nodes
    wrong = {
        name: Conflict((outcome.source,), _reason(node))
        for node in nodes
        if node.layer is not None and node.layer.own and node.layer.kind in KNOWN
        for name, number in _numbers(node, scene.names)
        if isinstance(outcome := found.get(name), Match) and _number_of(outcome.source.key) not in (None, number)
    }
    return {**found, **wrong} if wrong else found


def _numbers(node: Node, names: Mapping[int, str]) -> Iterator[tuple[str, int]]:
    """(variable, its number in a file of the program's); -1 where the class saves in a way of its own."""
    places = {child: place for place, child in enumerate(node.numbered)}
    yield from ((names[child], places.get(child, -1)) for _, child in node.edges if child in names)


def _number_of(key: str) -> int | None:
    last = key.rpartition("/vars/")[2]
    return int(last) if last.isdecimal() and len(last) < 10 else None


def _reason(node: Node) -> str:
    assert node.layer is not None
    return (
        f"the class of its layer is called {node.layer.kind!r} as one of Keras' is, and is another: the file only "
        "numbers its variables, which the two classes do in different orders; a rule must say which is which"
    )
