"""Slots of tf_keras whose owners have one full name: the optimizer's list tells them, as an order."""

from __future__ import annotations

import pathlib

import pytest
import tensorflow as tf

import dist_restore as dr
from live import assert_all_hold, refuse, restore, scramble, values

tf_keras = pytest.importorskip("tf_keras", reason="tf_keras is no dependency of the package")
Layers = tf_keras.layers


def tower(*names: str) -> object:
    inputs = x = tf_keras.Input((4,))
    for name in names:
        x = Layers.Dense(4, name=name)(x)
    return tf_keras.Model(inputs, x)


def towers(*, optimizer: str = "Adam", third: str = "", frozen: bool = False, turned: bool = False, step: bool = False):  # type: ignore[no-untyped-def]
    """Two towers of equal layer names; the second may have one more."""
    query, document = tower("hidden", "out"), tower(*filter(None, ("hidden", third, "out")))
    document.layers[-1].trainable = not frozen
    adam = getattr(tf_keras.optimizers, optimizer)(0.1)
    models = (document, query) if turned else (query, document)
    trained = [v for model in models for v in model.trainable_variables]
    if step:  # as in a step, the names of its slots begin with the optimizer's
        adam.apply_gradients([(tf.ones_like(v), v) for v in trained])
    else:
        adam.build(trained)
    root = tf.train.Checkpoint(query=query, document=document, optimizer=adam)
    return root, [*query.variables, *document.variables, *adam.variables]


def saved(tmp_path: pathlib.Path, **options: object) -> tuple[str, list[object]]:
    root, variables = towers(**options)
    scramble(variables, seed=1)
    return root.save(str(tmp_path / "ckpt")), values(variables)


@pytest.mark.parametrize(("before", "now"), [(False, False), (True, False), (False, True), (True, True)])
def test_slots_of_twins_are_told_by_their_places_in_the_optimizers_list(
    before: bool, now: bool, tmp_path: pathlib.Path
) -> None:
    path, expected = saved(tmp_path, step=before)
    root, variables = towers(step=now)
    scramble(variables, seed=2)
    report = restore(root, path)
    assert_all_hold(variables, expected)
    proofs = {e.target: e.proof for e in report.plan.entries if e.target.startswith("optimizer/momentum/")}
    assert len(proofs) == 8
    assert set(proofs.values()) == {dr.Proof.ORDER}


def test_a_slot_whose_name_is_unique_has_the_proof_of_its_owner(tmp_path: pathlib.Path) -> None:
    path, expected = saved(tmp_path, third="middle")
    root, variables = towers(third="middle")
    scramble(variables, seed=2)
    report = restore(root, path)
    assert_all_hold(variables, expected)
    proofs = {e.target: e.proof for e in report.plan.entries}
    assert proofs["optimizer/velocity/document/middle/kernel"] == dr.Proof.NAME
    assert proofs["optimizer/velocity/document/out/kernel"] == dr.Proof.ORDER


@pytest.mark.parametrize(
    "options",
    [{"frozen": True}, {"third": "middle"}, {"optimizer": "RMSprop"}, {"optimizer": "AdamW", "step": True}],
    ids=["a layer is frozen", "a layer is new", "another class", "another class by its name"],
)
def test_lists_that_differ_are_refused(options: dict[str, object], tmp_path: pathlib.Path) -> None:
    path, _ = saved(tmp_path, step="step" in options)
    root, variables = towers(**options)
    before = values(variables)
    with pytest.raises(dr.RestoreError, match="optimizer/"):
        restore(root, path)
    assert_all_hold(variables, before)


def test_a_slot_does_not_follow_an_owner_of_another_name(tmp_path: pathlib.Path) -> None:
    path, _ = saved(tmp_path)
    root, variables = towers()
    before = values(variables)
    crossed = {"query/hidden/kernel": "query/out/kernel", "query/out/kernel": "query/hidden/kernel"}
    with pytest.raises(dr.RestoreError, match="optimizer/momentum/query/hidden/kernel"):
        dr.DistributedRestorer(root, rules=crossed).restore(path)
    assert_all_hold(variables, before)


def test_a_list_in_another_order_is_marked_as_order(tmp_path: pathlib.Path) -> None:
    """Towers of equal names and shapes, trained in another order: no file shows it, so it must be said."""
    path, _ = saved(tmp_path)
    root, variables = towers(turned=True)
    scramble(variables, seed=2)
    report = restore(root, path)
    assert {e.proof for e in report.plan.entries if e.target.startswith("optimizer/momentum/")} == {dr.Proof.ORDER}


def exchange(one: str, other: str) -> list[dr.Rule]:
    return [dr.Rule(from_=f"{a}/{{rest}}", to=f"{b}/{{rest}}") for a, b in ((one, other), (other, one))]


def test_slots_of_twins_that_rules_exchange_are_refused(tmp_path: pathlib.Path) -> None:
    path, _ = saved(tmp_path)
    root, variables = towers()
    scramble(variables, seed=2)
    refuse(dr.UnmatchedError, root, path, "what they belong to has moved", rules=exchange("query", "document"))


class Twins(tf_keras.Model):  # type: ignore[misc,name-defined]
    """Two layers of one name, made in this order."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(name="twins")
        for attribute in (first, second):
            setattr(self, attribute, Layers.Dense(4, name="fc"))

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.a(x) + self.b(x)


def twins(first: str, second: str, seed: int) -> tf.train.Checkpoint:
    model, optimizer = Twins(first, second), tf_keras.optimizers.SGD(0.1, momentum=0.9)
    model(tf.zeros((1, 4)))
    optimizer.build(model.trainable_variables)
    root = tf.train.Checkpoint(model=model, optimizer=optimizer)
    scramble(root, seed=seed)
    return root


def test_slots_of_twins_whose_lines_are_exchanged_are_refused(tmp_path: pathlib.Path) -> None:
    path = twins("a", "b", 1).save(str(tmp_path / "ckpt"))
    restore(twins("a", "b", 3), path)
    refuse(dr.UnmatchedError, twins("b", "a", 2), path, "what they belong to has moved")
