"""What is not built is an error only where the checkpoint has variables for it, and is then called by its name."""

from __future__ import annotations

import pathlib

import keras
import numpy as np
import pytest
import sonnet as snt
import tensorflow as tf
import tf_keras
from tensorflow.train import Checkpoint

import dist_restore as dr
from dist_restore.targets.targets import find_targets
from live import Net, assert_all_hold, assert_holds, net, refuse, restore, save, scramble, value, values

Strategy = tf.distribute.Strategy


def add_layers(model: object, layers: object) -> None:
    """As in libraries: layers that one way of calling the model never uses."""
    model.used = layers.Dense(3, name="used")
    model.dropout, model.add, model.pool = layers.Dropout(0.5), layers.Add(), layers.GlobalMaxPooling1D()
    model.project = layers.Dense(3, name="project")
    model.norm = layers.BatchNormalization(name="norm")


class Library(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        add_layers(self, keras.layers)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.used(x)


class Library2(tf_keras.Model):
    def __init__(self) -> None:
        super().__init__()
        add_layers(self, tf_keras.layers)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.used(x)


def called(kind: type) -> object:
    model = kind()
    model(tf.zeros((1, 4)))
    return model


@pytest.mark.parametrize("kind", [Library, Library2])
def test_layers_that_are_never_called_need_no_variables(
    tmp_path: pathlib.Path, kind: type, trainable: Strategy
) -> None:
    with trainable.scope():
        old, new = called(kind), called(kind)
    scramble(old, seed=1)
    restore(Checkpoint(model=new), save(Checkpoint(model=old), tmp_path))
    assert_all_hold(new.weights, values(old.weights))


@pytest.mark.parametrize("kind", [Library, Library2])
def test_a_layer_that_is_not_built_and_was_saved_is_refused_by_name(tmp_path: pathlib.Path, kind: type) -> None:
    old = called(kind)
    old.project.build((None, 3))
    path = save(Checkpoint(model=old), tmp_path)
    new = called(kind)
    words = (
        "'model/project'",
        "the layer 'project' (Dense) is not built",
        "'model/project/kernel'",
        "strategy.scope()",
    )
    error = refuse(dr.UnbuiltModelError, Checkpoint(model=new), path, *words, 'drop = "model/project/{rest}"')
    assert error.names == ("model/project",)
    restore(Checkpoint(model=new), path, rules=[dr.Rule(drop="model/project/{rest}")])
    new.project.build((None, 3))
    restore(Checkpoint(model=new), path)
    assert_all_hold(new.weights, values(old.weights))


def test_a_layer_that_is_not_built_and_was_renamed_is_refused(tmp_path: pathlib.Path) -> None:
    old = net(first=4, before=4)
    path = save(Checkpoint(model=old), tmp_path)
    new = Net(first=keras.layers.Dense(4), after=keras.layers.Dense(4, name="late"))
    new.order = ("first",)
    new(tf.zeros((1, 4)))
    refuse(dr.UnbuiltModelError, Checkpoint(model=new), path, "'late' (Dense)", "model/before/kernel")
    restore(Checkpoint(model=new), path, rules=[dr.Rule(drop="model/before/{rest}")])
    assert_holds(new.first.kernel, value(old.first.kernel))


def test_a_model_that_is_not_built_is_not_called_an_optimizer_without_slots(tmp_path: pathlib.Path) -> None:
    old = net(dense=4)
    optimizer = keras.optimizers.Adam()
    optimizer.build(old.trainable_variables)
    path = save(Checkpoint(model=old, optimizer=optimizer), tmp_path)
    new = Net(dense=keras.layers.Dense(4))
    root = Checkpoint(model=new, optimizer=keras.optimizers.Adam())
    error = refuse(dr.UnbuiltModelError, root, path, "the model", "(Net) is not built", "'model/dense'")
    assert "no slots" not in str(error)
    new.compile(keras.optimizers.Adam())
    root = Checkpoint(model=new, optimizer=new.optimizer)
    error = refuse(dr.UnbuiltModelError, root, path, "the model", "(Net) is not built")
    assert "no slots" not in str(error)


def test_a_removed_layer_beside_layers_without_variables_is_no_problem(tmp_path: pathlib.Path) -> None:
    old = net(first=4, removed=4)
    path = save(Checkpoint(model=old), tmp_path)
    new = Net(first=keras.layers.Dense(4), drop=keras.layers.Dropout(0.5), add=keras.layers.Add())
    new.order = ("first",)
    new(tf.zeros((1, 4)))
    report = restore(Checkpoint(model=new), path)
    assert_holds(new.first.kernel, value(old.first.kernel))
    assert {u.name for u in report.plan.unused} == {"model/removed/kernel", "model/removed/bias"}


class Loss(tf_keras.Model):
    """A model of TFRS's kind: it is trained by `compute_loss` and never called."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            setattr(self, name, tf_keras.Sequential([tf_keras.layers.Dense(3, name=name)]))
            getattr(self, name).build((None, 4))


def test_a_model_that_only_computes_a_loss_reads_its_own_checkpoint(
    tmp_path: pathlib.Path, trainable: Strategy
) -> None:
    with trainable.scope():
        old, new = Loss("user", "item"), Loss("user", "item")
    scramble([v for m in (old.user, old.item) for v in m.weights], seed=1)
    path = save(Checkpoint(model=old), tmp_path)
    restore(Checkpoint(model=new), path)
    assert_all_hold([*new.user.weights, *new.item.weights], values([*old.user.weights, *old.item.weights]))
    fewer = Loss("user")  # the other tower was removed
    restore(Checkpoint(model=fewer), path)
    assert_all_hold(fewer.user.weights, values(old.user.weights))


def test_a_module_that_was_never_called_is_refused_only_where_it_was_saved(tmp_path: pathlib.Path) -> None:
    def make(*, both: bool) -> Checkpoint:
        first, second = snt.Linear(3, name="first"), snt.Linear(3, name="second")
        first(tf.zeros((1, 4)))
        if both:
            second(tf.zeros((1, 4)))
        return Checkpoint(first=first, second=second)

    restore(make(both=False), save(make(both=False), tmp_path))
    path = save(make(both=True), tmp_path)
    root = make(both=False)
    before = value(root.first.w)
    with pytest.raises(dr.UnbuiltModelError, match=r"'second' \(Linear\) was never called.*'second/"):
        restore(root, path)
    assert_holds(root.first.w, before)


def test_what_is_not_built_is_in_the_index_by_name() -> None:
    model = called(Library)
    model.compile(keras.optimizers.Adam())
    other = Net(dense=keras.layers.Dense(2))
    root = Checkpoint(holder=Checkpoint(net=other), model=model)
    found = {item.name: item for item in find_targets(root).index.unbuilt}
    assert set(found) == {"model/project", "model/norm", "holder/net", "holder/net/dense"}
    assert [found[name].makes for name in sorted(found)] == [False, True, True, True]
    assert {item.kind for item in found.values()} == {"layer"}
    assert found["model/norm"].class_name == "BatchNormalization"


# ---- Members of sets -------------------------------------------------------------------------------------


class InSet(keras.Model):
    """Layers in a set, which TensorFlow never saves and no one orders."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.parts = {keras.layers.Dense(3, name=name) for name in names}

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return tf.add_n([part(x) for part in self.parts])


def test_members_of_a_set_are_numbered_by_their_names() -> None:
    names = [f"part_{i}" for i in range(12)]
    for order in (names, names[::-1]):
        model = called(lambda: InSet(order))  # noqa: B023
        found = find_targets(Checkpoint(model=model))
        kernels = {n: v for n, v in found.handles if n.endswith("/kernel")}
        paths = {id(part.kernel.value): part.name for part in model.parts}
        assert {n: paths[id(v)] for n, v in kernels.items()} == {
            f"model/parts/{i}/kernel": f"part_{i}" for i in range(12)
        }


def test_members_of_a_set_that_are_all_alike_are_refused() -> None:
    parts = {keras.layers.Dense(2, name="same"), keras.layers.Dense(2, name="same")}
    with pytest.raises(dr.RestoreError, match=r"set.*list"):
        find_targets({"parts": parts, "w": tf.Variable(1.0)})


def test_one_step_of_training_after_a_restore_into_unbuilt_layers_is_that_of_the_old_program(
    tmp_path: pathlib.Path,
) -> None:
    x, y = np.ones((4, 4), np.float32), np.ones((4, 3), np.float32)
    old = called(Library)
    old.compile(keras.optimizers.Adam(0.1), "mse")
    old.fit(x, y, verbose=0)
    path = save(Checkpoint(model=old), tmp_path)
    new = called(Library)
    new.compile(keras.optimizers.Adam(0.1), "mse")
    restore(Checkpoint(model=new), path)
    for model in (old, new):
        model.fit(x, y, verbose=0)
    assert_all_hold(new.weights, values(old.weights))
