"""What users do: rename, reorder, add, remove and resize layers, fuse and split them, and go on training."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf

import build
import dist_restore as dr
from conftest import make_strategy
from live import (
    Net,
    adam,
    assert_all_hold,
    assert_holds,
    assert_unchanged,
    assign,
    built,
    entry,
    moments,
    net,
    refuse,
    replicas,
    restore,
    save,
    scramble,
    seq,
    slot,
    snapshot,
    stack,
    train_step,
    value,
    values,
)

Checkpoint = tf.train.Checkpoint
SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
ROLES = ("momentums", "velocities")


def toml(text: str) -> dr.RuleSet:
    return dr.RuleSet.from_toml(text)


def assert_follows(new: keras.optimizers.Adam, mine: object, old: keras.optimizers.Adam, theirs: object) -> None:
    """A variable and both of its moments are those of another one, exactly."""
    assert_holds(mine, value(theirs))
    for role in ROLES:
        assert_holds(slot(new, role, mine), value(slot(old, role, theirs)))


# ---- (a) layers renamed or reordered ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "rules",
    [
        {
            "model/dense_1/kernel": "model/fully_connected_a/kernel",
            "model/dense_1/bias": "model/fully_connected_a/bias",
        },
        {
            f"model/dense_1/_kernel{SUFFIX}": f"model/fully_connected_a/_kernel{SUFFIX}",
            f"model/dense_1/bias{SUFFIX}": f"model/fully_connected_a/bias{SUFFIX}",
        },
        {
            "model/dense_1/_kernel": "model/fully_connected_a/kernel",
            f"model/dense_1/bias{SUFFIX}": "model/fully_connected_a/bias",
        },
    ],
    ids=["canonical", "with suffix", "mixed"],
)
def test_a_renamed_layer_is_mapped_by_a_plain_dict_and_its_moments_follow(
    tmp_path: pathlib.Path, trainable: tf.distribute.Strategy, rules: dict[str, str]
) -> None:
    with trainable.scope():
        old, new = net(dense_1=5, dense_2=2), net(fully_connected_a=5, dense_2=2)
        old_adam, new_adam = adam(old), adam(new)
    scramble(old, old_adam, seed=1)
    path = save(Checkpoint(model=old, optimizer=old_adam), tmp_path)
    assert path.endswith("-1")
    assert any(key.endswith(f"_kernel{SUFFIX}") for key, _ in tf.train.list_variables(path))

    scramble(new, new_adam, seed=2)
    root = Checkpoint(model=new, optimizer=new_adam)
    refuse(dr.UnmatchedError, root, path, "model/fully_connected_a/kernel", "model/dense_1/kernel")
    report = restore(root, path, rules=rules)
    for part in ("kernel", "bias"):
        assert_follows(new_adam, getattr(new.fully_connected_a, part), old_adam, getattr(old.dense_1, part))
        assert_follows(new_adam, getattr(new.dense_2, part), old_adam, getattr(old.dense_2, part))
    assert_holds(new_adam.iterations, value(old_adam.iterations))
    assert entry(report.plan, "model/fully_connected_a/kernel").status is dr.Status.RENAMED
    assert report.coverage.variables == 1.0 and report.verified


def test_two_layers_exchanged_by_a_dict_are_exchanged(
    tmp_path: pathlib.Path, trainable: tf.distribute.Strategy
) -> None:
    with trainable.scope():
        old, new = net(a=4, b=4), net(a=4, b=4)
        old_adam, new_adam = adam(old), adam(new)
    scramble(old, old_adam, seed=1)
    path = save(Checkpoint(model=old, optimizer=old_adam), tmp_path)
    scramble(new, new_adam, seed=2)
    rules = {"model/a/kernel": "model/b/kernel", "model/b/kernel": "model/a/kernel"}
    restore(Checkpoint(model=new, optimizer=new_adam), path, rules=rules)
    assert_follows(new_adam, new.b.kernel, old_adam, old.a.kernel)
    assert_follows(new_adam, new.a.kernel, old_adam, old.b.kernel)
    assert_follows(new_adam, new.a.bias, old_adam, old.a.bias)


def test_reordered_layers_need_no_rule(tmp_path: pathlib.Path, trainable: tf.distribute.Strategy) -> None:
    with trainable.scope():
        old, new = net(a=4, b=4, c=4), net(c=4, a=4, b=4)
        old_adam, new_adam = adam(old), adam(new)
    scramble(old, old_adam, seed=1)
    path = save(Checkpoint(model=old, optimizer=old_adam), tmp_path)
    scramble(new, new_adam, seed=2)
    restore(Checkpoint(model=new, optimizer=new_adam), path)
    for name in "abc":
        assert_follows(new_adam, getattr(new, name).kernel, old_adam, getattr(old, name).kernel)


def test_layers_moved_into_a_submodule_are_mapped_with_captures(
    tmp_path: pathlib.Path, trainable: tf.distribute.Strategy
) -> None:
    with trainable.scope():
        old = net(layer_0=4, layer_1=4, head=2)
        new = Net(body=net(block_1=4, block_2=4), head=keras.layers.Dense(2))
        new(tf.zeros((1, 4)))
        old_adam, new_adam = adam(old), adam(new)
    scramble(old, old_adam, seed=1)
    path = save(Checkpoint(model=old, optimizer=old_adam), tmp_path)
    scramble(new, new_adam, seed=2)
    rules = toml('[[rule]]\nfrom = "model/layer_{i}/{rest}"\nto = "model/body/block_{i+1}/{rest}"')
    restore(Checkpoint(model=new, optimizer=new_adam), path, rules=rules)
    for index in range(2):
        theirs, mine = getattr(old, f"layer_{index}"), getattr(new.body, f"block_{index + 1}")
        assert_follows(new_adam, mine.kernel, old_adam, theirs.kernel)
        assert_follows(new_adam, mine.bias, old_adam, theirs.bias)


def test_a_regex_rule_maps_with_its_groups(tmp_path: pathlib.Path) -> None:
    old, new = net(layer_0=4, layer_1=4), net(x0=4, x1=4)
    scramble(old, seed=1)
    path = save(Checkpoint(model=old), tmp_path)
    rule = dr.Rule(from_=r"model/layer_(\d)/(kernel|bias)", to=r"model/x\1/\2", regex=True)
    restore(Checkpoint(model=new), path, rules=[rule])
    assert_all_hold(new.weights, values(old.weights))


# ---- (b) layers added or removed -------------------------------------------------------------------------


def test_an_added_dropout_needs_no_rule(tmp_path: pathlib.Path, trainable: tf.distribute.Strategy) -> None:
    with trainable.scope():
        old = net(a=4, b=2)
        new = Net(a=keras.layers.Dense(4), drop=keras.layers.Dropout(0.5), b=keras.layers.Dense(2))
        new(tf.zeros((1, 4)))
        old_adam, new_adam = adam(old), adam(new)
    scramble(old, old_adam, seed=1)
    path = save(Checkpoint(model=old, optimizer=old_adam), tmp_path)
    scramble(new, new_adam, seed=2)
    seeds = [value(v) for v in new.drop.variables]
    assert seeds
    report = restore(Checkpoint(model=new, optimizer=new_adam), path)
    assert_follows(new_adam, new.a.kernel, old_adam, old.a.kernel)
    assert_follows(new_adam, new.b.kernel, old_adam, old.b.kernel)
    assert_all_hold(new.drop.variables, seeds)
    kept = [e for e in report.plan.entries if e.status is dr.Status.KEPT]
    assert len(kept) == 1 and "seed" in kept[0].target and "never saves" in kept[0].reason


@pytest.mark.parametrize("how", ["rule", "option"])
def test_an_added_dense_keeps_its_values_when_that_is_allowed(
    tmp_path: pathlib.Path, trainable: tf.distribute.Strategy, how: str
) -> None:
    with trainable.scope():
        old, new = net(a=4, b=2), net(a=4, adapter=4, b=2)
        old_adam, new_adam = adam(old), adam(new)
    scramble(old, old_adam, seed=1)
    path = save(Checkpoint(model=old, optimizer=old_adam), tmp_path)
    scramble(new, new_adam, seed=2)
    root = Checkpoint(model=new, optimizer=new_adam)
    refuse(dr.UnmatchedError, root, path, "model/adapter/kernel", "model/adapter/bias", "keep")

    mine = [new.adapter.kernel, new.adapter.bias]
    mine += [slot(new_adam, role, v) for role in ROLES for v in list(mine)]
    before = values(mine)
    rules = toml('[[rule]]\nkeep = "model/adapter/{rest}"') if how == "rule" else None
    report = restore(root, path, rules=rules, unmatched="error" if how == "rule" else "keep")
    assert_all_hold(mine, before)
    assert_follows(new_adam, new.a.kernel, old_adam, old.a.kernel)
    assert_follows(new_adam, new.b.kernel, old_adam, old.b.kernel)
    assert report.coverage.total(status=dr.Status.KEPT).variables == 6


def test_a_removed_layer_is_reported_as_unused(tmp_path: pathlib.Path, trainable: tf.distribute.Strategy) -> None:
    with trainable.scope():
        old, new = net(a=4, gone=4, b=2), net(a=4, b=2)
        old_adam, new_adam = adam(old), adam(new)
    scramble(old, old_adam, seed=1)
    path = save(Checkpoint(model=old, optimizer=old_adam), tmp_path)
    scramble(new, new_adam, seed=2)
    report = restore(Checkpoint(model=new, optimizer=new_adam), path)
    assert_follows(new_adam, new.b.kernel, old_adam, old.b.kernel)
    unused = {u.name for u in report.plan.unused}
    assert {"model/gone/kernel", "optimizer/momentum/model/gone/kernel"} <= unused
    assert all(u.reason for u in report.plan.unused)


def test_a_dropped_tensor_is_not_used_and_says_why(tmp_path: pathlib.Path) -> None:
    old, new = net(a=4, old_head=4), net(a=4, head=4)
    scramble(old, seed=1)
    path = save(Checkpoint(model=old), tmp_path)
    rules = toml('[[rule]]\ndrop = "model/old_head/{rest}"\n[[rule]]\nkeep = "model/head/{rest}"')
    report = restore(Checkpoint(model=new), path, rules=rules)
    reasons = {u.name: u.reason for u in report.plan.unused}
    assert "dropped by rule 1" in reasons["model/old_head/kernel"]


# ---- (c) shapes changed ----------------------------------------------------------------------------------


def fit_rule(fill: str, name: str = "model/dense/kernel") -> dr.RuleSet:
    return toml(f'[[rule]]\nfrom = "{name}"\nto = "{name}"\nops = [{{ fit = {{ fill = "{fill}" }} }}]')


@pytest.mark.parametrize("fill", ["keep", "zeros", "mean", "normal"])
def test_256_inputs_become_512_with_the_old_rows_kept(
    tmp_path: pathlib.Path, trainable: tf.distribute.Strategy, fill: str
) -> None:
    with trainable.scope():
        old, new = net(256, dense=8), net(512, dense=8)
        old_adam, new_adam = adam(old), adam(new)
    scramble(old, old_adam, seed=1)
    path = save(Checkpoint(model=old, optimizer=old_adam), tmp_path)
    scramble(new, new_adam, seed=2)
    root = Checkpoint(model=new, optimizer=new_adam)
    error = refuse(dr.ShapeMismatchError, root, path, "model/dense/kernel", "[512, 8]", "[256, 8]", "fit")
    assert "model/dense/kernel" in error.names

    mine, theirs, initial = new.dense.kernel, value(old.dense.kernel), value(new.dense.kernel)
    report = restore(root, path, rules=fit_rule(fill))
    rows = value(mine)[256:]
    assert np.array_equal(value(mine)[:256], theirs)
    if fill == "keep":
        assert np.array_equal(rows, initial[256:])
    elif fill == "zeros":
        assert not rows.any()
    elif fill == "mean":
        np.testing.assert_allclose(rows, np.full_like(rows, theirs.mean()), rtol=1e-6)
    else:
        assert abs(rows.mean() - theirs.mean()) < 0.1 and abs(rows.std() - theirs.std()) < 0.1
        assert len(np.unique(rows)) > rows.size // 2
    for role in ROLES:
        moment = value(slot(new_adam, role, mine))
        assert np.array_equal(moment[:256], value(slot(old_adam, role, old.dense.kernel)))
        assert not moment[256:].any()
    assert entry(report.plan, "model/dense/kernel").status is dr.Status.RESIZED
    assert report.coverage.elements < 1.0


def test_a_normal_fill_is_the_same_on_every_replica_and_in_every_run(
    tmp_path: pathlib.Path, mirrored4: tf.distribute.Strategy
) -> None:
    old = net(4, dense=8)
    path = save(Checkpoint(model=old), tmp_path)
    found = []
    for _ in range(2):
        with mirrored4.scope():
            new = net(64, dense=8)
        restore(Checkpoint(model=new), path, rules=fit_rule("normal"))
        found.append(value(new.dense.kernel))
    assert np.array_equal(*found)


def test_fewer_inputs_are_cut_when_that_is_declared(tmp_path: pathlib.Path, trainable: tf.distribute.Strategy) -> None:
    with trainable.scope():
        old, new = net(512, dense=8), net(256, dense=8)
        old_adam, new_adam = adam(old), adam(new)
    scramble(old, old_adam, seed=1)
    path = save(Checkpoint(model=old, optimizer=old_adam), tmp_path)
    root = Checkpoint(model=new, optimizer=new_adam)
    refuse(dr.ShapeMismatchError, root, path, "model/dense/kernel", "[256, 8]")
    rules = toml(
        '[[rule]]\nfrom = "model/dense/kernel"\nto = "model/dense/kernel"\n'
        "ops = [{ slice = { begin = [100, 0], size = [256, -1] } }]"
    )
    restore(root, path, rules=rules)
    assert_holds(new.dense.kernel, value(old.dense.kernel)[100:356])
    for role in ROLES:
        assert_holds(slot(new_adam, role, new.dense.kernel), value(slot(old_adam, role, old.dense.kernel))[100:356])


@pytest.mark.parametrize("verify_slices", [False, True])
def test_a_small_slice_reads_only_its_part_and_the_plan_says_that_it_goes_unchecked(
    tmp_path: pathlib.Path, verify_slices: bool
) -> None:
    old, new = net(1024, dense=64), net(8, dense=64)
    scramble(old, seed=1)
    path = save(Checkpoint(model=old), tmp_path)
    rules = toml(
        '[[rule]]\nfrom = "model/dense/kernel"\nto = "model/dense/kernel"\n'
        "ops = [{ slice = { begin = [16, 0], size = [8, -1] } }]"
    )
    report = restore(Checkpoint(model=new), path, rules=rules, verify_slices=verify_slices)
    assert_holds(new.dense.kernel, value(old.dense.kernel)[16:24])
    assert report.unchecked == (() if verify_slices else ("model/dense/kernel",))
    whole = 1024 * 64 * 4
    assert report.bytes_read[0] >= whole if verify_slices else report.bytes_read[0] < whole / 8


class Heads(keras.layers.Layer):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.q = self.add_weight(shape=shape, name="q")
        self.built = True

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return tf.tensordot(x, self.q, 1)


def test_h_by_heads_times_d_becomes_h_by_heads_by_d(tmp_path: pathlib.Path, trainable: tf.distribute.Strategy) -> None:
    with trainable.scope():
        old, new = Net(att=Heads((6, 8))), Net(att=Heads((6, 2, 4)))
        old(tf.zeros((1, 6))), new(tf.zeros((1, 6)))
        old_adam, new_adam = adam(old), adam(new)
    scramble(old, old_adam, seed=1)
    path = save(Checkpoint(model=old, optimizer=old_adam), tmp_path)
    scramble(new, new_adam, seed=2)
    root = Checkpoint(model=new, optimizer=new_adam)
    refuse(dr.ShapeMismatchError, root, path, "model/att/q", "[6, 2, 4]", "[6, 8]", "reshape")
    rules = toml('[[rule]]\nfrom = "model/att/q"\nto = "model/att/q"\nops = [{ reshape = { shape = [6, 2, -1] } }]')
    report = restore(root, path, rules=rules)
    assert_holds(new.att.q, value(old.att.q).reshape(6, 2, 4))
    for role in ROLES:
        assert_holds(slot(new_adam, role, new.att.q), value(slot(old_adam, role, old.att.q)).reshape(6, 2, 4))
    assert entry(report.plan, "model/att/q").status is dr.Status.TRANSFORMED


# ---- Fusing and splitting --------------------------------------------------------------------------------


class Attention(keras.layers.Layer):
    def __init__(self, *parts: tuple[str, int]) -> None:
        super().__init__()
        for name, size in parts:
            setattr(self, name, keras.layers.Dense(size))
        self.parts = tuple(name for name, _ in parts)

    def build(self, shape: tuple[int, ...]) -> None:
        for name in self.parts:
            getattr(self, name).build(shape)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return tf.concat([getattr(self, name)(x) for name in self.parts], -1)


APART = (("q", 4), ("k", 4), ("v", 4))
FUSED = (("qkv", 12),)


def attention_net(parts: tuple[tuple[str, int], ...]) -> Net:
    model = Net(h0=Attention(*parts), mid=keras.layers.Dense(4), h1=Attention(*parts))
    model(tf.zeros((1, 4)))
    return model


def test_q_k_and_v_are_fused_per_block_and_their_moments_too(
    tmp_path: pathlib.Path, trainable: tf.distribute.Strategy
) -> None:
    with trainable.scope():
        old, new = attention_net(APART), attention_net(FUSED)
        old_adam, new_adam = adam(old), adam(new)
    scramble(old, old_adam, seed=1)
    path = save(Checkpoint(model=old, optimizer=old_adam), tmp_path)
    scramble(new, new_adam, seed=2)
    rules = toml(
        """
        [[rule]]
        from = ["model/h{i}/q/{name}", "model/h{i}/k/{name}", "model/h{i}/v/{name}"]
        to   = "model/h{i}/qkv/{name}"
        ops  = [{ concat = { axis = -1 } }]
        """
    )
    report = restore(Checkpoint(model=new, optimizer=new_adam), path, rules=rules)
    for block in ("h0", "h1"):
        for part in ("kernel", "bias"):
            mine = getattr(getattr(new, block).qkv, part)
            theirs = [getattr(getattr(getattr(old, block), name), part) for name in "qkv"]
            assert_holds(mine, np.concatenate(values(theirs), -1))
            for role in ROLES:
                found = [value(slot(old_adam, role, v)) for v in theirs]
                assert_holds(slot(new_adam, role, mine), np.concatenate(found, -1))
    sources = report.plan.mapping()["model/h1/qkv/kernel"]
    assert sources == ("model/h1/q/kernel", "model/h1/k/kernel", "model/h1/v/kernel")


def test_qkv_is_split_per_block_and_its_moments_too(tmp_path: pathlib.Path, trainable: tf.distribute.Strategy) -> None:
    with trainable.scope():
        old, new = attention_net(FUSED), attention_net(APART)
        old_adam, new_adam = adam(old), adam(new)
    scramble(old, old_adam, seed=1)
    path = save(Checkpoint(model=old, optimizer=old_adam), tmp_path)
    scramble(new, new_adam, seed=2)
    rules = toml(
        """
        [[rule]]
        from = "model/h{i}/qkv/{name}"
        to   = ["model/h{i}/q/{name}", "model/h{i}/k/{name}", "model/h{i}/v/{name}"]
        ops  = [{ split = { axis = -1 } }]
        """
    )
    restore(Checkpoint(model=new, optimizer=new_adam), path, rules=rules)
    for block in ("h0", "h1"):
        theirs = getattr(old, block).qkv.kernel
        for index, name in enumerate("qkv"):
            mine = getattr(getattr(new, block), name).kernel
            assert_holds(mine, np.split(value(theirs), 3, -1)[index])
            for role in ROLES:
                assert_holds(slot(new_adam, role, mine), np.split(value(slot(old_adam, role, theirs)), 3, -1)[index])


def test_a_scaled_kernel_takes_its_moments_along_by_the_power_that_they_hold(tmp_path: pathlib.Path) -> None:
    # w' = w / 2 has gradients twice as large, and squares of gradients four times.
    old, new = net(a=4), net(a=4)
    old_adam, new_adam = adam(old), adam(new)
    scramble(old, old_adam, seed=1)
    path = save(Checkpoint(model=old, optimizer=old_adam), tmp_path)
    rules = toml('[[rule]]\nfrom = "model/a/kernel"\nto = "model/a/kernel"\nops = [{ scale = { by = 0.5 } }]')
    restore(Checkpoint(model=new, optimizer=new_adam), path, rules=rules)
    assert_holds(new.a.kernel, value(old.a.kernel) * np.float32(0.5))
    assert_holds(slot(new_adam, "momentums", new.a.kernel), value(slot(old_adam, "momentums", old.a.kernel)) * 2)
    assert_holds(slot(new_adam, "velocities", new.a.kernel), value(slot(old_adam, "velocities", old.a.kernel)) * 4)


# ---- Roots -----------------------------------------------------------------------------------------------

ROOTS: dict[str, Callable[[keras.Model], object]] = {
    "Checkpoint(model)": lambda m: Checkpoint(m),
    "Checkpoint(model=model)": lambda m: Checkpoint(model=m),
    "Checkpoint(net=model)": lambda m: Checkpoint(net=m),
    "Checkpoint(step, model=model)": lambda m: Checkpoint(step=tf.Variable(3, dtype=tf.int64), model=m),
}
TARGETS: dict[str, Callable[[keras.Model], object]] = {
    "model": lambda m: m,
    "Checkpoint(model)": lambda m: Checkpoint(m),
    "Checkpoint(model=model)": lambda m: Checkpoint(model=m),
    "Checkpoint(net=model)": lambda m: Checkpoint(net=m),
    "{'model': model}": lambda m: {"model": m},
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("root", ROOTS)
def test_roots_are_aligned(tmp_path: pathlib.Path, root: str, target: str) -> None:
    old, new = net(a=4, b=4), net(a=4, b=4)
    scramble(old, seed=1)
    path = save(ROOTS[root](old), tmp_path)
    scramble(new, seed=2)
    restore(TARGETS[target](new), path)
    assert_all_hold(new.weights, values(old.weights))


def test_a_rule_serves_the_bare_model_and_the_model_in_a_checkpoint(tmp_path: pathlib.Path) -> None:
    old = net(dense_1=4, b=4)
    scramble(old, seed=1)
    path = save(Checkpoint(model=old), tmp_path)
    rules = {"model/dense_1/kernel": "model/fc/kernel", "model/dense_1/bias": "model/fc/bias"}
    for target in TARGETS.values():
        new = net(fc=4, b=4)
        if target is TARGETS["Checkpoint(net=model)"]:
            continue
        restore(target(new), path, rules=rules)
        assert_all_hold(new.weights, values(old.weights))


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: Checkpoint(m), lambda m: Checkpoint(model=m)])
def test_a_renamed_layer_of_a_bare_model_is_no_root_to_be_aligned(
    tmp_path: pathlib.Path, wrap: Callable[[keras.Model], object]
) -> None:
    old, new = net(a=4, old_head=4), net(a=4, new_head=4)
    scramble(old, seed=1)
    path = save(Checkpoint(old), tmp_path)
    refuse(dr.UnmatchedError, wrap(new), path, "new_head/kernel", "old_head/kernel")


def test_two_models_that_would_fit_one_root_are_refused(tmp_path: pathlib.Path) -> None:
    a, b, new = net(x=4), net(x=4), net(x=4)
    scramble(a, b, seed=1)
    path = save(Checkpoint(teacher=a, student=b), tmp_path)
    refuse(dr.AmbiguousMatchError, Checkpoint(model=new), path, "model/x/kernel", "teacher/x", "student/x")
    rules = toml('[[rule]]\nfrom = "student/{rest}"\nto = "model/{rest}"')
    restore(Checkpoint(model=new), path, rules=rules)
    assert_all_hold(new.weights, values(b.weights))


# ---- Kinds of models -------------------------------------------------------------------------------------


def functional() -> keras.Model:
    inputs = keras.Input((4,))
    x = keras.layers.Dense(4, name="first")(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    return keras.Model(inputs, keras.layers.Dense(2, name="last")(x))


def automatic() -> keras.Model:
    inputs = keras.Input((4,))
    x = keras.layers.Dense(4)(inputs)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Dense(4)(x)
    return keras.Model(inputs, keras.layers.Dense(2)(x))


def sequential() -> keras.Model:
    layers = [keras.layers.Dense(4, activation="relu"), keras.layers.LayerNormalization(), keras.layers.Dense(4)]
    return keras.Sequential([keras.Input((4,)), *layers])


def nested() -> keras.Model:
    inputs = keras.Input((4,))
    return keras.Model(inputs, keras.layers.Dense(2, name="top")(seq("ab")(sequential()(inputs))))


def subclassed() -> keras.Model:
    model = Net(first=keras.layers.Dense(4), body=sequential(), drop=keras.layers.Dropout(0.3), last=net(a=4))
    model(tf.zeros((1, 4)))
    return model


def attention() -> keras.Model:
    inputs = keras.Input((3, 8))
    x = keras.layers.MultiHeadAttention(2, 4)(inputs, inputs)
    x = keras.layers.LSTM(4)(keras.layers.Dropout(0.2)(x))
    return keras.Model(inputs, keras.layers.Dense(2)(x))


class InDict(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.towers = {"left": keras.layers.Dense(4), "right": [keras.layers.Dense(4), keras.layers.Dense(4)]}

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.towers["left"](x) + self.towers["right"][1](self.towers["right"][0](x))


def in_dict() -> keras.Model:
    model = InDict()
    model(tf.zeros((1, 4)))
    return model


MODELS = [functional, automatic, sequential, nested, subclassed, attention, lambda: stack(3), in_dict]
MODEL_IDS = ["functional", "automatic", "sequential", "nested", "subclassed", "attention", "list", "dict"]


@pytest.mark.parametrize("cleared", [False, True], ids=["new counters", "cleared session"])
@pytest.mark.parametrize("build", MODELS, ids=MODEL_IDS)
def test_a_model_always_loads_its_own_checkpoint(
    tmp_path: pathlib.Path, build: Callable[[], keras.Model], cleared: bool
) -> None:
    keras.utils.clear_session()
    with make_strategy("mirrored2").scope():
        old = build()
        old_adam = adam(old)
    scramble(old, old_adam, seed=1)
    path = save(Checkpoint(model=old, optimizer=old_adam), tmp_path)
    if cleared:
        keras.backend.clear_session()
    with make_strategy("mirrored2").scope():
        new = build()
        new_adam = adam(new)
    scramble(new, new_adam, seed=2)
    seeds = [w for w in new.variables if "seed" in w.path]
    expected = {w.path: value(w) for w in seeds}
    restore(Checkpoint(model=new, optimizer=new_adam), path)
    assert_all_hold(new.weights, values(old.weights))
    assert_all_hold(moments(new_adam), values(moments(old_adam)))
    assert_holds(new_adam.iterations, value(old_adam.iterations))
    for seed in seeds:
        assert_holds(seed, expected[seed.path])


@pytest.mark.parametrize("root", ["bare", "model"])
@pytest.mark.parametrize("cleared", [False, True], ids=["new counters", "cleared session"])
@pytest.mark.parametrize("build", MODELS[:6], ids=MODEL_IDS[:6])
def test_a_model_without_an_optimizer_loads_its_own_checkpoint(
    tmp_path: pathlib.Path, build: Callable[[], keras.Model], cleared: bool, root: str
) -> None:
    keras.utils.clear_session()
    old = build()
    scramble(old, seed=1)
    path = save(Checkpoint(old) if root == "bare" else Checkpoint(model=old), tmp_path)
    if cleared:
        keras.utils.clear_session()
    new = build()
    scramble(new, seed=2)
    restore(new if root == "bare" else Checkpoint(model=new), path)
    assert_all_hold(new.weights, values(old.weights))


def test_a_compiled_model_loads_its_own_checkpoint(tmp_path: pathlib.Path) -> None:
    def fitted() -> keras.Model:
        model = seq("ab")
        model.compile(optimizer="adam", loss="mse", metrics=["mae"])
        model.fit(np.ones((4, 4), np.float32), np.ones((4, 4), np.float32), verbose=0)
        return model

    old, new = fitted(), fitted()
    scramble(old.optimizer, seed=1)
    scramble(*old.weights, seed=5)
    path = save(Checkpoint(model=old), tmp_path)
    restore(Checkpoint(model=new), path)
    assert_all_hold(new.weights, values(old.weights))
    assert_all_hold(moments(new.optimizer), values(moments(old.optimizer)))


class Module(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = tf.Variable(tf.zeros((3,)))
        self.parts = [tf.Variable(tf.zeros((2,))), tf.Variable(tf.zeros((2,)))]
        self.table = {"x": tf.Variable(0, dtype=tf.int32)}


def test_a_module_is_restored(tmp_path: pathlib.Path, strategy: tf.distribute.Strategy) -> None:
    with strategy.scope():
        old, new = Module(), Module()
    scramble(old, seed=1)
    expected = values(old.variables)
    for root in (Checkpoint(module=old), Checkpoint(old)):
        path = save(root, tmp_path)
        scramble(new, seed=2)
        restore(new, path)
        assert_all_hold(new.variables, expected)


def test_a_dict_of_names_and_loose_variables_is_restored(
    tmp_path: pathlib.Path, strategy: tf.distribute.Strategy
) -> None:
    with strategy.scope():
        step, new_step = tf.Variable(41, dtype=tf.int64), tf.Variable(0, dtype=tf.int64)
        ema = [tf.Variable(tf.ones((4, 4))) for _ in range(2)]
        new_ema = [tf.Variable(tf.zeros((4, 4))) for _ in range(2)]
        old, new = net(a=4), net(a=4)
    scramble(old, ema, seed=1)
    path = save(Checkpoint(step=step, ema=ema, model=old), tmp_path)
    restore({"step": new_step, "ema": new_ema, "model": new}, path)
    assert_holds(new_step, np.int64(41))
    assert_all_hold(new_ema, values(ema))
    assert_all_hold(new.weights, values(old.weights))


def test_a_tied_variable_is_one_target(tmp_path: pathlib.Path, trainable: tf.distribute.Strategy) -> None:
    class Tied(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = self.output = tf.Variable(tf.zeros((4, 2)))

    with trainable.scope():
        old, new = Tied(), Tied()
    scramble(old, seed=1)
    path = save(Checkpoint(model=old), tmp_path)
    plan = dr.DistributedRestorer(Checkpoint(model=new)).plan(path)
    assert len([e for e in plan.entries if e.filled and e.target.startswith("model/")]) == 1
    restore(Checkpoint(model=new), path)
    assert_holds(new.output, value(old.embedding))


def test_a_tied_variable_fills_two_that_are_tied_no_more(tmp_path: pathlib.Path) -> None:
    shared = tf.Variable([1.0, 2.0])
    path = save(Checkpoint(embedding=shared, output=shared), tmp_path)
    embedding, output = tf.Variable([0.0, 0.0]), tf.Variable([0.0, 0.0])
    restore(Checkpoint(embedding=embedding, output=output), path)
    assert_holds(embedding, value(shared))
    assert_holds(output, value(shared))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64", "int8", "bool", "complex64", "string"])
def test_every_dtype_is_restored(tmp_path: pathlib.Path, dtype: str) -> None:
    data = {"bool": [True, False], "string": ["a", "long\n"], "complex64": [1 + 2j, 3]}.get(dtype, [1, 2])
    old = tf.Variable(tf.constant(data, dtype))
    new = tf.Variable(tf.cast(tf.zeros(2), dtype) if dtype != "string" else tf.constant(["", ""]))
    empty = tf.Variable(tf.zeros((0, 3)))
    path = save(Checkpoint(w=old, empty=empty), tmp_path)
    restore(Checkpoint(w=new, empty=empty), path)
    assert_holds(new, value(old))


def test_mixed_precision_policies_change_nothing_in_the_variables(tmp_path: pathlib.Path) -> None:
    def build(policy: str) -> keras.Model:
        return keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="a", dtype=policy)])

    old, new = build("float32"), build("mixed_bfloat16")
    scramble(old, seed=1)
    path = save(Checkpoint(model=old), tmp_path)
    restore(Checkpoint(model=new), path)
    assert_all_hold(new.weights, values(old.weights))


# ---- Optimizers ------------------------------------------------------------------------------------------


def test_an_unbuilt_optimizer_is_built_under_the_models_strategy(
    tmp_path: pathlib.Path, trainable: tf.distribute.Strategy
) -> None:
    with trainable.scope():
        old, new = net(a=4, b=4), net(a=4, b=4)
        old_adam, new_adam = adam(old), keras.optimizers.Adam()
    scramble(old, old_adam, seed=1)
    path = save(Checkpoint(model=old, optimizer=old_adam), tmp_path)
    assert not new_adam.built
    restore(Checkpoint(model=new, optimizer=new_adam), path)
    assert new_adam.built
    assert_all_hold(moments(new_adam), values(moments(old_adam)))
    assert {len(replicas(v)) for v in moments(new_adam)} == {trainable.num_replicas_in_sync}


@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.optimizers.SGD(),
        lambda: keras.optimizers.SGD(momentum=0.9),
        lambda: keras.optimizers.RMSprop(momentum=0.9, centered=True),
        lambda: keras.optimizers.Adam(amsgrad=True, use_ema=True),
        lambda: keras.optimizers.AdamW(weight_decay=0.01),
        lambda: keras.optimizers.Adagrad(),
        lambda: keras.optimizers.Adadelta(),
        lambda: keras.optimizers.Adamax(),
        lambda: keras.optimizers.Nadam(),
        lambda: keras.optimizers.Ftrl(),
        lambda: keras.optimizers.Lion(),
        lambda: keras.optimizers.Lamb(),
        lambda: keras.optimizers.Adafactor(),
        lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()),
        lambda: keras.optimizers.Adam(keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)),
        lambda: keras.optimizers.Adam(name="my_opt"),
        lambda: keras.optimizers.Adam(gradient_accumulation_steps=2),
    ],
    ids=[
        "sgd", "momentum", "rmsprop", "amsgrad-ema", "adamw", "adagrad", "adadelta", "adamax", "nadam", "ftrl", "lion",
        "lamb", "adafactor", "loss-scale", "schedule", "named", "accumulation",
    ],
)  # fmt: skip
def test_every_optimizer_loads_its_own_state(
    tmp_path: pathlib.Path, make: Callable[[], keras.optimizers.Optimizer]
) -> None:
    old, new = net(a=4, b=4), net(a=4, b=4)
    old_optimizer, new_optimizer = built(make(), old), built(make(), new)
    scramble(old, old_optimizer, seed=1)
    path = save(Checkpoint(model=old, optimizer=old_optimizer), tmp_path)
    scramble(new, new_optimizer, seed=2)
    restore(Checkpoint(model=new, optimizer=new_optimizer), path)
    assert_all_hold(new.weights, values(old.weights))
    assert_all_hold(new_optimizer.variables, values(old_optimizer.variables))


def test_a_learning_rate_that_became_a_schedule_loses_no_slot(tmp_path: pathlib.Path) -> None:
    old, new = net(a=4), net(a=4)
    old_adam = adam(old)
    new_adam = adam(new, learning_rate=keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9))
    scramble(old, old_adam, seed=1)
    path = save(Checkpoint(model=old, optimizer=old_adam), tmp_path)
    report = restore(Checkpoint(model=new, optimizer=new_adam), path)
    assert_all_hold(moments(new_adam), values(moments(old_adam)))
    assert "optimizer/learning_rate" in {u.name for u in report.plan.unused}


def test_an_optimizer_that_lost_its_momentum_is_restored_and_one_that_gained_it_is_refused(
    tmp_path: pathlib.Path,
) -> None:
    model, other = net(a=4), net(a=4)
    with_momentum = built(keras.optimizers.SGD(momentum=0.9), model)
    without = built(keras.optimizers.SGD(), other)
    path = save(Checkpoint(model=model, optimizer=with_momentum), tmp_path)
    restore(Checkpoint(model=other, optimizer=without), path)
    path = save(Checkpoint(model=other, optimizer=without), tmp_path)
    root = Checkpoint(model=model, optimizer=with_momentum)
    refuse(dr.UnmatchedError, root, path, "optimizer/momentum/model/a/kernel")


def test_two_optimizers_keep_their_own_slots(tmp_path: pathlib.Path) -> None:
    def build() -> tuple[keras.Model, keras.Model, keras.optimizers.Adam, keras.optimizers.Adam]:
        g, d = net(a=4), net(a=4)
        return g, d, adam(g), adam(d)

    g, d, g_adam, d_adam = build()
    scramble(g, d, g_adam, d_adam, seed=1)
    path = save(Checkpoint(g=g, d=d, g_optimizer=g_adam, d_optimizer=d_adam), tmp_path)
    new_g, new_d, new_g_adam, new_d_adam = build()
    restore(Checkpoint(g=new_g, d=new_d, d_optimizer=new_d_adam, g_optimizer=new_g_adam), path)
    assert_all_hold(moments(new_g_adam), values(moments(g_adam)))
    assert_all_hold(moments(new_d_adam), values(moments(d_adam)))


# ---- Resuming --------------------------------------------------------------------------------------------


def test_the_next_save_after_a_restore_does_not_overwrite_the_first_checkpoint(tmp_path: pathlib.Path) -> None:
    old, new = net(a=4), net(a=4)
    path = save(Checkpoint(model=old), tmp_path)
    content = pathlib.Path(f"{path}.data-00000-of-00001").read_bytes()
    scramble(new, seed=2)
    root = Checkpoint(model=new)
    restore(root, path)
    scramble(new, seed=3)
    assert save(root, tmp_path).endswith("ckpt-2")
    assert pathlib.Path(f"{path}.data-00000-of-00001").read_bytes() == content


def test_a_checkpoint_written_without_a_counter_leaves_the_counter(tmp_path: pathlib.Path) -> None:
    old, new = net(a=4), net(a=4)
    path = Checkpoint(model=old).write(os.fspath(tmp_path / "weights"))
    root = Checkpoint(model=new)
    report = restore(root, path)
    assert entry(report.plan, "save_counter").status is dr.Status.KEPT
    assert_all_hold(new.weights, values(old.weights))


def test_a_directory_means_its_latest_checkpoint(tmp_path: pathlib.Path) -> None:
    old, new = net(a=4), net(a=4)
    root = Checkpoint(model=old)
    for seed in (1, 2):
        scramble(old, seed=seed)
        save(root, tmp_path)
    restore(Checkpoint(model=new), tmp_path)
    assert_all_hold(new.weights, values(old.weights))


@pytest.mark.parametrize("refactored", [False, True], ids=["same names", "renamed"])
def test_the_steps_after_a_restore_are_those_of_the_run_that_never_stopped(
    tmp_path: pathlib.Path, trainable: tf.distribute.Strategy, refactored: bool
) -> None:
    with trainable.scope():
        old = net(first=8, last=2)
        old_adam = adam(old, learning_rate=0.05)
    step = train_step(trainable, old, old_adam)
    for number in range(3):
        step(number)
    path = save(Checkpoint(model=old, optimizer=old_adam), tmp_path)
    uninterrupted = [step(number) for number in range(3, 6)]

    with trainable.scope():
        new = net(**({"hidden": 8} if refactored else {"first": 8}), last=2)
        new_adam = keras.optimizers.Adam(0.05)
    rules = toml('[[rule]]\nfrom = "model/first/{rest}"\nto = "model/hidden/{rest}"') if refactored else None
    restore(Checkpoint(model=new, optimizer=new_adam), path, rules=rules)
    step = train_step(trainable, new, new_adam)
    assert [step(number) for number in range(3, 6)] == uninterrupted
    assert_all_hold(new.weights, values(old.weights))
    assert_all_hold(moments(new_adam), values(moments(old_adam)))


@pytest.mark.parametrize(
    ("saved", "restored"), [("default", "mirrored2"), ("mirrored4", "default"), ("mirrored2", "tpu")]
)
def test_the_number_of_replicas_may_change(tmp_path: pathlib.Path, saved: str, restored: str) -> None:
    with make_strategy(saved).scope():
        old = functional()
        old_adam = adam(old)
    with make_strategy(restored).scope():
        new = functional()
        new_adam = adam(new)
    scramble(old, old_adam, seed=1)
    path = save(Checkpoint(model=old, optimizer=old_adam), tmp_path)
    restore(Checkpoint(model=new, optimizer=new_adam), path)
    assert_all_hold(new.weights, values(old.weights))
    assert_all_hold(moments(new_adam), values(moments(old_adam)))


# ---- Plans -----------------------------------------------------------------------------------------------


def renamed(tmp_path: pathlib.Path) -> tuple[keras.Model, str, dict[str, str]]:
    old = net(a=4, b=4)
    scramble(old, seed=1)
    path = save(Checkpoint(model=old), tmp_path)
    return old, path, {"model/a/kernel": "model/x/kernel", "model/a/bias": "model/x/bias"}


def test_a_plan_changes_nothing_and_reads_no_weights(tmp_path: pathlib.Path) -> None:
    _, path, rules = renamed(tmp_path)
    new = net(x=4, b=4)
    before = snapshot(new)
    plan = dr.DistributedRestorer(Checkpoint(model=new), rules=rules).plan(path)
    assert_unchanged(before)
    assert plan.mapping()["model/x/kernel"] == ("model/a/kernel",)
    assert [e.target for e in plan.entries] == sorted(e.target for e in plan.entries)
    assert "model/x/kernel" in plan.summary()


def test_applying_a_plan_gives_what_a_restore_gives(tmp_path: pathlib.Path, trainable: tf.distribute.Strategy) -> None:
    old, path, rules = renamed(tmp_path)
    with trainable.scope():
        first, second = net(x=4, b=4), net(x=4, b=4)
    restored = restore(Checkpoint(model=first), path, rules=rules)
    plan = dr.DistributedRestorer(Checkpoint(model=second), rules=rules).plan(path)
    read = dr.RestorePlan.from_json(plan.to_json())
    assert read == plan and read.digest == plan.digest == restored.plan.digest
    # Neither the rules nor the resolution are needed any more.
    report = dr.DistributedRestorer(Checkpoint(model=second)).apply(read, path)
    assert report.plan.digest == plan.digest
    assert_all_hold(second.weights, values(first.weights))
    assert_all_hold(first.weights, values(old.weights))


def test_equal_programs_make_equal_plans(tmp_path: pathlib.Path) -> None:
    _, path, rules = renamed(tmp_path)
    digests = {dr.DistributedRestorer(Checkpoint(model=net(x=4, b=4)), rules=rules).plan(path).digest for _ in range(2)}
    with make_strategy("mirrored2").scope():
        digests.add(dr.DistributedRestorer(Checkpoint(model=net(x=4, b=4)), rules=rules).plan(path).digest)
    assert len(digests) == 1


def test_a_plan_is_refused_by_another_model(tmp_path: pathlib.Path) -> None:
    _, path, rules = renamed(tmp_path)
    plan = dr.DistributedRestorer(Checkpoint(model=net(x=4, b=4)), rules=rules).plan(path)
    other = net(y=4, b=4)
    before = snapshot(other)
    with pytest.raises(dr.PlanMismatchError, match=r"model/[xy]/"):
        dr.DistributedRestorer(Checkpoint(model=other)).apply(plan, path)
    assert_unchanged(before)


def test_a_plan_is_refused_for_another_checkpoint(tmp_path: pathlib.Path) -> None:
    _, path, rules = renamed(tmp_path)
    new = net(x=4, b=4)
    plan = dr.DistributedRestorer(Checkpoint(model=new), rules=rules).plan(path)
    other = save(Checkpoint(model=net(a=4, b=4, c=4)), tmp_path / "other")
    before = snapshot(new)
    with pytest.raises(dr.PlanMismatchError, match="other"):
        dr.DistributedRestorer(Checkpoint(model=new)).apply(plan, other)
    assert_unchanged(before)


@pytest.mark.parametrize(
    "tamper",
    [
        lambda d: d["entries"][0].update(sources=["model/a/kernel"]),
        lambda d: d.update(digest="0" * 64),
        lambda d: d.update(schema=99),
        lambda d: d.pop("entries"),
        lambda d: d["entries"].append(d["entries"][0]),
        lambda d: d.pop("digest"),
    ],
    ids=["source", "digest", "schema", "no entries", "entry twice", "no digest"],
)
def test_a_plan_that_was_tampered_with_is_refused(tmp_path: pathlib.Path, tamper: Callable[[dict], object]) -> None:
    _, path, rules = renamed(tmp_path)
    plan = dr.DistributedRestorer(Checkpoint(model=net(x=4, b=4)), rules=rules).plan(path)
    fields = json.loads(plan.to_json())
    tamper(fields)
    with pytest.raises(dr.PlanMismatchError):
        dr.RestorePlan.from_json(json.dumps(fields))


def test_a_plan_with_problems_cannot_be_applied(tmp_path: pathlib.Path) -> None:
    _, path, _ = renamed(tmp_path)
    new = net(x=4, b=4)
    restorer = dr.DistributedRestorer(Checkpoint(model=new))
    plan = restorer.plan(path)
    before = snapshot(new)
    with pytest.raises(dr.UnmatchedError, match="model/x/kernel"):
        restorer.apply(plan, path)
    assert_unchanged(before)


def test_the_guesses_of_a_plan_can_be_taken(tmp_path: pathlib.Path) -> None:
    old, new = net(dense_1=4, b=4), net(dense_one=4, b=4)
    scramble(old, seed=1)
    path = save(Checkpoint(model=old), tmp_path)
    plan = dr.DistributedRestorer(Checkpoint(model=new)).plan(path)
    assert plan.problems
    assert toml(plan.suggestions).rules == ()
    restore(Checkpoint(model=new), path, rules=toml(build.taken(plan.suggestions)))
    assert_all_hold(new.weights, values(old.weights))


def test_rules_come_from_a_file_too(tmp_path: pathlib.Path) -> None:
    old, path, _ = renamed(tmp_path)
    file = tmp_path / "rules.toml"
    file.write_text('[[rule]]\nfrom = "model/a/{rest}"\nto = "model/x/{rest}"\n')
    for rules in (file, os.fspath(file), dr.RuleSet.load(file)):
        new = net(x=4, b=4)
        restore(Checkpoint(model=new), path, rules=rules)
        assert_all_hold(new.weights, values(old.weights))


def test_nothing_of_the_checkpoint_is_written_to(tmp_path: pathlib.Path) -> None:
    _, path, rules = renamed(tmp_path)
    files = sorted(tmp_path.iterdir())
    before = [(f, f.read_bytes(), f.stat().st_mtime_ns) for f in files]
    restore(Checkpoint(model=net(x=4, b=4)), path, rules=rules)
    assert sorted(tmp_path.iterdir()) == files
    assert [(f, f.read_bytes(), f.stat().st_mtime_ns) for f in files] == before


def test_a_log_directory_gets_tensorboard_files(tmp_path: pathlib.Path) -> None:
    _, path, rules = renamed(tmp_path)
    restore(Checkpoint(model=net(x=4, b=4)), path, rules=rules, log_dir=tmp_path / "logs")
    assert list((tmp_path / "logs").rglob("events.out.tfevents.*"))


def test_values_that_were_assigned_before_stay_where_a_target_is_kept(tmp_path: pathlib.Path) -> None:
    path = save(Checkpoint(a=tf.Variable(1.0)), tmp_path)
    a, b = tf.Variable(0.0), tf.Variable(0.0)
    assign(b, 5.0)
    restore(Checkpoint(a=a, b=b), path, unmatched="keep")
    assert_holds(a, np.float32(1.0))
    assert_holds(b, np.float32(5.0))
