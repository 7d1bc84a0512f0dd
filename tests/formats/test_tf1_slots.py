"""Name-based checkpoints of TF1: whose slots they hold, and that Keras 3 trains on where TF1 stopped."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence

import keras
import numpy as np
import pytest
import tensorflow as tf

import dist_restore as dr
from build import entry as plan_entry
from build import filled, plan, problems, program
from conftest import make_strategy
from dist_restore.checkpoints.tf.tf1_slots import with_slots
from dist_restore.core.index import CheckpointIndex, SourceTensor
from dist_restore.core.tensors import TensorSpec
from live import adam, assert_all_hold, assert_holds, built, moments, refuse, restore, scramble, seq, slot, values

tf1 = tf.compat.v1
Make = Callable[[], object]
X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
Y = np.cos(X)
KEEP_RATE = dr.Rule(keep="optimizer/learning_rate")


@pytest.fixture(params=["default", "mirrored2", "tpu"])
def anywhere(request: pytest.FixtureRequest) -> tf.distribute.Strategy:
    return make_strategy(request.param)


class Run:
    """A few steps in a graph and a session: the checkpoint after them, and what three more steps would give.

    The model is two square layers, `a` and `b`, as `seq("ab")` has them; `scope` is where the optimizer is made.
    """

    def __init__(
        self, directory: pathlib.Path, make: Make, *, scope: str = "", step: bool = True, averages: bool = False
    ) -> None:
        with tf.Graph().as_default(), tf1.Session() as session:
            rng = tf1.random_uniform_initializer(-1.0, 1.0, seed=3)
            kernels = [tf1.get_variable(f"{n}/kernel", (4, 4), initializer=rng, use_resource=True) for n in "ab"]
            counter = tf1.train.get_or_create_global_step() if step else None
            loss = tf.reduce_mean(tf.square(X @ kernels[0] @ kernels[1] - Y))
            with tf1.variable_scope(scope) if scope else tf.name_scope(""):
                train = make().minimize(loss, global_step=counter)
            if averages:
                with tf.control_dependencies([train]):
                    train = tf1.train.ExponentialMovingAverage(0.9).apply(kernels)
            session.run(tf1.global_variables_initializer())
            for _ in range(4):
                session.run(train)
            saver = tf1.train.Saver()
            self.path = saver.save(session, str(directory / "model.ckpt"), global_step=4)
            self.before = {v.name.partition(":")[0]: session.run(v) for v in tf1.global_variables()}
            for _ in range(3):
                session.run(train)
            self.after = [session.run(k) for k in kernels]


def steps(model: keras.Model, optimizer: keras.optimizers.Optimizer, count: int) -> None:
    for _ in range(count):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(X) - Y))
        variables = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))


def unused(done: dr.RestorePlan) -> dict[str, str]:
    return {u.name: u.reason for u in done.unused}


# ---- Training goes on ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (lambda: tf1.train.AdamOptimizer(0.02), lambda: keras.optimizers.Adam(0.02, epsilon=1e-8)),
        (
            lambda: tf1.train.RMSPropOptimizer(0.02, momentum=0.9, epsilon=1e-7),
            lambda: keras.optimizers.RMSprop(0.02, rho=0.9, momentum=0.9, epsilon=1e-7),
        ),
        (
            lambda: tf1.train.RMSPropOptimizer(0.02, momentum=0.9, epsilon=1e-3, centered=True),
            lambda: keras.optimizers.RMSprop(0.02, rho=0.9, momentum=0.9, epsilon=1e-3, centered=True),
        ),
        (lambda: tf1.train.AdagradOptimizer(0.1), lambda: keras.optimizers.Adagrad(0.1, epsilon=0.0)),
        (
            lambda: tf1.train.AdadeltaOptimizer(1.0, rho=0.9, epsilon=1e-6),
            lambda: keras.optimizers.Adadelta(1.0, rho=0.9, epsilon=1e-6),
        ),
        (lambda: tf1.train.FtrlOptimizer(0.1), lambda: keras.optimizers.Ftrl(0.1)),
    ],
    ids=["adam", "rmsprop", "centered", "adagrad", "adadelta", "ftrl"],
)
def test_keras_trains_on_where_tf1_stopped(tmp_path: pathlib.Path, old: Make, new: Make) -> None:
    run = Run(tmp_path, old)
    model = seq("ab")
    optimizer = built(new(), model)
    scramble(model, seed=2)
    restore(tf.train.Checkpoint(model=model, optimizer=optimizer), run.path, rules=[KEEP_RATE])
    assert int(optimizer.iterations) == 4
    assert_all_hold(model.weights, [run.before["a/kernel"], run.before["b/kernel"]])
    steps(model, optimizer, 3)
    for found, expected in zip(values(model.weights), run.after, strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)
        assert not np.allclose(found, run.before["a/kernel"], rtol=1e-4)


def test_the_moments_are_those_of_adam_on_every_replica(
    tmp_path: pathlib.Path, anywhere: tf.distribute.Strategy
) -> None:
    run = Run(tmp_path, lambda: tf1.train.AdamOptimizer(0.02))
    with anywhere.scope():
        model = seq("ba")
        optimizer = adam(model)
    scramble(model, optimizer, seed=2)
    root = tf.train.Checkpoint(model=model, optimizer=optimizer)
    refuse(dr.UnmatchedError, root, run.path, "optimizer/learning_rate", 'keep = "optimizer/learning_rate"')
    done = restore(root, run.path, rules=[KEEP_RATE]).plan
    for name in "ab":
        kernel = model.get_layer(name).kernel
        assert_holds(kernel, run.before[f"{name}/kernel"])
        assert_holds(slot(optimizer, "momentums", kernel), run.before[f"{name}/kernel/Adam"])
        assert_holds(slot(optimizer, "velocities", kernel), run.before[f"{name}/kernel/Adam_1"])
    assert_holds(optimizer.iterations, np.int64(4))
    assert plan_entry(done, "optimizer/iterations").sources == ("global_step",)
    assert "computes from the iterations" in unused(done)["beta1_power"]
    assert "computes from the iterations" in unused(done)["beta2_power"]


def test_slots_follow_their_owners_through_renames_and_ops(tmp_path: pathlib.Path) -> None:
    run = Run(tmp_path, lambda: tf1.train.AdamOptimizer(0.02))
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(8, use_bias=False, name="both")(inputs))
    optimizer = adam(model)
    text = """
    [[rule]]
    from = ["a/kernel", "b/kernel"]
    to = "model/both/kernel"
    ops = [{ concat = { axis = 1 } }]
    [[rule]]
    keep = "optimizer/learning_rate"
    """
    restore(tf.train.Checkpoint(model=model, optimizer=optimizer), run.path, rules=dr.RuleSet.from_toml(text))

    def joined(suffix: str) -> np.ndarray:
        return np.concatenate([run.before[f"{n}/kernel{suffix}"] for n in "ab"], axis=1)

    assert_all_hold(moments(optimizer), [joined("/Adam"), joined("/Adam_1")])
    assert_holds(model.weights[0], joined(""))


def test_a_loss_scale_around_keras_adam_takes_tf1_s_state_inside(tmp_path: pathlib.Path) -> None:
    run = Run(tmp_path, lambda: tf1.train.AdamOptimizer(0.02))
    model = seq("ab")
    wrapper = built(keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()), model)
    rules = [dr.Rule(keep="optimizer/inner_optimizer/learning_rate")]
    restore(tf.train.Checkpoint(model=model, optimizer=wrapper), run.path, rules=rules)
    assert int(wrapper.inner_optimizer.iterations) == 4 and int(wrapper._iterations) == 0
    assert_holds(slot(wrapper.inner_optimizer, "velocities", model.weights[0]), run.before["a/kernel/Adam_1"])


def test_batches_that_keras_accumulates_are_not_tf1_s_updates(tmp_path: pathlib.Path) -> None:
    run = Run(tmp_path, lambda: tf1.train.AdamOptimizer(0.02))
    model = seq("ab")
    optimizer = adam(model, gradient_accumulation_steps=2)
    rules = [KEEP_RATE, dr.Rule(keep="optimizer/accumulated_gradient/{rest}")]
    root = tf.train.Checkpoint(model=model, optimizer=optimizer)
    refuse(dr.AmbiguousMatchError, root, run.path, "optimizer/iterations", "batches", "global_step", rules=rules)
    restore(root, run.path, rules=[*rules, dr.Rule(from_="global_step", to="optimizer/iterations")])
    assert_holds(optimizer._iterations, np.int64(4))


# ---- Other scopes, other names ---------------------------------------------------------------------------


def test_an_optimizer_made_in_a_scope_is_recognised(tmp_path: pathlib.Path) -> None:
    run = Run(tmp_path, lambda: tf1.train.AdamOptimizer(0.02), scope="train")
    assert "train/a/kernel/Adam" in run.before and "train/beta1_power" in run.before
    model = seq("ab")
    optimizer = adam(model)
    restore(tf.train.Checkpoint(model=model, optimizer=optimizer), run.path, rules=[KEEP_RATE])
    assert_holds(slot(optimizer, "momentums", model.weights[1]), run.before["train/b/kernel/Adam"])
    assert_holds(optimizer.iterations, np.int64(4))


def test_slots_under_an_optimizer_s_own_name_are_mapped_by_rules(tmp_path: pathlib.Path) -> None:
    run = Run(tmp_path, lambda: tf1.train.AdamOptimizer(0.02, name="mine"))
    model = seq("ab")
    optimizer = adam(model)
    root = tf.train.Checkpoint(model=model, optimizer=optimizer)
    refuse(dr.UnmatchedError, root, run.path, "optimizer/momentum/model/a/kernel", "no optimizer slots")
    rules = [KEEP_RATE, dr.Rule(from_="global_step", to="optimizer/iterations")]
    rules += [dr.Rule(from_="{rest}/mine", to="optimizer/momentum/model/{rest}")]
    rules += [dr.Rule(from_="{rest}/mine_1", to="optimizer/velocity/model/{rest}")]
    restore(root, run.path, rules=rules)
    assert_holds(slot(optimizer, "velocities", model.weights[0]), run.before["a/kernel/mine_1"])


def test_tf1_s_momentum_sums_gradients_and_never_becomes_the_steps_of_keras(tmp_path: pathlib.Path) -> None:
    run = Run(tmp_path, lambda: tf1.train.MomentumOptimizer(0.02, 0.9))
    model = seq("ab")
    optimizer = built(keras.optimizers.SGD(0.02, momentum=0.9), model)
    root = tf.train.Checkpoint(model=model, optimizer=optimizer)
    words = ("optimizer/momentum/model/a/kernel", "from momentum to sgd")
    refuse(dr.UnmatchedError, root, run.path, *words, rules=[KEEP_RATE])
    scaled = '[[rule]]\nkeep = "optimizer/learning_rate"\n'
    for layer in "ab":  # spelled out: a pattern carries no slot to another class
        scaled += f'[[rule]]\nfrom = "{layer}/kernel/Momentum"\nto = "optimizer/momentum/model/{layer}/kernel"\n'
        scaled += "ops = [{ scale = { by = -0.02 } }]\n"
    restore(root, run.path, rules=dr.RuleSet.from_toml(scaled))
    steps(model, optimizer, 3)
    for found, expected in zip(values(model.weights), run.after, strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)


def test_without_a_step_the_iterations_are_refused(tmp_path: pathlib.Path) -> None:
    run = Run(tmp_path, lambda: tf1.train.AdamOptimizer(0.02), step=False)
    model = seq("ab")
    root = tf.train.Checkpoint(model=model, optimizer=adam(model))
    refuse(dr.UnmatchedError, root, run.path, "optimizer/iterations", rules=[KEEP_RATE])


# ---- Averages --------------------------------------------------------------------------------------------


def test_shadow_variables_are_taken_only_where_a_rule_says_so(
    tmp_path: pathlib.Path, anywhere: tf.distribute.Strategy
) -> None:
    run = Run(tmp_path, lambda: tf1.train.AdamOptimizer(0.02), averages=True)
    with anywhere.scope():
        model = seq("ab")
    scramble(model, seed=2)
    root = tf.train.Checkpoint(model=model)
    done = restore(root, run.path).plan
    assert_all_hold(model.weights, [run.before[f"{n}/kernel"] for n in "ab"])
    assert "average" in unused(done)["a/kernel/ExponentialMovingAverage"]
    scramble(model, seed=3)
    restore(root, run.path, rules=[dr.Rule(from_="{rest}/ExponentialMovingAverage", to="model/{rest}")])
    assert_all_hold(model.weights, [run.before[f"{n}/kernel/ExponentialMovingAverage"] for n in "ab"])


def test_shadow_variables_become_the_averages_of_use_ema(tmp_path: pathlib.Path) -> None:
    run = Run(tmp_path, lambda: tf1.train.AdamOptimizer(0.02), averages=True)
    model = seq("ab")
    optimizer = adam(model, use_ema=True)
    restore(tf.train.Checkpoint(model=model, optimizer=optimizer), run.path, rules=[KEEP_RATE])
    for name, average in zip("ab", optimizer._model_variables_moving_average, strict=True):
        assert_holds(average, run.before[f"{name}/kernel/ExponentialMovingAverage"])
    assert_holds(optimizer.iterations, np.int64(4))
    assert_holds(slot(optimizer, "momentums", model.weights[0]), run.before["a/kernel/Adam"])


def test_averaged_weights_of_tf1_take_the_moments_of_the_raw_ones_only_when_told(tmp_path: pathlib.Path) -> None:
    run = Run(tmp_path, lambda: tf1.train.AdamOptimizer(0.02), averages=True)
    model = seq("ab")
    optimizer = adam(model)
    root = tf.train.Checkpoint(model=model, optimizer=optimizer)
    rules = [KEEP_RATE, dr.Rule(from_="{rest}/ExponentialMovingAverage", to="model/{rest}")]
    hint = 'from = "a/kernel/Adam_1", to = "optimizer/velocity/model/a/kernel"'
    refuse(dr.UnmatchedError, root, run.path, hint, rules=rules)
    rules += [dr.Rule(from_="{rest}/Adam", to="optimizer/momentum/model/{rest}")]
    rules += [dr.Rule(from_="{rest}/Adam_1", to="optimizer/velocity/model/{rest}")]
    restore(root, run.path, rules=rules)
    assert_holds(model.weights[0], run.before["a/kernel/ExponentialMovingAverage"])
    assert_holds(slot(optimizer, "velocities", model.weights[0]), run.before["a/kernel/Adam_1"])


# ---- What is a slot, and what only looks like one --------------------------------------------------------


def tf1_index(*names: str) -> CheckpointIndex:
    """`name` or `name:shape`; kernels are 4x4."""
    tensors = [
        SourceTensor(n, TensorSpec(shape, "int64" if n == "global_step" else "float32"), key=n)
        for n, shape in map(_named, names)
    ]
    marked, optimizers = with_slots(tensors)
    return CheckpointIndex("ckpt", "tf1", tuple(sorted(marked, key=lambda t: t.name)), optimizers)


def _named(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, shape = text.partition(":")
    scalar = name in ("global_step",) or "power" in name
    return name, tuple(map(int, shape.split("x"))) if shape else (() if scalar else (4, 4))


def found_slots(*names: str) -> dict[str, str]:
    return {t.name: f"{t.slot.optimizer}:{t.slot.role}:{t.slot.owner}" for t in tf1_index(*names).tensors if t.slot}


BERT = ("bert/w", "bert/w/adam_m", "bert/w/adam_v", "global_step")
TRAINED = "model/a/w 4x4\nmomentum@model/a/w\nvelocity@model/a/w\noptimizer/iterations - int64\n"


def test_bert_s_own_optimizer_is_an_adam() -> None:
    assert found_slots(*BERT) == {
        "bert/w/adam_m": "AdamWeightDecayOptimizer:momentum:bert/w",
        "bert/w/adam_v": "AdamWeightDecayOptimizer:velocity:bert/w",
    }
    done = plan(tf1_index(*BERT), TRAINED, {"bert/w": "model/a/w"})
    assert filled(done) == {
        "model/a/w": "bert/w",
        "optimizer/iterations": "global_step",
        "optimizer/momentum/model/a/w": "bert/w/adam_m",
        "optimizer/velocity/model/a/w": "bert/w/adam_v",
    }
    assert done.problems == ()


@pytest.mark.parametrize(
    "names",
    [
        ("w", "w/Adam"),
        ("w", "w/Adam_1"),
        ("w", "w/Adam", "w/Adam_2"),
        ("w", "w/Adam", "w/Adam_1", "w/Adam_2", "w/Adam_3"),
        ("w", "w/Adam:4", "w/Adam_1:4"),
        ("v", "w/Adam", "w/Adam_1"),
        ("w", "w/RMSProp"),
        ("w", "w/Adam", "w/Adam_01"),
        ("w", "w/adam_m", "w/adam_m_1"),
        ("w", "w/adam", "w/adam_1"),
        ("Adam", "Adam_1"),
    ],
)
def test_what_only_looks_like_a_slot_is_none(names: Sequence[str]) -> None:
    assert found_slots(*names) == {}


def test_a_scope_that_does_not_fit_all_is_none() -> None:
    both = ("w", "v", "x/w/Adam", "x/w/Adam_1", "y/v/Adam", "y/v/Adam_1")
    assert found_slots(*both) == {}
    one = ("w", "a/w", "t/a/w/Adam", "t/a/w/Adam_1", "t/w/Adam", "t/w/Adam_1")
    assert found_slots(*one)["t/a/w/Adam"] == "t/Adam:momentum:a/w"


ADAM = ("a/w", "a/w/Adam", "a/w/Adam_1", "global_step")


def test_what_no_proof_makes_a_slot_fills_nothing() -> None:
    """Two Adams of one variable: no name says whose `Adam_2` is."""
    done = plan(tf1_index(*ADAM, "a/w/Adam_2", "a/w/Adam_3"), TRAINED)
    assert filled(done) == {"model/a/w": "a/w"}
    slots = {"optimizer/momentum/model/a/w", "optimizer/velocity/model/a/w"}
    assert set(problems(done)) == {"optimizer/iterations", *slots}


@pytest.mark.parametrize(
    "more",
    [
        ("beta1_power", "beta1_power_1"),
        ("d/w", "d/w/RMSProp", "d/w/RMSProp_1"),
        ("d/w", "t/d/w/Momentum"),
        ("d/w", "d/w/adam_m", "d/w/adam_v"),
    ],
)
def test_one_step_of_several_optimizers_is_nobody_s_iterations(more: Sequence[str]) -> None:
    done = plan(tf1_index(*ADAM, *more), TRAINED)
    assert problems(done) == {"optimizer/iterations": "unmatched"}
    assert filled(done)["optimizer/velocity/model/a/w"] == "a/w/Adam_1"


def test_one_step_is_not_shared_out_to_two_optimizers_of_the_program() -> None:
    text = "model/{0}/w 4x4\nmomentum@model/{0}/w opt:{0}_opt\n{0}_opt/iterations - int64\n"
    target = program(text.format("a") + text.format("d"))
    done = plan(tf1_index(*ADAM, "d/w", "d/w/Adam", "d/w/Adam_1"), target)
    assert set(problems(done)) == {"a_opt/iterations", "d_opt/iterations"}
    assert filled(done)["d_opt/momentum/model/d/w"] == "d/w/Adam"


def test_a_program_s_own_global_step_is_filled_beside_the_iterations() -> None:
    done = plan(tf1_index(*ADAM), TRAINED + "global_step - int64")
    assert filled(done)["global_step"] == "global_step"
    assert filled(done)["optimizer/iterations"] == "global_step"
