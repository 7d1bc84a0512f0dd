"""Optimizers are found, and built, wherever they hang: what the checkpoint has for them is never left behind."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tensorflow.train import Checkpoint

import dist_restore as dr
from live import assert_all_hold, assert_holds, assign, raw, refuse, replicas, restore, save, scramble, values

Strategy = tf.distribute.Strategy
Program = Callable[[], tuple[object, keras.Model, keras.optimizers.Optimizer]]


def dense(name: str = "net", *, size: int = 3) -> keras.Model:
    inputs = keras.Input((4,))
    x = keras.layers.Dense(size, name="hidden")(inputs)
    return keras.Model(inputs, keras.layers.Dense(2, name="out")(x), name=name)


class Trainer(tf.Module):
    """Holds an optimizer, and a model where it is given one."""

    def __init__(self, optimizer: object, model: object = None) -> None:
        super().__init__()
        self.opt = optimizer
        if model is not None:
            self.net = model


class KerasTrainer(keras.Model):
    """A model that is never called itself, and trains another in a step of its own."""

    def __init__(self, net: keras.Model) -> None:
        super().__init__()
        self.net = net


def compiled(optimizer: object = None) -> tuple[object, keras.Model, object]:
    model = dense()
    model.compile(optimizer or keras.optimizers.Adam(0.01), "mse")
    return Checkpoint(model=model), model, model.optimizer


def bare_compiled() -> tuple[object, keras.Model, object]:
    _, model, optimizer = compiled()
    return model, model, optimizer


def below_a_trainer() -> tuple[object, keras.Model, object]:
    model, optimizer = dense(), keras.optimizers.Adam(0.01)
    return Checkpoint(trainer=Trainer(optimizer, model)), model, optimizer


def beside_a_trainer() -> tuple[object, keras.Model, object]:
    model, optimizer = dense(), keras.optimizers.Adam(0.01)
    return Checkpoint(trainer=Trainer(optimizer), model=model), model, optimizer


def nested_checkpoints() -> tuple[object, keras.Model, object]:
    model, optimizer = dense(), keras.optimizers.Adam(0.01)
    inner = Checkpoint(state=Checkpoint(optimizer=optimizer))
    return Checkpoint(inner=inner, model=model), model, optimizer


def in_lists() -> tuple[object, keras.Model, object]:
    model, optimizer = dense(), keras.optimizers.Adam(0.01)
    return Checkpoint(optimizers=[optimizer], models=[model]), model, optimizer


def compiled_trainer() -> tuple[object, keras.Model, object]:
    model = dense()
    trainer = KerasTrainer(model)
    trainer.compile(keras.optimizers.Adam(0.01))
    return Checkpoint(trainer=trainer), model, trainer.optimizer


def loss_scaled() -> tuple[object, keras.Model, object]:
    return compiled(keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01)))


def part_beside_the_whole() -> tuple[object, keras.Model, object]:
    model, optimizer = dense(), keras.optimizers.Adam(0.01)
    backbone = keras.Model(model.inputs, model.get_layer("hidden").output)
    return Checkpoint(model=model, backbone=backbone, optimizer=optimizer), model, optimizer


PROGRAMS = [
    compiled,
    bare_compiled,
    below_a_trainer,
    beside_a_trainer,
    nested_checkpoints,
    in_lists,
    compiled_trainer,
    loss_scaled,
    part_beside_the_whole,
]


def inner(optimizer: object) -> object:
    return getattr(optimizer, "inner_optimizer", optimizer)


def build(optimizer: object, model: object) -> None:
    optimizer.build(model.trainable_variables)


def saved(program: Program, directory: pathlib.Path) -> tuple[str, object, object]:
    """A program with an optimizer that made steps, saved."""
    root, model, optimizer = program()
    build(optimizer, model)
    scramble(model, optimizer, seed=1)
    checkpoint = root if isinstance(root, Checkpoint) else Checkpoint(model=root)
    return save(checkpoint, directory), model, optimizer


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_optimizer_that_is_not_built_takes_its_own_slots(
    tmp_path: pathlib.Path, program: Program, trainable: Strategy
) -> None:
    with trainable.scope():
        path, model, optimizer = saved(program, tmp_path)
        root, new_model, new = program()
    assert not new.built
    report = restore(root, path)
    assert new.built
    assert inner(new).built
    assert_all_hold(new_model.variables, values(model.variables))
    assert_all_hold(new.variables, values(optimizer.variables))
    assert len(replicas(inner(new)._momentums[0])) == trainable.num_replicas_in_sync
    assert report.plan.problems == ()


def test_the_next_step_of_a_compiled_model_is_that_of_the_run_that_never_stopped(tmp_path: pathlib.Path) -> None:
    _, old, _ = compiled()
    x, y = np.ones((8, 4), np.float32), np.ones((8, 2), np.float32)
    old.fit(x, y, epochs=3, verbose=0)
    path = save(Checkpoint(model=old), tmp_path)
    _, new, _ = compiled()
    restore(Checkpoint(model=new), path)
    for model in (old, new):
        model.fit(x, y, epochs=1, verbose=0)
    assert_all_hold(new.variables, values(old.variables))
    assert_all_hold(new.optimizer.variables, values(old.optimizer.variables))


def test_a_second_restore_changes_nothing_that_the_first_one_built(tmp_path: pathlib.Path) -> None:
    path, _, optimizer = saved(compiled, tmp_path)
    root, _, new = compiled()
    restore(root, path)
    variables = [raw(v) for v in new.variables]
    restore(root, path)
    assert [id(raw(v)) for v in new.variables] == [id(v) for v in variables]
    assert_all_hold(new.variables, values(optimizer.variables))


def test_an_optimizer_that_was_built_for_some_variables_keeps_to_them(tmp_path: pathlib.Path) -> None:
    root, model, optimizer = below_a_trainer()
    optimizer.build(model.get_layer("out").trainable_variables)
    scramble(model, optimizer, seed=1)
    path = save(root, tmp_path)
    new_root, new_model, new = below_a_trainer()
    new.build(new_model.get_layer("out").trainable_variables)
    restore(new_root, path)
    assert len(new._momentums) == 2
    assert_all_hold(new.variables, values(optimizer.variables))


# ---- Where it is not clear what is trained ---------------------------------------------------------------


class Gan(keras.Model):
    """Two models, each with an optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.generator, self.discriminator = dense("generator"), dense("discriminator", size=5)

    def compile(self, g_optimizer: object, d_optimizer: object) -> None:
        super().compile()
        self.g_optimizer, self.d_optimizer = g_optimizer, d_optimizer


def gan(*, built: bool) -> Gan:
    model = Gan()
    model.compile(keras.optimizers.Adam(name="g"), keras.optimizers.Adam(name="d"))
    if built:
        build(model.g_optimizer, model.generator)
        build(model.d_optimizer, model.discriminator)
    return model


class Halves(keras.Model):
    """Keeps in one list what two optimizers train."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = [keras.layers.Dense(4), keras.layers.Dense(4)]

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.blocks[1](self.blocks[0](x))


def halves(seed: int) -> tuple[Checkpoint, list[tf.Variable]]:
    model, first, second = Halves(), keras.optimizers.Adam(), keras.optimizers.SGD(0.1, momentum=0.9)
    model(tf.zeros((1, 4)))
    first.build(model.blocks[0].trainable_variables)
    second.build(model.blocks[1].trainable_variables)
    found = [raw(v) for v in (*model.variables, *first.variables, *second.variables)]
    program = Checkpoint(model=model, first=first, second=second)
    scramble(program, seed=seed)
    return program, found


def test_a_list_of_which_each_optimizer_trains_a_part_reads_its_own(tmp_path: pathlib.Path) -> None:
    program, old = halves(1)
    path = save(program, tmp_path)
    program, new = halves(2)
    restore(program, path)
    assert_all_hold(new, values(old))


def test_optimizers_of_which_nothing_says_what_they_train_are_refused_by_name(tmp_path: pathlib.Path) -> None:
    old = gan(built=True)
    scramble(old, old.g_optimizer, old.d_optimizer, seed=1)
    path = save(Checkpoint(gan=old), tmp_path)
    new = gan(built=False)
    error = refuse(
        dr.UnbuiltModelError, Checkpoint(gan=new), path, "gan/g_optimizer", "gan/d_optimizer", "optimizer.build("
    )
    assert set(error.names) == {"gan/g_optimizer", "gan/d_optimizer"}
    assert not new.g_optimizer.built
    build(new.g_optimizer, new.generator)
    build(new.d_optimizer, new.discriminator)
    restore(Checkpoint(gan=new), path)
    for name in ("g_optimizer", "d_optimizer"):
        assert_all_hold(getattr(new, name).variables, values(getattr(old, name).variables))


def test_a_loss_scale_of_which_nothing_says_what_it_trains_is_refused_by_name(tmp_path: pathlib.Path) -> None:
    """With plain SGD inside there are no slots: its own two variables are all that it would leave behind."""

    def program(*, is_built: bool) -> Checkpoint:
        models = dense("one"), dense("two")
        optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())
        if is_built:
            optimizer.build([v for model in models for v in model.trainable_variables])
        return Checkpoint(one=models[0], two=models[1], optimizer=optimizer)

    path = save(program(is_built=True), tmp_path)
    refuse(dr.UnbuiltModelError, program(is_built=False), path, "optimizer/dynamic_scale")
    restore(program(is_built=True), path)


def test_such_slots_may_be_dropped_by_rules(tmp_path: pathlib.Path) -> None:
    old = gan(built=True)
    path = save(Checkpoint(gan=old), tmp_path)
    new = gan(built=False)
    rules = [dr.Rule(drop=f"gan/{o}_optimizer/{role}/{{rest}}") for o in "gd" for role in ("momentum", "velocity")]
    restore(Checkpoint(gan=new), path, rules=rules)
    assert_all_hold(new.generator.variables, values(old.generator.variables))


def test_an_evaluation_without_optimizers_leaves_all_slots_behind(tmp_path: pathlib.Path) -> None:
    path, model, _ = saved(compiled, tmp_path)
    new = dense()
    restore(Checkpoint(model=new), path)
    assert_all_hold(new.variables, values(model.variables))


def test_slots_of_a_removed_layer_are_left_behind(tmp_path: pathlib.Path) -> None:
    old, optimizer = dense(), keras.optimizers.Adam()
    extra = keras.layers.Dense(3, name="extra")
    extra.build((4,))
    optimizer.build([*old.trainable_variables, *extra.trainable_variables])
    scramble(old, optimizer, extra, seed=1)
    path = save(Checkpoint(model=old, extra=extra, optimizer=optimizer), tmp_path)
    new, fresh = dense(), keras.optimizers.Adam()
    restore(Checkpoint(model=new, optimizer=fresh), path)
    assert_all_hold(fresh._momentums, values(optimizer._momentums[:4]))


def test_a_variable_beside_the_model_that_has_slots_is_not_left_without(tmp_path: pathlib.Path) -> None:
    def make() -> tuple[Checkpoint, keras.Model, tf.Variable, keras.optimizers.Adam]:
        model, scale, optimizer = dense(), tf.Variable([1.0, 2.0]), keras.optimizers.Adam()
        return Checkpoint(model=model, scale=scale, optimizer=optimizer), model, scale, optimizer

    root, model, scale, optimizer = make()
    optimizer.build([*model.trainable_variables, scale])
    scramble(model, optimizer, seed=1)
    path = save(root, tmp_path)
    new_root, new_model, new_scale, new = make()
    refuse(dr.UnmatchedError, new_root, path, "'scale'", "optimizer/momentum/scale", "optimizer.build(variables)")
    root, new_model, new_scale, new = make()
    new.build([*new_model.trainable_variables, new_scale])
    restore(root, path)
    assert_all_hold(new._momentums, values(optimizer._momentums))


def test_an_optimizer_that_was_built_too_early_is_refused_by_name(tmp_path: pathlib.Path) -> None:
    path, _, _ = saved(compiled, tmp_path)
    root, model, optimizer = compiled()
    optimizer.build(model.get_layer("out").trainable_variables)
    refuse(dr.UnbuiltModelError, root, path, "model/optimizer", "4", "2", "new optimizer")


# ---- Before the first step -------------------------------------------------------------------------------


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_checkpoint_from_before_the_first_step_is_read(
    tmp_path: pathlib.Path, program: Program, trainable: Strategy
) -> None:
    with trainable.scope():
        old_root, model, old = program()
        scramble(model, seed=1)
        assign(inner(old).learning_rate, np.float32(0.5))
        path = save(old_root if isinstance(old_root, Checkpoint) else Checkpoint(model=old_root), tmp_path)
        root, new_model, new = program()
    report = restore(root, path)
    assert_all_hold(new_model.variables, values(model.variables))
    assert_holds(inner(new).learning_rate, np.float32(0.5))
    assert not any(np.any(array) for array in values(inner(new)._momentums))
    assert any("first step" in e.reason for e in report.plan.entries)
    restore(root, path)  # it is built now, and still as it begins


ANY_STATE = {
    "accumulation": lambda: keras.optimizers.Adam(gradient_accumulation_steps=2),
    "average": lambda: keras.optimizers.SGD(use_ema=True),
    "adafactor": keras.optimizers.Adafactor,
    "ftrl": keras.optimizers.Ftrl,
    "muon": getattr(keras.optimizers, "Muon", None),
}


@pytest.mark.parametrize("name", ANY_STATE)
def test_whatever_an_optimizer_keeps_its_checkpoint_from_before_the_first_step_is_read(
    tmp_path: pathlib.Path, name: str
) -> None:
    if ANY_STATE[name] is None:
        pytest.skip("this Keras has no such optimizer")

    def program() -> keras.Model:
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="a"), keras.layers.Dense(4, name="b")])
        model.compile(ANY_STATE[name](), "mse")
        return model

    old, new = program(), program()
    scramble(old, seed=1)
    path = save(Checkpoint(model=old), tmp_path)
    report = restore(Checkpoint(model=new), path)
    assert_all_hold(new.variables, values(old.variables))
    assert {e.status for e in report.plan.entries} == {dr.Status.EXACT, dr.Status.KEPT}
    x = tf.ones((4, 4))
    for model in (old, new):
        model.fit(x, x, verbose=0, shuffle=False)
    assert_all_hold(new.variables, values(old.variables))


def test_an_optimizer_that_made_steps_is_not_taken_for_one_at_its_beginning(tmp_path: pathlib.Path) -> None:
    root, _, _ = compiled()
    path = save(root, tmp_path)
    root, model, optimizer = compiled()
    build(optimizer, model)
    scramble(model, optimizer, seed=1)
    refuse(dr.UnmatchedError, root, path, "model/optimizer/momentum/model/hidden/kernel")


def test_no_slots_of_another_class_are_no_beginning(tmp_path: pathlib.Path) -> None:
    root, model, optimizer = compiled(keras.optimizers.SGD(0.01))
    build(optimizer, model)
    path = save(root, tmp_path)
    root, _, _ = compiled()
    refuse(dr.UnmatchedError, root, path, "sgd")


def test_averages_do_not_begin_at_a_step_that_is_not_known(tmp_path: pathlib.Path) -> None:
    root, model, optimizer = compiled(keras.optimizers.SGD(0.01))
    build(optimizer, model)
    scramble(model, optimizer)
    path = save(root, tmp_path)
    root, _, _ = compiled(keras.optimizers.SGD(0.01, use_ema=True))
    refuse(dr.UnmatchedError, root, path, "model/optimizer/average/model/hidden/kernel")


# ---- tf_keras --------------------------------------------------------------------------------------------


class Averages(tf_keras.optimizers.legacy.Optimizer):
    """What Model Garden's ExponentialMovingAverage is to a checkpoint: a wrapper with slots of its own."""

    def __init__(self, optimizer: object, name: str = "ExponentialMovingAverage") -> None:
        super().__init__(name)
        self._optimizer = optimizer
        self._track_trackable(optimizer, "base_optimizer")

    def shadow_copy(self, model: tf_keras.Model) -> None:
        for variable in model.trainable_variables:
            self.add_slot(variable, "average", initializer="zeros")

    def _create_slots(self, var_list: Sequence[tf.Variable]) -> None:
        self._optimizer._create_slots(var_list=var_list)

    def _create_hypers(self) -> None:
        self._optimizer._create_hypers()

    def _prepare(self, var_list: Sequence[tf.Variable]) -> object:
        return self._optimizer._prepare(var_list=var_list)

    def apply_gradients(self, grads_and_vars: object, name: str | None = None) -> object:
        return self._optimizer.apply_gradients(grads_and_vars, name)

    @property
    def iterations(self) -> tf.Variable:
        return self._optimizer.iterations

    @property
    def weights(self) -> list[tf.Variable]:
        return self._optimizer.weights

    @property
    def learning_rate(self) -> object:
        return self._optimizer._get_hyper("learning_rate")


def dense2() -> tf_keras.Model:
    inputs = tf_keras.Input((4,))
    x = tf_keras.layers.Dense(3, name="hidden")(inputs)
    return tf_keras.Model(inputs, tf_keras.layers.Dense(2, name="out")(x))


def scaled_new() -> object:
    return tf_keras.mixed_precision.LossScaleOptimizer(tf_keras.optimizers.Adam(0.01))


def scaled_legacy() -> object:
    return tf_keras.mixed_precision.LossScaleOptimizer(tf_keras.optimizers.legacy.Adam(0.01))


def averaged() -> object:
    return Averages(tf_keras.optimizers.legacy.Adam(0.01))


def averaged_scaled() -> object:
    return tf_keras.mixed_precision.LossScaleOptimizer(averaged())


OPTIMIZERS = [
    lambda: tf_keras.optimizers.Adam(0.01),
    lambda: tf_keras.optimizers.legacy.Adam(0.01),
    scaled_new,
    scaled_legacy,
    averaged,
]
IDS = ["new", "legacy", "scaled_new", "scaled_legacy", "averaged"]


def step(strategy: Strategy, model: tf_keras.Model, optimizer: object) -> None:
    def replica() -> None:
        variables = model.trainable_variables
        optimizer.apply_gradients([(tf.ones_like(v), v) for v in variables])

    strategy.run(tf.function(replica))


def state(optimizer: object, model: tf_keras.Model) -> list[tf.Variable]:
    """All variables of an optimizer, slots included, in an order that building decides."""
    core, found = optimizer, []
    while core is not None:
        own = vars(core)
        if "_slots" in own:
            found += [core.get_slot(v, n) for v in model.trainable_variables for n in core.get_slot_names()]
            found += [core.iterations] if "_optimizer" not in own else []
        elif "_variables" in own:
            found += [core.iterations, *core.momentums, *core.velocities] if hasattr(core, "momentums") else []
            found += [*core._momentums, *core._velocities] if hasattr(core, "_momentums") else []
        loss_scale = own.get("_loss_scale")
        found += [loss_scale.current_loss_scale] if loss_scale is not None else []
        core = own.get("_optimizer")
    assert len(found) >= 8
    return found


@pytest.mark.parametrize("compiled", [False, True], ids=["beside", "compiled"])
@pytest.mark.parametrize("make", OPTIMIZERS, ids=IDS)
def test_optimizers_of_keras_2_take_their_own_slots(
    tmp_path: pathlib.Path, make: Callable[[], object], compiled: bool, trainable: Strategy
) -> None:
    def program() -> tuple[Checkpoint, tf_keras.Model, object]:
        model, optimizer = dense2(), make()
        if isinstance(optimizer, Averages):
            optimizer.shadow_copy(model)
        if not compiled:
            return Checkpoint(model=model, optimizer=optimizer), model, optimizer
        model.compile(optimizer, "mse")
        return Checkpoint(model=model), model, model.optimizer

    with trainable.scope():
        root, model, optimizer = program()
        step(trainable, model, optimizer)
        scramble(model, state(optimizer, model), seed=1)
        path = save(root, tmp_path)
        stepped_root, stepped_model, stepped = program()
        step(trainable, stepped_model, stepped)
        unbuilt_root, unbuilt_model, unbuilt = program()
    for root, new_model, new in (
        (stepped_root, stepped_model, stepped),
        (unbuilt_root, unbuilt_model, unbuilt),
    ):
        restore(root, path)
        assert_all_hold(new_model.variables, values(model.variables))
        assert_all_hold(state(new, new_model), values(state(optimizer, model)))


def test_averages_that_were_not_made_are_refused_by_name(tmp_path: pathlib.Path) -> None:
    model, optimizer = dense2(), averaged()
    optimizer.shadow_copy(model)
    step(tf.distribute.get_strategy(), model, optimizer)
    path = save(Checkpoint(model=model, optimizer=optimizer), tmp_path)
    root = Checkpoint(model=dense2(), optimizer=averaged())
    refuse(dr.UnbuiltModelError, root, path, "ExponentialMovingAverage", "average", "shadow_copy")


@pytest.mark.parametrize("style", ["new", "legacy"])
def test_the_advice_for_an_optimizer_names_only_methods_that_it_has(tmp_path: pathlib.Path, style: str) -> None:
    make = dict(zip(IDS, OPTIMIZERS, strict=True))[style]
    models, optimizer = [dense2(), dense2()], make()
    for model in models:
        step(tf.distribute.get_strategy(), model, optimizer) if style == "legacy" or model is models[0] else None
    path = save(Checkpoint(a=models[0], b=models[1], optimizer=optimizer), tmp_path)
    root = Checkpoint(a=dense2(), b=dense2(), optimizer=make())
    error = refuse(dr.UnbuiltModelError, root, path, "optimizer")
    assert ("optimizer.build(" in str(error)) == (style == "new")
    assert hasattr(make(), "build") == (style == "new")


# ---- Classes of users ------------------------------------------------------------------------------------


class Lars(keras.optimizers.Optimizer):
    """A class that nobody else knows."""

    def build(self, variables: Sequence[keras.Variable]) -> None:
        if not self.built:
            super().build(variables)
            self._momentums = [self.add_variable_from_reference(v, name="momentum") for v in variables]

    def update_step(self, gradient: tf.Tensor, variable: keras.Variable, learning_rate: object) -> None:
        momentum = self._momentums[self._get_variable_index(variable)]
        self.assign(momentum, 0.9 * momentum + gradient)
        self.assign_sub(variable, learning_rate * momentum)


def test_a_class_of_the_users_own_reads_its_own_checkpoint(tmp_path: pathlib.Path) -> None:
    path, _, optimizer = saved(lambda: compiled(Lars(0.1, name="lars")), tmp_path)
    root, _, new = compiled(Lars(0.1, name="lars"))
    restore(root, path)
    assert_all_hold(new.variables, values(optimizer.variables))


def test_an_optimizer_beside_a_layer_without_variables_is_not_built_for_another_model(tmp_path: pathlib.Path) -> None:
    """The layer is what it trains, and is not there yet; a model further up is none of its own."""
    path = save(Checkpoint(other=dense()), tmp_path)
    optimizer = keras.optimizers.Adam(0.01)
    trainer = Trainer(optimizer, keras.layers.Dense(2))
    restore(Checkpoint(trainer=trainer, other=dense()), path, unmatched="keep")
    assert not optimizer.built
