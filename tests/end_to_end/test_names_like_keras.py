"""Attributes that are called like Keras' own, slots of some variables only, two networks that become one, and plans
for checkpoints whose names have moved."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import keras
import numpy as np
import pytest
import tensorflow as tf

import dist_restore as dr
from live import assert_all_hold, refuse, restore, save, scramble, values

Layers = keras.layers

# ---- Attributes that are called like Keras' own ----------------------------------------------------------


class Statistics(tf.Module):
    """Has a running mean under a name that Keras uses too."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.w = tf.Variable([0.0, 0.0])
        setattr(self, name, tf.Variable([0.0, 0.0]))


@pytest.mark.parametrize("name", ["_tracked", "_inbound_nodes", "_outbound_nodes", "keras_api"])
def test_a_modules_own_variable_may_be_called_like_keras_bookkeeping(tmp_path: pathlib.Path, name: str) -> None:
    old, new = Statistics(name), Statistics(name)
    scramble(old, seed=1)
    report = restore(tf.train.Checkpoint(model=new), save(tf.train.Checkpoint(model=old), tmp_path))
    assert_all_hold(new.variables, values(old.variables))
    assert report.plan.mapping()[f"model/{name.lstrip('_')}"] == (f"model/{name.lstrip('_')}",)


class Heads(keras.Model):
    """Has a list of layers under any name."""

    def __init__(self, name: str) -> None:
        super().__init__(name="net")
        self.body = Layers.Dense(3, name="body")
        setattr(self, name, [Layers.Dense(3, name="first"), Layers.Dense(3, name="second")])
        self.name_of_heads = name

    def call(self, x: tf.Tensor) -> list[tf.Tensor]:
        return [head(self.body(x)) for head in getattr(self, self.name_of_heads)]


def heads(name: str) -> Heads:
    keras.backend.clear_session()
    model = Heads(name)
    model(tf.zeros((1, 3)))
    return model


@pytest.mark.parametrize("name", ["outputs", "inputs", "_outputs", "_metrics", "_losses"])
def test_a_list_of_layers_may_be_called_like_keras_bookkeeping(tmp_path: pathlib.Path, name: str) -> None:
    old = heads(name)
    scramble(old, seed=1)
    optimizer = keras.optimizers.Adam()
    optimizer.build(old.trainable_variables)  # through which TensorFlow sees what is in a plain list
    path = save(tf.train.Checkpoint(model=old, optimizer=optimizer), tmp_path)
    new = heads(name)
    restore(tf.train.Checkpoint(model=new), path)
    assert_all_hold(new.weights, values(old.weights))


# ---- Slots of some variables only ------------------------------------------------------------------------


class Momentum(keras.optimizers.Optimizer):
    """Keeps momentum for matrices only, in a list that is shorter than that of what is trained."""

    def __init__(self) -> None:
        super().__init__(learning_rate=0.1, name="matrix_momentum")

    def build(self, variables: Sequence[keras.Variable]) -> None:
        if not self.built:
            super().build(variables)
            self.buffers = [self.add_variable_from_reference(v, name="m") for v in self.chosen(variables)]

    def chosen(self, variables: Sequence[keras.Variable]) -> list[keras.Variable]:
        return [v for v in variables if self.has(v)]

    @staticmethod
    def has(variable: keras.Variable) -> bool:
        return "embeddings" not in variable.path

    def update_step(self, gradient: tf.Tensor, variable: keras.Variable, learning_rate: object) -> None:
        variable.assign_sub(gradient)


class LastFirst(Momentum):
    """Has a slot for each variable, in an order of its own."""

    def chosen(self, variables: Sequence[keras.Variable]) -> list[keras.Variable]:
        return [*reversed(variables)]


def with_momentum(order: str, kind: type[Momentum] = Momentum) -> tuple[tf.train.Checkpoint, dict[str, keras.Variable]]:
    keras.backend.clear_session()
    x = inputs = keras.Input((), dtype="int32")
    x = Layers.Embedding(4, 4, name="table")(x)
    for name in order:
        x = Layers.Dense(4, use_bias=False, name=name)(x)
    model, optimizer = keras.Model(inputs, x), kind()
    optimizer.build(model.trainable_variables)
    owners = [v.path for v in optimizer.chosen(model.trainable_variables)]
    return tf.train.Checkpoint(model=model, optimizer=optimizer), dict(zip(owners, optimizer.buffers, strict=True))


@pytest.mark.parametrize("order", ["abc", "bac", "cba"])
@pytest.mark.parametrize("kind", [Momentum, LastFirst])
def test_a_list_of_other_length_or_order_says_by_the_slots_names_whose_they_are(
    tmp_path: pathlib.Path, kind: type[Momentum], order: str
) -> None:
    checkpoint, slots = with_momentum("abc", kind)
    for number, slot in enumerate(slots.values(), 1):
        slot.assign(np.full((4, 4), float(number)))
    wanted = {owner: slot.numpy() for owner, slot in slots.items()}
    path = save(checkpoint, tmp_path)
    checkpoint, slots = with_momentum(order, kind)
    plan = restore(checkpoint, path).plan
    for owner, slot in slots.items():
        np.testing.assert_array_equal(slot.numpy(), wanted[owner])
    assert "optimizer/buffer/model/a/kernel" in plan.mapping()


# ---- Containers that TensorFlow saves, around some that it does not --------------------------------------


class Block(Layers.Layer):
    """Keeps its layers in a list, which TensorFlow does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = [Layers.Dense(3), Layers.Dense(3)]

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.parts[1](self.parts[0](x))


class Stages(keras.Model):
    """Keeps a block and a layer in a tuple, which TensorFlow sees."""

    def __init__(self) -> None:
        super().__init__(name="net")
        self.stages = (Block(), Layers.Dense(3))

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.stages[1](self.stages[0](x))


def test_a_list_inside_a_tuple_reads_its_own(tmp_path: pathlib.Path) -> None:
    def program() -> tf.train.Checkpoint:
        keras.backend.clear_session()
        model, optimizer = Stages(), keras.optimizers.Adam()
        model(tf.zeros((1, 3)))
        optimizer.build(model.trainable_variables)
        return tf.train.Checkpoint(model=model, optimizer=optimizer)

    old, new = program(), program()
    scramble(old, seed=1)
    restore(new, save(old, tmp_path))
    assert_all_hold(new.model.weights, values(old.model.weights))
    assert_all_hold(new.optimizer.variables, values(old.optimizer.variables))


# ---- Lists of variables ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_list_of_variables_whose_names_have_moved_in_it_is_refused(
    tmp_path: pathlib.Path, kind: type[list[tf.Variable]]
) -> None:
    def program(order: str) -> tf.train.Checkpoint:
        return tf.train.Checkpoint(vars=kind([tf.Variable(np.full(3, float(ord(n))), name=n) for n in order]))

    path = save(program("abc"), tmp_path)
    refuse(dr.AmbiguousMatchError, program("bca"), path)
    same = program("abc")
    restore(same, path)
    assert [v.numpy()[0] for v in same.vars] == [97, 98, 99]


# ---- Two networks that become one ------------------------------------------------------------------------


def network() -> keras.Model:
    keras.backend.clear_session()
    return keras.Sequential([keras.Input((3,)), Layers.Dense(3, name="a"), Layers.Dense(3, name="b")], name="net")


def test_which_of_two_networks_becomes_the_one_that_has_both_names_is_asked(tmp_path: pathlib.Path) -> None:
    student, teacher = network(), network()
    scramble(student, seed=1)
    scramble(teacher, seed=2)
    path = save(tf.train.Checkpoint(model=student, enc=teacher), tmp_path)
    new = network()
    root = tf.train.Checkpoint(model=new, enc=new)
    refuse(dr.AmbiguousMatchError, root, path)


def test_one_network_that_had_both_names_fills_two(tmp_path: pathlib.Path) -> None:
    old = network()
    scramble(old, seed=1)
    path = save(tf.train.Checkpoint(model=old, enc=old), tmp_path)
    student, teacher = network(), network()
    restore(tf.train.Checkpoint(model=student, enc=teacher), path)
    assert_all_hold(student.weights, values(old.weights))
    assert_all_hold(teacher.weights, values(old.weights))


# ---- Plans for checkpoints whose names have moved --------------------------------------------------------


class Blocks(keras.Model):
    def __init__(self, names: Sequence[str | None]) -> None:
        super().__init__(name="net")
        self.blocks = [Layers.Dense(3, name=name) for name in names]

    def call(self, x: tf.Tensor) -> tf.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def blocks(order: str | None) -> tf.train.Checkpoint:
    model = Blocks(order or [None] * 3)
    model(tf.zeros((1, 3)))
    optimizer = keras.optimizers.Adam()
    optimizer.build(model.trainable_variables)
    scramble(model, seed=3)
    return tf.train.Checkpoint(model=model, optimizer=optimizer)


def test_a_plan_is_not_applied_to_a_checkpoint_whose_list_has_its_members_elsewhere(tmp_path: pathlib.Path) -> None:
    one, other = save(blocks("abc"), tmp_path / "one"), save(blocks("bac"), tmp_path / "other")
    restorer = dr.DistributedRestorer(blocks("abc"))
    with pytest.raises(dr.PlanMismatchError, match="Make it again"):
        restorer.apply(restorer.plan(one), other)


def test_nor_to_a_program_whose_list_has_its_members_elsewhere(tmp_path: pathlib.Path) -> None:
    path = save(blocks("abc"), tmp_path)
    plan = dr.DistributedRestorer(blocks("abc")).plan(path)
    with pytest.raises(dr.PlanMismatchError):
        dr.DistributedRestorer(blocks("bac")).apply(plan, path)


def test_of_automatic_names_a_plan_leaves_out_the_numbers(tmp_path: pathlib.Path) -> None:
    one, other = save(blocks(None), tmp_path / "one"), save(blocks(None), tmp_path / "other")  # dense_3 is first there
    restorer = dr.DistributedRestorer(blocks(None))
    restorer.apply(restorer.plan(one), other)
