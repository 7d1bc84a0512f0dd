"""Where a piece of private API is missing, the public way is taken: the same values, in more time."""

from __future__ import annotations

import pathlib

import keras
import pytest
import tensorflow as tf

from dist_restore.tf_internals import batched, host_memory, keras_variables
from live import assert_all_hold, restore, save, scramble, values


def program() -> tuple[tf.train.Checkpoint, list[tf.Variable]]:
    """Small and large variables, of several dtypes, and an optimizer's."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(600), keras.layers.Dense(3, dtype="bfloat16")])
    optimizer = keras.optimizers.Adam()
    optimizer.build(model.trainable_variables)
    others = [tf.Variable(tf.zeros([1 << 20])), tf.Variable(0, dtype=tf.int64), tf.Variable(["", "x"])]
    root = tf.train.Checkpoint(model=model, optimizer=optimizer, others=others)
    return root, [*model.variables, *optimizer.variables, *others]


@pytest.mark.parametrize("module", [host_memory, batched], ids=["host_memory", "batched"])
def test_without_private_api_the_public_way_gives_the_same(
    module: object, strategy: tf.distribute.Strategy, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with strategy.scope():
        root, variables = program()
    scramble(variables)
    path, expected = save(root, tmp_path), values(variables)
    assert module._PRIVATE, "what is tried here is what is used"
    monkeypatch.setattr(module, "_PRIVATE", False)
    with strategy.scope():
        root, variables = program()
    assert restore(root, path).verified
    assert_all_hold(variables, expected)


def test_an_unknown_ancestry_of_keras_variables_leaves_the_public_class(monkeypatch: pytest.MonkeyPatch) -> None:
    class Variable:
        pass

    monkeypatch.setattr(keras_variables.keras, "Variable", Variable)
    assert keras_variables._class() is Variable


def test_what_layers_and_optimizers_make_are_keras_variables() -> None:
    layer = keras.layers.Dense(2)
    layer.build((None, 3))
    seeds = keras.layers.Dropout(0.5).seed_generator.state
    optimizer = keras.optimizers.Adam()
    optimizer.build(layer.trainable_variables)
    for variable in (layer.kernel, seeds, optimizer.iterations, *optimizer.variables, keras.Variable([1.0])):
        assert isinstance(variable, keras_variables.KerasVariable)
        assert isinstance(keras_variables.unwrap(variable), tf.Variable)
