"""Many small variables in one call (tried on TF 2.21): every value exact, every fallback whole, every error named."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

import dist_restore as dr
from dist_restore.engine.verify_pass import verify_replicas
from dist_restore.targets.assigner import Assigned, Assigner, Write, checksum
from dist_restore.tf_internals import batched as grouped
from dist_restore.tf_internals import host_memory
from dist_restore.tf_internals.batched import COUNT
from dist_restore.tf_internals.host_memory import HostBuffer

DTYPES = sorted(host_memory.DTYPES)


def mirrored(count: int = 2) -> tf.distribute.MirroredStrategy:
    if len(tf.config.list_logical_devices("CPU")) < count:
        pytest.skip("too few logical CPU devices")
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(count)])


def values_of(dtype: str, shape: tuple[int, ...], seed: int = 0) -> list[np.ndarray]:
    """Random bytes, so that NaNs and both zeros are among them; of bools, zeros and ones."""
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    raw = np.random.default_rng(seed).integers(0, 256, (COUNT, *shape, kind.itemsize), np.uint8)
    raw = raw % 2 if dtype == "bool" else raw
    return list(raw.view(kind).reshape(COUNT, *shape))


def variables(strategy: tf.distribute.Strategy, dtype: str, shape: tuple[int, ...]) -> list[tf.Variable]:
    with strategy.scope():
        return [tf.Variable(tf.zeros(shape, dtype)) for _ in range(COUNT)]


def write(found: Sequence[tf.Variable], values: Sequence[np.ndarray]) -> bool:
    return grouped.write([host_memory.plain_components(v) for v in found], values)


def assert_hold(found: Sequence[tf.Variable], values: Sequence[np.ndarray]) -> None:
    for variable, value in zip(found, values, strict=True):
        for component in getattr(variable, "values", (variable,)):
            held = component.numpy()
            assert (held.shape, held.dtype, held.tobytes()) == (value.shape, value.dtype, value.tobytes())


def test_the_private_parts_are_there_on_the_tensorflow_that_this_was_tried_on() -> None:
    if not tf.__version__.startswith("2.21."):
        pytest.skip(f"tried on TF 2.21, and this is {tf.__version__}")
    assert grouped._PRIVATE


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_written_bit_by_bit(dtype: str) -> None:
    found, values = variables(tf.distribute.get_strategy(), dtype, (3, 2)), values_of(dtype, (3, 2))
    assert write(found, values)
    assert_hold(found, values)


SHAPES = [(), (1,), (0,), (2, 0, 3), (16,), (5, 3, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("replicas", [1, 2])
def test_every_shape_is_written_to_every_replica(shape: tuple[int, ...], replicas: int) -> None:
    strategy = tf.distribute.get_strategy() if replicas == 1 else mirrored(replicas)
    found, values = variables(strategy, "float32", shape), values_of("float32", shape)
    assert write(found, values)
    assert_hold(found, values)


@pytest.mark.parametrize("shape", [(3,), (16,), (4, 8)])
def test_values_are_shared_neither_with_the_buffer_nor_with_each_other(shape: tuple[int, ...]) -> None:
    found, values = variables(mirrored(), "float32", shape), values_of("float32", shape)
    values = [np.nan_to_num(value) for value in values]
    kept = [value.copy() for value in values]
    assert write(found, values)
    for value in values:
        value[...] = 7.0
    found[1].assign_add(tf.ones(shape))
    found[1].values[0].scatter_nd_update([[0]], tf.fill((1, *shape[1:]), 9.0))
    assert_hold([found[0], *found[2:]], [kept[0], *kept[2:]])
    np.testing.assert_array_equal(found[1].values[1].numpy(), kept[1] + np.float32(1))
    assert (found[1].values[0].numpy()[0] == 9.0).all()


def test_a_value_that_was_read_before_keeps_its_numbers() -> None:
    found = variables(tf.distribute.get_strategy(), "float32", (16,))
    first, second = values_of("float32", (16,), 1), values_of("float32", (16,), 2)
    assert write(found, first)
    before = found[5].read_value()
    assert write(found, second)
    assert before.numpy().tobytes() == first[5].tobytes()
    assert_hold(found, second)


def test_what_does_not_fit_is_not_written_at_all() -> None:
    default = tf.distribute.get_strategy()
    values = values_of("float32", (4,))
    zeros = [np.zeros(4, np.float32)] * (COUNT - 1)
    for odd in (tf.Variable(tf.zeros([4, 1])), tf.Variable(tf.zeros([4], tf.int32)), tf.Variable(["text"])):
        found = [*variables(default, "float32", (4,))[:-1], odd]
        assert not write(found, values)
        assert_hold(found[:-1], zeros)
    found = variables(default, "float32", (4,))
    assert not write(found[:-1], values[:-1])
    assert not write(found, [*values[:-1], np.zeros((4, 1), np.float32)])
    assert not write(found, [*values[:-1], np.zeros(4, np.float64)])
    assert not grouped.write([None] * COUNT, values)
    assert_hold(found[:-1], zeros)


def read(found: Sequence[tf.Variable]) -> list[np.ndarray] | None:
    return grouped.read([host_memory.plain_components(v) for v in found])


CASES = [*((dtype, (3, 2), 1) for dtype in DTYPES), *(("float32", shape, 2) for shape in SHAPES)]


@pytest.mark.parametrize(("dtype", "shape", "replicas"), CASES)
def test_every_replica_is_read_bit_by_bit(dtype: str, shape: tuple[int, ...], replicas: int) -> None:
    strategy = tf.distribute.get_strategy() if replicas == 1 else mirrored(replicas)
    found = variables(strategy, dtype, shape)
    columns = [values_of(dtype, shape, seed) for seed in range(replicas)]
    for replica, values in enumerate(columns):
        for variable, value in zip(found, values, strict=True):
            getattr(variable, "values", (variable,))[replica].assign(tf.constant(value, dtype))
    held = read(found)
    assert held is not None and len(held) == replicas
    for column, values in zip(held, columns, strict=True):
        assert (column.shape, column.dtype) == ((COUNT, *shape), values[0].dtype)
        assert [part.tobytes() for part in column] == [value.tobytes() for value in values]


def test_what_does_not_fit_is_not_read() -> None:
    default = tf.distribute.get_strategy()
    for odd in (tf.Variable(tf.zeros([4, 1])), tf.Variable(tf.zeros([4], tf.int32)), tf.Variable(["text"])):
        assert read([*variables(default, "float32", (4,))[:-1], odd]) is None
        assert read([odd, *variables(default, "float32", (4,))[:-1]]) is None
    assert read(variables(default, "float32", (4,))[:-1]) is None
    assert grouped.read([None] * COUNT) is None


@pytest.mark.parametrize("replicas", [1, 2])
def test_one_replica_of_one_among_many_variables_is_found_where_it_holds_something_else(replicas: int) -> None:
    strategy = tf.distribute.get_strategy() if replicas == 1 else mirrored(replicas)
    found = [v for _ in range(grouped._FEW // COUNT) for v in variables(strategy, "float32", (3,))]
    assigner, handles = Assigner(strategy), {f"v{i}": v for i, v in enumerate(found)}
    crc = checksum(np.zeros(3, np.float32))
    assigned = [Assigned(name, (crc,) * replicas, 12, crc) for name in handles]
    verify_replicas(assigned, handles, assigner)
    getattr(found[700], "values", (found[700],))[-1].assign([0.0, 0.0, 1.0])
    with pytest.raises(
        dr.VerificationError, match=rf"1 variable.s. do not hold .*'v700' on replica.s. .{replicas - 1}]"
    ):
        verify_replicas(assigned, handles, assigner)


def test_replicated_and_plain_variables_and_sums_are_all_written_by_the_assigner() -> None:
    strategy = mirrored()
    with strategy.scope():
        counter = tf.Variable(
            tf.zeros([4], tf.int64),
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.SUM,
        )
    found = [*variables(strategy, "int64", (4,))[: COUNT - 2], tf.Variable(tf.zeros([4], tf.int64)), counter]
    values = values_of("int64", (4,))
    writes = [Write(v, HostBuffer(value), checksum(value)) for v, value in zip(found, values, strict=True)]
    assigner = Assigner(strategy)
    for write_, checksums in zip(writes, assigner.assign_many(writes), strict=True):
        assert checksums == assigner.checksums(write_.variable)
    assert_hold(found[:-1], values[:-1])
    np.testing.assert_array_equal(counter.numpy(), values[-1])


@pytest.mark.parametrize("replicas", [1, 2])
def test_the_assigner_knows_what_every_replica_holds_then(replicas: int) -> None:
    strategy = tf.distribute.get_strategy() if replicas == 1 else mirrored(replicas)
    found, values = variables(strategy, "float16", (3,)), values_of("float16", (3,))
    assigner = Assigner(strategy)
    writes = [Write(v, HostBuffer(value), checksum(value)) for v, value in zip(found, values, strict=True)]
    assert assigner.assign_many(writes) == [assigner.checksums(v) for v in found]


def test_only_many_arrays_of_one_shape_and_dtype_come_together() -> None:
    many = [np.full(3, i, np.float32) for i in range(grouped._FEW)]
    others = [np.zeros(3, np.float64), np.zeros((3, 1), np.float32)] * 5
    items = [*others, *many]
    groups = list(grouped.together(items, lambda item: (item.shape, item.dtype)))
    assert items == []
    assert sorted(map(len, groups)) == [1] * 10 + [COUNT] * (grouped._FEW // COUNT)
    assert {id(item) for group in groups for item in group} == {id(item) for item in [*others, *many]}
    assert all(len({(item.shape, item.dtype) for item in group}) == 1 for group in groups)


def test_few_items_and_items_without_an_array_come_alone_and_in_order() -> None:
    assert list(grouped.together([3, 1, 2], lambda _: "kind")) == [[3], [1], [2]]
    many = list(range(grouped._FEW))
    assert list(grouped.together([*many], lambda _: None)) == [[i] for i in many]


class Many(tf.Module):
    """Small variables of three shapes and two dtypes, with a value of each one's own."""

    def __init__(self, count: int, start: float) -> None:
        super().__init__()
        self.kernels = [tf.Variable(tf.fill([4, 8], start + i)) for i in range(count)]
        self.biases = [tf.Variable(tf.fill([8], -start - i)) for i in range(count)]
        self.counters = [tf.Variable(tf.cast(start, tf.int64) + i) for i in range(count // 4)]


@pytest.mark.parametrize("replicas", [1, 2])
def test_many_small_variables_are_restored_exactly(tmp_path: pathlib.Path, replicas: int) -> None:
    path = tf.train.Checkpoint(model=Many(900, 5.0)).write(str(tmp_path / "ckpt"))
    strategy = tf.distribute.get_strategy() if replicas == 1 else mirrored(replicas)
    with strategy.scope():
        live = Many(900, -7.0)
    report = dr.DistributedRestorer(tf.train.Checkpoint(model=live)).restore(path)
    assert report.verified and report.coverage.filled().variables == 2025
    assert_hold(live.kernels, [np.full((4, 8), 5.0 + i, np.float32) for i in range(900)])
    assert_hold(live.biases, [np.full(8, -5.0 - i, np.float32) for i in range(900)])
    assert_hold(live.counters, [np.array(5 + i, np.int64) for i in range(225)])


@pytest.mark.parametrize("error", [dr.RestoreError("a device was lost"), RuntimeError("a device was lost")])
def test_a_group_that_fails_counts_as_changed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    path = tf.train.Checkpoint(model=Many(900, 5.0)).write(str(tmp_path / "ckpt"))
    live = Many(900, -7.0)
    before = [variable.numpy() for variable in live.variables]
    original, calls = grouped.write, []

    def lost(*args: list) -> bool:
        assert original(*args)
        calls.append(1)
        if len(calls) == 2:
            raise error
        return True

    monkeypatch.setattr(grouped, "write", lost)
    with pytest.raises(type(error), match="a device was lost") as caught:
        dr.DistributedRestorer(tf.train.Checkpoint(model=live), verify="checksum").restore(path)
    said = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
    changed = sum((now.numpy() != old).any() for now, old in zip(live.variables, before, strict=True))
    assert changed == 2 * COUNT
    assert f"{changed} variable(s) had changed already: 'model/" in said


def test_an_update_of_one_replica_of_all_variables_leaves_the_other_replica_alone() -> None:
    strategy = mirrored()
    # TF shares memory that happens to be aligned to 64 bytes, and copies other: a dozen times are enough to meet both.
    for seed in range(12):
        found, values = variables(strategy, "float32", (64,)), values_of("float32", (64,), seed)
        assert write(found, values)
        for variable in found:
            variable.values[0].assign_add(tf.ones((64,)))
        for variable, value in zip(found, values, strict=True):
            np.testing.assert_array_equal(variable.values[1].numpy(), value)
