"""From an object graph to names: the same reading for a checkpoint's graph and for live objects.

A graph is nodes with named edges; some nodes hold a variable. Every variable gets one canonical name, the most
semantic of its paths, and its other paths as aliases; an optimizer's lists of slots become (role, owner).
Knows what Keras calls its own containers; knows neither protos nor live objects, so that both sides are named
by one piece of code and equal programs get equal names.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import heapq
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import msgspec

from dist_restore.core.errors import CheckpointCorruptError
from dist_restore.core.graph import LayerName, Leaf, Node
from dist_restore.core.specs import Alias, AliasKind, OptimizerInfo, Slot
from dist_restore.naming import tf_keras_slots as keras2_slots
from dist_restore.naming.automatic_names import looks_automatic
from dist_restore.naming.optimizers import OptimizerNode, find_optimizers, state_of_keras_2

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
# Those that list variables which are something else besides: the last ways by which to call one.
VARIABLE_LISTS = frozenset(
    {
        "_variables",
        "_trainable_variables",
        "_non_trainable_variables",
        "_trainable_variables_indices",
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
# More than models nest.
_LAST = 10
_POSITIONAL_EDGE = re.compile(r"layer(_with_weights)?-\d+\Z")
# Real programs stay below 30; a hostile graph may not cost quadratic memory.
MAX_DEPTH = 100
# Variables that are asked for their layer's name; a nested model of more has other evidence.
MAX_ASKED = 1000
# Paths kept per node. Tied weights have two or three; each costs memory for every node.
MAX_PATHS = 6


class NamedLeaf(msgspec.Struct, frozen=True, gc=False):
    """A variable with its names."""

    node: int
    leaf: Leaf
    name: str
    kind: AliasKind
    aliases: tuple[Alias, ...]
    slot: Slot | None


class _Path(msgspec.Struct, frozen=True, gc=False):
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
    nodes = _with_one_name_for_steps(nodes)
    paths = _best_paths(nodes)
    optimizers = tuple(find_optimizers(nodes))
    _add_slots_without_edges(optimizers, paths)
    flat = flat_names(nodes, optimizers)
    leaves = {
        i: _name_leaf(i, node.leaf, paths[i], flat.get(i))
        for i, node in enumerate(nodes)
        if node.leaf is not None and i in paths
    }
    named = _make_unique(tuple(leaves.values()), paths)
    if optimizers or _unread_state(nodes, {}):
        named = _with_slots(nodes, optimizers, paths, {leaf.node: leaf for leaf in named})
    return tuple(named), tuple(_describe(o, paths) for o in optimizers if o.node in paths)


def _with_slots(
    nodes: Sequence[Node],
    optimizers: Sequence[OptimizerNode],
    paths: Mapping[int, list[_Path]],
    leaves: dict[int, NamedLeaf],
) -> Iterable[NamedLeaf]:
    """Slots last: they are called after their owners, and these have their final names only now."""
    leaves.update(_name_unclear(optimizers, leaves))
    slots = _slot_table(optimizers, paths, leaves)
    leaves.update((i, _numbered(leaves[i])) for i in _unread_state(nodes, slots) if i in leaves)
    return _make_unique(tuple(_name_slot(x, slots[i]) if i in slots else x for i, x in leaves.items()), paths)


def _check_edges(nodes: Sequence[Node]) -> None:
    count = len(nodes)
    used = [child for node in nodes for _, child in node.edges]
    used += [n for node in nodes for owner, _, slot in node.slots for n in (owner, slot)]
    if 0 <= min(used, default=0) <= max(used, default=0) < count:
        return
    pairs = [(i, child) for i, node in enumerate(nodes) for _, child in node.edges]
    pairs += [(i, n) for i, node in enumerate(nodes) for owner, _, slot in node.slots for n in (owner, slot)]
    index, child = next(pair for pair in pairs if not 0 <= pair[1] < count)
    raise CheckpointCorruptError(
        f"The object graph is broken: object {index} refers to object {child}, and there are {count}. "
        "Use another checkpoint."
    )


def _with_one_name_for_steps(nodes: Sequence[Node]) -> Sequence[Node]:
    """A legacy optimizer of Keras 2 calls `iter` what all later ones call `iterations`: it gets both."""
    legacy = [i for i, n in enumerate(nodes) if n.edges and keras2_slots.is_legacy(name for name, _ in n.edges)]
    if not legacy:
        return nodes
    changed = list(nodes)
    for index in legacy:
        edges = nodes[index].edges
        changed[index] = msgspec.structs.replace(nodes[index], edges=(*edges, ("iterations", dict(edges)["iter"])))
    return changed


def _best_paths(nodes: Sequence[Node]) -> dict[int, list[_Path]]:
    """The best few paths to each node, best first: a search that closes a node after `MAX_PATHS` visits."""
    found: dict[int, list[_Path]] = collections.defaultdict(list)
    layers, trees = _layer_names(nodes), _trees(nodes)
    counter = itertools.count()
    start = _Path((0, 0, 0, 0, 0), "", "", 0, "", "", AliasKind.SEMANTIC, (0,))
    queue = [(start.weight, next(counter), 0, start)]
    while queue:
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
    path: _Path,
    found: dict[int, list[_Path]],
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


def _extend(node: Node, path: _Path, layers: Mapping[int, LayerName]) -> Iterator[tuple[int, _Path]]:
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
    return not special and not name.startswith("_") and not _POSITIONAL_EDGE.match(name)


def _plain_steps(path: _Path) -> Callable[[str, int], _Path]:
    """What `_step` does for plain edges that lead to no named layer, as nearly all are.

    Siblings share most of it, and where raw and readable names are equal they are one string: 0.4 us less for each.
    """
    positional, counted, private, length, borrowed = path.weight
    weight, text, size, kind = (positional, counted, private, length + 1, borrowed), path.text, path.size, path.kind
    before, raw_before = f"{text}/" if size else "", f"{path.raw}/" if path.depth else ""
    same, visited = before == raw_before, path.visited

    def step(name: str, child: int) -> _Path:
        longer = before + name
        raw = longer if same else raw_before + name
        return _Path(weight, longer, text, size + 1, raw, name, kind, (*visited, child))

    return step


def _step(path: _Path, name: str, child: int, layer: LayerName | None) -> _Path:
    weight, text, parent, size, container, kind = path.weight, path.text, path.parent, path.size, path.edge, path.kind
    first = len(path.visited) == 1
    raw, visited = name if first else f"{path.raw}/{name}", (*path.visited, child)
    # `Checkpoint(model)` calls the model `root`; in its checkpoint the model is the root itself.
    if name in TRANSPARENT or (name == "root" and first):
        return _Path(weight, text, parent, size, raw, name, kind, visited)
    positional, counted, private, length, borrowed = weight
    numbered = name.startswith("layer") and _POSITIONAL_EDGE.match(name) is not None
    if layer is not None and numbered:  # Keras 2: an edge of the model itself
        kind = AliasKind.COUNTED if layer.counted and kind is AliasKind.SEMANTIC else kind
        weight = (positional, counted + layer.counted, private, length + 1, borrowed + 1)
        joined = f"{text}/{layer.name}" if size else layer.name
        return _Path(weight, joined, text, size + 1, raw, name, kind, visited)
    if layer is not None and container in LAYER_CONTAINERS:
        kind = AliasKind.COUNTED if layer.counted and kind is AliasKind.SEMANTIC else kind
        text = f"{parent}/{layer.name}" if size > 1 else layer.name
        weight = (positional - 1, counted + layer.counted, private, length, borrowed + 1)
        return _Path(weight, text, parent, size, raw, name, kind, visited)
    if name in POSITIONAL_CONTAINERS or numbered:
        kind = kind if name in LAYER_CONTAINERS else AliasKind.POSITIONAL
        weight = (positional + (_LAST if name in VARIABLE_LISTS else 1), counted, private, length + 1, borrowed)
    else:
        kind = AliasKind.POSITIONAL if container in LAYER_CONTAINERS else kind
        weight = (positional, counted, private + name.startswith("_"), length + 1, borrowed)
    segment = name.lstrip("_") or name
    return _Path(weight, f"{text}/{segment}" if size else segment, text, size + 1, raw, name, kind, visited)


def _layer_names(nodes: Sequence[Node]) -> dict[int, dict[int, LayerName]]:
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
    return {child for name, child in node.edges if name.startswith("layer") and _POSITIONAL_EDGE.match(name)}


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


def _unread_state(nodes: Sequence[Node], slots: Mapping[int, Slot]) -> list[int]:
    """State of which nobody knows what it is: it has numbers, and these say nothing across programs."""
    return [i for i in state_of_keras_2(nodes) if i not in slots]


def _numbered(leaf: NamedLeaf) -> NamedLeaf:
    aliases = tuple([Alias(a.name, AliasKind.POSITIONAL) for a in leaf.aliases])
    return msgspec.structs.replace(leaf, kind=AliasKind.POSITIONAL, aliases=aliases)


def _add_slots_without_edges(optimizers: Iterable[OptimizerNode], paths: dict[int, list[_Path]]) -> None:
    """Slots of a legacy optimizer hang on no edge: they are named after their owners alone."""
    for optimizer in optimizers:
        for role, owner, slot in optimizer.slots:
            if owner in paths and optimizer.node in paths and slot not in paths:
                text = f"{paths[optimizer.node][0].text}/{role}/{paths[owner][0].text}"
                paths[slot] = [msgspec.structs.replace(paths[owner][0], text=text, raw=text, kind=AliasKind.SEMANTIC)]


def flat_names(nodes: Sequence[Node], optimizers: Iterable[OptimizerNode]) -> dict[int, str]:
    """Owner -> the flattened path that its slots' names give away, where they agree."""
    guesses: dict[int, set[str]] = collections.defaultdict(set)
    for optimizer in optimizers:
        for role, owner, slot in optimizer.slots:
            leaf = nodes[slot].leaf
            own = leaf.full_name.rpartition("/")[2] if leaf is not None else ""
            if own.endswith(f"_{role}"):
                guesses[owner].add(own[: -len(role) - 1])
    return {owner: names.pop() for owner, names in guesses.items() if len(names) == 1}


def _name_unclear(
    optimizers: Iterable[OptimizerNode], leaves: Mapping[int, NamedLeaf]
) -> Iterator[tuple[int, NamedLeaf]]:
    """Slots whose owner is one of several: a place in a list, which is equal where all these owners' names are too."""
    for optimizer in optimizers:
        for owners, slot in optimizer.unclear:
            leaf = leaves.get(slot)
            if leaf is not None:
                text = "\n".join(sorted(leaves[owner].name for owner in owners if owner in leaves))
                digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
                alias = Alias(f"{leaf.name}@{digest}", AliasKind.SEMANTIC)
                yield slot, msgspec.structs.replace(leaf, kind=AliasKind.POSITIONAL, aliases=(alias, *leaf.aliases))


def _slot_table(
    optimizers: Iterable[OptimizerNode], paths: Mapping[int, list[_Path]], leaves: Mapping[int, NamedLeaf]
) -> dict[int, Slot]:
    table: dict[int, Slot] = {}
    for optimizer in optimizers:
        for role, owner, slot in optimizer.slots:
            if owner in paths and optimizer.node in paths:
                name = paths[optimizer.node][0].text
                owned = leaves[owner].name if owner in leaves else paths[owner][0].text
                table.setdefault(slot, Slot(role, owned, name))
    return table


def _name_leaf(index: int, leaf: Leaf, paths: list[_Path], flat: str | None) -> NamedLeaf:
    first = paths[0]
    text = first.text
    if text == first.raw and len(paths) == 1 and text and not flat:  # so it is in plain modules
        full_name = leaf.full_name
        own = () if full_name == text or not full_name else (Alias(full_name, AliasKind.POSITIONAL),)
        return NamedLeaf(index, leaf, text, first.kind, own, None)
    names: dict[str, AliasKind] = {}  # of equal names the first, most semantic one counts
    for path in paths:
        names.setdefault(path.text, path.kind)
    for path in paths:
        # With its private underscores, as `tf.train.list_variables` shows it.
        if path.raw not in names:
            names[path.raw] = _raw_kind(path)
    names.setdefault(leaf.full_name, AliasKind.POSITIONAL)
    if flat:
        names.setdefault(flat, AliasKind.FLAT)
    name = text or leaf.full_name or leaf.key
    return NamedLeaf(index, leaf, name, first.kind, _aliases(names, name), None)


def _raw_kind(path: _Path) -> AliasKind:
    """A path of attributes alone says as much with its underscores as without."""
    return path.kind if path.depth == path.size and not path.weight[-1] else AliasKind.POSITIONAL


def _name_slot(leaf: NamedLeaf, slot: Slot) -> NamedLeaf:
    name = slot_name(slot)
    names = dict.fromkeys([leaf.name, *(a.name for a in leaf.aliases)], AliasKind.POSITIONAL)
    return NamedLeaf(leaf.node, leaf.leaf, name, AliasKind.SEMANTIC, _aliases(names, name), slot)


def slot_name(slot: Slot) -> str:
    """The canonical name of a slot: optimizer, role, owner. Never an index."""
    return f"{slot.optimizer}/{slot.role}/{slot.owner}" if slot.optimizer else f"{slot.role}/{slot.owner}"


def _aliases(names: Mapping[str, AliasKind], own: str) -> tuple[Alias, ...]:
    return tuple([Alias(name, kind) for name, kind in names.items() if name and name != own])


def _make_unique(leaves: Sequence[NamedLeaf], paths: Mapping[int, list[_Path]]) -> Iterable[NamedLeaf]:
    """Tells leaves apart whose names collide: by their underscores (`_w` beside `w`), else by their keys."""
    names = [leaf.name for leaf in leaves]
    if len(set(names)) == len(names):
        return leaves
    for option in (lambda leaf: paths[leaf.node][0].raw, lambda leaf: leaf.leaf.key):
        counts = collections.Counter(names)
        names = [name if counts[name] == 1 else option(leaf) for name, leaf in zip(names, leaves, strict=True)]
    _refuse_equal(names)
    return [x if name == x.name else _renamed(x, name) for x, name in zip(leaves, names, strict=True)]


def _renamed(leaf: NamedLeaf, name: str) -> NamedLeaf:
    names = {leaf.name: leaf.kind, **{a.name: a.kind for a in leaf.aliases}}
    return msgspec.structs.replace(leaf, name=name, kind=AliasKind.SEMANTIC, aliases=_aliases(names, name))


def _refuse_equal(names: Iterable[str]) -> None:
    twice = [name for name, count in collections.Counter(names).items() if count > 1]
    if twice:
        raise CheckpointCorruptError(
            f"The object graph is broken: two variables are called {twice[0][:200]!r}. Use another checkpoint."
        )


def _describe(optimizer: OptimizerNode, paths: Mapping[int, list[_Path]]) -> OptimizerInfo:
    roles = tuple(sorted({role for role, _, _ in optimizer.slots}))
    return OptimizerInfo(paths[optimizer.node][0].text, optimizer.family, optimizer.label, roles, optimizer.structure)
