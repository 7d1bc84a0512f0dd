"""Silent failures: what plain TensorFlow does without a word, and that dist_restore is exact or refuses.

The cases of `failures.md` that are about TensorFlow's checkpoints on one host. Each test shows first that the wrong
value is really there although TensorFlow's strictest checks pass.
"""

from __future__ import annotations

import contextlib
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import dist_restore as dr
from conftest import make_strategy
from live import (
    Net,
    Stack,
    adam,
    assert_all_hold,
    assert_holds,
    assert_unchanged,
    assign,
    built,
    entry,
    kernels,
    moments,
    natively,
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
    value,
    values,
)
from places import GOLDEN

Checkpoint = tf.train.Checkpoint
ON_READ = tf.VariableSynchronization.ON_READ
SUM = tf.VariableAggregation.SUM


def same(left: object, right: object) -> bool:
    return bool(np.array_equal(np.asarray(left), np.asarray(right)))


# ---- 1, 2: layers swapped or removed ---------------------------------------------------------------------


def test_swapped_layers_are_restored_by_name(tmp_path: pathlib.Path, strategy: tf.distribute.Strategy) -> None:
    with strategy.scope():
        old, new = seq("abc"), seq("acb")
    scramble(old, seed=1)
    saved = kernels(old)
    path = save(Checkpoint(model=old), tmp_path)

    scramble(new, seed=2)
    natively(Checkpoint(model=new), path)
    assert same(kernels(new)["b"], saved["c"]) and same(kernels(new)["c"], saved["b"])

    scramble(new, seed=3)
    report = restore(Checkpoint(model=new), path)
    for name, kernel in saved.items():
        assert_holds(new.get_layer(name).kernel, kernel)
    assert report.plan.mapping()["model/b/kernel"] == ("model/b/kernel",)


def test_swapped_layers_take_their_moments_along(tmp_path: pathlib.Path, trainable: tf.distribute.Strategy) -> None:
    with trainable.scope():
        old, new = seq("abc"), seq("acb")
        old_adam, new_adam = adam(old), adam(new)
    scramble(old, old_adam, seed=1)
    path = save(Checkpoint(model=old, optimizer=old_adam), tmp_path)

    natively(Checkpoint(model=new, optimizer=new_adam), path)
    assert same(value(new.get_layer("b").kernel), value(old.get_layer("c").kernel))
    assert same(
        value(slot(new_adam, "momentums", new.get_layer("b").kernel)),
        value(slot(old_adam, "momentums", old.get_layer("c").kernel)),
    )

    scramble(new, new_adam, seed=3)
    restore(Checkpoint(model=new, optimizer=new_adam), path)
    for name in "abc":
        mine, theirs = new.get_layer(name).kernel, old.get_layer(name).kernel
        assert_holds(mine, value(theirs))
        for role in ("momentums", "velocities"):
            assert_holds(slot(new_adam, role, mine), value(slot(old_adam, role, theirs)))


@pytest.mark.parametrize("rules", [None, {f"{name}/kernel": f"model/{name}/kernel" for name in "abc"}])
def test_swapped_layers_of_a_tf_keras_checkpoint_are_never_crossed(rules: dict[str, str] | None) -> None:
    new = seq("acb")
    scramble(new, seed=3)
    before = snapshot(new)
    try:
        restore(Checkpoint(model=new), GOLDEN / "tf_keras_abc-1", rules=rules)
    except dr.UnmatchedError as error:
        assert rules is None and "model/b/kernel" in str(error)
        assert_unchanged(before)
        return
    for number, name in enumerate("abc", start=1):  # how the golden file was made
        assert_holds(new.get_layer(name).kernel, np.full((4, 4), number, np.float32))


def test_swapped_layers_of_a_live_tf_keras_model_are_never_crossed(tmp_path: pathlib.Path) -> None:
    tf_keras = pytest.importorskip("tf_keras", reason="tf_keras is no dependency of the package")

    def tf_keras_seq(names: str) -> object:
        inputs = x = tf_keras.Input((4,))
        for name in names:
            x = tf_keras.layers.Dense(4, name=name, use_bias=False)(x)
        return tf_keras.Model(inputs, x)

    old, new = tf_keras_seq("abc"), tf_keras_seq("acb")
    scramble(old, seed=1)
    path = save(Checkpoint(model=old), tmp_path)
    natively(Checkpoint(model=new), path)
    assert same(new.get_layer("b").kernel, old.get_layer("c").kernel)

    scramble(new, seed=3)
    before = snapshot(new)
    try:
        restore(Checkpoint(model=new), path)
    except dr.RestoreError as error:
        assert_unchanged(before)
        assert "kernel" in str(error)
    else:
        for name in "abc":
            assert_holds(new.get_layer(name).kernel, value(old.get_layer(name).kernel))


def test_the_layers_after_a_removed_one_keep_their_own_weights(
    tmp_path: pathlib.Path, strategy: tf.distribute.Strategy
) -> None:
    with strategy.scope():
        old, new = seq(["a", "new", "b"]), seq(["a", "b"])
    scramble(old, seed=1)
    saved = kernels(old)
    path = save(Checkpoint(model=old), tmp_path)

    Checkpoint(model=new).restore(path).assert_existing_objects_matched()
    assert same(kernels(new)["b"], saved["new"])

    scramble(new, seed=3)
    report = restore(Checkpoint(model=new), path)
    assert_holds(new.get_layer("a").kernel, saved["a"])
    assert_holds(new.get_layer("b").kernel, saved["b"])
    assert "model/new/kernel" in {u.name for u in report.plan.unused}


def test_an_added_layer_is_refused_and_not_filled_with_another_ones_weights(tmp_path: pathlib.Path) -> None:
    old, new = seq(["a", "b"]), seq(["a", "new", "b"])
    scramble(old, seed=1)
    path = save(Checkpoint(model=old), tmp_path)
    Checkpoint(model=new).restore(path).expect_partial()
    assert same(kernels(new)["new"], kernels(old)["b"])

    scramble(new, seed=3)
    refuse(dr.UnmatchedError, Checkpoint(model=new), path, "model/new/kernel", "keep")


# ---- 3: unbuilt ------------------------------------------------------------------------------------------


def test_an_unbuilt_model_is_refused_with_how_to_build_it(tmp_path: pathlib.Path) -> None:
    old = net(dense=4)
    scramble(old, seed=1)
    path = save(Checkpoint(model=old), tmp_path)

    unbuilt = Net(dense=keras.layers.Dense(4))
    Checkpoint(model=unbuilt).restore(path).assert_existing_objects_matched()
    unbuilt(tf.zeros((1, 4)))
    assert not same(value(unbuilt.dense.kernel), value(old.dense.kernel))

    fresh = Net(dense=keras.layers.Dense(4, name="fresh_layer"))
    with pytest.raises(dr.UnbuiltModelError, match=r"fresh_layer.*scope"):
        restore(Checkpoint(model=fresh), path)
    fresh(tf.zeros((1, 4)))
    restore(Checkpoint(model=fresh), path)
    assert_holds(fresh.dense.kernel, value(old.dense.kernel))


def test_one_unbuilt_layer_in_a_built_model_is_refused(tmp_path: pathlib.Path) -> None:
    old = net(dense=4, late=4)
    path = save(Checkpoint(model=old), tmp_path)
    half = Net(dense=keras.layers.Dense(4), late=keras.layers.Dense(4, name="late_layer"))
    half.order = ("dense",)  # the other layer is never called
    half(tf.zeros((1, 4)))
    refuse(dr.UnbuiltModelError, Checkpoint(model=half), path, "late_layer", "scope")


# ---- 4, 11: optimizer slots ------------------------------------------------------------------------------


def test_averaged_weights_do_not_become_momentum(tmp_path: pathlib.Path, trainable: tf.distribute.Strategy) -> None:
    with trainable.scope():
        old, new = seq("ab"), seq("ab")
        old_adam, new_adam = adam(old, use_ema=True), adam(new)
    scramble(old, old_adam, seed=1)
    path = save(Checkpoint(model=old, optimizer=old_adam), tmp_path)

    Checkpoint(model=new, optimizer=new_adam).restore(path).assert_existing_objects_matched()
    found, averages = values(new_adam._variables)[2:], values(old_adam._model_variables_moving_average)
    assert any(same(v, average) for v in found for average in averages)

    scramble(new, new_adam, seed=3)
    report = restore(Checkpoint(model=new, optimizer=new_adam), path)
    assert_all_hold(moments(new_adam), values(moments(old_adam)))
    assert_holds(new_adam.iterations, value(old_adam.iterations))
    assert any("average" in u.name for u in report.plan.unused)


def test_the_velocity_of_rmsprop_becomes_momentum_of_sgd_only_when_told(
    tmp_path: pathlib.Path, trainable: tf.distribute.Strategy
) -> None:
    with trainable.scope():
        old, new = seq("ab"), seq("ab")
        rmsprop = built(keras.optimizers.RMSprop(), old)
        sgd = built(keras.optimizers.SGD(momentum=0.9), new)
    scramble(old, rmsprop, seed=1)
    path = save(Checkpoint(model=old, optimizer=rmsprop), tmp_path)

    natively(Checkpoint(model=new, optimizer=sgd), path)
    assert_all_hold(sgd.momentums, values(rmsprop._velocities))

    scramble(new, sgd, seed=3)
    root = Checkpoint(model=new, optimizer=sgd)
    refuse(dr.UnmatchedError, root, path, "optimizer/momentum/model/a/kernel", "rmsprop", "sgd", "[slots]")
    restore(root, path, rules={"slots": {"velocity": "momentum"}})
    assert_all_hold(sgd.momentums, values(rmsprop._velocities))


def test_an_equal_role_of_another_optimizer_class_is_refused(tmp_path: pathlib.Path) -> None:
    old, new = seq("ab"), seq("ab")
    sgd, new_adam = built(keras.optimizers.SGD(momentum=0.9), old), adam(new)
    scramble(old, sgd, seed=1)
    path = save(Checkpoint(model=old, optimizer=sgd), tmp_path)
    scramble(new, new_adam, seed=3)
    refuse(dr.UnmatchedError, Checkpoint(model=new, optimizer=new_adam), path, "optimizer/momentum/model/a/kernel")


def test_adamw_takes_over_the_moments_of_adam(tmp_path: pathlib.Path) -> None:
    old, new = seq("ab"), seq("ab")
    old_adam, adamw = adam(old), built(keras.optimizers.AdamW(), new)
    scramble(old, old_adam, seed=1)
    path = save(Checkpoint(model=old, optimizer=old_adam), tmp_path)
    scramble(new, adamw, seed=3)
    restore(Checkpoint(model=new, optimizer=adamw), path)
    assert_all_hold(moments(adamw), values(moments(old_adam)))


def test_slots_follow_their_owners_when_the_optimizer_was_built_over_another_order(
    tmp_path: pathlib.Path, trainable: tf.distribute.Strategy
) -> None:
    with trainable.scope():
        old, new = net(a=4, b=4), net(a=4, b=4)
        old_adam = adam(old)
        new_adam = keras.optimizers.Adam()
        new_adam.build([new.b.kernel, new.b.bias, new.a.kernel, new.a.bias])
    scramble(old, old_adam, seed=1)
    path = save(Checkpoint(model=old, optimizer=old_adam), tmp_path)

    # The model's own names win over the optimizer's list, so that only the slots go astray.
    Checkpoint(model=new, optimizer=new_adam).restore(path).expect_partial()
    astray = value(slot(new_adam, "momentums", new.b.kernel))
    assert same(astray, value(slot(old_adam, "momentums", old.a.kernel)))

    scramble(new, new_adam, seed=3)
    restore(Checkpoint(model=new, optimizer=new_adam), path)
    for name in ("a", "b"):
        for part in ("kernel", "bias"):
            mine, theirs = getattr(getattr(new, name), part), getattr(getattr(old, name), part)
            assert_holds(mine, value(theirs))
            for role in ("momentums", "velocities"):
                assert_holds(slot(new_adam, role, mine), value(slot(old_adam, role, theirs)))


# ---- 9: restores that do nothing -------------------------------------------------------------------------


def test_a_checkpoint_that_is_not_there_is_an_error(mirrored2: tf.distribute.Strategy) -> None:
    with mirrored2.scope():
        model = seq("ab")
    before = snapshot(model)
    Checkpoint(model=model).restore(tf.train.latest_checkpoint("/nope")).expect_partial()
    assert_unchanged(before)
    refuse(dr.CheckpointNotFoundError, Checkpoint(model=model), "/nope", "/nope")


@pytest.mark.parametrize("path", ["", "missing/ckpt-1"])
def test_a_path_that_names_nothing_is_an_error(path: str, tmp_path: pathlib.Path) -> None:
    model = seq("ab")
    refuse(dr.CheckpointNotFoundError, Checkpoint(model=model), f"{tmp_path}/{path}" if path else "")


def test_none_in_place_of_a_path_is_an_error() -> None:
    # What tf.train.latest_checkpoint returns for an empty directory.
    model = seq("ab")
    before = snapshot(model)
    with pytest.raises((dr.CheckpointNotFoundError, TypeError)):
        restore(Checkpoint(model=model), None)
    assert_unchanged(before)


def test_another_name_for_the_root_is_aligned(tmp_path: pathlib.Path, strategy: tf.distribute.Strategy) -> None:
    with strategy.scope():
        old, new = net(a=4, b=4), net(a=4, b=4)
    scramble(old, seed=1)
    path = save(Checkpoint(net=old), tmp_path)

    scramble(new, seed=2)
    before = snapshot(new)
    Checkpoint(model=new).restore(path).assert_nontrivial_match()
    assert_unchanged(before)

    report = restore(Checkpoint(model=new), path)
    assert_all_hold(new.weights, values(old.weights))
    assert "root" in entry(report.plan, "model/a/kernel").evidence


def test_a_restore_that_would_fill_nothing_is_an_error_whatever_was_allowed(tmp_path: pathlib.Path) -> None:
    path = save(Checkpoint(model=net(a=4)), tmp_path)
    other = net(x=4, y=4)
    root = Checkpoint(model=other)
    root.restore(path).assert_nontrivial_match()  # passes: `save_counter` was restored
    refuse(dr.UnmatchedError, root, path, "nothing", "model/a/kernel", "model/x/kernel", unmatched="keep")


# ---- 10: replicas ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["default", "mirrored2", "mirrored4", "tpu"])
@pytest.mark.parametrize("total", [7, 8, -7])
def test_an_on_read_sum_reads_the_same_total_afterwards(tmp_path: pathlib.Path, name: str, total: int) -> None:
    strategy = make_strategy(name)
    with strategy.scope():
        old = tf.Variable(0, dtype=tf.int64, synchronization=ON_READ, aggregation=SUM, name="total")
        new = tf.Variable(0, dtype=tf.int64, synchronization=ON_READ, aggregation=SUM, name="total")
    replica = getattr(old, "values", (old,))[0]
    replica.assign(total)
    path = save(Checkpoint(total=old), tmp_path)

    restore(Checkpoint(total=new), path)
    assert int(new.read_value()) == total
    assert sum(int(part) for part in replicas(new)) == total


def test_plain_tensorflow_loses_the_rest_of_an_on_read_sum(
    tmp_path: pathlib.Path, mirrored2: tf.distribute.Strategy
) -> None:
    with mirrored2.scope():
        old = tf.Variable(0, dtype=tf.int64, synchronization=ON_READ, aggregation=SUM)
    old.values[0].assign(7)
    path = save(Checkpoint(total=old), tmp_path)
    natively(Checkpoint(total=old), path)
    assert int(old.read_value()) == 6


def test_plain_assignment_of_an_on_read_sum_counts_every_replica(
    tmp_path: pathlib.Path, mirrored2: tf.distribute.Strategy
) -> None:
    with mirrored2.scope():
        total = tf.Variable(8.0, synchronization=ON_READ, aggregation=SUM)
    for part in total.values:
        part.assign(8.0)
    assert float(total.read_value()) == 16.0

    total.values[0].assign(4.0)
    total.values[1].assign(4.0)
    path = save(Checkpoint(total=total), tmp_path)
    restore(Checkpoint(total=total), path)
    assert float(total.read_value()) == 8.0
    assert [float(part) for part in replicas(total)] == [4.0, 4.0]


def test_a_replica_that_was_left_behind_is_restored_too(
    tmp_path: pathlib.Path, mirrored4: tf.distribute.Strategy
) -> None:
    with mirrored4.scope():
        model = seq("ab")
    scramble(model, seed=1)
    expected = values(model.weights)
    path = save(Checkpoint(model=model), tmp_path)

    kernel = model.get_layer("a").kernel.value
    kernel.values[0].assign(tf.zeros_like(kernel.values[0]))
    assert not kernel.numpy().any() and replicas(kernel)[1].any()  # replica 1 differs, and numpy() does not tell

    restore(Checkpoint(model=model), path)
    assert_all_hold(model.weights, expected)


# ---- 12: casts that lose values --------------------------------------------------------------------------


def half(initial: float = 1.0) -> tf.Variable:
    return tf.Variable([initial, 2.0, 3.0], dtype=tf.float16)


def test_a_value_too_large_for_float16_is_refused(tmp_path: pathlib.Path, strategy: tf.distribute.Strategy) -> None:
    path = save(Checkpoint(w=tf.Variable([70000.0, 1.0, 2.0])), tmp_path)
    with strategy.scope():
        w = half()
    stored = tf.train.load_checkpoint(path).get_tensor("w/.ATTRIBUTES/VARIABLE_VALUE")
    with np.errstate(over="ignore"):
        assign(w, stored.astype(np.float16))  # what people write
    assert np.isinf(value(w)[0])

    with strategy.scope():
        fresh = half()
    refuse(dr.DtypeMismatchError, Checkpoint(w=fresh), path, "'w'", "float16", "70000")


def test_a_value_that_float16_holds_exactly_is_cast(tmp_path: pathlib.Path, strategy: tf.distribute.Strategy) -> None:
    path = save(Checkpoint(w=tf.Variable([0.5, -2048.0, 65504.0])), tmp_path)
    with strategy.scope():
        w = half()
    restore(Checkpoint(w=w), path)
    assert_holds(w, np.array([0.5, -2048.0, 65504.0], np.float16))


def test_a_value_that_only_rounds_is_refused_unless_declared(tmp_path: pathlib.Path) -> None:
    path = save(Checkpoint(w=tf.Variable([0.1, 1.0, 2.0])), tmp_path)
    w = half()
    refuse(dr.DtypeMismatchError, Checkpoint(w=w), path, "'w'", "lossy")
    rules = dr.RuleSet.from_toml('[[rule]]\nfrom="w"\nto="w"\nops=[{cast={dtype="float16", lossy=true}}]')
    restore(Checkpoint(w=w), path, rules=rules)
    assert_holds(w, np.array([0.1, 1.0, 2.0], np.float32).astype(np.float16))


# ---- Keras 3 models with their blocks in a list ----------------------------------------------------------


def explicit(index: int) -> str:
    return f"block_dense_{index}"


def automatic(index: int) -> None:
    return None


@pytest.mark.parametrize("names", [automatic, explicit])
def test_blocks_in_a_list_are_not_in_the_checkpoint_and_are_refused(
    tmp_path: pathlib.Path, names: object, trainable: tf.distribute.Strategy
) -> None:
    with trainable.scope():
        old, new = stack(3, names=names), stack(3, names=names)
    scramble(old, seed=1)
    path = save(Checkpoint(model=old), tmp_path)

    scramble(new, seed=2)
    natively(Checkpoint(model=new), path)  # passes
    assert_holds(new.head.kernel, value(old.head.kernel))
    assert not same(value(new.blocks[0].kernel), value(old.blocks[0].kernel))

    scramble(new, seed=3)
    refuse(dr.UnmatchedError, Checkpoint(model=new), path, "model/blocks/0/kernel", "plain list", "model/blocks/2/bias")


@pytest.mark.parametrize("first", [True, False], ids=["stack to stack_1", "stack_1 to stack_2"])
@pytest.mark.parametrize("names", [automatic, explicit])
def test_blocks_in_a_list_are_restored_where_the_optimizer_was_saved(
    tmp_path: pathlib.Path, names: object, first: bool, trainable: tf.distribute.Strategy
) -> None:
    keras.utils.clear_session()  # slots carry the model's name, which Keras counts up
    if not first:
        stack(1)
    with trainable.scope():
        old, new = stack(3, names=names), stack(3, names=names)
        old_adam, new_adam = adam(old), adam(new)
    scramble(old, old_adam, seed=1)
    path = save(Checkpoint(model=old, optimizer=old_adam), tmp_path)
    scramble(new, new_adam, seed=3)
    restore(Checkpoint(model=new, optimizer=new_adam), path)
    assert_all_hold(new.weights, values(old.weights))
    assert_all_hold(moments(new_adam), values(moments(old_adam)))


@pytest.mark.parametrize("names", [automatic, explicit])
def test_blocks_in_a_list_are_restored_beside_an_optimizer_without_slots(
    tmp_path: pathlib.Path, names: object, trainable: tf.distribute.Strategy
) -> None:
    with trainable.scope():
        old, new = stack(3, names=names), stack(3, names=names)
        old_sgd, new_sgd = (built(keras.optimizers.SGD(), m) for m in (old, new))
    scramble(old, old_sgd, seed=1)
    path = save(Checkpoint(model=old, optimizer=old_sgd), tmp_path)
    scramble(new, new_sgd, seed=3)
    restore(Checkpoint(model=new, optimizer=new_sgd), path)
    assert_all_hold(new.weights, values(old.weights))


@pytest.mark.parametrize("optimizer", [keras.optimizers.Adam, keras.optimizers.SGD])
@pytest.mark.parametrize("names", [automatic, explicit])
@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 2)])
def test_a_block_inserted_into_or_removed_from_a_list_is_never_guessed(
    tmp_path: pathlib.Path, names: object, optimizer: type[keras.optimizers.Optimizer], before: int, after: int
) -> None:
    old, new = stack(before, names=names), stack(after, names=names)
    old_optimizer, new_optimizer = built(optimizer(), old), built(optimizer(), new)
    scramble(old, old_optimizer, seed=1)
    path = save(Checkpoint(model=old, optimizer=old_optimizer), tmp_path)

    scramble(new, new_optimizer, seed=2)
    Checkpoint(model=new, optimizer=new_optimizer).restore(path).expect_partial()
    # The head is a block's bias or kernel now, or shares a name with it: native restore tells nothing either way.
    root = Checkpoint(model=new, optimizer=new_optimizer)
    scramble(new, new_optimizer, seed=3)
    with_names = names is explicit and optimizer is keras.optimizers.Adam
    state = snapshot(new, new_optimizer)
    with pytest.raises((dr.AmbiguousMatchError, dr.UnmatchedError)) as caught:
        restore(root, path)
    assert_unchanged(state)
    assert "model/blocks/" in str(caught.value)
    assert with_names or isinstance(caught.value, dr.AmbiguousMatchError)


def test_an_inserted_block_is_restored_by_a_rule(tmp_path: pathlib.Path, trainable: tf.distribute.Strategy) -> None:
    with trainable.scope():
        old, new = stack(2, names=explicit, name="stack"), stack(3, names=lambda i: f"new_{i}")
        old_adam, new_adam = adam(old), adam(new)
    scramble(old, old_adam, seed=1)
    path = save(Checkpoint(model=old, optimizer=old_adam), tmp_path)
    scramble(new, new_adam, seed=3)
    first = value(new.blocks[0].kernel)
    rules = dr.RuleSet.from_toml(
        """
        [[rule]]
        from = "stack_block_dense_{i}_{name}"
        to = "model/blocks/{i+1}/{name}"
        [[rule]]
        keep = "model/blocks/0/{rest}"
        """
    )
    plan = dr.DistributedRestorer(Checkpoint(model=new, optimizer=new_adam), rules=rules).plan(path)
    assert plan.problems == (), plan.summary()
    restore(Checkpoint(model=new, optimizer=new_adam), path, rules=rules)
    assert_holds(new.blocks[0].kernel, first)
    for index in range(2):
        assert_all_hold(new.blocks[index + 1].weights, values(old.blocks[index].weights))
    mine, theirs = new.blocks[1].kernel, old.blocks[0].kernel
    assert_holds(slot(new_adam, "momentums", mine), value(slot(old_adam, "momentums", theirs)))


class Tagger(Stack):
    """Blocks in a list between a table and a head, of which both may grow."""

    def __init__(self, count: int, *, words: int = 5, tags: int = 4) -> None:
        super().__init__(count)
        self.table, self.head = keras.layers.Dense(4, use_bias=False), keras.layers.Dense(tags)
        self.call(keras.Input((words,)))
        self.built = True

    def call(self, words: tf.Tensor) -> tf.Tensor:
        return super().call(self.table(words))


def fit(*names: str) -> list[dict[str, object]]:
    return [{"from": name, "to": name, "ops": [{"fit": {"fill": "keep"}}]} for name in names]


@pytest.mark.parametrize("sizes", [{"words": 7}, {"tags": 6}, {"words": 7, "tags": 6}], ids=str)
def test_rules_for_what_grew_settle_a_model_whose_blocks_are_in_a_list(
    tmp_path: pathlib.Path, sizes: dict[str, int], trainable: tf.distribute.Strategy
) -> None:
    """Blocks are told by the place that they have among what has no name, whatever became of the others."""
    with trainable.scope():
        old, new = Tagger(3), Tagger(3, **sizes)
        old_adam, new_adam = adam(old), adam(new)
    scramble(old, old_adam, seed=1)
    path = save(Checkpoint(model=old, optimizer=old_adam), tmp_path)
    scramble(new, new_adam, seed=3)
    grown = {"words": ["model/table/kernel"], "tags": ["model/head/kernel", "model/head/bias"]}
    rules = {"rule": fit(*(name for size in sizes for name in grown[size]))}
    restore(Checkpoint(model=new, optimizer=new_adam), path, rules=rules)
    for mine, theirs in zip(new.blocks, old.blocks, strict=True):
        assert_all_hold(mine.weights, values(theirs.weights))
        momenta = [slot(o, "momentums", b.kernel) for o, b in ((new_adam, mine), (old_adam, theirs))]
        assert_holds(momenta[0], value(momenta[1]))
    assert same(value(new.table.kernel)[:5], value(old.table.kernel))
    assert same(value(new.head.kernel)[:, :4], value(old.head.kernel))


@pytest.mark.parametrize("place", [0, 1, 3])
def test_one_rule_that_keeps_the_inserted_block_of_a_list_settles_the_others(
    tmp_path: pathlib.Path, place: int
) -> None:
    old, new = Tagger(3), Tagger(4)
    old_adam, new_adam = adam(old), adam(new)
    scramble(old, old_adam, seed=1)
    path = save(Checkpoint(model=old, optimizer=old_adam), tmp_path)
    scramble(new, new_adam, seed=3)
    fresh = values(new.blocks[place].weights)
    restore(Checkpoint(model=new, optimizer=new_adam), path, rules=[dr.Rule(keep=f"model/blocks/{place}/{{rest}}")])
    assert_all_hold(new.blocks[place].weights, fresh)
    for mine, theirs in zip([*new.blocks[:place], *new.blocks[place + 1 :]], old.blocks, strict=True):
        assert_all_hold(mine.weights, values(theirs.weights))


def test_blocks_that_changed_places_under_their_own_names_are_never_crossed(tmp_path: pathlib.Path) -> None:
    # Their slots carry their names. An optimizer without slots leaves nothing in the checkpoint that tells them apart.
    old, new = stack(2, names=explicit), stack(2, names=lambda i: explicit(1 - i))
    old_optimizer, new_optimizer = adam(old), adam(new)
    scramble(old, old_optimizer, seed=1)
    path = save(Checkpoint(model=old, optimizer=old_optimizer), tmp_path)
    natively(Checkpoint(model=new, optimizer=new_optimizer), path)
    assert same(value(new.blocks[0].kernel), value(old.blocks[0].kernel))  # another layer by its name

    scramble(new, new_optimizer, seed=3)
    before = snapshot(new, new_optimizer)
    try:
        restore(Checkpoint(model=new, optimizer=new_optimizer), path)
    except dr.RestoreError as error:
        assert_unchanged(before)
        assert "model/blocks/0/kernel" in str(error)
    else:
        assert_holds(new.blocks[0].kernel, value(old.blocks[1].kernel))


def test_a_list_of_blocks_that_was_saved_as_a_list_is_restored(tmp_path: pathlib.Path) -> None:
    old, new = stack(3), stack(3)
    scramble(old, seed=1)
    path = save(Checkpoint(blocks=list(old.blocks), head=old.head), tmp_path)
    scramble(new, seed=3)
    restore(Checkpoint(blocks=list(new.blocks), head=new.head), path)
    assert_all_hold(new.weights, values(old.weights))
    scramble(new, seed=4)
    restore(Checkpoint(model=new), path)
    assert_all_hold(new.weights, values(old.weights))


def test_a_stack_is_what_these_tests_say(tmp_path: pathlib.Path) -> None:
    model = stack(3)
    assert isinstance(model, Stack) and len(model.weights) == 8
    keys = [k for k, _ in tf.train.list_variables(save(Checkpoint(model=model), tmp_path))]
    assert not any("blocks" in k for k in keys)


# ---- Fact 1: key strings lie -----------------------------------------------------------------------------


def test_a_models_own_variables_under_the_optimizers_keys_are_the_models(
    tmp_path: pathlib.Path, trainable: tf.distribute.Strategy
) -> None:
    with trainable.scope():
        old, new = Net(body=net(a=4, b=4)), Net(body=net(a=4, b=4))
        for model in (old, new):
            model(tf.zeros((1, 4)))
        old_adam = adam(old)
    scramble(old, old_adam, seed=1)
    path = save(Checkpoint(model=old, optimizer=old_adam), tmp_path)
    keys = [key for key, _ in tf.train.list_variables(path)]
    assert any(key.startswith("optimizer/_trainable_variables/") for key in keys)
    assert not any(key.startswith("model/body/") for key in keys)  # who skips optimizer/* drops the model

    with contextlib.closing(dr.open_checkpoint(path)) as source:
        names = {t.name for t in source.index().tensors}
    assert {"model/body/a/kernel", "model/body/b/bias", "optimizer/momentum/model/body/a/kernel"} <= names

    scramble(new, seed=3)
    report = restore(Checkpoint(model=new), path)
    assert_all_hold(new.weights, values(old.weights))
    assert report.coverage.variables == 1.0
