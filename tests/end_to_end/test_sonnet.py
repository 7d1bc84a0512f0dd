"""Sonnet modules and their optimizers: names, owners of slots, what is not built. The package imports no Sonnet."""

from __future__ import annotations

import pathlib

import keras
import numpy as np
import pytest
import sonnet as snt
import tensorflow as tf

import dist_restore as dr
from live import assert_all_hold, assert_holds, entry, refuse, replicas, restore, save, scramble

Strategy = tf.distribute.Strategy
Checkpoint = tf.train.Checkpoint
OPTIMIZERS = {
    "adam": lambda: snt.optimizers.Adam(0.01),
    "momentum": lambda: snt.optimizers.Momentum(0.01, 0.9),
    "rmsprop": lambda: snt.optimizers.RMSProp(0.01, momentum=0.9, centered=True),
}


class Net(snt.Module):
    """Layers by attributes; each has a name of its own, or the one that Sonnet gives to all."""

    def __init__(self, *attributes: str, named: bool = True) -> None:
        super().__init__(name="net")
        self.order = attributes
        for attribute in attributes:
            layer = snt.Linear(4, with_bias=False, name=attribute.strip("z_") if named else None)
            setattr(self, attribute, layer)

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        for attribute in self.order:
            x = getattr(self, attribute)(x)
        return x


def build(strategy: Strategy, model: snt.Module, optimizer: snt.Module, seed: int) -> Checkpoint:
    """The variables exist, and hold values of their own."""

    def step() -> None:
        model(tf.zeros((1, 4)))
        variables = model.trainable_variables
        optimizer._initialize(variables)  # what `apply` does first; it runs on every strategy

    with strategy.scope():
        step()
    scramble(model, optimizer, seed=seed)
    return Checkpoint(model=model, optimizer=optimizer)


def slots(optimizer: snt.Module) -> dict[str, list[tf.Variable]]:
    lists = {n: getattr(optimizer, n, ()) for n in ("m", "v", "accumulated_momentum", "mom", "ms", "mg")}
    return {name: list(items) for name, items in lists.items() if len(items)}


def hold(variables: list[tf.Variable]) -> list[np.ndarray]:
    return [replicas(v)[0] for v in variables]


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_module_and_its_optimizer_load_their_own_checkpoint(
    tmp_path: pathlib.Path, strategy: Strategy, kind: str, named: bool
) -> None:
    old = build(strategy, Net("a", "b", "c", named=named), OPTIMIZERS[kind](), 0)
    path, expected = save(old, tmp_path), hold([*old.model.variables, *old.optimizer.variables])
    new = build(strategy, Net("a", "b", "c", named=named), OPTIMIZERS[kind](), 1)
    report = restore(new, path)
    assert_all_hold([*new.model.variables, *new.optimizer.variables], expected)
    assert report.coverage.variables == 1 and not report.plan.unused


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_slots_follow_their_owners_when_the_order_of_attributes_changes(
    tmp_path: pathlib.Path, trainable: Strategy, kind: str
) -> None:
    """`trainable_variables` goes by the attributes' names: a renamed layer moves in every list of slots."""
    old = build(trainable, Net("a", "b", "c"), OPTIMIZERS[kind](), 0)
    path = save(old, tmp_path)
    wrong = build(trainable, Net("z_a", "b", "c"), OPTIMIZERS[kind](), 1)
    with trainable.scope():
        Checkpoint(optimizer=wrong.optimizer).restore(path).assert_existing_objects_matched()
    new = build(trainable, Net("z_a", "b", "c"), OPTIMIZERS[kind](), 2)
    restore(new, path, rules={"model/a/w": "model/z_a/w"})
    order = [2, 0, 1]  # b, c, z_a
    expected, found = slots(old.optimizer), slots(new.optimizer)
    assert_all_hold(
        [new.model.z_a.w, new.model.b.w, new.model.c.w], hold([old.model.a.w, old.model.b.w, old.model.c.w])
    )
    for role, variables in found.items():
        for place, variable in zip(order, hold(expected[role]), strict=True):
            assert_holds(variables[place], variable)
        # TensorFlow goes by the number in the list.
        assert_holds(slots(wrong.optimizer)[role][0], hold(expected[role])[0])


def test_slots_are_called_after_their_owners(tmp_path: pathlib.Path) -> None:
    root = build(tf.distribute.get_strategy(), Net("a", "b"), snt.optimizers.Adam(0.01), 0)
    names = [t.name for t in dr.open_checkpoint(save(root, tmp_path)).index().tensors]
    assert names == [
        "model/a/w",
        "model/b/w",
        "optimizer/momentum/model/a/w",
        "optimizer/momentum/model/b/w",
        "optimizer/step",
        "optimizer/velocity/model/a/w",
        "optimizer/velocity/model/b/w",
        "save_counter",
    ]


def test_slots_whose_owners_share_a_name_are_refused_when_these_change(tmp_path: pathlib.Path) -> None:
    """All layers are called `linear`: which slot is whose, only the order of a call says."""
    default = tf.distribute.get_strategy()
    path = save(build(default, Net("a", "b", named=False), snt.optimizers.Adam(0.01), 0), tmp_path)
    new = build(default, Net("z_a", "b", named=False), snt.optimizers.Adam(0.01), 1)
    rules = {"model/a/w": "model/z_a/w"}
    error = refuse(dr.UnmatchedError, new, path, "optimizer/m/0", "optimizer/v/1", rules=rules)
    assert {"optimizer/m/0", "optimizer/m/1", "optimizer/v/0", "optimizer/v/1"} == set(error.names)
    crossed = {f"optimizer/{role}/{i}": f"optimizer/{role}/{1 - i}" for role in "mv" for i in (0, 1)}
    report = restore(new, path, rules={**rules, **crossed})
    assert report.coverage.variables == 1


def test_slots_whose_owners_share_a_name_are_order_and_stay_with_them(tmp_path: pathlib.Path) -> None:
    """Nothing says which is whose: a rule that moves a weight would leave its moments behind."""
    default = tf.distribute.get_strategy()
    old = build(default, Net("a", "b", named=False), snt.optimizers.Adam(0.1), 1)
    path = save(old, tmp_path)
    new = build(default, Net("a", "b", named=False), snt.optimizers.Adam(0.1), 2)
    found = {e.target: e.proof for e in dr.DistributedRestorer(new).plan(path).entries}
    assert {found[f"optimizer/{role}/{i}"] for role in "mv" for i in (0, 1)} == {dr.Proof.ORDER}
    turned = {"model/a/{rest}": "model/b/{rest}", "model/b/{rest}": "model/a/{rest}"}
    for rules in (turned, [dr.Rule(keep="model/a/{rest}")]):
        refuse(dr.AmbiguousMatchError, new, path, "several variables called 'net/linear/w'", rules=rules)


def test_moments_of_a_sonnet_adam_are_those_of_a_keras_adam(tmp_path: pathlib.Path) -> None:
    old = build(tf.distribute.get_strategy(), Net("a", "b"), snt.optimizers.Adam(0.01), 0)
    path = save(old, tmp_path)
    model = keras.Sequential([keras.layers.Dense(4, use_bias=False, name=n) for n in "ab"])
    model.build((None, 4))
    optimizer = keras.optimizers.Adam(0.01)
    optimizer.build(model.trainable_variables)
    rules = {"model/{layer}/w": "model/{layer}/kernel", "optimizer/step": "optimizer/iterations"}
    report = restore(
        Checkpoint(model=model, optimizer=optimizer),
        path,
        rules=[*(dr.Rule(from_=a, to=b) for a, b in rules.items()), dr.Rule(keep="optimizer/learning_rate")],
    )
    assert_all_hold(optimizer._momentums, hold(old.optimizer.m))
    assert_all_hold(optimizer._velocities, hold(old.optimizer.v))
    assert entry(report.plan, "optimizer/momentum/model/a/kernel").sources == ("optimizer/momentum/model/a/w",)


def test_what_was_never_called_is_refused(tmp_path: pathlib.Path, trainable: Strategy) -> None:
    root = build(trainable, Net("a", "b"), snt.optimizers.Adam(0.01), 0)
    path = save(root, tmp_path)
    with trainable.scope():
        model, unused = Net("a", "b"), snt.optimizers.Adam(0.01)
        with pytest.raises(
            dr.UnbuiltModelError, match=r"(?s)'a' \(Linear\) was never called.*'b' \(Linear\) was never called"
        ):
            restore(Checkpoint(model=model), path)
        model(tf.zeros((1, 4)))
    with pytest.raises(dr.UnbuiltModelError, match=r"'adam' \(Adam\).*Apply the optimizer once"):
        restore(Checkpoint(model=model, optimizer=unused), path)


def test_modules_without_variables_need_no_call(tmp_path: pathlib.Path) -> None:
    def make() -> Checkpoint:
        net = snt.Sequential([snt.Linear(3), tf.nn.relu, snt.Flatten()])
        net(tf.zeros((1, 4)))
        return Checkpoint(net=net, dropout=snt.Dropout(0.5))

    old, new = make(), make()
    scramble(old.net)
    restore(new, save(old, tmp_path))
    assert_all_hold(list(new.net.variables), hold(list(old.net.variables)))


def test_statistics_of_a_batch_norm_and_a_recurrent_core_load_their_own_checkpoint(
    tmp_path: pathlib.Path, strategy: Strategy
) -> None:
    def make(seed: int) -> Checkpoint:
        with strategy.scope():
            norm, core = snt.BatchNorm(True, True), snt.LSTM(3)
            norm(tf.zeros((2, 4)), is_training=False, test_local_stats=True)
            core(tf.zeros((2, 4)), core.initial_state(2))
        scramble(norm, core, seed=seed)
        return Checkpoint(norm=norm, core=core)

    old, new = make(0), make(1)
    restore(new, save(old, tmp_path))
    for name in ("norm", "core"):
        assert_all_hold(list(getattr(new, name).variables), hold(list(getattr(old, name).variables)))
    assert len(new.norm.variables) == 8
