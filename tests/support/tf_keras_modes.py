"""What people do with a network of tf_keras: both generations of optimizers, loss scale, Model Garden's averages."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import pytest
import tensorflow as tf
import tf_keras

from own_checkpoint import Mode, Program

Checkpoint = tf.train.Checkpoint
Network = tf_keras.layers.Layer
legacy = tf_keras.optimizers.legacy
scaled = tf_keras.mixed_precision.LossScaleOptimizer


def adam_with_averages() -> object:
    return tf_keras.optimizers.Adam(0.01, use_ema=True)


def momentum() -> object:
    return tf_keras.optimizers.SGD(0.01, momentum=0.9)


def scaled_adam() -> object:
    return scaled(tf_keras.optimizers.Adam(0.01))


def scaled_legacy_adam() -> object:
    return scaled(legacy.Adam(0.01))


def garden_averages() -> object:
    """Model Garden's wrapper, which holds the averages and another optimizer."""
    optimization = pytest.importorskip("official.modeling.optimization", reason="Model Garden is absent")
    return optimization.ema_optimizer.ExponentialMovingAverage(legacy.Adam(0.01))


def variables_of(optimizer: object) -> list[tf.Variable]:
    """The optimizer's own list, its slots, and those of what it wraps."""
    variables = optimizer.variables
    found = [*(variables() if callable(variables) else variables)]
    for inner in ("_optimizer", "inner_optimizer"):
        if (wrapped := getattr(optimizer, inner, None)) is not None:
            found += variables_of(wrapped)
    return found


def build(optimizer: object, variables: Sequence[tf.Variable]) -> None:
    """What the first step creates; a build that changes no value where there is one, else a step of zeros."""
    if isinstance(getattr(optimizer, "inner_optimizer", optimizer), tf_keras.optimizers.Optimizer):
        optimizer.build(variables)
    elif isinstance(optimizer, (legacy.Adam, legacy.SGD)):
        optimizer._create_all_weights(variables)
    else:
        optimizer.apply_gradients([(tf.zeros_like(v), v) for v in variables])


def nest(network: Network) -> tf_keras.Model:
    """The network is one layer of a functional model, below a head."""
    structure = getattr(network, "input", None) if isinstance(network, tf_keras.Model) else None
    if structure is None and not (structure := getattr(network, "inputs", None)):
        pytest.skip("this network has no symbolic inputs to be called with")
    inputs = tf.nest.map_structure(lambda t: tf_keras.Input(t.shape[1:], dtype=t.dtype), structure)
    outputs = tf.nest.flatten(network(inputs))
    return tf_keras.Model(inputs, tf_keras.layers.Dense(2)(outputs[-1]))


def weights(network: Network) -> Program:
    return Program(Checkpoint(model=network), lambda: network.variables)


def given(network: Network, make: Callable[[], object] = tf_keras.optimizers.Adam) -> Program:
    optimizer = make()
    if hasattr(optimizer, "shadow_copy"):
        optimizer.shadow_copy(network)
    return Program(Checkpoint(model=network, optimizer=optimizer), *state(network, optimizer))


def compiled(network: Network) -> Program:
    if not isinstance(network, tf_keras.Model):
        pytest.skip("only a model is compiled")
    optimizer = tf_keras.optimizers.Adam(0.01)
    network.compile(optimizer, loss="mse")
    return Program(Checkpoint(model=network), *state(network, optimizer))


def state(network: Network, optimizer: object) -> tuple[Callable[[], list[tf.Variable]], Callable[[], None]]:
    """How to list the variables, and how to create the slots (once)."""
    done: list[bool] = []

    def finish() -> None:
        if not done:
            build(optimizer, network.trainable_variables)
        done.append(True)

    return lambda: [*network.variables, *variables_of(optimizer)], finish


def nested(start: Callable[[Network], Program]) -> Callable[[Network], Program]:
    return lambda network: start(nest(network))


def with_optimizer(make: Callable[[], object]) -> Callable[[Network], Program]:
    return functools.partial(given, make=make)


# `compiled` leaves its optimizer on the network, so it comes last.
ALL = (
    Mode("weights", weights),
    Mode("nested", nested(weights)),
    Mode("adam", given),
    Mode("nested_adam", nested(given)),
    Mode("built_adam", given, built=True),
    Mode("averages", with_optimizer(adam_with_averages)),
    Mode("momentum", with_optimizer(momentum)),
    Mode("loss_scale", with_optimizer(scaled_adam), built=True),
    Mode("loss_scale_unbuilt", with_optimizer(scaled_adam)),
    Mode("legacy_adam", with_optimizer(legacy.Adam)),
    Mode("legacy_adam_built", with_optimizer(legacy.Adam), built=True),
    Mode("legacy_loss_scale", with_optimizer(scaled_legacy_adam), built=True),
    Mode("garden_averages", with_optimizer(garden_averages), built=True),
    Mode("nested_compiled", nested(compiled)),
    Mode("compiled", compiled),
    Mode("compiled_built", compiled, built=True),
)
FLAT = tuple(m for m in ALL if not m.name.startswith("nested") and not m.name.startswith("garden"))
FEW = tuple(
    m for m in ALL if m.name in ("weights", "nested", "nested_adam", "loss_scale", "garden_averages", "compiled")
)
