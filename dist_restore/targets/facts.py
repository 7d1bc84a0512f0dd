"""What is known of each live variable: what only a look at the whole graph of objects shows.

Knows objects and their edges; knows no canonical names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import keras
import msgspec
import tensorflow as tf

from dist_restore.core.index import Group
from dist_restore.core.text import snake_case
from dist_restore.naming.automatic_names import looks_automatic
from dist_restore.naming.keras_containers import POSITIONAL_CONTAINERS
from dist_restore.targets import tf_keras as keras2
from dist_restore.targets.children import is_container, is_counted, is_optimizer, keras_variables, layer_classes
from dist_restore.tf_internals.keras_variables import unwrap


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


class Facts:
    """What only the whole graph shows: who is saved, which group, which layer names are counters."""

    def __init__(
        self,
        objects: list[object],
        others: list[tuple[int, object]],
        edges: list[list[tuple[str, int, bool]]],
        slots: Mapping[int, tuple[tuple[int, str, int], ...]],
        root: object,
    ) -> None:
        self._objects, self._edges, self._layers = objects, edges, layer_classes()
        reached = self._reach([0], tracked_only=True)
        self._saved = reached | {slot for i, own in slots.items() if i in reached for _, _, slot in own}
        self._others, self._no_variables = others, {i for i, _ in others}
        modules = [i for i, o in self._others if isinstance(o, (keras.Layer, tf.Module))]
        optimizers = [i for i, o in self._others if is_optimizer(o)]
        settings = (pair for _, o in self._others if keras2.is_optimizer(o) for pair in keras2.settings(o))
        self._settings = {id(variable): reason for variable, reason in settings}
        self._model = self._reach(modules, stop=frozenset(optimizers))
        self._optimizer = self._reach(optimizers)
        self._seeds = self._below(keras.random.SeedGenerator)
        self._metrics = self._below(keras.metrics.Metric)
        items = [o for _, o in others]
        self._paths = {id(unwrap(v)): v.path for v in keras_variables(items)}
        named = (keras.random.SeedGenerator, keras.metrics.Metric)
        self._counted = {o.name for o in items if isinstance(o, named) and is_counted(o)}
        self._counted |= {o.name for o in items if isinstance(o, self._layers) and is_counted(o)}
        self._named = {o.name for o in items if isinstance(o, self._layers)}
        models: tuple[type[keras.Layer], ...] = (keras.Model, *keras2.classes("Model"))
        inside = self._inside_models(models)
        self._models = {o.name for i, o in others if isinstance(o, models) and not (i in inside and is_counted(o))}
        self._models |= self._name_modules()
        counter = getattr(root, "save_counter", None) if isinstance(root, tf.train.Checkpoint) else None
        self._save_counter = id(counter)
        self._classes = self._layer_classes()
        self._members = self._member_names()
        self._counted_scopes: dict[str, bool] = {}

    def leaf(self, index: int) -> LiveLeaf:
        """What is known of one variable, by its number."""
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
            scoped and self._is_counted_scope(path.rpartition("/")[0]),
            self._shorter(path) if scoped else (),
            id(variable) == self._save_counter,
            self._classes.get(index, ""),
            tuple(sorted(self._members[index])) if index in self._members else (),
        )

    def _inside_models(self, models: tuple[type[keras.Layer], ...]) -> frozenset[int]:
        """What is below a model: a model there is a layer, whose automatic name is a counter's."""
        outer = [i for i, o in self._others if isinstance(o, models)]
        return self._reach([child for i in outer for _, child, _ in self._edges[i]])

    def _name_modules(self) -> set[str]:
        """Adds the automatic names of modules that are no layers; those that hold others may be models."""
        modules = {i: o for i, o in self._others if isinstance(o, tf.Module) and not isinstance(o, self._layers)}
        self._counted |= {o.name for o in modules.values() if is_counted(o)}
        return {o.name for i, o in modules.items() if any(child in modules for _, child, _ in self._edges[i])}

    def with_paths(self) -> list[int]:
        """The variables that Keras 3 calls otherwise than TensorFlow may."""
        return [i for i, item in enumerate(self._objects) if id(item) in self._paths] if self._paths else []

    def _layer_classes(self) -> dict[int, str]:
        found: dict[int, set[str]] = {}
        for index, item in self._others:
            if isinstance(item, self._layers):
                for _, child, _ in self._edges[index]:
                    found.setdefault(child, set()).add(snake_case(type(item).__name__))
        return {child: next(iter(names)) for child, names in found.items() if len(names) == 1}

    def _member_names(self) -> dict[int, set[str]]:
        containers = {i for i, o in self._others if is_container(o)}
        edges = ((i, name, c) for i, e in enumerate(self._edges) for name, c, _ in e if c in containers)
        own = {c for i, name, c in edges if name not in POSITIONAL_CONTAINERS or self._is_plain(i)}
        layers = {child for container in own for _, child, _ in self._edges[container]}
        found: dict[int, set[str]] = {}
        for layer in layers:
            item = self._objects[layer]
            if isinstance(item, self._layers) and not is_counted(item):
                for below in self._reach([layer]):
                    found.setdefault(below, set()).add(item.name)
        return found

    def _is_plain(self, index: int) -> bool:
        """Whether it is a module that is not Keras': what that calls `_layers` is a list of somebody's own."""
        item = self._objects[index]
        return isinstance(item, tf.Module) and not isinstance(item, self._layers)

    def _own_name(self, variable: object) -> str:
        return self._paths.get(id(variable)) or str(getattr(variable, "name", "")).partition(":")[0]

    def _is_counted_scope(self, scope: str) -> bool:
        """Whether Keras made up the name of a layer in a path: of those above a variable, without the model's."""
        known = self._counted_scopes.get(scope)  # of an optimizer's slots all are in one
        if known is None:
            parts = scope.split("/")
            layers = parts[1:] if len(parts) > 1 and parts[0] in self._models else parts
            known = self._counted_scopes[scope] = any(map(self._is_counted, layers))
        return known

    def _is_counted(self, name: str) -> bool:
        """Whether Keras made a layer's name up; the layer itself may be out of sight, and its variables in a list."""
        return name in self._counted or (name not in self._named and looks_automatic(name))

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
