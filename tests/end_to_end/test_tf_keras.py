"""tf_keras (Keras 2) models and optimizers as sources and as targets, and between the generations of Keras.

Written and read with tf_keras itself. `Checkpoint(model, optimizer)` of either library goes into either library.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable
from types import ModuleType

import keras
import numpy as np
import pytest
import tensorflow as tf

import dist_restore as dr
from conftest import make_strategy
from dist_restore.targets.targets import find_targets
from live import natively, refuse, replicas, restore, save, scramble, value

tf_keras = pytest.importorskip("tf_keras", reason="tf_keras is no dependency of the package")
Checkpoint = tf.train.Checkpoint
LIBRARIES = {"keras": keras, "tf_keras": tf_keras}
NEW, LEGACY, KERAS = "new", "legacy", "keras"
STYLES = (NEW, LEGACY, KERAS)
PAIRS = [(a, b) for a in STYLES for b in STYLES]


def optimizers(style: str) -> ModuleType:
    return {NEW: tf_keras.optimizers, LEGACY: tf_keras.optimizers.legacy, KERAS: keras.optimizers}[style]


def library(style: str) -> ModuleType:
    return keras if style == KERAS else tf_keras


def functional(style: str, names: str = "abc") -> object:
    """A functional model with an embedding-free start: three Dense layers around a BatchNormalization and a Dropout."""
    layers = library(style).layers
    inputs = x = library(style).Input((4,))
    for number, name in enumerate(names):
        x = layers.Dense(4, name=name)(x)
        if number == 0:
            x = layers.Dropout(0.5, name="drop")(layers.BatchNormalization(name="norm")(x))
    return library(style).Model(inputs, x)


def sequential(style: str) -> object:
    layers = library(style).layers
    start = library(style).Input((2,), dtype="int32")
    body = [layers.Embedding(5, 4, name="embed"), layers.Flatten(), layers.Dense(3, name="head")]
    return library(style).Sequential([start, *body], name="seq")


def subclassed(style: str) -> object:
    class Block(library(style).layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.wide = library(style).layers.LayerNormalization(), library(style).layers.Dense(4)

        def build(self, shape: object) -> None:
            self.norm.build(shape)
            self.wide.build(shape)
            self.built = True

        def call(self, x: tf.Tensor) -> tf.Tensor:
            return self.wide(self.norm(x))

    class Net(library(style).Model):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = Block(), Block(), library(style).layers.Dense(2)

        def call(self, x: tf.Tensor) -> tf.Tensor:
            return self.head(self.second(self.first(x)))

    model = Net()
    model(tf.zeros((1, 4)))
    return model


MODELS: dict[str, Callable[[str], object]] = {
    "functional": functional,
    "sequential": sequential,
    "subclassed": subclassed,
}


def weights(model: object) -> dict[str, np.ndarray]:
    """Path of each weight, the same in both libraries."""
    found = {}
    for layer in model.layers:
        for variable in layer.variables:
            if "seed" not in variable.name:
                path = getattr(variable, "path", variable.name).partition(":")[0].split("/")
                found[f"{layer.name}/{'/'.join(path[-2:])}"] = value(variable)
    return found


def slots(optimizer: object, model: object) -> dict[tuple[str, int], np.ndarray]:
    """(role, index of the owner) -> value, by each style's own way to ask."""
    variables = model.trainable_variables
    words = {
        "m": "momentum",
        "v": "velocity",
        "vhat": "velocity_hat",
        "rms": "velocity",
        "mg": "average_gradient",
        "accum_grad": "accumulated_grad",
        "accum_var": "accumulated_delta_var",
    }
    if hasattr(optimizer, "get_slot"):
        if type(optimizer).__name__ == "Adamax":
            words = {"v": "u"}
        pairs = [(n, i, optimizer.get_slot(v, n)) for n in optimizer.get_slot_names() for i, v in enumerate(variables)]
        return {(words.get(name, name), index): value(slot) for name, index, slot in pairs}
    lists = {
        "momentum": getattr(optimizer, "_momentums", None) or getattr(optimizer, "momentums", None),
        "velocity": getattr(optimizer, "_velocities", None),
        "velocity_hat": getattr(optimizer, "_velocity_hats", None),
        "average_gradient": getattr(optimizer, "_average_gradients", None),
        "accumulator": getattr(optimizer, "_accumulators", None),
        "linear": getattr(optimizer, "_linears", None),
        "accumulated_grad": getattr(optimizer, "_accumulated_grads", None),
        "accumulated_delta_var": getattr(optimizer, "_accumulated_delta_vars", None),
        "m": getattr(optimizer, "_m", None),
        "u": getattr(optimizer, "_u", None),
    }
    return {(role, i): value(slot) for role, list_ in lists.items() for i, slot in enumerate(list_ or ())}


def same(ours: dict, theirs: dict) -> None:
    assert ours.keys() == theirs.keys() and ours
    for key, array in ours.items():
        assert np.array_equal(array, theirs[key]), key


def train(model: object, optimizer: object, steps: range) -> list[float]:
    """Plain steps on a batch of the step's number; gives the losses."""
    losses = []
    for number in steps:
        generator = np.random.default_rng(number)
        x = tf.constant(generator.normal(size=(8, 4)).astype(np.float32))
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x, training=False) - tf.sin(x)))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        losses.append(float(loss))
    return losses


def program(style: str, optimizer: Callable[[str], object], model: str = "functional") -> Checkpoint:
    return Checkpoint(model=MODELS[model](style), optimizer=optimizer(style))


def adam(style: str) -> object:
    return optimizers(style).Adam(0.01)


# ---- Programs of one generation --------------------------------------------------------------------------


@pytest.mark.parametrize("style", [NEW, LEGACY])
@pytest.mark.parametrize("model", MODELS)
def test_a_program_of_keras_2_loads_its_own_checkpoint_under_every_strategy(
    tmp_path: pathlib.Path, strategy: tf.distribute.Strategy, model: str, style: str
) -> None:
    with strategy.scope():
        old, new = program(style, adam, model), program(style, adam, model)
    dr_targets(old)  # makes the slots
    scramble(old.model, optimizer_variables(old), seed=1)
    path = save(old, tmp_path)
    scramble(new.model, seed=2)
    report = restore(new, path)
    assert {e.status.value for e in report.plan.entries} == {"exact"}
    same(weights_by_order(new.model), weights_by_order(old.model))
    same(slots(new.optimizer, new.model), slots(old.optimizer, old.model))
    assert value(new.optimizer.iterations) == value(old.optimizer.iterations) > 0
    for variable in [*new.model.variables, *optimizer_variables(new)]:
        assert len({r.tobytes() for r in replicas(variable)}) == 1


def weights_by_order(model: object) -> dict[int, np.ndarray]:
    return {i: value(v) for i, v in enumerate(model.variables)}


def optimizer_variables(root: Checkpoint) -> list[tf.Variable]:
    variables = root.optimizer.variables
    return list(variables() if callable(variables) else variables)


def test_layers_have_the_names_that_keras_3_gives_them() -> None:
    for style in (NEW, KERAS):
        names = {v.name for v in dr_targets(Checkpoint(model=functional(style)))} - {"save_counter"}
        assert {n for n in names if "seed" not in n} == {
            *(f"model/{layer}/{part}" for layer in "abc" for part in ("kernel", "bias")),
            *(f"model/norm/{part}" for part in ("gamma", "beta", "moving_mean", "moving_variance")),
        }


def dr_targets(root: object) -> tuple[object, ...]:
    return find_targets(root).index.variables


@pytest.mark.parametrize("style", [NEW, LEGACY])
def test_swapped_layers_of_keras_2_take_their_weights_and_moments_along(tmp_path: pathlib.Path, style: str) -> None:
    old = Checkpoint(model=functional(style, "abc"), optimizer=adam(style))
    train(old.model, old.optimizer, range(2))
    path = save(old, tmp_path)
    new = Checkpoint(model=functional(style, "acb"), optimizer=adam(style))
    train(new.model, new.optimizer, range(1))
    natively(new, path)  # TensorFlow: no error, and b holds what c held
    assert np.array_equal(value(new.model.get_layer("b").kernel), value(old.model.get_layer("c").kernel))
    restore(new, path)
    same(weights(new.model), weights(old.model))
    ours, theirs = ({v.name: i for i, v in enumerate(r.model.trainable_variables)} for r in (new, old))
    for role in ("momentum", "velocity"):
        for name in ours:
            array = slots(new.optimizer, new.model)[role, ours[name]]
            assert np.array_equal(array, slots(old.optimizer, old.model)[role, theirs[name]])


def test_an_unbuilt_model_of_keras_2_is_refused(tmp_path: pathlib.Path) -> None:
    path = save(Checkpoint(model=functional(NEW)), tmp_path)
    model = tf_keras.Sequential([tf_keras.layers.Dense(4)])
    for root in (Checkpoint(model=model), Checkpoint(model=model, optimizer=adam(NEW))):
        with pytest.raises(dr.UnbuiltModelError):
            dr.DistributedRestorer(root).restore(path)


@pytest.mark.parametrize("style", [NEW, LEGACY])
def test_an_unbuilt_optimizer_of_keras_2_without_its_model_is_refused(tmp_path: pathlib.Path, style: str) -> None:
    old = Checkpoint(model=functional(style), optimizer=adam(style), w=tf.Variable(1.0))
    train(old.model, old.optimizer, range(1))
    path = save(old, tmp_path)
    with pytest.raises(dr.UnbuiltModelError, match="Adam"):
        dr.DistributedRestorer(Checkpoint(optimizer=adam(style), w=tf.Variable(0.0))).restore(path)


# ---- Between generations ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("saved", "restored"), PAIRS)
def test_the_steps_after_a_restore_are_those_of_the_run_that_never_stopped(
    tmp_path: pathlib.Path, saved: str, restored: str
) -> None:
    old = program(saved, adam)
    train(old.model, old.optimizer, range(3))
    path = save(old, tmp_path)
    new = program(restored, lambda style: optimizers(style).Adam(0.5))
    restore(new, path)
    same(weights(new.model), weights(old.model))
    same(slots(new.optimizer, new.model), slots(old.optimizer, old.model))
    assert int(new.optimizer.iterations) == 3
    assert float(new.optimizer.learning_rate) == pytest.approx(0.01)
    expected = train(old.model, old.optimizer, range(3, 6))
    assert train(new.model, new.optimizer, range(3, 6)) == pytest.approx(expected, rel=1e-5)
    for name, array in weights(new.model).items():
        np.testing.assert_allclose(array, weights(old.model)[name], rtol=1e-4, atol=1e-6)


CLASSES: dict[str, Callable[[str], object]] = {
    "amsgrad": lambda s: optimizers(s).Adam(0.01, amsgrad=True),
    "rmsprop": lambda s: optimizers(s).RMSprop(0.01, momentum=0.9, centered=True),
    "sgd": lambda s: optimizers(s).SGD(0.01, momentum=0.9),
    "adagrad": lambda s: optimizers(s).Adagrad(0.01),
    "ftrl": lambda s: optimizers(s).Ftrl(0.01),
    "adamax": lambda s: optimizers(s).Adamax(0.01),
    "adadelta": lambda s: optimizers(s).Adadelta(0.1),
}


@pytest.mark.parametrize(("saved", "restored"), [(NEW, KERAS), (KERAS, NEW), (LEGACY, NEW), (LEGACY, KERAS)])
@pytest.mark.parametrize("kind", CLASSES)
def test_every_optimizer_goes_on_in_every_other_style(
    tmp_path: pathlib.Path, kind: str, saved: str, restored: str
) -> None:
    old, new = program(saved, CLASSES[kind]), program(restored, CLASSES[kind])
    train(old.model, old.optimizer, range(2))
    restore(new, save(old, tmp_path))
    same(slots(new.optimizer, new.model), slots(old.optimizer, old.model))
    expected = train(old.model, old.optimizer, range(2, 4))
    assert train(new.model, new.optimizer, range(2, 4)) == pytest.approx(expected, rel=1e-4)


# ---- Case 5 of the failures: what plain TensorFlow does between generations ------------------------------


def square(style: str) -> object:
    """Layers whose variables all have one shape, so that no shape can betray a shift."""
    inputs = x = library(style).Input((4,))
    for name in "abc":
        x = library(style).layers.Dense(4, name=name, use_bias=False)(x)
    return library(style).Model(inputs, x)


def test_plain_tensorflow_restores_no_kernel_of_keras_2_into_keras_3_and_shifts_the_slots(
    tmp_path: pathlib.Path,
) -> None:
    old, new = (Checkpoint(model=square(style), optimizer=adam(style)) for style in (NEW, KERAS))
    train(old.model, old.optimizer, range(2))
    train(new.model, new.optimizer, range(1))
    path = save(old, tmp_path)
    before = weights(new.model)
    new.restore(path).assert_nontrivial_match()  # no error
    same(weights(new.model), before)
    # Keras 2 counts from 1, Keras 3 from 2: the first momentum receives the first velocity.
    assert np.array_equal(
        slots(new.optimizer, new.model)["momentum", 0], slots(old.optimizer, old.model)["velocity", 0]
    )

    restore(new, path)
    same(weights(new.model), weights(old.model))
    same(slots(new.optimizer, new.model), slots(old.optimizer, old.model))


# ---- One variable more or less (k#19492) -----------------------------------------------------------------


def scheduled(style: str) -> object:
    schedule = optimizers(KERAS if style == KERAS else NEW).schedules.ExponentialDecay(0.1, 10, 0.9)
    return optimizers(style).Adam(schedule)


@pytest.mark.parametrize(("saved", "restored"), [(NEW, NEW), (NEW, KERAS), (LEGACY, NEW), (KERAS, NEW)])
def test_a_learning_rate_that_became_a_schedule_loses_no_slot(
    tmp_path: pathlib.Path, saved: str, restored: str
) -> None:
    old, new = program(saved, adam), program(restored, scheduled)
    train(old.model, old.optimizer, range(3))
    plan = restore(new, save(old, tmp_path)).plan
    same(slots(new.optimizer, new.model), slots(old.optimizer, old.model))
    assert int(new.optimizer.iterations) == 3
    kept = {e.target for e in plan.entries if not e.filled and "seed" not in e.target}
    assert kept <= {"optimizer/current_learning_rate"}


@pytest.mark.parametrize("restored", [NEW, KERAS])
def test_a_schedule_that_became_a_rate_is_refused_and_not_guessed(tmp_path: pathlib.Path, restored: str) -> None:
    old, new = program(NEW, scheduled), program(restored, adam)
    train(old.model, old.optimizer, range(2))
    path = save(old, tmp_path)
    dr_targets(new)
    refuse(dr.UnmatchedError, new, path, "optimizer/learning_rate")
    restore(new, path, rules=dr.RuleSet.from_toml('[[rule]]\nkeep = "optimizer/learning_rate"'))
    same(slots(new.optimizer, new.model), slots(old.optimizer, old.model))


# ---- What could be mis-assigned --------------------------------------------------------------------------


def test_an_optimizer_that_was_asked_before_it_was_built_is_read_by_its_slots_names(tmp_path: pathlib.Path) -> None:
    """tf_keras remembers what an optimizer consists of when it is first asked: its lists are never saved then."""
    old = program(NEW, adam)
    tf.train.TrackableView.children(old.optimizer)
    train(old.model, old.optimizer, range(2))
    path = save(old, tmp_path)
    assert not any("momentums" in a for t in dr.open_checkpoint(path).index().tensors for a in alias_names(t))
    new = program(KERAS, adam)
    restore(new, path)
    same(slots(new.optimizer, new.model), slots(old.optimizer, old.model))


def alias_names(tensor: object) -> list[str]:
    return [tensor.name, *(a.name for a in tensor.aliases)]


def test_an_optimizer_that_was_built_without_a_scope_is_known_by_its_lists(tmp_path: pathlib.Path) -> None:
    old = program(NEW, adam)
    old.optimizer.build(old.model.trainable_variables)  # its slots are called `m/a/kernel`
    train(old.model, old.optimizer, range(2))
    path = save(old, tmp_path)
    new = program(KERAS, adam)
    restore(new, path)
    same(slots(new.optimizer, new.model), slots(old.optimizer, old.model))


def test_the_momentum_of_an_unnamed_sgd_may_be_that_of_a_lion_and_is_refused(tmp_path: pathlib.Path) -> None:
    old = program(NEW, lambda style: optimizers(style).Lion(0.01))
    old.optimizer.build(old.model.trainable_variables)
    train(old.model, old.optimizer, range(2))
    new = program(KERAS, CLASSES["sgd"])
    dr_targets(new)
    refuse(dr.UnmatchedError, new, save(old, tmp_path), "class changed")


@pytest.mark.parametrize("style", [NEW, LEGACY])
def test_the_state_of_an_rmsprop_does_not_become_that_of_an_adam(tmp_path: pathlib.Path, style: str) -> None:
    old = program(style, CLASSES["rmsprop"])
    train(old.model, old.optimizer, range(2))
    for restored in STYLES:
        new = program(restored, adam)
        dr_targets(new)
        refuse(dr.UnmatchedError, new, save(old, tmp_path), "rmsprop", "adam")


@pytest.mark.parametrize(("saved", "restored"), [(LEGACY, LEGACY), (LEGACY, KERAS), (NEW, KERAS)])
def test_an_adamax_is_no_adam(tmp_path: pathlib.Path, saved: str, restored: str) -> None:
    old, new = program(saved, CLASSES["adamax"]), program(restored, adam)
    train(old.model, old.optimizer, range(2))
    dr_targets(new)
    refuse(dr.UnmatchedError, new, save(old, tmp_path), "adamax")


def test_slots_whose_owners_names_are_not_unique_are_refused(tmp_path: pathlib.Path) -> None:
    """Two models whose layers have equal names: a slot's name cannot tell whose it is."""
    a, b = functional(NEW, "a"), functional(NEW, "a")
    old = Checkpoint(a=a, b=b, a_opt=adam(NEW), b_opt=adam(NEW))
    train(a, old.a_opt, range(2))
    train(b, old.b_opt, range(2, 4))
    path = save(old, tmp_path)
    c, d = functional(KERAS, "a"), functional(KERAS, "a")
    first, second = adam(KERAS), adam(KERAS)
    first.build(c.trainable_variables)
    second.build(d.trainable_variables)
    refuse(dr.UnmatchedError, Checkpoint(a=c, b=d, a_opt=first, b_opt=second), path)


def test_slots_without_their_owners_are_read_by_the_same_program(tmp_path: pathlib.Path) -> None:
    old, new = program(NEW, adam), program(NEW, adam)
    train(old.model, old.optimizer, range(2))
    train(new.model, new.optimizer, range(1))
    path = save(Checkpoint(optimizer=old.optimizer), tmp_path)
    restore(Checkpoint(optimizer=new.optimizer), path)
    for mine, other in zip(new.optimizer.variables, old.optimizer.variables, strict=True):
        assert np.array_equal(mine.numpy(), other.numpy())


# ---- Compiled, nested, mixed -----------------------------------------------------------------------------


@pytest.mark.parametrize("style", [NEW, LEGACY])
def test_a_compiled_model_that_never_trained_goes_on_where_the_old_one_stopped(
    tmp_path: pathlib.Path, style: str
) -> None:
    x, y = np.ones((4, 4), np.float32), np.zeros((4, 4), np.float32)
    old, new = functional(style), functional(style)
    for model in (old, new):
        model.compile(adam(style), "mse")
    old.fit(x, y, verbose=0)
    path = save(Checkpoint(model=old), tmp_path)
    restore(Checkpoint(model=new), path)
    same(weights(new), weights(old))
    same(slots(new.optimizer, new), slots(old.optimizer, old))


def nested(style: str, names: tuple[str | None, str | None]) -> object:
    layers = library(style).layers
    inner = library(style).Sequential([library(style).Input((4,)), layers.Dense(4, name=names[1])], name=names[0])
    inputs = library(style).Input((4,))
    return library(style).Model(inputs, layers.Dense(2, name="head")(inner(inputs)))


@pytest.mark.parametrize("names", [("inner", "first"), (None, "first"), ("inner", None), (None, None)])
def test_a_nested_model_of_keras_2_is_found_by_its_place_for_it_has_no_name_in_the_checkpoint(
    tmp_path: pathlib.Path, names: tuple[str | None, str | None]
) -> None:
    old, new = nested(NEW, names), nested(NEW, names)
    scramble(old, seed=1)
    path = save(Checkpoint(model=old), tmp_path)
    restore(Checkpoint(model=new), path)
    same(weights_by_order(new), weights_by_order(old))
    # Its name in the checkpoint is a place, by which rules may call it.
    scramble(new, seed=2)
    ours, theirs = (f"{m.layers[1].name}/{m.layers[1].layers[0].name}" for m in (new, old))
    inner = theirs.partition("/")[2]
    rules = {f"model/layer_with_weights-0/{inner}/{p}": f"model/{ours}/{p}" for p in ("kernel", "bias")}
    restore(Checkpoint(model=new), path, rules=rules)
    same(weights_by_order(new), weights_by_order(old))


@pytest.mark.parametrize("name", ["default", "mirrored2"])
def test_a_mixed_precision_model_of_keras_2_is_restored(tmp_path: pathlib.Path, name: str) -> None:
    def build() -> object:
        x = inputs = tf_keras.Input((4,))
        for layer in "ab":
            x = tf_keras.layers.Dense(4, name=layer, dtype="mixed_float16")(x)
        return tf_keras.Model(inputs, x)

    with make_strategy(name).scope():
        old, new = (Checkpoint(model=build(), optimizer=adam(NEW)) for _ in range(2))
    dr_targets(old)
    scramble(old.model, optimizer_variables(old), seed=1)
    restore(new, save(old, tmp_path))
    same(weights_by_order(new.model), weights_by_order(old.model))
    same(slots(new.optimizer, new.model), slots(old.optimizer, old.model))


# ---- Files of Keras 2 ------------------------------------------------------------------------------------


@pytest.mark.parametrize("restored", [NEW, KERAS])
@pytest.mark.parametrize("file", ["net.h5", "net.keras"])
def test_a_file_of_keras_2_goes_into_both_libraries(
    tmp_path: pathlib.Path, trainable: tf.distribute.Strategy, file: str, restored: str
) -> None:
    old = functional(NEW)
    scramble(old, seed=1)
    path = os.fspath(tmp_path / file)
    old.save(path)
    with trainable.scope():
        new = functional(restored)
    restore(Checkpoint(model=new), path)
    same(weights(new), weights(old))
