"""Live objects as a graph of nodes, so that `naming` can name them as it names a checkpoint's.

Edges are those of the public `tf.train.TrackableView`, which are what `tf.train.Checkpoint` saves, and besides
the plain lists, dicts and helper objects of Keras 3 layers, which it does not.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import keras
import msgspec
import tensorflow as tf

from dist_restore import keras2
from dist_restore.errors import UnbuiltModelError
from dist_restore.graph import LayerName, Leaf, Node
from dist_restore.naming import POSITIONAL_CONTAINERS
from dist_restore.objects import is_stateful
from dist_restore.sharded import is_sharded, is_sharded_class, parts_of
from dist_restore.specs import Group, snake_case

# Keras' own bookkeeping (3.0 - 3.15): everything in it is reached by another, better edge.
_KERAS_INTERNAL = frozenset(
    "_tracker _tracked _layers _metrics _trainable_variables _non_trainable_variables _seed_generators _losses "
    "_losses_override _loss_ids _operations _operations_by_depth _nodes _nodes_by_depth _inbound_nodes "
    "_outbound_nodes _auto_config _call_context_args _call_has_context_arg call_signature_parameters "
    "_compile_metrics _compile_loss _loss_tracker _distribute_strategy _parent_path _build_shapes_dict "
    "_saved_model_inputs_spec _saved_model_arg_spec _unconditional_checkpoint_dependencies _nested_inputs "
    "_nested_outputs inputs outputs _inputs _outputs _inputs_struct _outputs_struct".split()
)
_NO_STATE = (str, bytes, int, float, bool, type(None), tf.Tensor, tf.DType, tf.TensorShape)
# Often kept by a model and called in its data pipeline only; building them creates no variable.
_LOOKUPS = (keras.layers.StringLookup, keras.layers.IntegerLookup, keras.layers.TextVectorization)


class LiveLeaf(msgspec.Struct, frozen=True, gc=False):
    """A live variable and what the walk knows of it.

    Attributes:
      variable: the TensorFlow variable (a Keras variable's own one), or an object with state of its own.
      is_stateful: whether it is such an object.
      saved: whether `tf.train.Checkpoint` of the same root would save it.
      transient: `seed` or `metric` for state that is remade rather than trained; else empty.
      setting: why it may keep its value, for what the program sets rather than learns; else empty.
      group: what it is part of.
      own_name: `variable.path` of a Keras variable; else the variable's name.
      keras_path: the same where it has scopes; else empty.
      counted_path: whether the path holds a layer name that Keras made up from a counter.
      shorter_paths: the path with the model's name without its counter, and without the model's name.
      is_save_counter: the Checkpoint's own counter of saves.
      layer_class: class of the layer that holds it, in snake case; empty where none, or more than one, does.
      members: names that somebody chose for the layers above it that are members of a list or dict.
    """

    variable: tf.Variable
    is_stateful: bool
    saved: bool
    transient: str
    setting: str
    group: Group
    own_name: str
    keras_path: str
    counted_path: bool
    shorter_paths: tuple[str, ...]
    is_save_counter: bool
    layer_class: str
    members: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class LiveGraph:
    """What a walk found.

    Attributes:
      nodes: for `naming.name_graph`.
      leaves: what is restored at each node that has anything.
      bare: whether the root has no name.
      tracked: the nodes as a checkpoint of them would have them: edges that TensorFlow saves, and its own full names.
    """

    nodes: tuple[Node, ...]
    leaves: Mapping[int, LiveLeaf]
    bare: bool
    tracked: tuple[Node, ...]


def walk(root: object, strategy: tf.distribute.Strategy | None) -> LiveGraph:
    """Walks everything below a Checkpoint, model, module or mapping. Called by all workers.

    Raises:
      UnbuiltModelError: a layer has no variables yet, or an optimizer cannot be built here.
    """
    if isinstance(root, tf.train.Checkpoint):
        _ = root.save_counter  # creates it: it is saved and restored like any other state
    _build_optimizers(root, strategy)
    walker = _Walker()
    walker.visit(root)
    walker.refuse_unbuilt()
    return walker.graph(root)


def first_strategy(root: object) -> tf.distribute.Strategy | None:
    """The strategy under which something below was created, by a look at the first variables; None for the default."""
    some = itertools.islice(_Walker().variables(root), _ENOUGH)
    found = (getattr((parts_of(v) or (v,))[0], "distribute_strategy", None) for v in some)
    return next((s for s in found if s is not None and not is_default(s)), None)


def is_default(strategy: tf.distribute.Strategy) -> bool:
    """Whether it is what variables have that were created under no strategy."""
    return type(strategy).__name__ == "_DefaultDistributionStrategy"


# Counters may be created under no strategy; models are not.
_ENOUGH = 64


class _Walker:
    """Numbers objects by identity and records their edges, in the order in which they are found."""

    def __init__(self) -> None:
        self._objects: list[object] = []
        self._others: list[tuple[int, object]] = []  # those that are no variables
        self._numbers: dict[int, int] = {}
        self._edges: list[list[tuple[str, int, bool]]] = []
        self._slots: dict[int, tuple[tuple[int, str, int], ...]] = {}
        self._layers = _layer_classes()

    def visit(self, root: object) -> None:
        self._number(root)
        for cursor, item in enumerate(self._objects):  # grows on the way
            # Most objects are variables; to ask each of them for all that it is not took a third of the walk's time.
            if not _is_variable(item):
                self._others.append((cursor, item))
                edges = self._edges[cursor]
                edges += [(name, self._number(child), tracked) for name, child, tracked in _children(item)]
        self._find_slots()

    def _find_slots(self) -> None:
        """The slots of tf_keras's optimizers, which say no owners in their edges, and of legacy ones no edges."""
        optimizers = [(i, o) for i, o in self._others if keras2.is_optimizer(o)]
        variables = [o for o in self._objects if _is_variable(o)] if optimizers else []
        for index, optimizer in optimizers:
            found = keras2.slots(optimizer, variables)
            self._slots[index] = tuple([(self._number(o), name, self._number(slot)) for name, o, slot in found])

    def variables(self, root: object) -> Iterator[object]:
        """The variables below an object, as they are found."""
        seen = self._number(root)
        for item in self._objects:  # grows on the way
            for _, child, _ in _children(item):
                self._number(child)
            # Before the next object is looked into: a list may hold thousands, and the caller needs few.
            yield from filter(_is_variable, self._objects[seen:])
            seen = len(self._objects)

    def refuse_unbuilt(self) -> None:
        others = [o for _, o in self._others]
        unbuilt = [o for o in others if isinstance(o, self._layers) and not o.built and not _is_lookup(o)]
        _refuse_uncalled(others)
        if unbuilt:
            raise _unready(
                unbuilt,
                "layer(s) are not built, so their variables do not exist yet and would be created with random values "
                "after the restore",
                "Call the model on a batch (model(tf.zeros(shape))) or model.build(shape) under strategy.scope() "
                "first; remove a layer that is never called.",
            )
        for item in others:
            if keras2.is_optimizer(item) and not keras2.is_built(item):
                raise _slotless(item, models=None)

    def graph(self, root: object) -> LiveGraph:
        facts = _Facts(self._objects, self._others, self._edges, self._slots, root)
        stateless = {i for i, o in self._others if not is_stateful(o)}
        leaves = {i: facts.leaf(i) for i in range(len(self._objects)) if i not in stateless}
        nodes = tuple([self._node(i, leaves.get(i)) for i in range(len(self._objects))])
        tracked = tuple([self._tracked(i, node) for i, node in enumerate(nodes)])
        return LiveGraph(nodes, leaves, _is_bare(root), tracked)

    def _number(self, item: object) -> int:
        item = item.value if isinstance(item, keras.Variable) else item  # as `_unwrap`, without its call
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
        layer = LayerName(item.name, _is_counted(item)) if isinstance(item, self._layers) else None
        family = type(item).__name__.lower() if _is_optimizer(item) else ""
        return Node(edges, leaf, layer, family, self._slots.get(index, ()))

    def _tracked(self, index: int, node: Node) -> Node:
        if node.leaf is not None:
            name = str(getattr(self._objects[index], "name", "")).partition(":")[0]
            if name == node.leaf.full_name or not name:
                return node
            return msgspec.structs.replace(node, leaf=Leaf(node.leaf.key, name))
        edges = tuple([(name, child) for name, child, tracked in self._edges[index] if tracked])
        return node if len(edges) == len(node.edges) else msgspec.structs.replace(node, edges=edges)


def _refuse_uncalled(objects: Sequence[object]) -> None:
    """Modules that make their variables at the first call, where they say so, as Sonnet's do."""
    lazy = {kind for kind in set(map(type, objects)) if _has_first_call(kind)}
    uncalled = [
        o for o in objects if type(o) in lazy and isinstance(o, tf.Module) and not getattr(o, "_snt_once", None)
    ]
    if uncalled:
        raise _unready(
            uncalled,
            "module(s) were never called, so their variables do not exist yet and would be made with initial values "
            "after the restore",
            "Call the model on a batch, and apply the optimizer once (its slots are made then), under "
            "strategy.scope(); remove a module that is never called.",
        )


def _unready(objects: Sequence[keras.Layer | tf.Module], trouble: str, advice: str) -> UnbuiltModelError:
    names = ", ".join(f"{o.name!r} ({type(o).__name__})" for o in objects[:8])
    return UnbuiltModelError(f"{len(objects)} {trouble}: {names}. {advice}", names=tuple(o.name for o in objects))


class _Facts:
    """What only the whole graph shows: who is saved, which group, which layer names are counters."""

    def __init__(
        self,
        objects: list[object],
        others: list[tuple[int, object]],
        edges: list[list[tuple[str, int, bool]]],
        slots: Mapping[int, tuple[tuple[int, str, int], ...]],
        root: object,
    ) -> None:
        self._objects, self._edges, self._layers = objects, edges, _layer_classes()
        reached = self._reach([0], tracked_only=True)
        self._saved = reached | {slot for i, own in slots.items() if i in reached for _, _, slot in own}
        self._others, self._no_variables = others, {i for i, _ in others}
        modules = [i for i, o in self._others if isinstance(o, (keras.Layer, tf.Module))]
        optimizers = [i for i, o in self._others if _is_optimizer(o)]
        settings = (pair for _, o in self._others if keras2.is_optimizer(o) for pair in keras2.settings(o))
        self._settings = {id(variable): reason for variable, reason in settings}
        self._model = self._reach(modules, stop=frozenset(optimizers))
        self._optimizer = self._reach(optimizers)
        self._seeds = self._below(keras.random.SeedGenerator)
        self._metrics = self._below(keras.metrics.Metric)
        items = [o for _, o in others]
        self._paths = {id(_unwrap(v)): v.path for v in _keras_variables(items)}
        named = (keras.random.SeedGenerator, keras.metrics.Metric)
        self._counted = {o.name for o in items if isinstance(o, named) and _is_counted(o)}
        self._counted |= {o.name for o in items if isinstance(o, self._layers) and _is_counted(o)}
        models: tuple[type[keras.Layer], ...] = (keras.Model, *keras2.classes("Model"))
        self._models = {o.name for o in items if isinstance(o, models)}
        counter = getattr(root, "save_counter", None) if isinstance(root, tf.train.Checkpoint) else None
        self._save_counter = id(counter)
        self._classes = self._layer_classes()
        self._members = self._member_names()

    def leaf(self, index: int) -> LiveLeaf:
        variable = self._objects[index]
        stateful = index in self._no_variables
        path = "" if stateful else self._own_name(variable)
        scoped = "/" in path
        # By position: keywords double the time that making it takes.
        return LiveLeaf(
            variable,
            stateful,
            index in self._saved,
            "seed" if index in self._seeds else "metric" if index in self._metrics else "",
            self._settings.get(id(variable), ""),
            self._group(index),
            path,
            path if scoped else "",
            scoped and any(part in self._counted for part in self._layer_parts(path)),
            self._shorter(path) if scoped else (),
            id(variable) == self._save_counter,
            self._classes.get(index, ""),
            tuple(sorted(self._members[index])) if index in self._members else (),
        )

    def _layer_classes(self) -> dict[int, str]:
        found: dict[int, set[str]] = {}
        for index, item in self._others:
            if isinstance(item, self._layers):
                for _, child, _ in self._edges[index]:
                    found.setdefault(child, set()).add(snake_case(type(item).__name__))
        return {child: next(iter(names)) for child, names in found.items() if len(names) == 1}

    def _member_names(self) -> dict[int, set[str]]:
        containers = {i for i, o in self._others if _is_container(o)}
        edges = ((name, c) for e in self._edges for name, c, _ in e if c in containers)
        own = {c for name, c in edges if name not in POSITIONAL_CONTAINERS}
        layers = {child for container in own for _, child, _ in self._edges[container]}
        found: dict[int, set[str]] = {}
        for layer in layers:
            item = self._objects[layer]
            if isinstance(item, self._layers) and not _is_counted(item):
                for below in self._reach([layer]):
                    found.setdefault(below, set()).add(item.name)
        return found

    def _own_name(self, variable: object) -> str:
        return self._paths.get(id(variable)) or str(getattr(variable, "name", "")).partition(":")[0]

    def _layer_parts(self, path: str) -> list[str]:
        """The layers in a path: without the variable's own name, and without the model's."""
        parts = path.split("/")[:-1]
        return parts[1:] if len(parts) > 1 and parts[0] in self._models else parts

    def _shorter(self, path: str) -> tuple[str, ...]:
        first, _, rest = path.partition("/")
        if first not in self._models or "/" not in rest:
            return ()
        return (f"{re.sub(r'_[0-9]+$', '', first)}/{rest}", rest)

    def _group(self, index: int) -> Group:
        if index in self._model:
            return Group.MODEL
        return Group.OPTIMIZER if index in self._optimizer else Group.OTHER

    def _below(self, kind: type) -> frozenset[int]:
        return self._reach([i for i, o in self._others if isinstance(o, kind)])

    def _reach(
        self, starts: Iterable[int], *, tracked_only: bool = False, stop: frozenset[int] = frozenset()
    ) -> frozenset[int]:
        seen = set(starts) - stop
        stack = list(seen)
        while stack:
            for _, child, tracked in self._edges[stack.pop()]:
                if child not in seen and child not in stop and (tracked or not tracked_only):
                    seen.add(child)
                    if self._edges[child]:
                        stack.append(child)
        return frozenset(seen)


def _children(item: object) -> Iterator[tuple[str, object, bool]]:
    """(name, child, whether TF tracks the edge) of one object."""
    if _is_variable(item):
        return
    tracked = _tracked_children(item)
    for name, child in tracked.items():
        yield name, child, True
    for name, child in _plain_children(item):
        if name not in tracked and _holds_state(child):
            # Items of a container are saved where the container is; what Keras keeps by itself is not.
            yield name, child, isinstance(item, (Mapping, list, tuple))


def _tracked_children(item: object) -> Mapping[str, object]:
    if isinstance(item, Mapping) or not hasattr(item, "_trackable_children"):
        return {}
    if keras2.is_optimizer(item) and not keras2.is_built(item):
        return {}  # it would remember for ever what it consists of now
    children: Mapping[str, object] = tf.train.TrackableView.children(item)
    return children


def _plain_children(item: object) -> Iterator[tuple[str, object]]:
    """Where Keras 3 keeps what TF does not look at; and the items of plain containers."""
    if isinstance(item, Mapping):
        yield from ((str(k), v) for k, v in item.items())
    elif isinstance(item, (list, tuple, set, frozenset)):
        yield from ((str(i), v) for i, v in enumerate(item))
    elif isinstance(item, (keras.Layer, keras.metrics.Metric, keras.random.SeedGenerator)):
        for name, value in vars(item).items():
            if name not in _KERAS_INTERNAL and not name.startswith("_self_"):
                yield name, value


def _holds_state(value: object, depth: int = 0) -> bool:
    """Whether a value is, or a plain container holds, something that can have variables."""
    if isinstance(value, _NO_STATE) or depth > 8:
        return False
    if isinstance(value, Mapping):
        return any(_holds_state(v, depth + 1) for v in value.values())
    if isinstance(value, (list, tuple, set, frozenset)):
        return any(_holds_state(v, depth + 1) for v in value)
    return (
        is_stateful(value)
        or is_sharded(value)
        or isinstance(
            value,
            (
                keras.Layer,
                keras.Variable,
                keras.metrics.Metric,
                keras.random.SeedGenerator,
                keras.optimizers.Optimizer,
                tf.Module,
                tf.Variable,
                tf.train.Checkpoint,
            ),
        )
        or keras2.is_optimizer(value)
    )


def _is_container(item: object) -> bool:
    return isinstance(item, (list, tuple, Mapping))


def _has_first_call(kind: type) -> bool:
    """Whether a module's class has a method that runs once, at the first call (`snt.once`, Sonnet 2.0.2)."""
    if not issubclass(kind, tf.Module):
        return False
    return any(hasattr(value, "__snt_once_wrapped__") for base in kind.__mro__ for value in vars(base).values())


def _is_lookup(item: keras.Layer) -> bool:
    """Whether a layer is a lookup that never gets variables; only the weights of `tf_idf` are one."""
    return isinstance(item, _LOOKUPS) and getattr(item, "output_mode", "") != "tf_idf"


def _is_variable(item: object) -> bool:
    """Whether it is one; a sharded variable is one, whose parts nobody names."""
    kind: object = item.__class__
    return _is_variable_class(kind)


@functools.lru_cache(maxsize=1 << 10)  # `isinstance` takes 0.4 us, for tf.Variable has an abstract base class
def _is_variable_class(kind: object) -> bool:
    return isinstance(kind, type) and (issubclass(kind, tf.Variable) or is_sharded_class(kind))


def _is_bare(root: object) -> bool:
    """Whether the model has no name of its own: passed as it is, or as `Checkpoint(model)`."""
    if isinstance(root, tf.train.Checkpoint):
        return "root" in tf.train.TrackableView.children(root)
    return not isinstance(root, Mapping)


def _unwrap(item: object) -> object:
    """A Keras variable's TensorFlow variable; everything else as it is."""
    return item.value if isinstance(item, keras.Variable) else item


def _is_counted(item: keras.Layer | keras.random.SeedGenerator | keras.metrics.Metric) -> bool:
    """Whether Keras made an object's name up: its class name in snake case, and a counter."""
    return re.fullmatch(rf"{re.escape(snake_case(type(item).__name__))}(_\d+)?", item.name) is not None


def _keras_variables(objects: Iterable[object]) -> Iterator[keras.Variable]:
    for item in objects:
        if isinstance(item, (keras.Layer, keras.optimizers.Optimizer, keras.metrics.Metric)):
            yield from item.variables


def _is_optimizer(item: object) -> bool:
    return isinstance(item, keras.optimizers.Optimizer) or keras2.is_optimizer(item)


def _layer_classes() -> tuple[type[keras.Layer], ...]:
    # Those of tf_keras have the same attributes, as far as they are asked here.
    return (keras.Layer, *keras2.classes("layers.Layer"))


def _build_optimizers(root: object, strategy: tf.distribute.Strategy | None) -> None:
    """Builds unbuilt optimizers beside their model, so that their slots exist before planning."""
    beside = [child for _, child, _ in _children(root)]
    models = [m for m in beside if isinstance(m, _layer_classes())]
    for model in models or [root]:  # those that `compile` was given belong to their own model
        own = getattr(model, "optimizer", None) if isinstance(model, _layer_classes()) else None
        if own is not None and keras2.is_optimizer(own) and keras2.may_lack_slots(own):
            _build([own], _trainable([model], own), strategy)
    unbuilt = [o for o in beside if _may_lack_slots(o)]
    if unbuilt:
        _build(unbuilt, _trainable(models, unbuilt[0]), strategy)


def _may_lack_slots(item: object) -> bool:
    if keras2.is_optimizer(item):
        return keras2.may_lack_slots(item)
    return isinstance(item, keras.optimizers.Optimizer) and not item.built


def _trainable(models: Sequence[keras.Layer], optimizer: object) -> list[object]:
    """The variables that an optimizer is to be built for: those of the one model beside it."""
    variables = list(models[0].trainable_variables) if len(models) == 1 and models[0].built else []
    if not variables:
        raise _slotless(optimizer, len(models))
    return variables


def _slotless(optimizer: object, models: int | None) -> UnbuiltModelError:
    name = str(getattr(optimizer, "name", "") or getattr(optimizer, "_name", ""))
    where = "it is not beside a model" if models is None else f"there are {models} models beside it, built or not"
    return UnbuiltModelError(
        f"The optimizer {name!r} has no slots yet, and {where}, so it is not clear for which variables to build it. "
        "Call optimizer.build(model.trainable_variables) under strategy.scope() first.",
        names=(name,),
    )


def _build(optimizers: Sequence[object], variables: Sequence[object], strategy: tf.distribute.Strategy | None) -> None:
    own = getattr(_unwrap(variables[0]), "distribute_strategy", None)
    with (strategy or own or tf.distribute.get_strategy()).scope():
        for optimizer in optimizers:
            if isinstance(optimizer, keras.optimizers.Optimizer):
                optimizer.build(variables)
            elif keras2.is_optimizer(optimizer):
                keras2.build(optimizer, [v for v in variables if isinstance(v, tf.Variable)])
