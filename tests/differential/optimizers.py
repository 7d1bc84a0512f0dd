"""Optimizers, and the roles of their variables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import keras
import tensorflow as tf
import tf_keras

from programs import Optimizer, Program

# The attribute that holds a list of slots, and what these are: equal words only where two classes mean the same by it.
_LISTS = {
    "adam": {"_momentums": "first", "_velocities": "second"},
    "adamw": {"_momentums": "first", "_velocities": "second"},
    "momentum": {"momentums": "sgd_momentum"},
    "sgd": {},
    "rmsprop": {"_velocities": "mean_square"},
}


def make_optimizer(program: Program) -> object:
    """The optimizer of a program, not built."""
    wanted = program.optimizer
    if wanted is None:
        return None
    kit = tf_keras if program.library == "tf_keras" else keras
    inner = _inner(kit.optimizers, wanted)
    return keras.optimizers.LossScaleOptimizer(inner) if wanted.scaled else inner


def _inner(kit: object, wanted: Optimizer) -> object:
    options = {"use_ema": True} if wanted.ema else {}
    if wanted.kind in ("sgd", "momentum"):
        return kit.SGD(0.1, momentum=0.9 if wanted.kind == "momentum" else 0.0, **options)
    return {"adam": kit.Adam, "adamw": kit.AdamW, "rmsprop": kit.RMSprop}[wanted.kind](0.1, **options)


def optimizer_variables(
    optimizer: object, program: Program, trainable: Sequence[object], owners: Sequence[str]
) -> dict[str, tf.Variable]:
    """Role -> variable of the optimizer; it is built where it is not."""
    wanted = program.optimizer
    assert wanted is not None
    if (
        not optimizer.built
        if isinstance(optimizer, keras.optimizers.Optimizer)
        else not getattr(optimizer, "_built", False)
    ):
        optimizer.build(list(trainable))
    inner = optimizer.inner_optimizer if wanted.scaled else optimizer
    found = {role: _raw(variable) for role, variable in _settings(optimizer, inner, wanted)}
    places = _places(inner, trainable)
    for attribute, role in _lists(wanted).items():
        slots = getattr(inner, attribute)
        found |= {f"{role}@{owners[i]}": _raw(slots[place]) for i, place in enumerate(places) if place is not None}
    return found


def slot_roles(program: Program, owners: Sequence[str]) -> list[str]:
    """The roles of all slots that the program's optimizer should have."""
    lists = _lists(program.optimizer) if program.optimizer else {}
    return [f"{role}@{owner}" for role in lists.values() for owner in owners]


def _lists(wanted: Optimizer) -> dict[str, str]:
    averages = {"_model_variables_moving_average": "average"} if wanted.ema else {}
    return {**_LISTS[wanted.kind], **averages}


def _settings(optimizer: object, inner: object, wanted: Optimizer) -> Iterator[tuple[str, object]]:
    yield "optimizer.iterations", inner.iterations
    yield "optimizer.learning_rate", inner._learning_rate
    if wanted.scaled:
        yield "scale.step_counter", optimizer.step_counter
        yield "scale.dynamic_scale", optimizer.dynamic_scale


def _places(inner: object, trainable: Sequence[object]) -> list[int | None]:
    """Where in the optimizer's lists each variable's slots are; None where it was built without the variable."""
    if isinstance(inner, keras.optimizers.Optimizer):
        known = {id(_raw(v)): i for i, v in enumerate(inner._trainable_variables)}
        return [known.get(id(_raw(v))) for v in trainable]
    return [inner._index_dict.get(inner._var_key(v)) for v in trainable]


def _raw(variable: object) -> tf.Variable:
    return variable if isinstance(variable, tf.Variable) else variable.value
