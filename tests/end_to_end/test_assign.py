"""Assignment: every replica under every strategy, ON_READ totals, and what happens when something goes wrong."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

import dist_restore as dr
from conftest import make_strategy
from dist_restore.targets.assigner import Assigner, split_sum
from dist_restore.tf_internals.host_memory import HostBuffer
from live import (
    adam,
    assert_all_hold,
    assert_holds,
    built,
    moments,
    net,
    replicas,
    restore,
    save,
    scramble,
    seq,
    value,
    values,
)
from tpu_standin import tpu_strategy

Checkpoint = tf.train.Checkpoint
ON_READ = tf.VariableSynchronization.ON_READ
Aggregation = tf.VariableAggregation
EVERY = ["default", "mirrored2", "mirrored3", "mirrored4", "tpu"]


# ---- split_sum -------------------------------------------------------------------------------------------


def total_of(shares: tuple[np.ndarray, ...]) -> np.ndarray:
    total = shares[0]
    for share in shares[1:]:
        total = (total + share).astype(total.dtype)
    return total


integers = st.sampled_from(["int8", "uint8", "int16", "int32", "uint32", "int64", "uint64"])
floats = st.sampled_from(["float16", "float32", "float64"])
shapes = stn.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=4)


@given(integers.flatmap(lambda dtype: stn.arrays(dtype, shapes)), st.integers(1, 9))
def test_integer_shares_add_up_to_the_total(total: np.ndarray, count: int) -> None:
    shares = split_sum(total, count)
    assert len(shares) == count
    assert all(s.dtype == total.dtype and s.shape == total.shape for s in shares)
    assert np.array_equal(total_of(shares), total)
    # Nobody holds more than its share and the rest, so that no replica can overflow.
    assert all(np.array_equal(shares[1], s) for s in shares[1:])


@given(floats.flatmap(lambda dtype: stn.arrays(dtype, shapes)), st.integers(1, 9))
def test_float_shares_add_up_to_the_total_bit_by_bit(total: np.ndarray, count: int) -> None:
    shares = split_sum(total, count)
    assert len(shares) == count
    assert all(s.dtype == total.dtype and s.shape == total.shape for s in shares)
    found = total_of(shares)
    assert np.array_equal(found, total, equal_nan=True)


@given(stn.arrays(np.complex64, shapes, elements=st.complex_numbers(max_magnitude=1e6, width=64)), st.integers(1, 5))
def test_complex_shares_add_up_to_the_total(total: np.ndarray, count: int) -> None:
    assert np.array_equal(total_of(split_sum(total, count)), total)


def test_bfloat16_shares_add_up_to_the_total() -> None:
    total = np.asarray(tf.cast(tf.linspace(-300.0, 300.0, 999), tf.bfloat16))
    for count in (2, 3, 4, 7):
        assert np.array_equal(total_of(split_sum(total, count)), total)


# ---- ON_READ ---------------------------------------------------------------------------------------------


def on_read(strategy: tf.distribute.Strategy, initial: object, aggregation: Aggregation, dtype: str) -> tf.Variable:
    with strategy.scope():
        return tf.Variable(
            tf.zeros_like(tf.constant(initial, dtype)), synchronization=ON_READ, aggregation=aggregation, name="total"
        )


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(
    ("aggregation", "dtype"),
    [(a, d) for a in (Aggregation.SUM, Aggregation.ONLY_FIRST_REPLICA) for d in ("int32", "int64", "float32")]
    + [(Aggregation.MEAN, "float32")],  # TensorFlow makes no mean of integers
)
def test_an_on_read_variable_reads_what_was_stored(
    tmp_path: pathlib.Path, name: str, aggregation: Aggregation, dtype: str
) -> None:
    stored = [7, 8, 9, 0, -5, 100_003] if dtype.startswith("int") else [0.1, 7.0, -1e-30, 3.3e38, 0.0, 1 / 3]
    if aggregation is Aggregation.MEAN:
        stored = [1.5, -0.25, 0.0, 1024.0]  # a mean is read by adding up and dividing again, which may not round here
    path = save(Checkpoint(total=tf.Variable(stored, dtype=dtype)), tmp_path)
    variable = on_read(make_strategy(name), stored, aggregation, dtype)
    restore(Checkpoint(total=variable), path)
    if aggregation is Aggregation.SUM:
        assert np.array_equal(total_of(tuple(replicas(variable))), np.asarray(stored, dtype))
    else:
        assert_holds(variable, np.asarray(stored, dtype))
    assert np.array_equal(variable.read_value().numpy(), np.asarray(stored, dtype))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(-(2**31), 2**31 - 1), min_size=3, max_size=3),
    # TensorFlow's addition takes subnormal numbers for zero, so it can read none, however they are stored.
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False), min_size=3, max_size=3),
    st.sampled_from(EVERY),
)
def test_an_on_read_sum_reads_any_total_exactly(integers: list[int], floats: list[float], name: str) -> None:
    strategy = make_strategy(name)
    assigner = Assigner(strategy)
    for total in (np.asarray(integers, np.int32), np.asarray(floats, np.float32)):
        variable = _reused(name, total.dtype.name)
        assert assigner.assign(variable, HostBuffer(total)) == assigner.checksums(variable)
        assert np.array_equal(variable.read_value().numpy(), total)


_VARIABLES: dict[tuple[str, str], tf.Variable] = {}


def _reused(name: str, dtype: str) -> tf.Variable:
    if (name, dtype) not in _VARIABLES:
        _VARIABLES[name, dtype] = on_read(make_strategy(name), np.zeros(3), Aggregation.SUM, dtype)
    return _VARIABLES[name, dtype]


def test_a_checkpoint_of_an_on_read_sum_that_was_restored_holds_the_total_again(tmp_path: pathlib.Path) -> None:
    path = save(Checkpoint(total=tf.Variable([7, 8], dtype=tf.int64)), tmp_path)
    variable = on_read(make_strategy("mirrored4"), [0, 0], Aggregation.SUM, "int64")
    root = Checkpoint(total=variable)
    restore(root, path)
    again = tf.train.load_checkpoint(save(root, tmp_path))
    assert again.get_tensor("total/.ATTRIBUTES/VARIABLE_VALUE").tolist() == [7, 8]


def test_keras_metrics_with_their_sums_are_restored(tmp_path: pathlib.Path, strategy: tf.distribute.Strategy) -> None:
    saved = tf.Module()
    saved.total, saved.count = tf.Variable(7.0), tf.Variable(3.0)
    path = save(Checkpoint(metric=saved), tmp_path)
    with strategy.scope():
        metric = keras.metrics.Mean(name="loss")
    restore({"metric": metric}, path)
    assert float(metric.total.value.read_value()) == 7.0
    assert float(metric.result()) == np.float32(7 / 3)


# ---- Models under every strategy -------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_a_model_and_adam_are_exact_on_every_replica(tmp_path: pathlib.Path, name: str) -> None:
    strategy = make_strategy(name)
    old = net(a=4, b=4)
    old_adam = adam(old)
    scramble(old, old_adam, seed=1)
    path = save(Checkpoint(model=old, optimizer=old_adam), tmp_path)
    with strategy.scope():
        new = net(a=4, b=4)
        new_adam = adam(new)
    report = restore(Checkpoint(model=new, optimizer=new_adam), path, verify="replicas")
    assert report.verified
    assert {len(replicas(v)) for v in new.weights} == {strategy.num_replicas_in_sync}
    assert_all_hold(new.weights, values(old.weights))
    assert_all_hold(moments(new_adam), values(moments(old_adam)))


def test_hashes_are_the_same_under_every_strategy(tmp_path: pathlib.Path) -> None:
    old = net(a=4, b=4)
    scramble(old, seed=1)
    path = save(Checkpoint(model=old), tmp_path)
    hashes = set()
    for name in EVERY:
        with make_strategy(name).scope():
            new = net(a=4, b=4)
        hashes.add(restore(Checkpoint(model=new), path).hashes)
    assert len(hashes) == 1 and len(next(iter(hashes))) == 5


def normalised() -> keras.Model:
    layers = [keras.layers.Dense(3, name="a"), keras.layers.BatchNormalization(name="n")]
    return keras.Sequential([keras.Input((4,)), *layers])


@pytest.mark.parametrize("replica_count", [1, 2, 4])
@pytest.mark.parametrize("policies", [True, False])
def test_both_kinds_of_variables_of_tpustrategy_are_restored(
    tmp_path: pathlib.Path, policies: bool, replica_count: int
) -> None:
    strategy = tpu_strategy(replica_count, policies=policies)
    assert isinstance(strategy, tf.distribute.TPUStrategy) and strategy.num_replicas_in_sync == replica_count
    old = normalised()
    old_adam = adam(old)
    scramble(old, old_adam, seed=1)
    total = tf.Variable(7, dtype=tf.int64)
    path = save(Checkpoint(model=old, optimizer=old_adam, total=total), tmp_path)

    with strategy.scope():
        new = normalised()
        new_adam = keras.optimizers.Adam()
        new_total = tf.Variable(0, dtype=tf.int64, synchronization=ON_READ, aggregation=Aggregation.SUM)
    kinds = {type(new.weights[0].value).__name__, type(new_total).__name__}
    assert kinds == ({"TPUDistributedVariable"} if policies else {"TPUMirroredVariable", "TPUSyncOnReadVariable"})

    root = Checkpoint(model=new, optimizer=new_adam, total=new_total)
    report = restore(root, path, verify="replicas")
    assert report.verified
    assert_all_hold(new.weights, values(old.weights))
    assert_all_hold(moments(new_adam), values(moments(old_adam)))
    assert {type(v.value).__name__ for v in moments(new_adam)} <= kinds
    assert int(new_total.read_value()) == 7


def test_a_tpu_model_is_refused_without_a_change_when_something_is_wrong(tmp_path: pathlib.Path) -> None:
    path = save(Checkpoint(model=net(a=4)), tmp_path)
    with make_strategy("tpu").scope():
        new = net(a=4, b=4)
    before = values(new.weights)
    with pytest.raises(dr.UnmatchedError, match="model/b/kernel"):
        restore(Checkpoint(model=new), path)
    assert_all_hold(new.weights, before)


def test_the_strategy_may_be_given_and_the_call_may_come_from_inside_a_scope(
    tmp_path: pathlib.Path, strategy: tf.distribute.Strategy
) -> None:
    old = net(a=4)
    scramble(old, seed=1)
    path = save(Checkpoint(model=old), tmp_path)
    with strategy.scope():
        new = net(a=4)
        optimizer = keras.optimizers.Adam()
        root = {"model": new, "optimizer": optimizer}
        restore(root, path, strategy=strategy, unmatched="keep")
    assert_all_hold(new.weights, values(old.weights))


def test_variables_of_two_strategies_are_refused(tmp_path: pathlib.Path) -> None:
    path = save(Checkpoint(a=tf.Variable(1.0), b=tf.Variable(1.0)), tmp_path)
    with make_strategy("mirrored2").scope():
        a = tf.Variable(0.0)
    with make_strategy("mirrored4").scope():
        b = tf.Variable(0.0)
    with pytest.raises(dr.RestoreError, match="2 strategies"):
        restore({"a": a, "b": b}, path)
    assert_holds(a, np.float32(0))
    assert_holds(b, np.float32(0))


def test_variables_created_outside_the_scope_are_restored_beside_those_inside(tmp_path: pathlib.Path) -> None:
    path = save(Checkpoint(a=tf.Variable(1.0), step=tf.Variable(5, dtype=tf.int64)), tmp_path)
    step = tf.Variable(0, dtype=tf.int64)
    with make_strategy("mirrored2").scope():
        a = tf.Variable(0.0)
    restore({"a": a, "step": step}, path)
    assert_holds(a, np.float32(1))
    assert_holds(step, np.int64(5))


def test_an_uninitialised_looking_variable_is_assigned_whatever_it_held(tmp_path: pathlib.Path) -> None:
    path = save(Checkpoint(w=tf.Variable([1.0, 2.0])), tmp_path)
    with make_strategy("mirrored2").scope():
        w = tf.Variable([float("nan"), float("inf")])
    restore({"w": w}, path)
    assert_holds(w, np.array([1, 2], np.float32))


@pytest.mark.parametrize("special", [np.nan, -np.nan, np.inf, -0.0, 1e-45])
def test_special_floats_keep_their_bits(tmp_path: pathlib.Path, special: float) -> None:
    stored = np.array([special, 1.0], np.float32)
    path = save(Checkpoint(w=tf.Variable(stored)), tmp_path)
    with make_strategy("mirrored2").scope():
        w = tf.Variable([0.0, 0.0])
    restore({"w": w}, path)
    assert {r.tobytes() for r in replicas(w)} == {stored.tobytes()}


# ---- When something goes wrong on the way ----------------------------------------------------------------


def two_replica_model(tmp_path: pathlib.Path) -> tuple[keras.Model, str, keras.Model]:
    old = seq("ab")
    scramble(old, seed=1)
    path = save(Checkpoint(model=old), tmp_path)
    with make_strategy("mirrored2").scope():
        new = seq("ab")
    scramble(new, seed=2)
    return old, path, new


def after_each_assignment(monkeypatch: pytest.MonkeyPatch, act: Callable[[tf.Variable], None]) -> None:
    """Calls a function with each variable that has just been assigned."""
    real = Assigner.assign

    def assign(self: Assigner, variable: tf.Variable, *args: object, **kwargs: object) -> object:
        expected = real(self, variable, *args, **kwargs)
        act(variable)
        return expected

    monkeypatch.setattr(Assigner, "assign", assign)


@pytest.mark.parametrize("replica", [0, 1])
def test_a_replica_that_holds_something_else_is_found(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, replica: int
) -> None:
    _, path, new = two_replica_model(tmp_path)
    kernel = new.get_layer("b").kernel.value

    def disturb(variable: tf.Variable) -> None:
        if variable is kernel:
            flipped = replicas(variable)[replica].copy()
            flipped.view(np.int32)[0, 0] ^= 1  # the smallest change that there is
            variable.values[replica].assign(flipped)

    after_each_assignment(monkeypatch, disturb)
    with pytest.raises(dr.VerificationError) as caught:
        restore(Checkpoint(model=new), path, verify="replicas")
    assert f"'model/b/kernel' on replica(s) [{replica}]" in str(caught.value)
    assert "model/a/kernel" not in str(caught.value)
    assert any("model/b/kernel" in name for name in caught.value.names)


def test_without_verification_of_replicas_nothing_looks_at_them_again(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, path, new = two_replica_model(tmp_path)
    kernel = new.get_layer("b").kernel.value

    def disturb(variable: tf.Variable) -> None:
        if variable is kernel:
            variable.values[1].assign(tf.zeros((4, 4)))

    after_each_assignment(monkeypatch, disturb)
    report = restore(Checkpoint(model=new), path, verify="checksum")
    assert report.verify == "checksum" and not replicas(kernel)[1].any()
    assert not restore(Checkpoint(model=new), path, verify="none").verified


@pytest.mark.parametrize("error", [dr.RestoreError("a device was lost"), RuntimeError("a device was lost")])
@pytest.mark.parametrize("count", [1, 2])
def test_a_failure_half_way_names_what_had_changed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, error: Exception, count: int
) -> None:
    _, path, new = two_replica_model(tmp_path)
    root = Checkpoint(model=new)
    names = {"model/a/kernel": new.get_layer("a").kernel, "model/b/kernel": new.get_layer("b").kernel}
    names["save_counter"] = root.save_counter
    before = {name: value(variable) for name, variable in names.items()}
    assigned: list[tf.Variable] = []

    def fail(variable: tf.Variable) -> None:
        assigned.append(variable)
        if len(assigned) == count:
            raise error

    after_each_assignment(monkeypatch, fail)
    with pytest.raises(type(error)) as caught:
        restore(root, path)
    said = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
    assert "a device was lost" in said and "had changed" in said
    changed = {name for name, variable in names.items() if not np.array_equal(value(variable), before[name])}
    assert len(changed) >= count
    assert {name for name in names if f"'{name}'" in said} >= changed


def test_restoring_twice_is_the_same_as_once(tmp_path: pathlib.Path, strategy: tf.distribute.Strategy) -> None:
    with strategy.scope():
        old, new = seq("ab"), seq("ab")
        old_sgd, new_sgd = (built(keras.optimizers.SGD(momentum=0.9), m) for m in (old, new))
    scramble(old, old_sgd, seed=1)
    path = save(Checkpoint(model=old, optimizer=old_sgd), tmp_path)
    first = restore(Checkpoint(model=new, optimizer=new_sgd), path)
    second = restore(Checkpoint(model=new, optimizer=new_sgd), path)
    assert first.hashes == second.hashes and first.plan.digest == second.plan.digest
    assert_all_hold(new_sgd.momentums, values(old_sgd.momentums))
