"""Builds optimizers that have no slots yet, so that these exist before planning: where it is clear what they train.

An optimizer trains what the model was compiled with it for; else the one model beside it; else the one model beside
what holds it, and so on upwards. Where there are several, nothing is guessed. Knows live objects.
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import keras
import tensorflow as tf

from dist_restore.core.index import Unbuilt
from dist_restore.targets import tf_keras as keras2
from dist_restore.targets.children import is_container, is_optimizer, is_variable, layer_classes
from dist_restore.targets.unbuilt import built_for_less, makes_variables
from dist_restore.tf_internals.keras_variables import unwrap


class Trained(Protocol):
    """A layer or module, as far as it is asked what an optimizer would train."""

    @property
    def trainable_variables(self) -> Sequence[object]:
        """What training changes."""
        ...


class Builder:
    """Builds the optimizers of one graph of live objects."""

    def __init__(self, objects: Sequence[object], edges: Sequence[Sequence[tuple[str, int, bool]]]) -> None:
        """Prepares; cheap where every optimizer is built.

        Args:
          objects: all objects, by their numbers.
          edges: (name, number of the child, whether TensorFlow tracks it) of each.
        """
        self._objects, self._edges = objects, edges
        self._layers = layer_classes()
        # Asked for several times of large modules, which look for all of it each time. Nothing is built between.
        self._known_trainable: dict[int, list[object]] = {}

    def build(self, optimizers: Iterable[int], strategy: tf.distribute.Strategy | None) -> bool:
        """Builds those of which it is clear what they train; whether any was new."""
        unbuilt = [i for i in optimizers if _may_lack_slots(self._objects[i])]
        if not unbuilt:
            return False
        self._holders = self._find_holders()
        # What wraps an optimizer builds it.
        outer = [i for i in unbuilt if not any(h in unbuilt for h in self._holders[i])]
        trained = [(self._objects[i], self._trained(i)) for i in outer]  # before any is built
        changed = any(variables and not _is_built(optimizer) for optimizer, variables in trained)
        for optimizer, variables in trained:
            if variables:
                _build(optimizer, variables, strategy)
        return changed

    def find_short(self, optimizers: Iterable[int]) -> dict[int, Unbuilt]:
        """Those that were built before all variables existed that they train: for the rest they have no slots.

        Args:
          optimizers: of the built ones, those that made no step.
        """
        every = {index: _known(self._objects[index]) for index in optimizers}
        short = {index: known for index, known in every.items() if known and self._holds_more_than(known)}
        self._holders = self._find_holders() if short else {}
        found: dict[int, Unbuilt] = {}
        for index, known in short.items():
            variables = self._trained(index)
            if any(id(unwrap(v)) not in known for v in variables):
                found[index] = built_for_less(self._objects[index], len(known), len(variables))
        return found

    def _holds_more_than(self, known: set[int]) -> bool:
        """Whether there is something to train that an optimizer does not know; cheaper than `_trained`."""
        others = (o for o in self._objects if id(o) not in known and is_variable(o))
        return any(getattr(o, "trainable", True) for o in others)

    def _find_holders(self) -> dict[int, list[int]]:
        holders: dict[int, list[int]] = collections.defaultdict(list)
        for index, edges in enumerate(self._edges):
            for _, child, _ in edges:
                if index not in holders[child]:
                    holders[child].append(index)
        return holders

    def _trained(self, index: int) -> list[object]:
        """The variables that an optimizer trains; none where that is not clear."""
        optimizer, level, seen = self._objects[index], self._above([index]), {index}
        for holder in level:
            item = self._objects[holder]
            if isinstance(item, self._layers) and getattr(item, "optimizer", None) is optimizer:
                return self._trainable(item) if self._is_ready(holder) else []
        while level:
            seen.update(level)
            candidates = self._candidates(level, seen)
            if candidates:
                ready = len(candidates) == 1 and self._is_ready(candidates[0][0])
                return self._trainable(candidates[0][1]) if ready else []
            level = [i for i in self._above(level) if i not in seen]
        return []

    def _above(self, level: Iterable[int]) -> list[int]:
        """What holds some objects; lists, dicts and optimizers that wrap another are looked through."""
        found, stack = dict[int, None](), list(level)
        passed = set(stack)
        while stack:
            for holder in self._holders[stack.pop()]:
                if holder in passed:
                    continue
                passed.add(holder)
                item = self._objects[holder]
                if is_optimizer(item) or (is_container(item) and self._holders[holder]):
                    stack.append(holder)
                else:
                    found[holder] = None
        return list(found)

    def _is_ready(self, index: int) -> bool:
        """Whether all that a model trains exists; one that only trains another is itself never called."""
        if getattr(self._objects[index], "built", True):
            return True
        stack, seen = [index], {index}
        while stack:
            item = self._objects[i := stack.pop()]
            if isinstance(item, self._layers) and not item.built and makes_variables(item):
                return False
            below = [child for _, child, _ in self._edges[i] if child not in seen]
            seen.update(below)
            stack += below
        return True

    def _candidates(self, level: Sequence[int], seen: set[int]) -> list[tuple[int, Trained]]:
        """The models that an optimizer may train which these objects hold, nested ones left out."""
        found: dict[int, Trained] = {}
        for holder in level:
            for index, item in self._own_or_beside(holder, seen):
                found[index] = item
        return self._outermost(list(found.items()))

    def _own_or_beside(self, holder: int, seen: set[int]) -> Iterator[tuple[int, Trained]]:
        item, beside = self._objects[holder], dict(self._members(holder))
        layers: dict[int, Trained] = {}
        layers |= {i: o for i, o in beside.items() if isinstance(o, self._layers) and self._may_be_trained(o)}
        if isinstance(item, self._layers):
            models = [o for o in layers.values() if isinstance(o, (keras.Model, *keras2.classes("Model")))]
            others = [o for o in beside.values() if is_optimizer(o) and o is not getattr(item, "optimizer", None)]
            # Several models, or several optimizers: each trains a part, and nothing says which.
            several = len(models) > 1 or (len(others) > 1 and len(layers) > 1)
            found: dict[int, Trained] = {**layers} if several else {holder: item}
            yield from ((i, o) for i, o in found.items() if self._may_be_trained(o))
            return
        if isinstance(item, tf.Module) and any(_is_trainable(o) for o in beside.values()):
            yield holder, item  # its own variables, and with them all below
        modules = (
            (i, o) for i, o in beside.items() if isinstance(o, tf.Module) and self._is_trained(o) and i not in seen
        )
        yield from layers.items() if layers else modules

    def _members(self, holder: int) -> Iterator[tuple[int, object]]:
        """What an object holds, in lists and dicts too."""
        stack, seen = [holder], {holder}
        while stack:
            for _, child, _ in self._edges[stack.pop()]:
                if child not in seen:
                    seen.add(child)
                    item = self._objects[child]
                    if is_container(item):
                        stack.append(child)
                    else:
                        yield child, item

    def _trainable(self, item: Trained) -> list[object]:
        found = self._known_trainable.get(id(item))
        if found is None:
            found = self._known_trainable[id(item)] = _trainable(item)
        return found

    def _may_be_trained(self, layer: Trained) -> bool:
        return bool(self._trainable(layer)) or (not getattr(layer, "built", True) and makes_variables(layer))

    def _is_trained(self, module: tf.Module) -> bool:
        """Whether a module has something to train; Sonnet's optimizers are modules too."""
        return not hasattr(module, "apply") and bool(self._trainable(module))

    def _outermost(self, items: Sequence[tuple[int, Trained]]) -> list[tuple[int, Trained]]:
        """Without those whose variables are all part of another one's."""
        if len(items) < 2:
            return list(items)
        sets = [{id(unwrap(v)) for v in self._trainable(item)} for _, item in items]
        kept: list[tuple[int, Trained]] = []
        for place, (item, own) in enumerate(zip(items, sets, strict=True)):
            inside = (own < o or (own == o and other < place) for other, o in enumerate(sets) if other != place)
            if not own or not any(inside):
                kept.append(item)
        return kept


def _trainable(item: Trained) -> list[object]:
    """What training changes, as far as it exists."""
    with contextlib.suppress(ValueError):  # tf_keras raises for a model that is not built
        return list(item.trainable_variables)
    return []


def _may_lack_slots(item: object) -> bool:
    if keras2.is_optimizer(item):
        return keras2.may_lack_slots(item)
    return isinstance(item, keras.optimizers.Optimizer) and not item.built


def _is_built(item: object) -> bool:
    return keras2.is_built(item) if keras2.is_optimizer(item) else bool(getattr(item, "built", False))


def _known(optimizer: object) -> set[int]:
    """The variables that an optimizer has slots for; none where it makes them as they are needed."""
    if isinstance(optimizer, keras.optimizers.Optimizer):
        return {id(unwrap(v)) for v in optimizer._trainable_variables}
    return set()


def _is_trainable(item: object) -> bool:
    return isinstance(item, tf.Variable) and item.trainable and item.dtype.is_floating


def _build(optimizer: object, variables: Sequence[object], strategy: tf.distribute.Strategy | None) -> None:
    own = getattr(unwrap(variables[0]), "distribute_strategy", None)
    with (strategy or own or tf.distribute.get_strategy()).scope():
        if isinstance(optimizer, keras.optimizers.Optimizer):
            optimizer.build(variables)
        elif keras2.is_optimizer(optimizer):
            keras2.build(optimizer, [v for v in variables if isinstance(v, tf.Variable)])
