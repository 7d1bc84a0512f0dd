"""Optimizer state when the set-up around it changed: wrapped, averaged, accumulating, several, or of another class."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence

import keras
import numpy as np
import pytest
import tensorflow as tf

import dist_restore as dr
from conftest import make_strategy
from dist_restore.ops import Fill, Fit, Op, Scale
from live import (
    adam,
    assert_all_hold,
    assert_holds,
    assert_unchanged,
    built,
    entry,
    moments,
    net,
    refuse,
    restore,
    save,
    scramble,
    seq,
    slot,
    snapshot,
    train_step,
    value,
    values,
)
from places import ROOT

Checkpoint = tf.train.Checkpoint
Make = Callable[[], keras.optimizers.Optimizer]
Adam, SGD = keras.optimizers.Adam, keras.optimizers.SGD
LossScale = keras.optimizers.LossScaleOptimizer
EXAMPLES = ROOT / "configs" / "examples"


@pytest.fixture(params=["default", "mirrored2", "tpu"])
def anywhere(request: pytest.FixtureRequest) -> tf.distribute.Strategy:
    return make_strategy(request.param)


class Pair:
    """A saved program, and another one with a changed optimizer, both filled with values of their own."""

    def __init__(
        self, directory: pathlib.Path, old: Make, new: Make, strategy: tf.distribute.Strategy | None = None
    ) -> None:
        with (strategy or tf.distribute.get_strategy()).scope():
            self.old, self.new = net(a=4, b=2), net(a=4, b=2)
            self.theirs, self.mine = built(old(), self.old), built(new(), self.new)
        scramble(self.old, self.theirs, seed=1)
        self.path = save(Checkpoint(model=self.old, optimizer=self.theirs), directory)
        scramble(self.new, self.mine, seed=2)
        self.root = Checkpoint(model=self.new, optimizer=self.mine)

    def owners(self) -> list[tuple[keras.Variable, keras.Variable]]:
        """(mine, theirs) of each trained variable."""
        return [*zip(self.new.trainable_variables, self.old.trainable_variables, strict=True)]

    def assert_weights(self) -> None:
        assert_all_hold(self.new.weights, values(self.old.weights))

    def assert_slots(self, role: str = "momentums", other: str = "") -> None:
        """The role `role` of the new optimizer is the old one's role `other`."""
        for mine, theirs in self.owners():
            assert_holds(slot(inside(self.mine), role, mine), value(slot(inside(self.theirs), other or role, theirs)))

    def assert_adam(self) -> None:
        self.assert_slots("momentums")
        self.assert_slots("velocities")

    def assert_counters(self) -> None:
        mine, theirs = inside(self.mine), inside(self.theirs)
        assert_holds(mine._iterations, value(theirs._iterations))
        assert_holds(mine._learning_rate, value(theirs._learning_rate))


def inside(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    return inside(optimizer.inner_optimizer) if isinstance(optimizer, LossScale) else optimizer


def continues(directory: pathlib.Path, strategy: tf.distribute.Strategy, old: Make, new: Make, rules: object) -> None:
    """Three steps after the restore are bit by bit those of the run that was not interrupted."""
    with strategy.scope():
        before = net(first=8, last=2)
        theirs = built(old(), before)
    step = train_step(strategy, before, theirs)
    for number in range(4):
        step(number)
    path = save(Checkpoint(model=before, optimizer=theirs), directory)
    uninterrupted = [step(number) for number in range(4, 7)]

    with strategy.scope():
        after = net(first=8, last=2)
        mine = built(new(), after)
    restore(Checkpoint(model=after, optimizer=mine), path, rules=rules)
    step = train_step(strategy, after, mine)
    assert [step(number) for number in range(4, 7)] == uninterrupted
    assert_all_hold(after.weights, values(before.weights))


def unused(plan: dr.RestorePlan) -> dict[str, str]:
    return {u.name: u.reason for u in plan.unused}


def rule(*pairs: tuple[str, str | Sequence[str]], keep: Sequence[str] = ()) -> list[dr.Rule]:
    return [dr.Rule(from_=a, to=b) for a, b in pairs] + [dr.Rule(keep=k) for k in keep]


# ---- A wrapper on and off --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "inner", [lambda: Adam(0.02), lambda: SGD(0.02, momentum=0.9, use_ema=True)], ids=["adam", "momentum-ema"]
)
def test_a_loss_scale_put_around_an_optimizer_takes_its_state_inside(
    tmp_path: pathlib.Path, anywhere: tf.distribute.Strategy, inner: Make
) -> None:
    pair = Pair(tmp_path, inner, lambda: LossScale(inner()), anywhere)
    own = pair.mine._variables
    before = snapshot({str(i): v for i, v in enumerate(own)})
    assert len(before) == 4  # iterations and learning rate that it never uses, step_counter, dynamic_scale
    plan = restore(pair.root, pair.path).plan
    pair.assert_weights()
    pair.assert_counters()
    assert_all_hold(inside(pair.mine).variables, values(pair.theirs.variables))
    assert_unchanged(before)
    for name in ("iterations", "learning_rate", "step_counter", "dynamic_scale"):
        kept = entry(plan, f"optimizer/{name}")
        assert kept.status is dr.Status.KEPT and "LossScaleOptimizer's own" in kept.reason


@pytest.mark.parametrize(
    "inner", [lambda: Adam(0.02), lambda: SGD(0.02, momentum=0.9, use_ema=True)], ids=["adam", "momentum-ema"]
)
def test_a_loss_scale_taken_off_leaves_the_state_from_inside(
    tmp_path: pathlib.Path, anywhere: tf.distribute.Strategy, inner: Make
) -> None:
    pair = Pair(tmp_path, lambda: LossScale(inner()), inner, anywhere)
    plan = restore(pair.root, pair.path).plan
    pair.assert_weights()
    pair.assert_counters()
    assert_all_hold(pair.mine.variables, values(inside(pair.theirs).variables))
    reasons = unused(plan)
    for name in ("iterations", "learning_rate", "step_counter", "dynamic_scale"):
        assert "wrapper" in reasons[f"optimizer/{name}"]


@pytest.mark.parametrize("on", [True, False], ids=["on", "off"])
def test_training_goes_on_as_if_nothing_had_happened_when_a_loss_scale_comes_or_goes(
    tmp_path: pathlib.Path, trainable: tf.distribute.Strategy, on: bool
) -> None:
    def plain() -> keras.optimizers.Optimizer:
        return Adam(0.05)

    def wrapped() -> keras.optimizers.Optimizer:
        return LossScale(Adam(0.05), initial_scale=1024.0)

    old, new = (plain, wrapped) if on else (wrapped, plain)
    continues(tmp_path, trainable, old, new, None)


def test_two_wrappers_are_matched_with_all_of_their_own_state(
    tmp_path: pathlib.Path, anywhere: tf.distribute.Strategy
) -> None:
    pair = Pair(tmp_path, lambda: LossScale(Adam()), lambda: LossScale(Adam()), anywhere)
    restore(pair.root, pair.path)
    assert_all_hold(pair.mine.variables, values(pair.theirs.variables))


def test_a_wrapped_optimizer_under_another_name_is_the_only_one(tmp_path: pathlib.Path) -> None:
    pair = Pair(tmp_path, lambda: LossScale(Adam()), Adam)
    restore(Checkpoint(model=pair.new, opt=pair.mine), pair.path)
    pair.assert_counters()
    pair.assert_adam()


def test_of_two_optimizers_each_loses_its_own_wrapper(tmp_path: pathlib.Path) -> None:
    def build(make: Make) -> tuple[Checkpoint, list[keras.optimizers.Optimizer]]:
        g, d = net(a=4), net(a=4)
        optimizers = [built(make(), g), built(make(), d)]
        return Checkpoint(g=g, d=d, gen_opt=optimizers[0], disc_opt=optimizers[1]), optimizers

    old, theirs = build(lambda: LossScale(Adam()))
    new, mine = build(Adam)
    scramble(old, *theirs, seed=1)
    path = save(old, tmp_path)
    scramble(new, *mine, seed=2)
    restore(new, path)
    for ours, others in zip(mine, theirs, strict=True):
        assert_all_hold(ours.variables, values(others.inner_optimizer.variables))


def test_a_compiled_model_in_float32_takes_over_what_mixed_precision_had_wrapped(tmp_path: pathlib.Path) -> None:
    def build(policy: str) -> keras.Model:
        inputs = keras.Input((4,), dtype="float32")
        outputs = keras.layers.Dense(2, name="a", dtype=policy)(inputs)
        model = keras.Model(inputs, outputs)
        optimizer: keras.optimizers.Optimizer = Adam(0.02)
        model.compile(LossScale(optimizer) if policy == "mixed_float16" else optimizer, "mse", jit_compile=False)
        model.optimizer.build(model.trainable_variables)
        return model

    old, new = build("mixed_float16"), build("float32")
    assert isinstance(old.optimizer, LossScale)
    scramble(old, old.optimizer, seed=1)
    path = save(Checkpoint(model=old), tmp_path)
    restore(Checkpoint(model=new), path)
    assert_all_hold(new.optimizer.variables, values(old.optimizer.inner_optimizer.variables))


class Lookahead(LossScale):
    """A user's own wrapper: what its state means nobody knows."""


def test_state_of_a_wrapper_that_is_not_known_is_refused(tmp_path: pathlib.Path) -> None:
    pair = Pair(tmp_path, Adam, lambda: Lookahead(Adam()))
    error = refuse(dr.UnmatchedError, pair.root, pair.path, "the wrapper 'optimizer' itself", "not wrapped")
    own = {f"optimizer/{n}" for n in ("iterations", "learning_rate", "step_counter", "dynamic_scale")}
    assert set(error.names) == own


# ---- Averages of weights: raw or averaged, by choice -----------------------------------------------------


@pytest.mark.parametrize("make", [Adam, lambda: Adam(use_ema=True)], ids=["without", "with"])
def test_weights_are_the_raw_ones_unless_a_rule_says_otherwise(
    tmp_path: pathlib.Path, anywhere: tf.distribute.Strategy, make: Make
) -> None:
    pair = Pair(tmp_path, lambda: Adam(use_ema=True), make, anywhere)
    plan = restore(pair.root, pair.path).plan
    pair.assert_weights()
    pair.assert_adam()
    if pair.mine.use_ema:
        pair.assert_slots("model_variables_moving_average")
    else:
        assert "average" in unused(plan)["optimizer/average/model/a/kernel"]


def test_the_averages_alone_are_a_model_when_a_rule_file_says_so(
    tmp_path: pathlib.Path, anywhere: tf.distribute.Strategy
) -> None:
    pair = Pair(tmp_path, lambda: Adam(use_ema=True), Adam, anywhere)
    plan = restore(Checkpoint(model=pair.new), pair.path, rules=EXAMPLES / "ema.toml").plan
    for mine, theirs in pair.owners():
        assert_holds(mine, value(slot(pair.theirs, "model_variables_moving_average", theirs)))
    assert entry(plan, "model/a/kernel").sources == ("optimizer/average/model/a/kernel",)
    assert "rule 1" in unused(plan)["model/a/kernel"]


def test_the_moments_of_raw_weights_are_not_given_to_averaged_ones_unless_that_is_said(
    tmp_path: pathlib.Path, anywhere: tf.distribute.Strategy
) -> None:
    pair = Pair(tmp_path, lambda: Adam(use_ema=True), lambda: Adam(use_ema=True), anywhere)
    averages = ("optimizer/average/model/{rest}", "model/{rest}")
    error = refuse(
        dr.UnmatchedError,
        pair.root,
        pair.path,
        'keep = "optimizer/momentum/model/a/kernel"',
        'from = "optimizer/momentum/model/a/kernel"',
        rules=rule(averages),
    )
    assert "optimizer/average/model/a/kernel" not in error.names
    both = [(f"optimizer/{role}/model/{{rest}}",) * 2 for role in ("momentum", "velocity")]
    restore(pair.root, pair.path, rules=rule(averages, *both))
    pair.assert_adam()
    for mine, theirs in pair.owners():
        average = value(slot(pair.theirs, "model_variables_moving_average", theirs))
        assert_holds(mine, average)
        assert_holds(slot(pair.mine, "model_variables_moving_average", mine), average)


def test_averages_that_begin_with_a_new_option_are_refused_until_they_begin_as_their_weights(
    tmp_path: pathlib.Path,
) -> None:
    pair = Pair(tmp_path, Adam, lambda: Adam(use_ema=True))
    refuse(
        dr.UnmatchedError,
        pair.root,
        pair.path,
        "optimizer/average/model/a/kernel",
        'from = "model/{rest}", to = "optimizer/average/model/{rest}"',
    )
    average = "optimizer/average/model/{rest}"
    for rules in (rule(("model/{rest}", average)), rule(("model/{rest}", ("model/{rest}", average)))):
        scramble(pair.new, pair.mine, seed=3)
        restore(pair.root, pair.path, rules=rules)
        pair.assert_weights()
        pair.assert_adam()
        for mine, theirs in pair.owners():
            assert_holds(slot(pair.mine, "model_variables_moving_average", mine), value(theirs))


class Tied(keras.Model):
    """One kernel in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.second = keras.layers.Dense(4)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.second(self.first(x))


def test_a_tied_variable_has_one_average_and_two_names(
    tmp_path: pathlib.Path, anywhere: tf.distribute.Strategy
) -> None:
    def build() -> tuple[keras.Model, keras.optimizers.Optimizer]:
        model = Tied()
        model(tf.zeros((1, 4)))
        return model, built(Adam(use_ema=True), model)

    with anywhere.scope():
        (old, theirs), (new, mine) = build(), build()
    scramble(old, theirs, seed=1)
    path = save(Checkpoint(model=old, optimizer=theirs), tmp_path)
    scramble(new, mine, seed=2)
    plan = restore(Checkpoint(model=new, optimizer=mine), path).plan
    assert_all_hold(mine.variables, values(theirs.variables))
    assert [e.target for e in plan.entries if e.target.startswith("model/")] == [
        "model/first/bias",
        "model/first/kernel",
    ]
    index = dr.open_checkpoint(path).index()
    kernel = next(t for t in index.tensors if t.name == "model/first/kernel")
    assert "model/second/kernel" in {a.name for a in kernel.aliases}

    rules = rule(("optimizer/average/model/first/kernel", "model/second/kernel"), keep=["optimizer/{rest}"])
    restore(Checkpoint(model=new, optimizer=mine), path, rules=rules)
    assert_holds(new.first.kernel, value(slot(theirs, "model_variables_moving_average", old.first.kernel)))


def test_a_second_model_of_averages_is_never_taken_for_the_first(tmp_path: pathlib.Path) -> None:
    old, ema, new = net(a=4), net(a=4), net(a=4)
    scramble(old, ema, seed=1)
    path = save(Checkpoint(model=old, ema=ema), tmp_path)
    restore(Checkpoint(model=new), path)
    assert_all_hold(new.weights, values(old.weights))
    refuse(dr.AmbiguousMatchError, Checkpoint(net=new), path, "net/a/kernel", "ema/a/kernel", "model/a/kernel")
    restore(Checkpoint(model=new), path, rules=rule(("ema/{rest}", "model/{rest}")))
    assert_all_hold(new.weights, values(ema.weights))


# ---- Gradient accumulation -------------------------------------------------------------------------------


def accumulating() -> keras.optimizers.Optimizer:
    return Adam(0.05, gradient_accumulation_steps=2)


@pytest.mark.parametrize("on", [True, False], ids=["on", "off"])
def test_a_number_of_batches_never_becomes_one_of_updates(
    tmp_path: pathlib.Path, anywhere: tf.distribute.Strategy, on: bool
) -> None:
    pair = Pair(tmp_path, *((Adam, accumulating) if on else (accumulating, Adam)), anywhere)
    words = ("optimizer/iterations", "batches", "updates", 'keep = "optimizer/iterations"')
    refuse(dr.AmbiguousMatchError, pair.root, pair.path, *words)
    iterations = value(pair.mine._iterations)
    keep = ["optimizer/iterations", *(["optimizer/accumulated_gradient/{rest}"] if on else [])]
    before = snapshot({"it": pair.mine._iterations})
    plan = restore(pair.root, pair.path, rules=rule(keep=keep)).plan
    assert_holds(pair.mine._iterations, iterations)
    assert_unchanged(before)
    pair.assert_adam()
    if not on:
        assert "accumulated_gradient" in unused(plan)["optimizer/accumulated_gradient/model/a/kernel"]
    restore(pair.root, pair.path, rules=rule(("optimizer/iterations",) * 2, keep=keep[1:]))
    assert_holds(pair.mine._iterations, value(pair.theirs._iterations))


def test_accumulated_gradients_of_a_half_done_update_are_restored(tmp_path: pathlib.Path) -> None:
    """Four steps of three: one is in the accumulators. (Keras itself cannot accumulate under MirroredStrategy.)"""

    def make() -> keras.optimizers.Optimizer:
        return Adam(0.05, gradient_accumulation_steps=3)

    continues(tmp_path, tf.distribute.get_strategy(), make, make, None)


# ---- Another class, or another option --------------------------------------------------------------------


@pytest.mark.parametrize("old", [Adam, keras.optimizers.AdamW, keras.optimizers.Nadam])
@pytest.mark.parametrize("new", [Adam, keras.optimizers.AdamW, keras.optimizers.Nadam])
def test_classes_with_the_same_moments_take_them_over(tmp_path: pathlib.Path, old: Make, new: Make) -> None:
    pair = Pair(tmp_path, old, new)
    rules = None
    if new is keras.optimizers.Nadam and old is not new:
        # A product over all steps, which only Nadam has: with a fresh one its next steps would be those of a beginner.
        refuse(dr.UnmatchedError, pair.root, pair.path, "optimizer/u_product")
        rules = rule(keep=["optimizer/u_product"])
    restore(pair.root, pair.path, rules=rules)
    pair.assert_weights()
    pair.assert_counters()
    pair.assert_adam()


def test_training_goes_on_after_amsgrad_was_left_out_of_a_run_that_had_it(
    tmp_path: pathlib.Path, anywhere: tf.distribute.Strategy
) -> None:
    pair = Pair(tmp_path, lambda: Adam(amsgrad=True), Adam, anywhere)
    plan = restore(pair.root, pair.path).plan
    pair.assert_adam()
    assert "velocity_hat" in unused(plan)["optimizer/velocity_hat/model/a/kernel"]


def test_amsgrad_turned_on_is_refused_until_its_maximum_is_kept_or_begins_at_the_velocity(
    tmp_path: pathlib.Path, anywhere: tf.distribute.Strategy
) -> None:
    pair = Pair(tmp_path, Adam, lambda: Adam(amsgrad=True), anywhere)
    refuse(
        dr.UnmatchedError,
        pair.root,
        pair.path,
        "optimizer/velocity_hat/model/a/kernel",
        'keep = "optimizer/velocity_hat/{rest}"',
    )
    restore(pair.root, pair.path, rules={"slots": {"velocity": "velocity_hat"}})
    pair.assert_adam()
    pair.assert_slots("velocity_hats", "velocities")


def test_momentum_that_is_new_is_refused_and_kept_by_the_rule_that_the_refusal_names(
    tmp_path: pathlib.Path, anywhere: tf.distribute.Strategy
) -> None:
    pair = Pair(tmp_path, SGD, lambda: SGD(momentum=0.9), anywhere)
    keep = "optimizer/momentum/{rest}"
    words = ("optimizer/momentum/model/a/kernel", "sgd", "keeps no slots", f'keep = "{keep}"')
    refuse(dr.UnmatchedError, pair.root, pair.path, *words)
    before = values(pair.mine.momentums)
    restore(pair.root, pair.path, rules=rule(keep=[keep]))
    pair.assert_weights()
    pair.assert_counters()
    assert_all_hold(pair.mine.momentums, before)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (lambda: keras.optimizers.RMSprop(momentum=0.9), lambda: SGD(momentum=0.9)),
        (lambda: SGD(momentum=0.9), lambda: keras.optimizers.RMSprop(momentum=0.9)),
        (Adam, lambda: SGD(momentum=0.9)),
        (lambda: keras.optimizers.RMSprop(), Adam),
        (keras.optimizers.Adamax, Adam),
    ],
    ids=["rmsprop-sgd", "sgd-rmsprop", "adam-sgd", "rmsprop-adam", "adamax-adam"],
)
def test_an_equal_role_of_another_class_is_refused_with_the_table_that_allows_it(
    tmp_path: pathlib.Path, old: Make, new: Make
) -> None:
    pair = Pair(tmp_path, old, new)
    refuse(dr.UnmatchedError, pair.root, pair.path, "class changed", "[slots]", "model/a/kernel")


def schedule() -> keras.optimizers.Optimizer:
    return Adam(keras.optimizers.schedules.ExponentialDecay(0.05, 10, 0.9))


def test_a_learning_rate_that_became_a_schedule_and_came_back(
    tmp_path: pathlib.Path, anywhere: tf.distribute.Strategy
) -> None:
    to = Pair(tmp_path / "to", Adam, schedule, anywhere)
    plan = restore(to.root, to.path).plan
    to.assert_adam()
    assert_holds(to.mine.iterations, value(to.theirs.iterations))
    assert "optimizer/learning_rate" in unused(plan)

    back = Pair(tmp_path / "back", schedule, Adam, anywhere)
    refuse(dr.UnmatchedError, back.root, back.path, "optimizer/learning_rate", 'keep = "optimizer/learning_rate"')
    rate = value(back.mine._learning_rate)
    restore(back.root, back.path, rules=rule(keep=["optimizer/learning_rate"]))
    back.assert_adam()
    assert_holds(back.mine.iterations, value(back.theirs.iterations))
    assert_holds(back.mine._learning_rate, rate)


# Of which Keras tracks no lists.
NUMBERED = [getattr(keras.optimizers, n) for n in ("Adafactor", "Muon") if hasattr(keras.optimizers, n)]


@pytest.mark.parametrize("make", NUMBERED)
@pytest.mark.parametrize("on", [True, False], ids=["on", "off"])
def test_state_that_keras_only_numbers_is_refused_when_a_wrapper_comes_or_goes(
    tmp_path: pathlib.Path, make: Make, on: bool
) -> None:
    def wrapped() -> keras.optimizers.Optimizer:
        return LossScale(make())

    pair = Pair(tmp_path, *((make, wrapped) if on else (wrapped, make)))
    refuse(dr.UnmatchedError, pair.root, pair.path, "optimizer")


@pytest.mark.skipif(not hasattr(keras.optimizers, "Muon"), reason="this Keras has no Muon")
def test_moments_that_keras_only_numbers_are_refused_without_a_guess_at_the_number(tmp_path: pathlib.Path) -> None:
    pair = Pair(tmp_path, keras.optimizers.Muon, Adam)
    refuse(
        dr.UnmatchedError,
        pair.root,
        pair.path,
        "numbers the variables of 'optimizer'",
        'from = "optimizer/variables/<number>"',
    )


# ---- Several optimizers ----------------------------------------------------------------------------------


def test_one_optimizer_becomes_two_and_two_become_one(tmp_path: pathlib.Path, anywhere: tf.distribute.Strategy) -> None:
    def models() -> tuple[
        keras.Model, keras.Model, keras.optimizers.Adam, keras.optimizers.Adam, keras.optimizers.Adam
    ]:
        with anywhere.scope():
            g, d = net(a=4), net(a=4)
            both = Adam()
            both.build([*g.trainable_variables, *d.trainable_variables])
            return g, d, both, adam(g), adam(d)

    g, d, both, gen, disc = models()
    scramble(g, d, both, gen, disc, seed=1)
    one = save(Checkpoint(g=g, d=d, optimizer=both), tmp_path / "one")
    two = save(Checkpoint(g=g, d=d, gen_opt=gen, disc_opt=disc), tmp_path / "two")
    new_g, new_d, new_both, new_gen, new_disc = models()
    scramble(new_g, new_d, new_both, new_gen, new_disc, seed=2)

    split = Checkpoint(g=new_g, d=new_d, gen_opt=new_gen, disc_opt=new_disc)
    refuse(dr.UnmatchedError, split, one, "gen_opt/iterations", "disc_opt/iterations", "optimizer/iterations")
    names = ("iterations", "learning_rate")
    restore(split, one, rules=rule(*((f"optimizer/{n}", f"{o}/{n}") for o in ("gen_opt", "disc_opt") for n in names)))
    assert_all_hold(moments(new_gen) + moments(new_disc), values(by_owner(both, g) + by_owner(both, d)))
    for optimizer in (new_gen, new_disc):
        assert_holds(optimizer.iterations, value(both.iterations))

    named = Checkpoint(g=new_g, d=new_d, gen_opt=new_both)
    refuse(dr.UnmatchedError, named, two, 'from = "disc_opt/momentum/d/a/kernel", to = "gen_opt/momentum/d/a/kernel"')

    merged = Checkpoint(g=new_g, d=new_d, optimizer=new_both)
    refuse(dr.UnmatchedError, merged, two, "optimizer/iterations", "gen_opt/iterations", "disc_opt/iterations")
    restore(merged, two, rules=rule(*((f"gen_opt/{n}", f"optimizer/{n}") for n in names)))
    assert_all_hold(by_owner(new_both, new_g) + by_owner(new_both, new_d), values(moments(gen) + moments(disc)))
    assert_holds(new_both.iterations, value(gen.iterations))


def by_owner(optimizer: keras.optimizers.Adam, model: keras.Model) -> list[keras.Variable]:
    return [slot(optimizer, role, v) for role in ("momentums", "velocities") for v in model.trainable_variables]


def test_a_frozen_part_has_no_slots_and_gets_them_by_a_rule_when_it_is_trained_again(tmp_path: pathlib.Path) -> None:
    old, new = net(a=4, b=4), net(a=4, b=4)
    old.a.trainable = False
    old_adam, new_adam = adam(old), adam(new)
    scramble(old, old_adam, seed=1)
    path = save(Checkpoint(model=old, optimizer=old_adam), tmp_path)
    scramble(new, new_adam, seed=2)
    root = Checkpoint(model=new, optimizer=new_adam)
    refuse(dr.UnmatchedError, root, path, "no slot 'momentum' of 'model/a/kernel'")
    kept = value(slot(new_adam, "momentums", new.a.kernel))
    restore(root, path, rules=rule(keep=["optimizer/momentum/model/a/{rest}", "optimizer/velocity/model/a/{rest}"]))
    assert_holds(slot(new_adam, "momentums", new.a.kernel), kept)
    assert_holds(slot(new_adam, "momentums", new.b.kernel), value(slot(old_adam, "momentums", old.b.kernel)))
    assert_all_hold(new.weights, values(old.weights))


# ---- Keras' own files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_numbered_state_of_a_keras_file_is_filled_by_the_rules_that_the_refusal_names(
    tmp_path: pathlib.Path, anywhere: tf.distribute.Strategy, suffix: str
) -> None:
    old = seq("ab")
    old.compile(Adam(0.02), "mse")
    old.optimizer.build(old.trainable_variables)
    scramble(old, old.optimizer, seed=1)
    path = tmp_path / f"net{suffix}"
    (old.save if suffix == ".keras" else old.save_weights)(path)
    with anywhere.scope():
        new = seq("ba")
        optimizer = adam(new)
    scramble(new, optimizer, seed=2)
    root = Checkpoint(model=new, optimizer=optimizer)
    hint = 'from = "optimizer/vars/<number>", to = "optimizer/momentum/model/a/kernel"'
    refuse(dr.UnmatchedError, root, path, "numbers the variables of 'optimizer'", hint)
    slots = [f"optimizer/{role}/model/{layer}/kernel" for layer in "ab" for role in ("momentum", "velocity")]
    names = ["optimizer/iterations", "optimizer/learning_rate", *slots]
    restore(root, path, rules=rule(*((f"optimizer/vars/{i}", name) for i, name in enumerate(names))))
    assert_all_hold(new.weights[::-1], values(old.weights))
    assert_all_hold([optimizer.variables[i] for i in (0, 1, 4, 5, 2, 3)], values(old.optimizer.variables))


def test_an_array_of_all_zeros_is_no_reason_to_skip_it(tmp_path: pathlib.Path) -> None:
    """A fresh optimizer's slots are values like others: they overwrite what the program holds."""
    pair = Pair(tmp_path, Adam, Adam)
    fresh, model = Adam(), net(a=4, b=2)
    fresh.build(model.trainable_variables)
    path = save(Checkpoint(model=model, optimizer=fresh), tmp_path / "fresh")
    restore(pair.root, path)
    for variable in moments(pair.mine):
        assert not np.any(value(variable))


# ---- Slots that are no means of gradients ----------------------------------------------------------------


def kernel(*ops: Op) -> list[dr.Rule]:
    """A rule for the kernel of `one_layer`."""
    return [dr.Rule(from_="model/a/kernel", to="model/a/kernel", ops=ops)]


def one_layer(rows: int, make: Make) -> tuple[keras.Model, keras.optimizers.Optimizer]:
    model = net(rows, a=2)
    return model, built(make(), model)


@pytest.mark.skipif(not hasattr(keras.optimizers, "ScheduleFreeAdamW"), reason="this Keras has no such optimizer")
@pytest.mark.parametrize("name", ["schedule_free_adam_w", "mine"])
def test_the_weights_that_schedule_free_adamw_calls_momentum_follow_as_weights(
    tmp_path: pathlib.Path, name: str
) -> None:
    def make() -> keras.optimizers.Optimizer:
        return keras.optimizers.ScheduleFreeAdamW(0.1, name=name)

    old, theirs = one_layer(3, make)
    scramble(old, theirs, seed=1)
    path = save(Checkpoint(model=old, optimizer=theirs), tmp_path)
    new, mine = one_layer(5, make)
    fresh = value(mine._momentums[0])
    assert np.array_equal(fresh, value(new.a.kernel))  # how it begins
    restore(Checkpoint(model=new, optimizer=mine), path, rules=kernel(Scale(2.0), Fit(Fill.KEEP)))
    assert_holds(new.a.kernel, np.concatenate([2 * value(old.a.kernel), fresh[3:]]))
    assert_holds(mine._momentums[0], np.concatenate([2 * value(theirs._momentums[0]), fresh[3:]]))
    assert_holds(mine._velocities[0], np.concatenate([value(theirs._velocities[0]) / 4, np.zeros((2, 2), "float32")]))


def test_ftrl_divides_by_its_accumulator_so_new_rows_of_it_are_not_zero_unasked(tmp_path: pathlib.Path) -> None:
    def make() -> keras.optimizers.Optimizer:
        return keras.optimizers.Ftrl(0.1)

    old, theirs = one_layer(3, make)
    path = save(Checkpoint(model=old, optimizer=theirs), tmp_path)
    new, mine = one_layer(5, make)
    root = Checkpoint(model=new, optimizer=mine)
    slot_name = "optimizer/accumulator/model/a/kernel"
    refuse(dr.UnmatchedError, root, path, slot_name, "divides", rules=kernel(Fit(Fill.KEEP)))
    own = [dr.Rule(from_=slot_name, to=slot_name, ops=(Fit(Fill.KEEP),))]
    restore(root, path, rules=own + kernel(Fit(Fill.KEEP)))
    assert_holds(mine._accumulators[0], np.full((5, 2), 0.1, np.float32))
    mine.apply([tf.zeros((5, 2)), tf.zeros(2)])
    assert np.isfinite(value(new.a.kernel)).all()
