"""The best few ways from the root of an object graph to each of its nodes, and what each of them is called."""

from __future__ import annotations

import collections
import functools
import heapq
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

from dist_restore.core.errors import CheckpointCorruptError
from dist_restore.core.graph import LayerName, Node
from dist_restore.core.index import AliasKind
from dist_restore.naming.keras_containers import (
    LAYER_CONTAINERS,
    NUMBERED_LAYER,
    POSITIONAL_CONTAINERS,
    SKIPPED,
    TRANSPARENT,
    VARIABLE_LISTS,
)
from dist_restore.naming.layer_names import layer_names

# More than models nest.
_LAST = 10
# Real programs stay below 30; a hostile graph may not cost quadratic memory.
MAX_DEPTH = 100
# Paths kept per node. Tied weights have two or three; each costs memory for every node.
MAX_PATHS = 6


class Path(msgspec.Struct, frozen=True, gc=False):
    """A way from the root to a node.

    Attributes:
      weight: positional steps, layer names that Keras counted up, private attributes, length, and layer names that
        stand for an index: the smallest is the most semantic, and of these the shortest.
      text: the name.
      parent: the name without its last part.
      size: the number of parts.
      raw: the names of the edges, joined.
      edge: the last edge's name.
      kind: how much the name says.
      visited: the nodes on the way.
    """

    weight: tuple[int, int, int, int, int]
    text: str
    parent: str
    size: int
    raw: str
    edge: str
    kind: AliasKind
    visited: tuple[int, ...]

    @property
    def depth(self) -> int:
        """The number of edges."""
        return len(self.visited) - 1


def best_paths(nodes: Sequence[Node]) -> dict[int, list[Path]]:
    """The best few paths to each node, best first: a search that closes a node after `MAX_PATHS` visits."""
    found: dict[int, list[Path]] = collections.defaultdict(list)
    layers, trees = layer_names(nodes), _trees(nodes)
    counter = itertools.count()
    start = Path((0, 0, 0, 0, 0), "", "", 0, "", "", AliasKind.SEMANTIC, (0,))
    queue = [(start.weight, next(counter), 0, start)]
    while queue or (queue := [(p.weight, next(counter), i, p) for i, p in _overlooked(nodes, found)]):
        _, _, index, path = heapq.heappop(queue)
        if len(found[index]) >= MAX_PATHS:
            continue
        found[index].append(path)
        for child, longer in _extend(nodes[index], path, layers.get(index, {})):
            if child in trees:
                _follow(nodes, child, longer, found, layers)
            elif len(found[child]) < MAX_PATHS:
                heapq.heappush(queue, (longer.weight, next(counter), child, longer))
    return dict(found)


def _overlooked(nodes: Sequence[Node], found: Mapping[int, list[Path]]) -> Iterator[tuple[int, Path]]:
    """What only an attribute leads to that is called like one of Keras': somebody's own."""
    if all([index in found for index, node in enumerate(nodes) if node.leaf is not None]):
        return
    for index in [*found]:
        for name, child in nodes[index].edges:
            there = nodes[child].leaf is not None or (nodes[child].edges and name != "keras_api")
            if name in SKIPPED and child not in found and there:
                yield child, _step(found[index][0], name, child, None)


def _trees(nodes: Sequence[Node]) -> frozenset[int]:
    """The nodes that have one path, as have all nodes below them: nothing is to be compared there.

    With 50,000 variables in plain modules these are all, and the search takes a third of the time.
    """
    parents = collections.Counter(child for node in nodes for _, child in node.edges)
    order = [0]  # grows on the way
    for index in order:
        edges = nodes[index].edges
        if edges:
            order += [child for _, child in edges if child and parents[child] == 1]
    found = set[int]()
    for index in reversed(order):
        edges = nodes[index].edges
        if not edges or all(child in found for _, child in edges):
            found.add(index)
    return frozenset(found)


def _follow(
    nodes: Sequence[Node],
    root: int,
    path: Path,
    found: dict[int, list[Path]],
    layers: Mapping[int, Mapping[int, LayerName]],
) -> None:
    """Adds the paths of a tree's nodes."""
    found[root] = [path]
    stack = [(root, path)] if nodes[root].edges else []
    while stack:
        index, path = stack.pop()
        for child, longer in _extend(nodes[index], path, layers.get(index, {})):
            found[child] = [longer]
            if nodes[child].edges:
                stack.append((child, longer))


def _extend(node: Node, path: Path, layers: Mapping[int, LayerName]) -> Iterator[tuple[int, Path]]:
    if path.depth > MAX_DEPTH:
        raise CheckpointCorruptError(
            f"The object graph is broken: objects nest deeper than {MAX_DEPTH} at {path.raw[:100]!r}... "
            "Use another checkpoint."
        )
    plain_step = _plain_steps(path) if node.edges and path.edge not in LAYER_CONTAINERS else None
    for name, child in node.edges:
        if name not in SKIPPED and child not in path.visited:
            if plain_step is not None and child not in layers and (name.isdecimal() or _is_plain(name)):
                yield child, plain_step(name, child)
            else:
                yield child, _step(path, name, child, layers.get(child))


@functools.lru_cache(maxsize=1 << 12)
def _is_plain(name: str) -> bool:
    """Whether an edge is an attribute that somebody named, or an index in a list of theirs."""
    special = name in POSITIONAL_CONTAINERS or name in TRANSPARENT or name == "root"
    return not special and not name.startswith("_") and not NUMBERED_LAYER.match(name)


def _plain_steps(path: Path) -> Callable[[str, int], Path]:
    """What `_step` does for plain edges that lead to no named layer, as nearly all are.

    Siblings share most of it, and where raw and readable names are equal they are one string: 0.4 us less for each.
    """
    positional, counted, private, length, borrowed = path.weight
    weight, text, size, kind = (positional, counted, private, length + 1, borrowed), path.text, path.size, path.kind
    before, raw_before = f"{text}/" if size else "", f"{path.raw}/" if path.depth else ""
    same, visited = before == raw_before, path.visited

    def step(name: str, child: int) -> Path:
        longer = before + name
        raw = longer if same else raw_before + name
        return Path(weight, longer, text, size + 1, raw, name, kind, (*visited, child))

    return step


def _step(path: Path, name: str, child: int, layer: LayerName | None) -> Path:
    weight, text, parent, size, container, kind = path.weight, path.text, path.parent, path.size, path.edge, path.kind
    first = len(path.visited) == 1
    raw, visited = name if first else f"{path.raw}/{name}", (*path.visited, child)
    # `Checkpoint(model)` calls the model `root`; in its checkpoint the model is the root itself.
    if name in TRANSPARENT or (name == "root" and first):
        return Path(weight, text, parent, size, raw, name, kind, visited)
    positional, counted, private, length, borrowed = weight
    numbered = name.startswith("layer") and NUMBERED_LAYER.match(name) is not None
    if layer is not None and numbered:  # Keras 2: an edge of the model itself
        kind = AliasKind.COUNTED if layer.counted and kind is AliasKind.SEMANTIC else kind
        weight = (positional, counted + layer.counted, private, length + 1, borrowed + 1)
        joined = f"{text}/{layer.name}" if size else layer.name
        return Path(weight, joined, text, size + 1, raw, name, kind, visited)
    if layer is not None and container in LAYER_CONTAINERS:
        kind = AliasKind.COUNTED if layer.counted and kind is AliasKind.SEMANTIC else kind
        text = f"{parent}/{layer.name}" if size > 1 else layer.name
        weight = (positional - 1, counted + layer.counted, private, length, borrowed + 1)
        return Path(weight, text, parent, size, raw, name, kind, visited)
    if name in POSITIONAL_CONTAINERS or numbered:
        kind = kind if name in LAYER_CONTAINERS else AliasKind.POSITIONAL
        weight = (positional + (_LAST if name in VARIABLE_LISTS else 1), counted, private, length + 1, borrowed)
    else:
        kind = AliasKind.POSITIONAL if container in LAYER_CONTAINERS else kind
        weight = (positional, counted, private + name.startswith("_"), length + 1, borrowed)
    segment = name.lstrip("_") or name
    return Path(weight, f"{text}/{segment}" if size else segment, text, size + 1, raw, name, kind, visited)
