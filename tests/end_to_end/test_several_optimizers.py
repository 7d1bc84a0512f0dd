"""Two optimizers of one class: what they train, and names that somebody chose, tell them apart; counters do not."""

from __future__ import annotations

import itertools
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import dist_restore as dr
from live import assert_all_hold, values


def networks(*, named: bool) -> dict[str, keras.Model]:
    names = ("gen_out", "dis_out") if named else (None, None)
    return {
        which: keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name=name)], name=which)
        for which, name in zip("gd", names, strict=True)
    }


def optimizers(lines: str, before: int, kind: str) -> dict[str, keras.optimizers.Optimizer]:
    make = {
        "adam": keras.optimizers.Adam,
        "sgd": lambda: keras.optimizers.SGD(momentum=0.9),
        "scaled": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()),
    }[kind]
    for _ in range(before):
        make()
    return {which: make() for which in lines}


def program(
    held: str, lines: str = "gd", before: int = 0, places: str = "gd", kind: str = "adam", *, named: bool = True
) -> tuple[tf.train.Checkpoint, dict[str, list[tf.Variable]]]:
    """A checkpoint of two networks and their optimizers, and what belongs to which."""
    keras.utils.clear_session()
    nets, made = networks(named=named), optimizers(lines, before, kind)
    for which, net in nets.items():
        made[which].build(net.trainable_variables)
    if held == "keywords":
        root = tf.train.Checkpoint(**nets, g_optimizer=made["g"], d_optimizer=made["d"])
    else:
        trainer = tf.Module()
        both = [made[which] for which in places]
        trainer.optimizers = both if held == "list" else dict(zip("01", both, strict=True))
        root = tf.train.Checkpoint(**nets, trainer=trainer)
    return root, {which: [*nets[which].variables, *made[which].variables] for which in "gd"}


def filled(variables: dict[str, list[tf.Variable]]) -> list[np.ndarray]:
    """Gives every variable a value of its own."""
    for number, variable in enumerate(flat(variables), 1):
        variable.assign(np.full(variable.shape, number))
    return values(flat(variables))


def flat(variables: dict[str, list[tf.Variable]]) -> list[tf.Variable]:
    return [*itertools.chain(*variables.values())]


@pytest.mark.parametrize("kind", ["adam", "sgd", "scaled"])
@pytest.mark.parametrize(("lines", "before"), [("gd", 0), ("dg", 0), ("gd", 1), ("dg", 1), ("gd", 2)])
@pytest.mark.parametrize("held", ["keywords", "list", "dict"])
def test_counters_of_optimizers_say_nothing(held: str, lines: str, before: int, kind: str, tmp_path: pathlib.Path):
    root, variables = program(held, kind=kind)
    expected, path = filled(variables), root.save(str(tmp_path / "ckpt"))
    root, variables = program(held, lines, before, kind=kind)
    dr.DistributedRestorer(root, order="refuse", progress=False).restore(path)
    assert_all_hold(flat(variables), expected)


@pytest.mark.parametrize("lines", ["gd", "dg"])
def test_optimizers_that_change_places_in_a_list_are_refused(lines: str, tmp_path: pathlib.Path) -> None:
    path = program("list")[0].save(str(tmp_path / "ckpt"))
    root, variables = program("list", lines, places="dg")
    expected = filled(variables)
    with pytest.raises(dr.UnmatchedError, match='from = "trainer/optimizers/0/momentum/g/gen_out/bias"'):
        dr.DistributedRestorer(root, progress=False).restore(path)
    assert_all_hold(flat(variables), expected)


def test_where_what_they_train_rests_on_order_so_do_their_steps(tmp_path: pathlib.Path) -> None:
    def listed(lines: str) -> tuple[tf.train.Checkpoint, list[tf.Variable]]:
        keras.utils.clear_session()
        made = optimizers(lines, 0, "adam")
        nets = {which: keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)]) for which in "gd"}
        for which, net in nets.items():
            made[which].build(net.trainable_variables)
        trainer = tf.Module()
        trainer.nets, trainer.optimizers = [*nets.values()], [made["g"], made["d"]]
        return tf.train.Checkpoint(trainer=trainer), [made[w].iterations for w in "gd"]

    path = listed("gd")[0].save(str(tmp_path / "ckpt"))
    plan = dr.DistributedRestorer(listed("dg")[0], progress=False).plan(path)
    assert {e.proof.value for e in plan.entries if e.sources and e.target.endswith("iterations")} <= {"order"}
