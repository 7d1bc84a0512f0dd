"""From an object graph to names: the same reading for a checkpoint's graph and for live objects.

A graph is nodes with named edges; some nodes hold a variable. Every variable gets one canonical name, the most
semantic of its paths, and its other paths as aliases; an optimizer's lists of slots become (role, owner).
Knows what Keras calls its own containers; knows neither protos nor live objects, so that both sides are named
by one piece of code and equal programs get equal names.
"""

from __future__ import annotations

import collections
import dataclasses
import heapq
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from dist_restore.errors import CheckpointCorruptError
from dist_restore.slot_roles import family_of, role_of_edge
from dist_restore.specs import Alias, AliasKind, OptimizerInfo, Slot

# Keras' own containers: an index inside one of them was chosen by nobody. (Keras 3.0 - 3.15, tf_keras 2.16 - 2.21;
# lists that a user made are not here, whatever their name.)
POSITIONAL_CONTAINERS = frozenset(
    {
        "_operations",
        "_layers",
        "_variables",
        "_trainable_variables",
        "_non_trainable_variables",
        "_trainable_variables_indices",
        "_self_tracked_trackables",
        "_metrics",
        "_seed_generators",
        "_undeduplicated_weights",
        "variables",
        "trainable_variables",
        "regularization_losses",
    }
)
# Lists of layers: an index there can be replaced by the layer's own name, where that is known.
LAYER_CONTAINERS = frozenset({"_operations", "_layers"})
# Steps that say nothing about what is below: a Sequential keeps its layers in a hidden functional model.
TRANSPARENT = frozenset({"_functional"})
# What tf_keras adds for loading SavedModels: second paths to everything, all positional.
SKIPPED = frozenset({"keras_api", "_tracked", "_inbound_nodes", "_outbound_nodes"})
_POSITIONAL_EDGE = re.compile(r"layer(_with_weights)?-\d+\Z")
# Real programs stay below 30; a hostile graph may not cost quadratic memory.
MAX_DEPTH = 100
# Paths kept per node. Tied weights have two or three; each costs memory for every node.
MAX_PATHS = 6


@dataclasses.dataclass(frozen=True, slots=True)
class Leaf:
    """A variable at a node: the key under which it is stored, and the name that it gave itself."""

    key: str
    full_name: str


@dataclasses.dataclass(frozen=True, slots=True)
class LayerName:
    """A layer's own name; `counted` when Keras made it up from the class and a counter."""

    name: str
    counted: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Node:
    """One object.

    Attributes:
      edges: (name, index of the child) pairs.
      leaf: set when the object is a variable.
      layer: the layer's own name, where it is known (live objects only).
      family: lower-case class name of an optimizer, where it is known (live objects only).
      slots: (index of the owner, slot name, index of the slot) of optimizers that say so themselves.
    """

    edges: tuple[tuple[str, int], ...] = ()
    leaf: Leaf | None = None
    layer: LayerName | None = None
    family: str = ""
    slots: tuple[tuple[int, str, int], ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class NamedLeaf:
    """A variable with its names."""

    node: int
    leaf: Leaf
    name: str
    kind: AliasKind
    aliases: tuple[Alias, ...]
    slot: Slot | None


@dataclasses.dataclass(frozen=True, slots=True)
class _Path:
    """A way from the root to a node: `weight` sorts semantic before positional, then short before long."""

    weight: tuple[int, int, int]
    segments: tuple[str, ...]
    raw: tuple[str, ...]
    kind: AliasKind
    visited: tuple[int, ...]

    @property
    def text(self) -> str:
        return "/".join(self.segments)


@dataclasses.dataclass(frozen=True, slots=True)
class _OptimizerNode:
    node: int
    label: str
    family: str
    slots: tuple[tuple[str, int, int], ...]  # role, owner, slot


def name_graph(nodes: Sequence[Node]) -> tuple[tuple[NamedLeaf, ...], tuple[OptimizerInfo, ...]]:
    """Names every variable of an object graph whose root is node 0.

    Args:
      nodes: the objects; edges point into this sequence.

    Returns:
      The named variables, and the optimizers found among the objects.

    Raises:
      CheckpointCorruptError: an edge points outside the graph, or objects nest deeper than any program does.
    """
    _check_edges(nodes)
    paths = _best_paths(nodes)
    optimizers = tuple(_find_optimizers(nodes))
    flat = _flat_names(nodes, optimizers)
    slots = _slot_table(optimizers, paths)
    leaves = [
        _name_leaf(i, node.leaf, paths[i], flat.get(i), slots.get(i))
        for i, node in enumerate(nodes)
        if node.leaf is not None and i in paths
    ]
    return tuple(_make_unique(leaves)), tuple(_describe(o, paths) for o in optimizers if o.node in paths)


def _check_edges(nodes: Sequence[Node]) -> None:
    for index, node in enumerate(nodes):
        children = itertools.chain((c for _, c in node.edges), (i for o, _, s in node.slots for i in (o, s)))
        for child in children:
            if not 0 <= child < len(nodes):
                raise CheckpointCorruptError(
                    f"The object graph is broken: object {index} refers to object {child}, and there are "
                    f"{len(nodes)}. Use another checkpoint."
                )


def _best_paths(nodes: Sequence[Node]) -> dict[int, list[_Path]]:
    """The best few paths to each node, best first: a search that closes a node after `MAX_PATHS` visits."""
    found: dict[int, list[_Path]] = collections.defaultdict(list)
    layers = _layer_names(nodes)
    counter = itertools.count()
    start = _Path((0, 0, 0), (), (), AliasKind.SEMANTIC, (0,))
    queue = [(start.weight, next(counter), 0, start)]
    while queue:
        _, _, index, path = heapq.heappop(queue)
        if len(found[index]) >= MAX_PATHS:
            continue
        found[index].append(path)
        for child, longer in _extend(nodes[index], path, layers.get(index, {})):
            if len(found[child]) < MAX_PATHS:
                heapq.heappush(queue, (longer.weight, next(counter), child, longer))
    return dict(found)


def _extend(node: Node, path: _Path, layers: Mapping[int, LayerName]) -> Iterator[tuple[int, _Path]]:
    if len(path.raw) > MAX_DEPTH:
        raise CheckpointCorruptError(
            f"The object graph is broken: objects nest deeper than {MAX_DEPTH} at "
            f"{'/'.join(path.raw[:8])[:200]!r}... Use another checkpoint."
        )
    for name, child in node.edges:
        if name not in SKIPPED and child not in path.visited:
            yield child, _step(path, name, child, layers.get(child))


def _step(path: _Path, name: str, child: int, layer: LayerName | None) -> _Path:
    raw, visited = (*path.raw, name), (*path.visited, child)
    container = path.raw[-1] if path.raw else ""
    positional, private, length = path.weight
    # `Checkpoint(model)` calls the model `root`; in its checkpoint the model is the root itself.
    if name in TRANSPARENT or (name == "root" and not path.raw):
        return _Path(path.weight, path.segments, raw, path.kind, visited)
    if layer is not None and container in LAYER_CONTAINERS:
        kind = AliasKind.COUNTED if layer.counted and path.kind is AliasKind.SEMANTIC else path.kind
        segments = (*path.segments[:-1], layer.name)
        return _Path((positional - 1, private, length), segments, raw, kind, visited)
    segments = (*path.segments, name.lstrip("_") or name)
    if name in POSITIONAL_CONTAINERS or _POSITIONAL_EDGE.match(name):
        kind = path.kind if name in LAYER_CONTAINERS else AliasKind.POSITIONAL
        return _Path((positional + 1, private, length + 1), segments, raw, kind, visited)
    kind = AliasKind.POSITIONAL if container in LAYER_CONTAINERS else path.kind
    return _Path((positional, private + name.startswith("_"), length + 1), segments, raw, kind, visited)


def _layer_names(nodes: Sequence[Node]) -> dict[int, dict[int, LayerName]]:
    """Container node -> child -> the layer's own name, where it is known and no sibling has the same."""
    table: dict[int, dict[int, LayerName]] = {}
    for node in nodes:
        for edge, container in node.edges:
            if edge in LAYER_CONTAINERS:
                table[container] = _sibling_names(nodes, nodes[container].edges)
    return table


def _sibling_names(nodes: Sequence[Node], edges: Iterable[tuple[str, int]]) -> dict[int, LayerName]:
    names = {child: nodes[child].layer or _infer_layer_name(nodes, child) for _, child in edges}
    counts = collections.Counter(n.name for n in names.values() if n is not None)
    return {child: n for child, n in names.items() if n is not None and counts[n.name] == 1}


def _infer_layer_name(nodes: Sequence[Node], index: int) -> LayerName | None:
    """What the variables below say about the layer's name: `seq/dense/kernel`, one edge below, is `dense`."""
    guesses = {_layer_segment(leaf.full_name, depth) for leaf, depth in _leaves_below(nodes, index)}
    guess = guesses.pop() if len(guesses) == 1 else ""
    return LayerName(guess, counted=False) if guess else None


def _layer_segment(full_name: str, depth: int) -> str:
    parts = full_name.split("/")
    if len(parts) > depth:
        return parts[-depth - 1]
    # Layers built inside another's call lose the scopes in between: Keras 3 calls them all `outer/kernel`.
    return parts[-2] if len(parts) >= 2 else ""


def _leaves_below(nodes: Sequence[Node], index: int) -> Iterator[tuple[Leaf, int]]:
    stack, seen = [(index, 0)], {index}
    while stack:
        current, depth = stack.pop()
        leaf = nodes[current].leaf
        if leaf is not None:
            yield leaf, depth
        for name, child in nodes[current].edges:
            if child not in seen and name not in POSITIONAL_CONTAINERS and name not in SKIPPED:
                seen.add(child)
                stack.append((child, depth + 1))


def _find_optimizers(nodes: Sequence[Node]) -> Iterator[_OptimizerNode]:
    for index, node in enumerate(nodes):
        edges = dict(node.edges)
        if {"_variables", "_trainable_variables"} <= edges.keys():
            yield _keras_optimizer(nodes, index, edges)
        elif node.slots:
            yield _slotted_optimizer(nodes, index)


def _keras_optimizer(nodes: Sequence[Node], index: int, edges: Mapping[str, int]) -> _OptimizerNode:
    # Keras 3 keeps one list per role, each beside _trainable_variables: equal index, equal owner.
    owners = dict(nodes[edges["_trainable_variables"]].edges)
    state = {child for _, child in nodes[edges["_variables"]].edges}
    label = _label(nodes, edges.get("_iterations"))
    family = nodes[index].family or family_of(label)
    slots = [
        (role_of_edge(edge), owners[position], child)
        for edge, container in nodes[index].edges
        if edge not in ("_variables", "_trainable_variables")
        for position, child in nodes[container].edges
        if child in state and position in owners
    ]
    return _OptimizerNode(index, label, family, tuple(slots))


def _slotted_optimizer(nodes: Sequence[Node], index: int) -> _OptimizerNode:
    family = nodes[index].family or ("adam" if {s for _, s, _ in nodes[index].slots} >= {"m", "v"} else "")
    slots = tuple((role_of_edge(name, family), owner, slot) for owner, name, slot in nodes[index].slots)
    return _OptimizerNode(index, "", family, slots)


def _label(nodes: Sequence[Node], iterations: int | None) -> str:
    leaf = nodes[iterations].leaf if iterations is not None else None
    return leaf.full_name.split("/")[0] if leaf is not None and "/" in leaf.full_name else ""


def _flat_names(nodes: Sequence[Node], optimizers: Iterable[_OptimizerNode]) -> dict[int, str]:
    """Owner -> the flattened path that its slots' names give away, where they agree."""
    guesses: dict[int, set[str]] = collections.defaultdict(set)
    for optimizer in optimizers:
        for role, owner, slot in optimizer.slots:
            leaf = nodes[slot].leaf
            own = leaf.full_name.rpartition("/")[2] if leaf is not None else ""
            if own.endswith(f"_{role}"):
                guesses[owner].add(own[: -len(role) - 1])
    return {owner: names.pop() for owner, names in guesses.items() if len(names) == 1}


def _slot_table(optimizers: Iterable[_OptimizerNode], paths: Mapping[int, list[_Path]]) -> dict[int, Slot]:
    table: dict[int, Slot] = {}
    for optimizer in optimizers:
        for role, owner, slot in optimizer.slots:
            if owner in paths and optimizer.node in paths:
                name = paths[optimizer.node][0].text
                table.setdefault(slot, Slot(role, paths[owner][0].text, name))
    return table


def _name_leaf(index: int, leaf: Leaf, paths: list[_Path], flat: str | None, slot: Slot | None) -> NamedLeaf:
    best = paths[0]
    aliases = [Alias(p.text, p.kind) for p in paths]
    # The path with its private underscores, as `tf.train.list_variables` shows it, is for rules only.
    aliases += [Alias("/".join(p.raw), AliasKind.POSITIONAL) for p in paths]
    aliases.append(Alias(leaf.full_name, AliasKind.POSITIONAL))
    if flat is not None:
        aliases.append(Alias(flat, AliasKind.FLAT))
    if slot is not None:
        aliases = [Alias(a.name, AliasKind.POSITIONAL) for a in aliases]
        return NamedLeaf(index, leaf, slot_name(slot), AliasKind.SEMANTIC, _distinct(aliases), slot)
    return NamedLeaf(index, leaf, best.text or leaf.full_name, best.kind, _distinct(aliases), None)


def slot_name(slot: Slot) -> str:
    """The canonical name of a slot: optimizer, role, owner. Never an index."""
    return f"{slot.optimizer}/{slot.role}/{slot.owner}" if slot.optimizer else f"{slot.role}/{slot.owner}"


def _distinct(aliases: Iterable[Alias]) -> tuple[Alias, ...]:
    """The aliases without repetition; where a name occurs twice its first, stronger kind counts."""
    table: dict[str, Alias] = {}
    for alias in aliases:
        if alias.name:
            table.setdefault(alias.name, alias)
    return tuple(table.values())


def _make_unique(leaves: Sequence[NamedLeaf]) -> Iterator[NamedLeaf]:
    """Gives leaves whose canonical names collide (`w` beside `_w`) their storage key instead."""
    counts = collections.Counter(leaf.name for leaf in leaves)
    for leaf in leaves:
        if counts[leaf.name] > 1:
            leaf = dataclasses.replace(leaf, name=leaf.leaf.key, kind=AliasKind.SEMANTIC)
        aliases = tuple(a for a in leaf.aliases if a.name != leaf.name)
        yield dataclasses.replace(leaf, aliases=aliases)


def _describe(optimizer: _OptimizerNode, paths: Mapping[int, list[_Path]]) -> OptimizerInfo:
    roles = tuple(sorted({role for role, _, _ in optimizer.slots}))
    return OptimizerInfo(paths[optimizer.node][0].text, optimizer.family, optimizer.label, roles)
