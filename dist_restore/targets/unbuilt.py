"""What among live objects has no variables yet: layers, modules and optimizers, each with what to do about it.

That is no error by itself: a layer without variables is whole, and one that is never called may be. It is one where a
checkpoint has variables for it, which `resolve.unbuilt` decides. Knows live objects; knows no checkpoints.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

import keras
import tensorflow as tf

from dist_restore.core.index import Unbuilt
from dist_restore.targets import tf_keras as keras2
from dist_restore.targets.children import is_optimizer_class, layer_classes

# Layers of Keras and tf_keras that have a `build` of their own and make no variables in it. The classes themselves: one
# that is derived from them may.
_WEIGHTLESS = frozenset(
    "Add Average Concatenate Dot Maximum Minimum Multiply Subtract TextVectorization StringLookup IntegerLookup "
    "GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D GlobalMaxPooling1D GlobalMaxPooling2D "
    "GlobalMaxPooling3D Dropout AlphaDropout GaussianDropout GaussianNoise SpatialDropout1D SpatialDropout2D "
    "SpatialDropout3D UnitNormalization InputLayer".split()
)
_LIBRARIES = frozenset({"keras", "tf_keras"})
# Often kept by a model and called in its data pipeline only; a derived class makes no variable either.
_LOOKUPS = (keras.layers.StringLookup, keras.layers.IntegerLookup, keras.layers.TextVectorization)
_UNDER_SCOPE = "under strategy.scope() first"
_CALL = f"Call the model on a batch (model(tf.zeros(shape))) or model.build(shape) {_UNDER_SCOPE}"
_ABSENT = "so its variables do not exist yet and would be created with random values after the restore"
# By how an optimizer is to be given its slots, which not every class has the same method for.
_BUILD = f"Call optimizer.build(model.trainable_variables) {_UNDER_SCOPE}."
_STEP = f"It has no method that only makes them: apply it once, to gradients of zero will do, {_UNDER_SCOPE}."
_OWN = (
    "keeps slots of its own beside those of the optimizer inside, as averages of weights, and made none. Make them "
    f"{_UNDER_SCOPE}, as its class documents it (Model Garden's: optimizer.shadow_copy(model))."
)


def find_unbuilt(objects: Iterable[tuple[int, object]]) -> dict[int, Unbuilt]:
    """What has no variables yet, by its number; names are added where everything is named.

    Args:
      objects: the objects that are no variables, with their numbers.
    """
    found = ((index, find(item)) for index, item in objects if (find := _finder(_kind_of(item))) is not None)
    return {index: unbuilt for index, unbuilt in found if unbuilt is not None}


def find_fresh(optimizers: Iterable[tuple[int, object]]) -> frozenset[int]:
    """Those optimizers that made no step, whose slots are therefore as they begin."""
    return frozenset(index for index, item in optimizers if _is_fresh(item))


def built_for_less(optimizer: object, known: int, trained: int) -> Unbuilt:
    """What to say of an optimizer that was built for some of the variables that it trains."""
    text = (
        f"the optimizer {_called(optimizer)} was built for {known} variables, and its model has {trained} to train. "
        f"Make a new optimizer once the whole model is built. {_BUILD}"
    )
    return _unbuilt(optimizer, "optimizer", True, text)


def makes_variables(layer: object) -> bool:
    """Whether a layer that is not built is known to make variables of its own."""
    kind: type = type(layer)
    if isinstance(layer, _LOOKUPS):
        return getattr(layer, "output_mode", "") == "tf_idf"
    if kind.__name__ in _WEIGHTLESS and kind.__module__.partition(".")[0] in _LIBRARIES:
        return False
    asked: object = kind  # mypy finds no hash in a class
    return _builds(asked)


def _kind_of(item: object) -> object:
    return type(item)


@functools.lru_cache(maxsize=1 << 10)  # by class: there are many objects, and few classes
def _finder(kind: object) -> Callable[[object], Unbuilt | None] | None:
    """What looks at objects of a class; None for those that are always whole."""
    if not isinstance(kind, type):
        return None
    if issubclass(kind, layer_classes()):
        return _layer
    if is_optimizer_class(kind):
        return _optimizer
    return _module if issubclass(kind, tf.Module) and _has_first_call(kind) else None


def _layer(layer: object) -> Unbuilt | None:
    if getattr(layer, "built", True):
        return None
    is_model = isinstance(layer, (keras.Model, *keras2.classes("Model")))
    makes = makes_variables(layer)
    if not makes and not is_model:
        return None
    what = "model" if is_model else "layer"
    return _unbuilt(layer, "layer", makes, f"the {what} {_called(layer)} is not built, {_ABSENT}. {_CALL}.")


def _module(module: object) -> Unbuilt | None:
    """A module that makes its variables at the first call, where it says so, as Sonnet's do."""
    if getattr(module, "_snt_once", None):
        return None
    if hasattr(module, "apply"):  # one of Sonnet's optimizers
        return _unbuilt(module, "optimizer", True, _slotless(module, f"Apply the optimizer once {_UNDER_SCOPE}."))
    text = f"the module {_called(module)} was never called, {_ABSENT}. {_CALL}."
    return _unbuilt(module, "layer", True, text)


def _optimizer(optimizer: object) -> Unbuilt | None:
    if isinstance(optimizer, keras.optimizers.Optimizer):
        return None if optimizer.built else _unbuilt(optimizer, "optimizer", True, _slotless(optimizer, _BUILD))
    if not keras2.is_optimizer(optimizer):
        return None
    if keras2.is_built(optimizer):
        text = f"the optimizer {_called(optimizer)} {_OWN}"
        return _unbuilt(optimizer, "optimizer", False, text) if keras2.lacks_averages(optimizer) else None
    advice = _STEP if keras2.is_legacy(optimizer) else _BUILD
    return _unbuilt(optimizer, "optimizer", True, _slotless(optimizer, advice))


def _slotless(optimizer: object, advice: str) -> str:
    return (
        f"the optimizer {_called(optimizer)} has no slots yet, and it is not clear which variables it trains: it is "
        f"not beside one built model. {advice}"
    )


def _unbuilt(item: object, kind: str, makes: bool, message: str) -> Unbuilt:
    return Unbuilt("", (), kind, type(item).__name__, makes, message)


def _called(item: object) -> str:
    name = getattr(item, "name", "") or getattr(item, "_name", "")
    return f"{str(name)!r} ({type(item).__name__})"


def _is_fresh(optimizer: object) -> bool:
    own = isinstance(optimizer, keras.optimizers.Optimizer)
    inside = getattr(optimizer, "inner_optimizer", None) if own else None
    if inside is not None:  # a loss scale counts no steps of its own
        return _is_fresh(inside)
    count = getattr(optimizer, "_iterations", None) if own else keras2.iterations(optimizer)
    value = getattr(count, "value", count) if own else count
    return isinstance(value, tf.Variable) and int(value.numpy()) == 0


@functools.lru_cache(maxsize=1 << 10)
def _builds(kind: object) -> bool:
    """Whether a class has a `build` of its own, or what tf_keras's attention has for it."""
    bases = (keras.Layer, keras.Model, *keras2.classes("layers.Layer", "Model"))
    inherited = [vars(base).get("build") for base in bases]
    return getattr(kind, "build", None) not in inherited or hasattr(kind, "_build_from_signature")


def _has_first_call(kind: type) -> bool:
    """Whether a module's class has a method that runs once, at the first call (`snt.once`, Sonnet 2.0.2)."""
    return any(hasattr(value, "__snt_once_wrapped__") for base in kind.__mro__ for value in vars(base).values())
