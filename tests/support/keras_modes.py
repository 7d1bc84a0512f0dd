"""What people do with a Keras 3 network: nested in a functional model, compiled, with an optimizer, as a Keras file."""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Callable

import keras
import tensorflow as tf

from own_checkpoint import Mode, Program

Optimizer = Callable[[], keras.Optimizer]
Checkpoint = tf.train.Checkpoint


def adam() -> keras.Optimizer:
    return keras.optimizers.Adam(0.01)


def adam_with_averages() -> keras.Optimizer:
    return keras.optimizers.Adam(0.01, use_ema=True)


def scaled_adam() -> keras.Optimizer:
    return keras.optimizers.LossScaleOptimizer(adam())


def momentum() -> keras.Optimizer:
    return keras.optimizers.SGD(0.01, momentum=0.9)


def nest(network: keras.Model) -> keras.Model:
    """Keras' transfer-learning recipe: the network is one layer of a functional model, below a head."""
    structure = network.input
    inputs = keras.tree.map_structure(
        lambda t: keras.Input(batch_shape=t.shape, dtype=t.dtype, name=t.name.partition(":")[0]), structure
    )
    outputs = keras.tree.flatten(network(inputs))
    x = keras.layers.Dropout(0.2)(outputs[-1])
    return keras.Model(inputs, keras.layers.Dense(2)(x))


def weights(network: keras.Model) -> Program:
    return Program(Checkpoint(model=network), lambda: network.variables, model=network)


def given(network: keras.Model, make: Optimizer = adam) -> Program:
    optimizer = make()
    return Program(
        Checkpoint(model=network, optimizer=optimizer),
        lambda: [*network.variables, *optimizer.variables],
        lambda: build(optimizer, network),
        network,
    )


def compiled(network: keras.Model, make: Optimizer = adam) -> Program:
    """The checkpoint is given the model alone; its optimizer is found through it."""
    optimizer = make()
    network.compile(optimizer, loss="mse")
    return Program(
        Checkpoint(model=network),
        lambda: [*network.variables, *optimizer.variables],
        lambda: build(optimizer, network),
        network,
    )


def build(optimizer: keras.Optimizer, network: keras.Model) -> None:
    if not optimizer.built:
        optimizer.build(network.trainable_variables)


def nested(start: Callable[[keras.Model], Program]) -> Callable[[keras.Model], Program]:
    """The same of the functional model around the network."""
    return lambda network: start(nest(network))


def in_weights(program: Program, directory: pathlib.Path) -> str:
    program.model.save_weights(directory / "net.weights.h5")
    return os.fspath(directory / "net.weights.h5")


def in_keras(program: Program, directory: pathlib.Path) -> str:
    program.model.save(directory / "net.keras")
    return os.fspath(directory / "net.keras")


def by_keras(program: Program, path: str) -> None:
    program.model.load_weights(path)


def with_optimizer(make: Optimizer) -> Callable[[keras.Model], Program]:
    return functools.partial(given, make=make)


# `compiled` leaves its optimizer on the network, so it comes last.
FIRST = (
    Mode("weights", weights),
    Mode("nested", nested(weights)),
    Mode("adam", given),
    Mode("nested_adam", nested(given)),
)
MORE = (
    Mode("built_adam", given, built=True),
    Mode("momentum", with_optimizer(momentum)),
    Mode("loss_scale", with_optimizer(scaled_adam), built=True),
    Mode("loss_scale_unbuilt", with_optimizer(scaled_adam)),
    Mode("averages", with_optimizer(adam_with_averages)),
)
FILES = (
    Mode("weights_h5", weights, save=in_weights, natively=by_keras),
    Mode("keras", weights, save=in_keras, natively=by_keras),
    Mode("nested_weights_h5", nested(weights), save=in_weights, natively=by_keras),
)
LAST = (
    Mode("nested_compiled", nested(compiled)),
    Mode("compiled", compiled),
    Mode("compiled_built", compiled, built=True),
    Mode("compiled_weights_h5", compiled, built=True, save=in_weights, natively=by_keras),
    Mode("compiled_keras", compiled, built=True, save=in_keras, natively=by_keras),
)
ALL = (*FIRST, *MORE, *FILES, *LAST)
# For networks of which three copies with slots take more than a few seconds a mode.
FEW = tuple(m for m in ALL if m.name in ("weights", "nested", "nested_adam", "weights_h5", "compiled"))
