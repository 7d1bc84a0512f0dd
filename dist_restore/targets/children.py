"""What live objects are, and what lies below them: the objects of Keras 3, tf_keras and TensorFlow that hold state.

Knows classes and attributes; knows no names of variables.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import keras
import tensorflow as tf

from dist_restore.core.errors import RestoreError
from dist_restore.core.text import snake_case
from dist_restore.targets import tf_keras as keras2
from dist_restore.targets.objects import is_stateful
from dist_restore.tf_internals.keras_variables import KerasVariable
from dist_restore.tf_internals.sharded import is_sharded, is_sharded_class

# Keras' own bookkeeping (3.0 - 3.15): everything in it is reached by another, better edge.
_KERAS_INTERNAL = frozenset(
    "_tracker _tracked _layers _metrics _trainable_variables _non_trainable_variables _seed_generators _losses "
    "_losses_override _loss_ids _operations _operations_by_depth _nodes _nodes_by_depth _inbound_nodes "
    "_outbound_nodes _auto_config _call_context_args _call_has_context_arg call_signature_parameters "
    "_compile_metrics _compile_loss _loss_tracker _distribute_strategy _parent_path _build_shapes_dict "
    "_saved_model_inputs_spec _saved_model_arg_spec _unconditional_checkpoint_dependencies".split()
)
# The classes of these have names for their numbers (`layer_variables`).
_LIBRARIES = frozenset({"keras", "tf_keras"})
_NO_STATE = (str, bytes, int, float, bool, type(None), tf.Tensor, tf.DType, tf.TensorShape)


def children(item: object) -> Iterator[tuple[str, object, bool]]:
    """(name, child, whether TF tracks the edge) of one object."""
    if is_variable(item):
        return
    tracked = _tracked_children(item)
    for name, child in tracked.items():
        yield name, child, True
    for name, child in _plain_children(item):
        if name not in tracked and _holds_state(child):
            # Items of a container are saved where the container is; what Keras keeps by itself is not.
            yield name, child, isinstance(item, (Mapping, list, tuple))


def is_variable(item: object) -> bool:
    """Whether it is one; a sharded variable is one, whose parts nobody names."""
    kind: object = item.__class__
    return _is_variable_class(kind)


def is_optimizer(item: object) -> bool:
    """Whether it is an optimizer of Keras 3 or of tf_keras."""
    kind: object = type(item)
    return is_optimizer_class(kind)


def layer_classes() -> tuple[type[keras.Layer], ...]:
    """The base classes of layers, of Keras 3 and of tf_keras where that is imported."""
    # Those of tf_keras have the same attributes, as far as they are asked here.
    return (keras.Layer, *keras2.classes("layers.Layer"))


def is_container(item: object) -> bool:
    """Whether it is a list or a dict."""
    return isinstance(item, (list, tuple, Mapping))


def is_bare(root: object) -> bool:
    """Whether the model has no name of its own: passed as it is, or as `Checkpoint(model)`."""
    if isinstance(root, tf.train.Checkpoint):
        return "root" in tf.train.TrackableView.children(root)
    return not isinstance(root, Mapping)


def is_counted(item: keras.Layer | keras.random.SeedGenerator | keras.metrics.Metric | tf.Module) -> bool:
    """Whether Keras or TensorFlow made an object's name up: its class name in snake case, and a counter."""
    base, name = snake_case(type(item).__name__), str(item.name)
    return name == base or (name.startswith(f"{base}_") and name[len(base) + 1 :].isdecimal())


def keras_variables(objects: Iterable[object]) -> Iterator[keras.Variable]:
    """The Keras 3 variables of layers, optimizers and metrics among some objects."""
    for item in objects:
        if isinstance(item, (keras.Layer, keras.optimizers.Optimizer, keras.metrics.Metric)):
            yield from item.variables


def is_own_class(layer: keras.Layer) -> bool:
    """Whether a layer's class is no class of Keras' or tf_keras'."""
    return type(layer).__module__.partition(".")[0] not in _LIBRARIES


def numbered_variables(layer: keras.Layer) -> tuple[object, ...]:
    """What a layer saves by number; nothing where Keras has names for the numbers, or the class a way of its own."""
    kind = type(layer)
    saves = [base.save_own_variables for base in layer_classes()]
    plain = kind.save_own_variables in saves if is_own_class(layer) else getattr(layer, "quantization_mode", None)
    if not plain:
        return ()
    store: dict[str, object] = {}
    layer.save_own_variables(store)
    return tuple(store.values())


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
    elif isinstance(item, (list, tuple)):
        yield from ((str(i), v) for i, v in enumerate(item))
    elif isinstance(item, (set, frozenset)):
        yield from ((str(i), v) for i, v in enumerate(_in_order([v for v in item if _holds_state(v)])))
    elif isinstance(item, (keras.Layer, keras.metrics.Metric, keras.random.SeedGenerator)):
        if isinstance(item, keras.Sequential) and not item.built:
            # Somebody uses it as a list: nothing else leads to its layers.
            yield "_layers", vars(item).get("_layers")
        for name, value in vars(item).items():
            if not name.startswith("_self_") and (name not in _KERAS_INTERNAL or _is_own(name, value)):
                yield name, value


def _is_own(name: str, value: object) -> bool:
    """Whether a program has put layers into what Keras keeps metrics in."""
    return name == "_metrics" and isinstance(value, list) and any(isinstance(v, keras.Layer) for v in value)


def _in_order(members: Sequence[object]) -> list[object]:
    """The members of a set by class, name and shape: a set has them in the order of their addresses.

    Raises:
      RestoreError: two of them are alike.
    """
    keys = [_sort_key(member) for member in members]
    if len(set(keys)) < len(keys):
        alike = next(member for member, key in zip(members, keys, strict=True) if keys.count(key) > 1)
        raise RestoreError(
            f"A set holds several objects of class {type(alike).__name__} with the same name and shape, which nothing "
            "tells apart. Keep them in a list, or give each a name of its own."
        )
    return [member for _, member in sorted(zip(keys, members, strict=True), key=lambda pair: pair[0])]


def _sort_key(member: object) -> tuple[str, tuple[tuple[int, str], ...], str]:
    parts = re.split(r"(\d+)", str(getattr(member, "name", "")))
    name = tuple((int(part), "") if part.isdecimal() else (-1, part) for part in parts)  # 10 after 9
    return type(member).__name__, name, str(getattr(member, "shape", ""))


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
                KerasVariable,
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


@functools.lru_cache(maxsize=1 << 10)  # each object is asked several times
def is_optimizer_class(kind: object) -> bool:
    """Whether objects of a class are optimizers of Keras 3 or of tf_keras."""
    return isinstance(kind, type) and (issubclass(kind, keras.optimizers.Optimizer) or keras2.is_optimizer_class(kind))


@functools.lru_cache(maxsize=1 << 10)  # `isinstance` takes 0.4 us, for tf.Variable has an abstract base class
def _is_variable_class(kind: object) -> bool:
    return isinstance(kind, type) and (issubclass(kind, tf.Variable) or is_sharded_class(kind))
