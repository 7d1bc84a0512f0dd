"""One side's object graph, read for matching: what bears variables, under edges that mean the same on both sides.

Keras 3 keeps a model's layers in `_operations`, Keras 2 on edges `layer-0`, `layer-1`: both are one row of layers here.
What has no variables is left out, so that an added Dropout changes no place. An optimizer's lists are no way to a
model's variables; which place a variable has in one is kept as an order.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

from dist_restore.core.graph import LayerName, Node, Scene
from dist_restore.naming.automatic_names import Template, Vocabulary
from dist_restore.naming.keras_containers import SKIPPED, TRANSPARENT, VARIABLE_LISTS
from dist_restore.naming.names import flat_names
from dist_restore.naming.optimizers import find_optimizers

# What only optimizers and Keras' layers have beside such lists; other objects may use these names for what is theirs.
_KERAS_EDGES = frozenset({"_iterations", "_learning_rate", "iter", "keras_api", "_tracked"})
_LAYER = re.compile(r"layer-(\d+)\Z")
_WEIGHTED = re.compile(r"layer_with_weights-(\d+)\Z")
# A model hides one below another at most; a hostile graph may do so for ever.
_MAX_TRANSPARENT = 3
ROW, _LAYERS = "operations", "layers"

Kids: TypeAlias = tuple[tuple[str, int], ...]


class Signatures:
    """Numbers for what is equal: shared by both sides, so that equal subtrees have equal numbers."""

    def __init__(self) -> None:
        self._known: dict[object, int] = {}

    def of(self, key: object) -> int:
        """The number of a key."""
        return self._known.setdefault(key, len(self._known))


def optimizer_places(nodes: Sequence[Node], optimizers: Iterable[int]) -> dict[int, tuple[int, int]]:
    """Variable -> (optimizer, place in the list of what it trains)."""
    found: dict[int, tuple[int, int]] = {}
    for number, optimizer in enumerate(sorted(optimizers, reverse=True)):
        container = dict(nodes[optimizer].edges).get("_trainable_variables")
        edges = nodes[container].edges if container is not None else ()
        found.update((child, (number, int(place[:9]))) for place, child in edges if place.isdecimal())
    return found


class View:
    """A scene, with the variables that are still to be matched.

    Attributes:
      kids: node -> its children by edges that have a name.
      rows: node -> its children in order, of nodes that are lists.
      shapes: node -> shape, of the variables that take part.
    """

    def __init__(
        self,
        scene: Scene,
        shapes: Mapping[str, tuple[int, ...]],
        signatures: Signatures,
        vocabulary: Vocabulary,
        *,
        by_layer: bool = False,
    ) -> None:
        """Reads a scene.

        Args:
          scene: the object graph.
          by_layer: whether layers are told by their own names and classes, as in files without full names.
          shapes: canonical name -> shape of the variables that take part; all others are as if they were not there.
          signatures: shared with the other side.
          vocabulary: likewise.
        """
        self._nodes, self._vocabulary, self._signatures = scene.nodes, vocabulary, signatures
        if by_layer and scene.everything:
            self._nodes = scene.everything
        self.by_layer = by_layer
        self.names = {node: name for node, name in scene.names.items() if name in shapes}
        self.shapes = {node: shapes[name] for node, name in self.names.items()}
        found = list(find_optimizers(self._nodes))
        self._optimizers = frozenset(o.node for o in found)
        self._owners = {o.node: frozenset(owner for _, owner, _ in o.slots) for o in found}
        self._flat = flat_names(self._nodes, found)
        self.places = optimizer_places(self._nodes, self._optimizers)
        self._virtual: list[tuple[int, ...]] = []
        self._edges = edges = self._normal_edges()
        self._all_names = scene.names
        bearing = self._bearing(edges)
        self.kids: list[Kids] = [()] * len(edges)
        self.rows: list[tuple[int, ...]] = [()] * len(edges)
        for index, own in enumerate(edges):
            kept = tuple([(label, child) for label, child in own if child in bearing])
            if kept and all(label.isdecimal() for label, _ in kept):
                self.rows[index] = tuple([child for _, child in sorted(kept, key=lambda pair: int(pair[0][:9]))])
            else:
                self.kids[index] = kept
        self._sigs: dict[int, int] = {}
        self._scopes: dict[int, tuple[str, ...]] = {}
        self._below: dict[int, tuple[int, ...]] = {}
        self._models = self._shared_scopes()

    # ---- The graph -------------------------------------------------------------------------------------------------

    def _normal_edges(self) -> list[list[tuple[str, int]]]:
        edges = [self._edges_of(i) if node.edges else [] for i, node in enumerate(self._nodes)]
        edges += [[(str(i), child) for i, child in enumerate(row)] for row in self._virtual]
        return edges

    def _edges_of(self, index: int, depth: int = 0) -> list[tuple[str, int]]:
        node = self._nodes[index]
        dropped = self._dropped(index)
        found: list[tuple[str, int]] = []
        layers: list[tuple[int, int]] = []
        weighted: list[tuple[int, int]] = []
        for name, child in node.edges:
            if name in dropped:
                continue
            if name in TRANSPARENT or (name == "root" and index == 0):
                found += self._edges_of(child, depth + 1) if depth < _MAX_TRANSPARENT else []
            elif name.startswith("layer") and (match := _LAYER.match(name) or _WEIGHTED.match(name)):
                (layers if name.startswith("layer-") else weighted).append((int(match.group(1)[:9]), child))
            elif index not in self._optimizers or self._is_state(child):
                found.append((name, child))
        row = sorted(layers or weighted)
        if self.by_layer:
            row = row or self._attributes(index)
            found = [(name if name.strip("_") not in (ROW, "layers") else _LAYERS, child) for name, child in found]
            row = [] if any(name == _LAYERS for name, _ in found) else row
        if row:
            self._virtual.append(tuple(child for _, child in row))
            found.append((_LAYERS if self.by_layer else ROW, len(self._nodes) + len(self._virtual) - 1))
        return _without_underscores(found)

    def _dropped(self, index: int) -> frozenset[str]:
        node = self._nodes[index]
        lists = index in self._optimizers or node.layer is not None
        if lists or any(name in _KERAS_EDGES for name, _ in node.edges):
            return SKIPPED | VARIABLE_LISTS
        return SKIPPED

    def _attributes(self, index: int) -> list[tuple[int, int]]:
        """The layers that are attributes of a layer: files call them by these, or put them into the list of layers."""
        children = (child for name, child in self._nodes[index].edges if name not in SKIPPED)
        return [*enumerate(c for c in children if self._nodes[c].layer is not None)] if self._is_layer(index) else []

    def _is_layer(self, index: int) -> bool:
        return self._nodes[index].layer is not None

    def _is_state(self, child: int) -> bool:
        return self._nodes[child].leaf is not None or child in self._optimizers

    def _bearing(self, edges: Sequence[Sequence[tuple[str, int]]]) -> set[int]:
        parents: dict[int, list[int]] = {}
        for index, own in enumerate(edges):
            for _, child in own:
                parents.setdefault(child, []).append(index)
        seen = set(self.shapes)
        stack = list(seen)
        while stack:
            for parent in parents.get(stack.pop(), ()):
                if parent not in seen:
                    seen.add(parent)
                    stack.append(parent)
        return seen

    # ---- What is equal ---------------------------------------------------------------------------------------------

    def children(self, node: int) -> Iterable[int]:
        """All children of a node."""
        return self.rows[node] or [child for _, child in self.kids[node]]

    def members(self, node: int, row: Sequence[int]) -> Sequence[int]:
        """The members of a list; and of a dict of layers, which a file of weights has as a list, without its keys."""
        if self.rows[node] or not self.by_layer or not row or self._is_layer_or_root(node):
            return self.rows[node]
        return [child for _, child in self.kids[node] if child not in self.shapes]

    def _is_layer_or_root(self, node: int) -> bool:
        return not node or node >= len(self._nodes) or self._is_layer(node)

    def signature(self, node: int) -> int:
        """A number that is equal for subtrees of equal edges and shapes, names of layers apart."""
        found = self._sigs.get(node)
        if found is not None:
            return found
        for current in self._postorder(node, self._sigs):
            self._sigs[current] = self._signatures.of(self._key(current))
        return self._sigs[node]

    def _key(self, node: int) -> object:
        sigs = self._sigs
        if node in self.shapes:
            return "variable", self.shapes[node]
        if self.rows[node]:
            return "row", tuple([sigs.get(child, -1) for child in self.rows[node]])
        if self.by_layer:  # which may number variables, and hold layers by one way or another
            return "node", tuple(sorted(self.shapes[v] for v in self.variables(node)))
        return "node", tuple(sorted([(label, sigs.get(child, -1)) for label, child in self.kids[node]]))

    def _postorder(self, root: int, known: Mapping[int, object]) -> list[int]:
        """Nodes below a root, each behind its children (but where they form a circle)."""
        order: list[int] = []
        seen, stack = set[int](), [(root, False)]
        while stack:
            node, done = stack.pop()
            if done:
                order.append(node)
            elif node not in seen and node not in known:
                seen.add(node)
                stack.append((node, True))
                stack += [(child, False) for child in self.children(node) if child not in seen]
        return order

    def variables(self, node: int) -> tuple[int, ...]:
        """The variables below a node, in the order of its edges."""
        found = self._below.get(node)
        if found is None:
            found = self._below[node] = tuple(n for n in self._preorder(node) if n in self.shapes)
        return found

    def all_variables(self, node: int) -> Iterator[int]:
        """The variables below a node, those that take no part included."""
        seen, stack = {node}, [node]
        while stack:
            current = stack.pop()
            if current in self._all_names:
                yield current
            below = [child for _, child in self._edges[current] if child not in seen]
            seen.update(below)
            stack += below

    def root(self, name: str) -> int | None:
        """The node that names begin with; the root itself for no name."""
        if not name:
            return 0
        return next((child for label, child in self.kids[0] if label == name), None)

    def is_optimizer(self, node: int) -> bool:
        """Whether an object is an optimizer."""
        return node in self._optimizers

    def owners(self, optimizer: int) -> frozenset[int]:
        """The variables that an optimizer, or one that it wraps, has slots for."""
        inside = (child for _, child in self._edges[optimizer] if child in self._optimizers)
        return self._owners.get(optimizer, frozenset()).union(*(self._owners.get(i, ()) for i in inside))

    def _preorder(self, root: int) -> Iterator[int]:
        seen, stack = {root}, [root]
        while stack:
            node = stack.pop()
            yield node
            for child in reversed([*self.children(node)]):
                if child not in seen:
                    seen.add(child)
                    stack.append(child)

    # ---- What things are called ------------------------------------------------------------------------------------

    def _layer(self, node: int) -> LayerName | None:
        """What is known of a layer; None for rows that stand for several edges."""
        return self._nodes[node].layer if node < len(self._nodes) else None

    def kind(self, node: int) -> str:
        """The class of a layer, in snake case; empty where it is not known."""
        layer = self._layer(node)
        return layer.kind if layer is not None else ""

    def is_own_class(self, node: int) -> bool:
        """Whether a live layer's class is the user's, whatever it is called."""
        layer = self._layer(node)
        return layer is not None and layer.own

    def numbered(self, node: int) -> tuple[int, ...]:
        """The variables of a live layer in the order in which a file numbers them; empty where that is not known."""
        return self._nodes[node].numbered if node < len(self._nodes) else ()

    def layer_name(self, node: int) -> str:
        """The own name of a live layer as its slots would have it, as a template; empty where it is not known."""
        layer = self._layer(node)
        return self._vocabulary.flat(layer.name.replace("/", "_")).text if layer is not None and layer.name else ""

    def called_by_slots(self, node: int) -> str:
        """What the slots of a layer's own variable call the layer, as a template; empty where they have no name."""
        own = (child for _, child in self.kids[node] if child in self.shapes and child in self._flat)
        variable = next(own, None)
        if variable is None:
            return ""
        last = self.full_name(variable).rpartition("/")[2]
        return self._vocabulary.flat(self._flat[variable].removesuffix(f"_{last}")).text

    def full_name(self, variable: int) -> str:
        """The name that a variable gave itself."""
        leaf = self._nodes[variable].leaf
        return leaf.full_name if leaf is not None else ""

    def flat_name(self, variable: int) -> str:
        """The name that its slots carry; empty where they carry none."""
        return self._flat.get(variable, "")

    def label(self, node: int) -> Template:
        """What the full names below a node have in common, as a template; empty where that is nothing."""
        if self.by_layer:
            layer = self._layer(node)
            return self._vocabulary.path(layer.name.replace("/", "|")) if layer is not None else Template("", ())
        scope = self._scope(node)
        if scope:
            return self._vocabulary.path("/".join(scope))
        return self._flat_label(node)

    def _scope(self, node: int) -> tuple[str, ...]:
        found = self._scopes.get(node)
        if found is None:
            scopes = [self._own_scope(variable) for variable in self.variables(node)]
            found = self._scopes[node] = _common(scopes) if scopes else ()
        return found

    def _own_scope(self, variable: int) -> tuple[str, ...]:
        parts = tuple(self.full_name(variable).split("/")[:-1])
        model = self._models.get(variable, "")
        return parts[1:] if model and parts and parts[0] == model else parts

    def _flat_label(self, node: int) -> Template:
        texts = [self._own_flat(variable) for variable in self.variables(node)]
        if not texts or not all(texts):
            return Template("", ())
        common = _common([tuple(text.split("_")) for text in texts])
        return self._vocabulary.flat("_".join(common))

    def _own_flat(self, variable: int) -> str:
        """A flat name without the model's name and the variable's own."""
        text, own = self._flat.get(variable, ""), self.full_name(variable).rpartition("/")[2]
        text = text.removesuffix(f"_{own}") if own else text
        model = self._models.get(variable, "")
        return text.removeprefix(f"{model}_") if model else text

    def _shared_scopes(self) -> dict[int, str]:
        """Variable -> the model's name, which the names of all variables below one child of the root begin with."""
        found: dict[int, str] = {}
        groups = [self.variables(child) for child in self.children(0)] if self.kids[0] else []
        for group in [*groups, self.variables(0)]:
            firsts = {self.full_name(variable).partition("/")[0] for variable in group}
            scopes = {self.full_name(variable).rpartition("/")[0] for variable in group}
            nested = all("/" in self.full_name(variable) for variable in group)
            if len(firsts) == 1 and nested and (len(scopes) > 1 or len(group) > 2):
                name = firsts.pop()
                found.update((variable, name) for variable in group if variable not in found)
        return found


def _without_underscores(edges: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Edges by readable names, where these stay different."""
    plain = [(name.lstrip("_") or name, child) for name, child in edges]
    return plain if len({name for name, _ in plain}) == len(plain) else edges


def _common(paths: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The longest common beginning."""
    first, last = min(paths), max(paths)
    size = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:size]
