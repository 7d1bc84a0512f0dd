"""What looks like a match and is none: each of these filled something wrong, in silence, when it was first tried."""

import dataclasses
import pathlib

import keras
import msgspec
import numpy as np
import pytest
import tensorflow as tf

import dist_restore as dr
from dist_restore.core.tensors import TensorSpec
from dist_restore.ops import Transpose


def dense_list(count: int) -> keras.Model:
    class Net(keras.Model):
        def __init__(self) -> None:
            super().__init__(name="net")
            self.blocks = [keras.layers.Dense(4) for _ in range(count)]

        def call(self, x: tf.Tensor) -> tf.Tensor:
            for block in self.blocks:
                x = block(x)
            return x

    model = Net()
    model(tf.zeros((1, 4)))
    return model


def adam(variables: list[keras.Variable]) -> keras.optimizers.Optimizer:
    optimizer = keras.optimizers.Adam()
    optimizer.build(variables)
    return optimizer


def dense(name: str) -> keras.Model:
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name=f"{name}_dense")], name=name)


def refuse(error: type[dr.RestoreError], root: tf.train.Checkpoint, path: str) -> None:
    before = [v.numpy() for v in root.model.variables] if hasattr(root, "model") else []
    with pytest.raises(error):
        dr.DistributedRestorer(root).restore(path)
    assert all(
        np.array_equal(a, v.numpy()) for a, v in zip(before, root.model.variables if before else (), strict=True)
    )


def test_a_wrapper_s_own_counters_do_not_become_those_of_the_optimizer_inside(tmp_path: pathlib.Path) -> None:
    model = dense("m")
    wrapper = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01))
    wrapper.build(model.trainable_variables)
    wrapper.inner_optimizer.iterations.assign(7)
    path = tf.train.Checkpoint(model=model, optimizer=wrapper).save(str(tmp_path / "ck"))
    plain = tf.train.Checkpoint(model=dense("m"), optimizer=keras.optimizers.Adam(0.5))
    dr.DistributedRestorer(plain).restore(path)
    assert float(plain.optimizer.learning_rate) == pytest.approx(0.01)
    assert int(plain.optimizer.iterations) == 7


def test_a_wrapper_s_own_counters_are_refused_where_it_is_not_clear_which_optimizer_they_belong_to(
    tmp_path: pathlib.Path,
) -> None:
    """Of two optimizers one was renamed: the roots align, and the wrapper's dummy counter looks like the real one."""
    a, b = dense("a"), dense("b")
    wrapper = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01))
    wrapper.build(a.trainable_variables)
    old = tf.train.Checkpoint(a=a, b=b, a_opt=wrapper, b_opt=adam(b.trainable_variables))
    path = old.save(str(tmp_path / "ck"))
    new = tf.train.Checkpoint(a=a, b=b, first=adam(a.trainable_variables), b_opt=adam(b.trainable_variables))
    with pytest.raises(dr.RestoreError, match="first/iterations"):
        dr.DistributedRestorer(new).restore(path)


def test_a_list_of_which_another_member_was_frozen_is_refused(tmp_path: pathlib.Path) -> None:
    old, new = dense_list(3), dense_list(3)
    old.blocks[0].trainable = False
    new.blocks[2].trainable = False
    path = tf.train.Checkpoint(model=old, optimizer=adam(old.trainable_variables)).save(str(tmp_path / "ck"))
    target = tf.train.Checkpoint(model=new, optimizer=adam(new.trainable_variables))
    refuse(dr.AmbiguousMatchError, target, path)
    with pytest.raises(dr.AmbiguousMatchError):
        dr.DistributedRestorer(target, unmatched="keep").restore(path)


def test_an_optimizer_built_in_another_order_crosses_no_blocks(tmp_path: pathlib.Path) -> None:
    old, new = dense_list(3), dense_list(3)
    path = tf.train.Checkpoint(model=old, optimizer=adam(old.trainable_variables)).save(str(tmp_path / "ck"))
    v = new.trainable_variables
    target = tf.train.Checkpoint(model=new, optimizer=adam([v[i] for i in (4, 5, 2, 3, 0, 1)]))
    refuse(dr.AmbiguousMatchError, target, path)


def test_a_new_part_does_not_take_the_weights_of_a_part_that_is_gone(tmp_path: pathlib.Path) -> None:
    path = tf.train.Checkpoint(enc=dense("e"), old_head=dense("h")).save(str(tmp_path / "ck"))
    refuse(dr.UnmatchedError, tf.train.Checkpoint(enc=dense("e"), new_head=dense("h")), path)


@pytest.mark.parametrize(
    "forge",
    [
        lambda plan: dataclasses.replace(plan, entries=plan.entries[1:]),
        lambda plan: edit(plan, sources=("nope",)),
        lambda plan: edit(plan, sources=()),
        lambda plan: edit(plan, target="nope"),
        lambda plan: edit(plan, ops=(Transpose((1, 0)),)),
        lambda plan: edit(plan, spec=TensorSpec((9,), "float32")),
    ],
)
def test_a_plan_that_was_edited_changes_nothing(tmp_path: pathlib.Path, forge: object) -> None:
    w, v = tf.Variable([1.0, 2.0]), tf.Variable([3.0])
    path = tf.train.Checkpoint(w=w, v=v).save(str(tmp_path / "ck"))
    new = tf.train.Checkpoint(w=tf.Variable([0.0, 0.0]), v=tf.Variable([0.0]))
    restorer = dr.DistributedRestorer(new)
    forged = dr.RestorePlan.from_json(forge(restorer.plan(path)).to_json())
    with pytest.raises(dr.PlanMismatchError):
        restorer.apply(forged, path)
    assert new.w.numpy().tolist() == [0.0, 0.0] and new.v.numpy().tolist() == [0.0]


def edit(plan: dr.RestorePlan, **fields: object) -> dr.RestorePlan:
    entries = [msgspec.structs.replace(e, **fields) if e.target == "w" else e for e in plan.entries]
    return dataclasses.replace(plan, entries=tuple(entries))
