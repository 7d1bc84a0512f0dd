"""`.weights.h5` and `.keras` number an optimizer's state and name nothing: what the numbers show, and what not."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Callable

import keras
import pytest
import tensorflow as tf
import tf_keras

import dist_restore as dr
from dist_restore.ops import Transpose
from dist_restore.planning.entries import Proof
from live import assert_all_hold, refuse, restore, scramble, values

Make = Callable[[], keras.Optimizer]
Optimizers = keras.optimizers


def net(layers: str, make: Make = Optimizers.Adam, frozen: str = "", *, bias: bool = False) -> keras.Model:
    """A compiled chain of layers of one shape, called by these letters, in this order."""
    inputs = keras.Input((4,))
    x = inputs
    for name in layers:
        x = keras.layers.Dense(4, name=name, use_bias=bias, trainable=name not in frozen)(x)
    model = keras.Model(inputs, x)
    model.compile(make(), "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def written(model: keras.Model, directory: pathlib.Path, suffix: str) -> str:
    scramble(model, model.optimizer, seed=1)
    path = os.fspath(directory / f"net{suffix}")
    (model.save if suffix == ".keras" else model.save_weights)(path)
    return path


def root(model: keras.Model) -> tf.train.Checkpoint:
    scramble(model, model.optimizer, seed=2)
    return tf.train.Checkpoint(model=model)


FILES = pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
OPTIMIZERS = {
    "adam": Optimizers.Adam,
    "amsgrad": lambda: Optimizers.Adam(amsgrad=True),
    "schedule": lambda: Optimizers.Adam(Optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)),
    "averages": lambda: Optimizers.AdamW(use_ema=True),
    "accumulation": lambda: Optimizers.SGD(momentum=0.9, gradient_accumulation_steps=2),
    "nadam": Optimizers.Nadam,
    "rmsprop": lambda: Optimizers.RMSprop(momentum=0.9, centered=True),
    "adafactor": Optimizers.Adafactor,
    "ftrl": Optimizers.Ftrl,
    "sgd": Optimizers.SGD,
    "loss_scale": lambda: Optimizers.LossScaleOptimizer(Optimizers.Adam()),
}


@FILES
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_the_same_program_reads_its_optimizer(tmp_path: pathlib.Path, make: Make, suffix: str) -> None:
    old, new = net("ab", make), net("ab", make)
    path = written(old, tmp_path, suffix)
    restore(root(new), path)
    assert_all_hold([*new.variables, *new.optimizer.variables], values([*old.variables, *old.optimizer.variables]))


@FILES
def test_slots_by_number_are_marked_as_order_and_may_be_refused(tmp_path: pathlib.Path, suffix: str) -> None:
    """Which layers were frozen when a file was written its numbers do not show."""
    old, new = net("abc", frozen="a"), net("abc", frozen="a")
    path = written(old, tmp_path, suffix)
    found = {e.target.partition("optimizer/")[2]: e.proof for e in dr.DistributedRestorer(root(new)).plan(path).entries}
    assert found["momentum/model/b/kernel"] is found["velocity/model/c/kernel"] is Proof.ORDER
    assert found["iterations"] is found["learning_rate"] is Proof.STRUCTURE
    with pytest.raises(dr.AmbiguousMatchError):
        dr.DistributedRestorer(root(new), order="refuse").restore(path)


@FILES
def test_layers_in_another_order_are_refused(tmp_path: pathlib.Path, suffix: str) -> None:
    path = written(net("ab"), tmp_path, suffix)
    refuse(
        dr.UnmatchedError, root(net("ba")), path, "layers/dense", "came in another order", "model/optimizer/momentum"
    )


def test_layers_of_two_classes_in_another_order_are_refused_where_a_config_tells(tmp_path: pathlib.Path) -> None:
    def norms(layers: str) -> keras.Model:
        inputs = keras.Input((4,))
        x = inputs
        for name in layers:
            make = keras.layers.LayerNormalization if name == "n" else keras.layers.BatchNormalization
            x = make(name=name)(x)
        model = keras.Model(inputs, x)
        model.compile(Optimizers.Adam(), "mse")
        model.optimizer.build(model.trainable_variables)
        return model

    path = written(norms("nb"), tmp_path, ".keras")
    refuse(dr.UnmatchedError, root(norms("bn")), path, "came in another order")


@FILES
def test_another_layer_frozen_is_refused_where_the_number_of_variables_differs(
    tmp_path: pathlib.Path, suffix: str
) -> None:
    path = written(net("abc", frozen="a"), tmp_path, suffix)
    refuse(dr.UnmatchedError, root(net("abc")), path, "it keeps 6 variables, and the program's 8")


@FILES
def test_another_class_with_the_same_shapes_is_refused(tmp_path: pathlib.Path, suffix: str) -> None:
    path = written(net("ab", lambda: Optimizers.SGD(momentum=0.9)), tmp_path, suffix)
    refuse(dr.UnmatchedError, root(net("ab", Optimizers.Lion)), path, "'sgd'", "'lion'")


@FILES
def test_nothing_of_another_class_is_taken_by_its_number(tmp_path: pathlib.Path, suffix: str) -> None:
    """Not even what both have: that number 0 counts the steps, the class says."""
    path = written(net("ab"), tmp_path, suffix)
    found = {e.target: e for e in dr.DistributedRestorer(root(net("ab", Optimizers.RMSprop))).plan(path).entries}
    steps = next(entry for name, entry in found.items() if name.endswith("optimizer/iterations"))
    assert not steps.filled
    assert "the checkpoint only numbers the state of its optimizer, of the class 'adam'" in steps.reason


def test_a_chosen_name_hides_the_class_unless_there_is_a_config(tmp_path: pathlib.Path) -> None:
    sgd, lion = (lambda: Optimizers.SGD(momentum=0.9, name="opt")), (lambda: Optimizers.Lion(name="opt"))
    old = net("ab", sgd)
    path = written(old, tmp_path, ".weights.h5")
    refuse(dr.UnmatchedError, root(net("ab", lion)), path, "'opt'", "'lion'")
    path = written(old, tmp_path, ".keras")
    refuse(dr.UnmatchedError, root(net("ab", lion)), path, "'sgd'", "'lion'")
    new = net("ab", sgd)
    restore(root(new), path)
    assert_all_hold(new.optimizer.variables, values(old.optimizer.variables))


@FILES
def test_rows_that_once_took_turns_are_refused_where_shapes_do_not_tell(tmp_path: pathlib.Path, suffix: str) -> None:
    """Averages and accumulated gradients of Keras before 3.10 took turns; since, they lie in two rows."""

    def both() -> keras.Optimizer:
        return Optimizers.Adam(use_ema=True, gradient_accumulation_steps=2)

    path = written(net("ab", both), tmp_path, suffix)
    refuse(dr.UnmatchedError, root(net("ab", both)), path, "in rows or take turns")
    old, new = net("ab", both, bias=True), net("ab", both, bias=True)
    restore(root(new), written(old, tmp_path, suffix))
    assert_all_hold(new.optimizer.variables, values(old.optimizer.variables))


@FILES
@pytest.mark.parametrize("wrapped_before", [False, True])
def test_an_optimizer_goes_into_a_wrapper_and_out_of_it(
    tmp_path: pathlib.Path, suffix: str, wrapped_before: bool
) -> None:
    plain, wrapped = (lambda: Optimizers.Adam()), (lambda: Optimizers.LossScaleOptimizer(Optimizers.Adam()))
    old = net("ab", wrapped if wrapped_before else plain)
    new = net("ab", plain if wrapped_before else wrapped)
    path = written(old, tmp_path, suffix)
    restore(root(new), path)
    inner = [getattr(m.optimizer, "inner_optimizer", m.optimizer).variables for m in (old, new)]
    assert_all_hold(inner[1], values(inner[0]))


@FILES
def test_a_rule_that_fills_a_slot_from_another_number_leaves_the_rest_to_rules(
    tmp_path: pathlib.Path, suffix: str
) -> None:
    path = written(net("ab"), tmp_path, suffix)
    rules = {"optimizer/vars/3": "model/optimizer/momentum/model/a/kernel"}
    with pytest.raises(dr.UnmatchedError, match="a rule fills 'model/optimizer/momentum/model/a/kernel'"):
        dr.DistributedRestorer(root(net("ab")), rules=rules).restore(path)


@FILES
def test_a_weight_that_goes_through_ops_takes_no_numbered_slots_along(tmp_path: pathlib.Path, suffix: str) -> None:
    path = written(net("ab"), tmp_path, suffix)
    rule = dr.Rule(from_=("a/kernel",), to=("model/a/kernel",), ops=(Transpose(perm=(1, 0)),))
    with pytest.raises(dr.UnmatchedError, match="nothing of it fills 'model/a/kernel' as it is"):
        dr.DistributedRestorer(root(net("ab")), rules=[rule]).restore(path)


def tf_keras_net(make: Callable[[], object]) -> object:
    inputs = tf_keras.Input((4,))
    model = tf_keras.Model(inputs, tf_keras.layers.Dense(2)(tf_keras.layers.Dense(4)(inputs)))
    model.compile(make(), "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def test_an_archive_of_tf_keras_says_its_optimizers_class(tmp_path: pathlib.Path) -> None:
    old, new = tf_keras_net(tf_keras.optimizers.Adam), tf_keras_net(tf_keras.optimizers.Adam)
    path = written(old, tmp_path, ".keras")
    restore(root(new), path)  # the learning rate, which the file does not store, is the program's
    assert_all_hold([*new.variables, *new.optimizer.variables], values([*old.variables, *old.optimizer.variables]))
    refuse(dr.UnmatchedError, root(tf_keras_net(tf_keras.optimizers.Adamax)), path, "'adam'", "'adamax'")


def test_layers_of_an_archive_of_tf_keras_in_another_order_are_refused(tmp_path: pathlib.Path) -> None:
    """Its optimizer lists no variables: what it trains, its slots say."""

    def program(names: str) -> object:
        inputs = x = tf_keras.Input((4,))
        for name in names:
            x = tf_keras.layers.Dense(4, name=name)(x)
        model = tf_keras.Model(inputs, x)
        model.compile(tf_keras.optimizers.SGD(0.1, momentum=0.9), "mse")
        model.optimizer.build(model.trainable_variables)
        return model

    path = written(program("ab"), tmp_path, ".keras")
    restore(root(program("ab")), path)
    refuse(dr.UnmatchedError, root(program("ba")), path, "came in another order")


def test_weights_of_tf_keras_do_not_say_their_optimizers_class(tmp_path: pathlib.Path) -> None:
    path = written(tf_keras_net(tf_keras.optimizers.Adam), tmp_path, ".weights.h5")
    refuse(dr.UnmatchedError, root(tf_keras_net(tf_keras.optimizers.Adam)), path, "of the class 'unknown'")


# ---- What a refusal advises ------------------------------------------------------------------------------


@FILES
@pytest.mark.parametrize(("before", "now"), [("ab", "ba"), ("ab", "ac"), ("ab", "abc"), ("abc", "ab")])
def test_no_message_proposes_a_number_for_a_slot(tmp_path: pathlib.Path, before: str, now: str, suffix: str) -> None:
    """A number that was picked by its shape would be accepted, and another slot's values with it."""
    path = written(net(before), tmp_path, suffix)
    new = root(net(now))
    error = refuse(dr.UnmatchedError, new, path, "model/optimizer/velocity/model/a/kernel")
    plan = dr.DistributedRestorer(new).plan(path)
    said = [str(error), plan.suggestions, *(e.reason for e in plan.problems if e.target.startswith("model/optimizer/"))]
    assert not [text for text in said if re.search(r'(?<!# )from = "[^"]*vars/[0-9]', text)]
    restored = dr.RuleSet.from_toml(plan.suggestions)
    assert not [rule for rule in restored.rules if any("vars/" in name for name in rule.from_)]
