"""From an object graph to names: the same reading for a checkpoint's graph and for live objects.

A graph is nodes with named edges; some nodes hold a variable. Every variable gets one canonical name, the most
semantic of its paths, and its other paths as aliases; an optimizer's lists of slots become (role, owner).
Knows what Keras calls its own containers; knows neither protos nor live objects, so that both sides are named
by one piece of code and equal programs get equal names.
"""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from dist_restore.core.errors import CheckpointCorruptError
from dist_restore.core.graph import Leaf, Node
from dist_restore.core.index import Alias, AliasKind, OptimizerInfo, Slot
from dist_restore.naming import tf_keras_slots as keras2_slots
from dist_restore.naming.optimizers import OptimizerNode, find_optimizers, state_of_keras_2
from dist_restore.naming.paths import Path, best_paths


class NamedLeaf(msgspec.Struct, frozen=True, gc=False):
    """A variable with its names."""

    node: int
    leaf: Leaf
    name: str
    kind: AliasKind
    aliases: tuple[Alias, ...]
    slot: Slot | None


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
    paths = best_paths(nodes)
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
    paths: Mapping[int, list[Path]],
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


def _unread_state(nodes: Sequence[Node], slots: Mapping[int, Slot]) -> list[int]:
    """State of which nobody knows what it is: it has numbers, and these say nothing across programs."""
    return [i for i in state_of_keras_2(nodes) if i not in slots]


def _numbered(leaf: NamedLeaf) -> NamedLeaf:
    aliases = tuple([Alias(a.name, AliasKind.POSITIONAL) for a in leaf.aliases])
    return msgspec.structs.replace(leaf, kind=AliasKind.POSITIONAL, aliases=aliases)


def _add_slots_without_edges(optimizers: Iterable[OptimizerNode], paths: dict[int, list[Path]]) -> None:
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
    optimizers: Iterable[OptimizerNode], paths: Mapping[int, list[Path]], leaves: Mapping[int, NamedLeaf]
) -> dict[int, Slot]:
    table: dict[int, Slot] = {}
    for optimizer in optimizers:
        for role, owner, slot in optimizer.slots:
            if owner in paths and optimizer.node in paths:
                name = paths[optimizer.node][0].text
                owned = leaves[owner].name if owner in leaves else paths[owner][0].text
                table.setdefault(slot, Slot(role, owned, name))
    return table


def _name_leaf(index: int, leaf: Leaf, paths: list[Path], flat: str | None) -> NamedLeaf:
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


def _raw_kind(path: Path) -> AliasKind:
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


def _make_unique(leaves: Sequence[NamedLeaf], paths: Mapping[int, list[Path]]) -> Iterable[NamedLeaf]:
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


def _describe(optimizer: OptimizerNode, paths: Mapping[int, list[Path]]) -> OptimizerInfo:
    roles = tuple(sorted({role for role, _, _ in optimizer.slots}))
    return OptimizerInfo(paths[optimizer.node][0].text, optimizer.family, optimizer.label, roles, optimizer.structure)
