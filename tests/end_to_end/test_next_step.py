"""The next steps after a restore that adds state, against a program that was built so and given the values by hand."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.train import Checkpoint

import dist_restore as dr
from dist_restore.tf_internals.keras_variables import KerasVariable
from live import assert_all_hold, built, raw, refuse, restore, save, value, values

Optimizer = keras.optimizers.Optimizer
Make = Callable[..., Optimizer]
K = keras.optimizers
# Each with what it keeps only when told to, and a rate at which three steps move every weight.
OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda **o: K.SGD(0.1, momentum=0.9, **o),
    "rmsprop": lambda **o: K.RMSprop(0.01, momentum=0.9, centered=True, **o),
    "adam": lambda **o: K.Adam(0.01, amsgrad=True, **o),
    "adamw": lambda **o: K.AdamW(0.01, **o),
    "nadam": lambda **o: K.Nadam(0.01, **o),
    "adamax": lambda **o: K.Adamax(0.01, **o),
    "adadelta": lambda **o: K.Adadelta(1.0, **o),
    "adagrad": lambda **o: K.Adagrad(0.1, **o),
    "ftrl": lambda **o: K.Ftrl(0.1, **o),
    "lion": lambda **o: K.Lion(0.01, **o),
    "lamb": lambda **o: K.Lamb(0.01, **o),
    "schedulefree": lambda **o: K.ScheduleFreeAdamW(0.01, **o),
}
if not hasattr(K, "ScheduleFreeAdamW"):  # of later releases than Keras 3.6
    del OPTIMIZERS["schedulefree"]
# Of which Keras tracks no lists, so that a checkpoint numbers what they keep.
NUMBERED: dict[str, Make] = {"adafactor": lambda **o: K.Adafactor(0.01, **o)}
if hasattr(K, "Muon"):
    NUMBERED["muon"] = lambda **o: K.Muon(0.01, **o)
# The class whose "momentum" are weights, by the attribute of these.
WEIGHTS = {getattr(K, "ScheduleFreeAdamW", None): "_momentums"}
# With accumulation on: nothing is accumulated yet, and the number of updates goes on as one of batches.
COUNTED = [
    dr.Rule(keep="optimizer/accumulated_gradient/{rest}"),
    dr.Rule(from_="optimizer/iterations", to="optimizer/iterations"),
]
_NO_SLOTS = {"_trainable_variables", "_variables", "_model_variables_moving_average", "_accumulated_gradients"}
_PROPOSED = re.compile(r'from = "([^"]+)", to = "([^"]+)"|keep = "([^"]+)"')


def build(make: Make, *, rows: int = 5, extra: bool = False, scaled: bool = False) -> tuple[keras.Model, Optimizer]:
    x = inputs = keras.Input((3,), dtype="int32")
    x = keras.layers.Embedding(rows, 4, name="embed")(x)
    x = keras.layers.GlobalAveragePooling1D(name="pool")(x)
    if extra:
        x = keras.layers.Dense(4, name="extra")(x)
    model = keras.Model(inputs, keras.layers.Dense(2, name="head")(x))
    optimizer = make()
    return model, built(K.LossScaleOptimizer(optimizer) if scaled else optimizer, model)


def inside(optimizer: Optimizer) -> Optimizer:
    return optimizer.inner_optimizer if isinstance(optimizer, K.LossScaleOptimizer) else optimizer


def step(model: keras.Model, optimizer: Optimizer, number: int) -> None:
    generator = np.random.default_rng(number)
    tokens = tf.constant(generator.integers(0, 5, (6, 3)), tf.int32)
    with tf.GradientTape() as tape:
        error = model(tokens) - tf.constant(generator.normal(size=(6, 2)), tf.float32)
        loss = optimizer.scale_loss(tf.reduce_mean(tf.square(error)))
    optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)


def saved(make: Make, directory: pathlib.Path) -> tuple[keras.Model, Optimizer, str]:
    """A program after some steps, and its checkpoint."""
    model, optimizer = build(make)
    for number in range(4):
        step(model, optimizer, number)
    return model, optimizer, save(Checkpoint(model=model, optimizer=optimizer), directory)


def slots(optimizer: Optimizer) -> dict[str, list[keras.Variable]]:
    """The lists of slots that the class makes, by attribute."""
    lists = {n: v for n, v in vars(optimizer).items() if isinstance(v, list) and v and n not in _NO_SLOTS}
    return {n: v for n, v in lists.items() if all(isinstance(x, KerasVariable) for x in v)}


def give(target: keras.Variable, array: np.ndarray, fill: np.ndarray) -> None:
    """Assigns; rows that are not there come from `fill`."""
    grown = array if array.shape == tuple(target.shape) else np.concatenate([array, fill[len(array) :]])
    raw(target).assign(grown)


def by_hand(
    model: keras.Model, optimizer: Optimizer, old: keras.Model, theirs: Optimizer, fills: dict[str, np.ndarray]
) -> None:
    """What a person would assign: averages are their weights, and new rows of slots zero."""
    own, other = inside(optimizer), inside(theirs)
    before = {v.path: i for i, v in enumerate(old.trainable_variables)}
    mine, found = slots(own), slots(other)
    for index, variable in enumerate(model.trainable_variables):
        if variable.path in before:
            old_index = before[variable.path]
            fill = fills.get(variable.path, np.empty(0))
            give(variable, value(old.trainable_variables[old_index]), fill)
            for name, members in mine.items():
                zeros = np.zeros(members[index].shape, np.float32)
                give(members[index], value(found[name][old_index]), fill if WEIGHTS.get(type(own)) == name else zeros)
        if own.use_ema:
            raw(own._model_variables_moving_average[index]).assign(value(variable))
    raw(own._iterations).assign(value(other._iterations))
    if hasattr(own, "_u_product"):
        raw(own._u_product).assign(value(other._u_product))


def proposed(plan: dr.RestorePlan) -> list[dr.Rule]:
    """The rules that the plan's messages name, each once; of two that one message names, the first."""
    found = [m for e in plan.problems if (m := _PROPOSED.search(e.reason))]
    pairs = dict.fromkeys((m[1], m[2], m[3]) for m in found)
    return [dr.Rule(keep=keep) if keep else dr.Rule(from_=a, to=b) for a, b, keep in pairs]


def same_steps(
    mine: tuple[keras.Model, Optimizer], reference: tuple[keras.Model, Optimizer], *, count: int = 3
) -> None:
    assert_all_hold(mine[0].weights, values(reference[0].weights))
    before = values(mine[0].weights)
    for number in range(10, 10 + count):
        step(*mine, number)
        step(*reference, number)
    assert_all_hold(mine[0].weights, values(reference[0].weights))
    assert all(np.isfinite(v).all() for v in values(mine[0].weights))
    assert any((a != b).any() for a, b in zip(before, values(mine[0].weights), strict=True))


def twins(make: Make, **options: object) -> tuple[tuple[keras.Model, Optimizer], tuple[keras.Model, Optimizer]]:
    """Two programs with equal values."""
    mine, reference = build(make, **options), build(make, **options)
    reference[0].set_weights(mine[0].get_weights())
    for ours, others in zip(inside(reference[1]).variables, inside(mine[1]).variables, strict=True):
        ours.assign(others)
    return mine, reference


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_averages_on(tmp_path: pathlib.Path, kind: str) -> None:
    make = OPTIMIZERS[kind]
    old, theirs, path = saved(make, tmp_path)
    mine, reference = twins(lambda: make(use_ema=True, ema_momentum=0.9))
    root = Checkpoint(model=mine[0], optimizer=mine[1])
    rules = proposed(dr.DistributedRestorer(root).plan(path))
    assert rules == [dr.Rule(from_="model/{rest}", to="optimizer/average/model/{rest}")]
    restore(root, path, rules=rules)
    by_hand(*reference, old, theirs, {})
    assert_all_hold(mine[1]._model_variables_moving_average, values(mine[0].trainable_variables))
    same_steps(mine, reference)
    for model, optimizer in (mine, reference):
        optimizer.finalize_variable_values(model.trainable_variables)
    assert_all_hold(mine[0].weights, values(reference[0].weights))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_new_layer(tmp_path: pathlib.Path, kind: str) -> None:
    make = OPTIMIZERS[kind]
    old, theirs, path = saved(make, tmp_path)
    mine, reference = twins(make, extra=True)
    restore(Checkpoint(model=mine[0], optimizer=mine[1]), path, rules=[dr.Rule(keep="model/extra/{rest}")])
    by_hand(*reference, old, theirs, {})
    same_steps(mine, reference)


@pytest.mark.parametrize("kind", ["sgd", "adam", "lion"])
def test_a_layer_that_is_trained_from_now_on(tmp_path: pathlib.Path, kind: str) -> None:
    """What the refusal proposes begins the slots of that layer, and of no other."""
    make = OPTIMIZERS[kind]
    old, _ = build(make)
    old.get_layer("embed").trainable = False
    theirs = built(make(), old)
    for number in range(4):
        step(old, theirs, number)
    path = save(Checkpoint(model=old, optimizer=theirs), tmp_path)
    model, optimizer = build(make)
    root = Checkpoint(model=model, optimizer=optimizer)
    restore(root, path, rules=proposed(dr.DistributedRestorer(root).plan(path)))
    assert_all_hold(model.weights, values(old.weights))
    for name, members in slots(optimizer).items():
        assert_all_hold(members[1:], values(slots(theirs)[name]))
        assert not value(members[0]).any()


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("fill", ["keep", "zeros"])
def test_new_rows(tmp_path: pathlib.Path, kind: str, fill: str) -> None:
    make = OPTIMIZERS[kind]
    old, theirs, path = saved(make, tmp_path)
    mine, reference = twins(make, rows=7)
    table = mine[0].get_layer("embed").embeddings
    fills = {table.path: value(table) if fill == "keep" else np.zeros(table.shape, np.float32)}
    ops = [{"fit": {"fill": fill}}]
    rules = {"rule": [{"from": "model/embed/embeddings", "to": "model/embed/embeddings", "ops": ops}]}
    root = Checkpoint(model=mine[0], optimizer=mine[1])
    if kind == "ftrl":  # its accumulator cannot begin as zero
        with pytest.raises(dr.UnmatchedError, match="accumulator"):
            restore(root, path, rules=rules)
        return
    restore(root, path, rules=rules)
    by_hand(*reference, old, theirs, fills)
    same_steps(mine, reference)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_loss_scale_on(tmp_path: pathlib.Path, kind: str) -> None:
    make = OPTIMIZERS[kind]
    old, theirs, path = saved(make, tmp_path)
    mine, reference = twins(make, scaled=True)
    restore(Checkpoint(model=mine[0], optimizer=mine[1]), path)
    by_hand(*reference, old, theirs, {})
    same_steps(mine, reference)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_accumulation_on(tmp_path: pathlib.Path, kind: str) -> None:
    make = OPTIMIZERS[kind]
    old, theirs, path = saved(make, tmp_path)
    mine, reference = twins(lambda: make(gradient_accumulation_steps=2))
    restore(Checkpoint(model=mine[0], optimizer=mine[1]), path, rules=COUNTED)
    by_hand(*reference, old, theirs, {})
    same_steps(mine, reference, count=4)


@pytest.mark.parametrize("kind", sorted(OPTIMIZERS.keys() - {"ftrl", "schedulefree"}))
@pytest.mark.parametrize("options", [{}, {"ema_overwrite_frequency": 1}], ids=["finalized", "overwritten"])
def test_at_a_learning_rate_of_zero_no_restored_weight_moves(
    tmp_path: pathlib.Path, kind: str, options: dict[str, int]
) -> None:
    """Ftrl divides by the rate, and ScheduleFreeAdamW goes on to average what it has."""
    make = OPTIMIZERS[kind]
    old, _, path = saved(make, tmp_path)
    model, optimizer = build(lambda: make(use_ema=True, **options))
    root = Checkpoint(model=model, optimizer=optimizer)
    restore(root, path, rules=proposed(dr.DistributedRestorer(root).plan(path)))
    optimizer.learning_rate = 0.0
    if kind in ("sgd", "rmsprop"):  # their momentum holds steps, which have the former rate in them
        for variable in slots(optimizer).get("momentums") or slots(optimizer)["_momentums"]:
            variable.assign(tf.zeros(variable.shape))
    for number in range(3):
        step(model, optimizer, number)
    optimizer.finalize_variable_values(model.trainable_variables)
    for mine, other in zip(model.weights, old.weights, strict=True):
        np.testing.assert_allclose(value(mine), value(other), rtol=1e-5)


@pytest.mark.parametrize("kind", NUMBERED)
@pytest.mark.parametrize("way", ["averages", "layer", "scaled", "accumulated"])
def test_state_that_is_only_numbered_is_refused_where_numbers_may_have_moved(
    tmp_path: pathlib.Path, kind: str, way: str
) -> None:
    make = NUMBERED[kind]
    *_, path = saved(make, tmp_path)
    options = {"averages": {"use_ema": True}, "accumulated": {"gradient_accumulation_steps": 2}}.get(way, {})
    model, optimizer = build(lambda: make(**options), extra=way == "layer", scaled=way == "scaled")
    rules = {
        "averages": [dr.Rule(from_="model/{rest}", to="optimizer/average/model/{rest}")],
        "layer": [dr.Rule(keep="model/extra/{rest}")],
        "accumulated": COUNTED,
    }
    refuse(dr.UnmatchedError, Checkpoint(model=model, optimizer=optimizer), path, rules=rules.get(way))
