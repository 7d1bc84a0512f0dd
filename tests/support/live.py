"""Small models, and what every replica of every variable holds.

Independent of the package on purpose: nothing here walks objects the way `dist_restore` does.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import keras
import numpy as np
import pytest
import tensorflow as tf

import dist_restore as dr
from dist_restore.tf_internals.keras_variables import KerasVariable, unwrap

Root = object
Snapshot = list[tuple[tf.Variable, list[np.ndarray]]]


# ---- What variables hold ---------------------------------------------------------------------------------


def raw(variable: object) -> tf.Variable:
    """The TensorFlow variable behind a Keras one."""
    return unwrap(variable)


def replicas(variable: object) -> list[np.ndarray]:
    """What each replica holds, as it is stored there; of a variable in parts, the parts together."""
    variable = raw(variable)
    if type(variable).__name__ == "ShardedVariable":
        return [np.concatenate([part.numpy() for part in variable.variables])]
    return [np.asarray(part.numpy()) for part in getattr(variable, "values", (variable,))]


def value(variable: object) -> np.ndarray:
    """What all replicas hold; fails where they differ."""
    first, *others = replicas(variable)
    for other in others:
        assert np.array_equal(first, other, equal_nan=first.dtype.kind == "f")
    return first


def values(variables: Sequence[object]) -> list[np.ndarray]:
    return [value(v) for v in variables]


def assert_holds(variable: object, expected: object) -> None:
    """Every replica holds exactly this."""
    expected = np.asarray(expected)
    for index, found in enumerate(replicas(variable)):
        assert found.dtype == expected.dtype
        assert np.array_equal(found, expected), f"{variable.name} on replica {index}: {found} is not {expected}"


def assert_all_hold(variables: Sequence[object], expected: Sequence[object]) -> None:
    assert len(variables) == len(expected) > 0
    for variable, array in zip(variables, expected, strict=True):
        assert_holds(variable, array)


def variables_of(root: Root) -> Iterator[tf.Variable]:
    """All variables of an object, some of them more than once."""
    if isinstance(root, (tf.Variable, KerasVariable)):
        yield raw(root)
    elif isinstance(root, Mapping):
        for item in root.values():
            yield from variables_of(item)
    elif isinstance(root, (list, tuple)):
        for item in root:
            yield from variables_of(item)
    elif isinstance(root, tf.train.Checkpoint):
        for name in tf.train.TrackableView.children(root):
            yield from variables_of(getattr(root, name))
    elif hasattr(root, "variables"):
        variables = root.variables
        yield from (raw(v) for v in (variables() if callable(variables) else variables))


def snapshot(*roots: Root) -> Snapshot:
    """What every replica of every variable holds now."""
    found = {id(v): v for root in roots for v in variables_of(root)}
    assert found
    return [(v, replicas(v)) for v in found.values()]


def assert_unchanged(before: Snapshot) -> None:
    """No replica of any variable differs from the snapshot by a single bit."""
    for variable, expected in before:
        for index, (old, new) in enumerate(zip(expected, replicas(variable), strict=True)):
            assert old.tobytes() == new.tobytes(), f"{variable.name} changed on replica {index}"


def scramble(*roots: Root, seed: int = 0) -> None:
    """Gives every variable values of its own: no two variables, and no two seeds, are alike."""
    generator = np.random.default_rng([seed, 20])
    for variable in {id(v): v for root in roots for v in variables_of(root)}.values():
        if variable.dtype.is_floating:
            # Second moments must stay positive to be trained on.
            array = generator.uniform(0.1, 2.0, variable.shape).astype(variable.dtype.as_numpy_dtype)
        elif variable.dtype.is_integer:
            array = generator.integers(1, 10_000, variable.shape).astype(variable.dtype.as_numpy_dtype)
        else:
            continue
        assign(variable, array)


def assign(variable: object, array: object) -> None:
    variable = raw(variable)
    with (getattr(variable, "distribute_strategy", None) or tf.distribute.get_strategy()).scope():
        variable.assign(array)


# ---- Saving and restoring --------------------------------------------------------------------------------


def save(root: tf.train.Checkpoint, directory: pathlib.Path) -> str:
    return root.save(os.fspath(directory / "ckpt"))


def restore(root: Root, path: str | os.PathLike[str], **options: object) -> dr.RestoreReport:
    return dr.DistributedRestorer(root, **options).restore(path)


def refuse(
    error: type[dr.RestoreError], root: Root, path: object, *words: str, rules: object = None, **options: object
) -> dr.RestoreError:
    """The restore raises exactly this error, whose message has these words, and no variable has changed."""
    before = snapshot(root)
    with pytest.raises(dr.RestoreError) as caught:
        dr.DistributedRestorer(root, rules=rules, **options).restore(path)
    assert type(caught.value) is error, caught.value
    assert_unchanged(before)
    for word in words:
        assert word in str(caught.value), caught.value
    return caught.value


def natively(root: tf.train.Checkpoint, path: str) -> None:
    """TensorFlow's own restore, with all the checks that it offers."""
    status = root.restore(path)
    status.assert_existing_objects_matched()
    status.assert_consumed()


def entry(plan: dr.RestorePlan, target: str) -> dr.PlanEntry:
    return next(e for e in plan.entries if e.target == target)


# ---- Models ----------------------------------------------------------------------------------------------


def seq(names: str | Sequence[str], *, width: int = 4) -> keras.Model:
    """A functional model: a square Dense layer without bias for each name."""
    inputs = x = keras.Input((width,))
    for name in names:
        x = keras.layers.Dense(width, name=name, use_bias=False)(x)
    return keras.Model(inputs, x)


def kernels(model: keras.Model) -> dict[str, np.ndarray]:
    """Layer name -> kernel, the same on all replicas."""
    return {layer.name: value(layer.kernel) for layer in model.layers if hasattr(layer, "kernel")}


class Net(keras.Model):
    """A subclassed model from attribute names to layers."""

    def __init__(self, **layers: keras.Layer) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.order = tuple(layers)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        for name in self.order:
            layer = getattr(self, name)
            x = layer(x, training=training) if isinstance(layer, keras.layers.Dropout) else layer(x)
        return x


class Stack(keras.Model):
    """A subclassed model whose blocks are in a plain list."""

    def __init__(
        self,
        count: int,
        *,
        width: int = 4,
        names: Callable[[int], str | None] = lambda i: None,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.blocks = [keras.layers.Dense(width, name=names(i)) for i in range(count)]
        self.head = keras.layers.Dense(width)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def net(inputs: int = 4, **sizes: int) -> Net:
    """A built `Net` of Dense layers."""
    model = Net(**{name: keras.layers.Dense(size) for name, size in sizes.items()})
    model(tf.zeros((1, inputs)))
    return model


def stack(count: int, **options: object) -> Stack:
    """A built `Stack`."""
    model = Stack(count, **options)
    model(tf.zeros((1, options.get("width", 4))))
    return model


def built(optimizer: keras.optimizers.Optimizer, model: keras.Model) -> keras.optimizers.Optimizer:
    optimizer.build(model.trainable_variables)
    return optimizer


def adam(model: keras.Model, **options: object) -> keras.optimizers.Adam:
    """Adam with its slots."""
    return built(keras.optimizers.Adam(**options), model)


def moments(optimizer: keras.optimizers.Adam) -> list[keras.Variable]:
    """Adam's first and second moments, in the order of its variables."""
    return [*optimizer._momentums, *optimizer._velocities]


def slot(optimizer: keras.optimizers.Optimizer, role: str, owner: object) -> keras.Variable:
    """A slot by Keras 3's own lists: `momentums`, `velocities`."""
    index = next(i for i, v in enumerate(optimizer._trainable_variables) if raw(v) is raw(owner))
    return getattr(optimizer, f"_{role}")[index]


def train_step(
    strategy: tf.distribute.Strategy, model: keras.Model, optimizer: keras.optimizers.Optimizer
) -> Callable[[int], float]:
    """A custom training step on the batch of a number; gives the loss."""

    def replica(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x) - y)) / strategy.num_replicas_in_sync
            scaled = optimizer.scale_loss(loss)  # by a power of two, where the optimizer scales at all
        variables = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(scaled, variables), variables, strict=True))
        return loss

    @tf.function
    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        return strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(replica, (x, y)), axis=None)

    def run(number: int) -> float:
        generator = np.random.default_rng(number)
        x = generator.normal(size=(8, model.layers[0].kernel.shape[0])).astype(np.float32)
        return float(step(tf.constant(x), tf.constant(np.sin(x[:, :2]))))

    return run
