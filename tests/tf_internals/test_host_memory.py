"""The adapter around TensorFlow's private API (tried on TF 2.21): what it writes is what the public way writes."""

from __future__ import annotations

import pathlib

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from dist_restore.targets.assigner import Assigner
from dist_restore.tf_internals import host_memory
from dist_restore.tf_internals.host_memory import HostBuffer
from warm import run_script

DTYPES = ["float32", "float64", "float16", "bfloat16", "int8", "int32", "int64", "bool", "complex64"]


def mirrored(count: int = 2) -> tf.distribute.MirroredStrategy:
    if len(tf.config.list_logical_devices("CPU")) < count:
        pytest.skip("too few logical CPU devices")
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(count)])


def test_the_private_parts_are_there_on_the_tensorflow_that_this_was_tried_on() -> None:
    if not tf.__version__.startswith("2.21."):
        pytest.skip(f"tried on TF 2.21, and this is {tf.__version__}")
    assert host_memory._PRIVATE
    assert host_memory.new_buffer((2,), "float32") is not None
    assert host_memory.plain_components(tf.Variable([1.0])) is not None
    with mirrored().scope():
        assert len(host_memory.plain_components(tf.Variable([1.0]))) == 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 3), (5,), (700, 801)])
def test_a_filled_buffer_becomes_the_variables_value(dtype: str, shape: tuple[int, ...]) -> None:
    variable = tf.Variable(tf.zeros(shape, dtype))
    buffer = host_memory.new_buffer(shape, dtype)
    value = (np.arange(np.prod(shape, dtype=int)) % 100).reshape(shape).astype(getattr(ml_dtypes, dtype, dtype))
    buffer.array[...] = value
    Assigner(tf.distribute.get_strategy()).assign(variable, buffer)
    np.testing.assert_array_equal(variable.numpy(), value)
    np.testing.assert_array_equal(host_memory.view(variable), value)


@pytest.mark.parametrize("dtype", ["string", "qint8", "no_such_dtype"])
def test_a_dtype_without_buffers_gives_none(dtype: str) -> None:
    assert host_memory.new_buffer((2,), dtype) is None


def test_an_axis_above_what_the_op_takes_gives_none() -> None:
    assert host_memory.new_buffer((2**31, 0), "uint8") is None
    assert host_memory.new_buffer((2**31 - 1, 0), "uint8") is not None


def test_a_variable_is_updated_in_place_of_what_it_took_over() -> None:
    variable = tf.Variable(tf.zeros([600, 600]))
    buffer = host_memory.new_buffer((600, 600), "float32")
    buffer.array[...] = 1.0
    place = buffer.array.ctypes.data
    Assigner(tf.distribute.get_strategy()).assign(variable, buffer)
    del buffer
    variable.assign_add(tf.ones([600, 600]))
    assert host_memory.view(variable).ctypes.data == place
    assert (variable.numpy() == 2.0).all()


@pytest.mark.parametrize("size", [1, 16, 100_000])
def test_a_small_value_is_copied_so_that_its_array_may_be_used_again(size: int) -> None:
    raw = np.zeros(4 * size + 128, np.uint8)
    for offset in (0, 1, 64 - raw.ctypes.data % 64):
        array = raw[offset : offset + 4 * size].view(np.float32)
        array[:] = 5.0
        variable = tf.Variable(tf.zeros([size]))
        Assigner(tf.distribute.get_strategy()).assign(variable, HostBuffer(array))
        array[:] = 9.0
        np.testing.assert_array_equal(variable.numpy(), np.full(size, 5.0, np.float32))


def test_a_value_that_was_read_before_keeps_its_numbers() -> None:
    variable = tf.Variable(tf.ones([600, 600]))
    before = variable.read_value()
    buffer = host_memory.new_buffer((600, 600), "float32")
    buffer.array[...] = 7.0
    Assigner(tf.distribute.get_strategy()).assign(variable, buffer)
    assert (before.numpy() == 1.0).all()


@pytest.mark.parametrize("aggregation", list(tf.VariableAggregation))
@pytest.mark.parametrize("takes_over", [True, False])
def test_every_replica_gets_what_the_strategys_own_assign_gives(
    aggregation: tf.VariableAggregation, takes_over: bool
) -> None:
    strategy = mirrored()
    value = np.random.default_rng(0).standard_normal((50, 60)).astype(np.float32)
    with strategy.scope():
        ours, theirs = (tf.Variable(tf.zeros([50, 60]), aggregation=aggregation) for _ in range(2))
        theirs.assign(value)
    buffer = host_memory.new_buffer(value.shape, "float32")
    buffer.array[...] = value
    Assigner(strategy).assign(ours, buffer if takes_over else HostBuffer(value))
    for a, b in zip(ours.values, theirs.values, strict=True):
        assert a.device == b.device
        np.testing.assert_array_equal(a.numpy(), b.numpy())
        np.testing.assert_array_equal(a.numpy(), value)


def test_replicas_that_share_memory_after_a_restore_train_apart() -> None:
    strategy = mirrored()
    with strategy.scope():
        variable = tf.Variable(tf.zeros([600, 600]))
    buffer = host_memory.new_buffer((600, 600), "float32")
    buffer.array[...] = 1.0
    Assigner(strategy).assign(variable, buffer)
    del buffer
    variable.values[0].assign_add(tf.ones([600, 600]))
    assert (variable.values[0].numpy() == 2.0).all()
    assert (variable.values[1].numpy() == 1.0).all()


def test_a_replica_that_was_changed_is_seen_by_its_checksum() -> None:
    strategy = mirrored()
    with strategy.scope():
        variable = tf.Variable(tf.zeros([600, 600]))
    assigner = Assigner(strategy)
    expected = assigner.assign(variable, HostBuffer(np.ones((600, 600), np.float32)))
    assert assigner.checksums(variable) == expected
    variable.values[1].assign_add(tf.ones([600, 600]))
    found = assigner.checksums(variable)
    assert found[0] == expected[0] and found[1] != expected[1]


def test_a_wrong_shape_is_refused_as_by_the_public_assign() -> None:
    variable = tf.Variable(tf.zeros([2, 3]))
    with pytest.raises(ValueError):
        Assigner(tf.distribute.get_strategy()).assign(variable, HostBuffer(np.zeros((3, 2), np.float32)))
    assert variable.shape == (2, 3)


def test_a_subclass_of_a_variable_is_written_through_its_own_assign() -> None:
    base = type(tf.Variable(1.0))

    class Doubling(base):
        def assign(self, value, *args, **kwargs):
            return super().assign(2 * value, *args, **kwargs)

    variable = Doubling(1.0)
    assert host_memory.plain_components(variable) is None
    Assigner(tf.distribute.get_strategy()).assign(variable, HostBuffer(np.float32(3.0)))
    assert variable.numpy() == 6.0


def test_fast_calls_raise_tensorflows_public_errors() -> None:
    variable = tf.Variable([1.0, 2.0])
    with pytest.raises(tf.errors.InvalidArgumentError, match="AssignVariableOp: "):
        host_memory.write(variable, tf.constant(3))
    with pytest.raises(tf.errors.UnimplementedError):
        host_memory.write(variable, "no tensor")
    np.testing.assert_array_equal(variable.numpy(), [1.0, 2.0])


def test_a_device_without_the_op_that_shares_memory_copies() -> None:
    class Component:
        handle = tf.constant(1.0)  # no resource, so the op refuses it

    host_memory.share_memory(Component())


@pytest.mark.parametrize("make", ["to_tensor(np.ones(3, np.float32), tf.float32)", "mapped_buffer((3,), 'float32')"])
def test_a_tensor_may_be_the_first_of_its_process(tmp_path: pathlib.Path, make: str) -> None:
    script = tmp_path / "first.py"
    script.write_text(
        "import numpy as np, tensorflow as tf\n"
        "from dist_restore.tf_internals.host_memory import mapped_buffer, to_tensor\n"
        f"assert {make} is not None"
    )
    done = run_script([str(script)])
    assert done.returncode == 0, done.stderr
