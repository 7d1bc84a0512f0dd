"""Memory of old values is filled again only where nobody holds the old value any more (tried on TF 2.21)."""

from __future__ import annotations

import gc
import pathlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python import pywrap_tfe
from tensorflow.python.framework import ops

from dist_restore import DistributedRestorer
from dist_restore.engine import assign_pass, budget
from dist_restore.engine.pipeline import Work
from dist_restore.engine.values import Values
from dist_restore.targets.assigner import Assigner
from dist_restore.tf_internals import host_memory
from dist_restore.tf_internals.buffer_pool import BufferPool
from dist_restore.tf_internals.host_memory import _ENOUGH
from memory import anonymous

SHAPE = (300, 400)
SIZE = 4 * 300 * 400


@pytest.fixture(autouse=True)
def no_size_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dist_restore.tf_internals.buffer_pool._LEAST", 1)


def counted(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> list[int]:
    """Calls a function or method as before; the list grows by one for each call."""
    calls: list[int] = []
    original = getattr(owner, name)

    def call(*args: object) -> object:
        calls.append(1)
        return original(*args)

    monkeypatch.setattr(owner, name, call)
    return calls


def address(buffer: host_memory.HostBuffer) -> int:
    return buffer.array.ctypes.data


def replace(variable: tf.Variable, pool: BufferPool, value: float = 7.0) -> int:
    """Assigns a value; returns where the old one lay."""
    place = host_memory.view(host_memory.plain_components(variable)[0]).ctypes.data
    buffer = pool.take(variable.shape.as_list(), variable.dtype.name)
    buffer.array[...] = value
    Assigner(tf.distribute.get_strategy()).assign(variable, buffer, pool=pool)
    return place


@pytest.mark.parametrize("dtype", sorted(host_memory.DTYPES))
def test_the_memory_of_an_old_value_becomes_the_next_buffer(dtype: str) -> None:
    pool = BufferPool(1 << 30)
    place = replace(tf.Variable(tf.zeros(SHAPE, dtype)), pool, 1.0)
    if not tf.__version__.startswith("2.21."):
        pytest.skip(f"tried on TF 2.21, and this is {tf.__version__}")
    buffer = pool.take(SHAPE, dtype)
    assert address(buffer) == place
    buffer.array[...] = 1
    second = tf.Variable(tf.zeros(SHAPE, dtype))
    Assigner(tf.distribute.get_strategy()).assign(second, buffer)
    np.testing.assert_array_equal(second.numpy(), np.ones(SHAPE, second.dtype.as_numpy_dtype))


def holds_a_tensor(variable: tf.Variable) -> object:
    return variable.read_value()


def holds_an_array(variable: tf.Variable) -> object:
    return np.asarray(variable.read_value())


def holds_a_view(variable: tf.Variable) -> object:
    return memoryview(variable.read_value())


def holds_a_row(variable: tf.Variable) -> object:
    return tf.unstack(variable.read_value())[-1]


def holds_another_shape(variable: tf.Variable) -> object:
    return tf.reshape(variable.read_value(), [-1])


def holds_another_variable(variable: tf.Variable) -> object:
    other = tf.Variable(tf.zeros(SHAPE))
    other.assign(variable)
    return other


def holds_a_capsule(variable: tf.Variable) -> object:
    return tf.experimental.dlpack.to_dlpack(variable.read_value())


HOLDERS = [
    holds_a_tensor,
    holds_an_array,
    holds_a_view,
    holds_a_row,
    holds_another_shape,
    holds_another_variable,
    holds_a_capsule,
]


@pytest.mark.parametrize("hold", HOLDERS)
def test_memory_that_somebody_holds_is_never_filled_again(hold: Callable[[tf.Variable], object]) -> None:
    variable = tf.Variable(tf.fill(SHAPE, 3.0))
    held = hold(variable)
    pool = BufferPool(1 << 30)
    place = replace(variable, pool)
    others = [pool.take(SHAPE, "float32") for _ in range(4)]
    assert place not in map(address, others)
    for other in others:
        other.array[...] = 9.0
    if hold is holds_a_capsule:
        held = tf.experimental.dlpack.from_dlpack(held)
    assert (np.asarray(held) == 3.0).all()


def test_memory_that_belongs_to_an_array_of_somebody_is_never_filled_again() -> None:
    raw = np.zeros(SIZE + 64, np.uint8)
    begin = -raw.ctypes.data % 64
    array = raw[begin : begin + SIZE].view(np.float32).reshape(SHAPE)
    variable = tf.Variable(tf.zeros(SHAPE))
    # What TensorFlow does for an aligned array where it is told nothing of who else uses it.
    variable.assign(ops.EagerTensor(array, None, tf.float32.as_datatype_enum), read_value=False)
    pool = BufferPool(1 << 30)
    replace(variable, pool)
    assert address(pool.take(SHAPE, "float32")) != array.ctypes.data


def test_what_is_freed_later_is_filled_again_later() -> None:
    variable, pool = tf.Variable(tf.zeros(SHAPE)), BufferPool(1 << 30)
    held = variable.read_value()
    place = replace(variable, pool)
    assert address(pool.take(SHAPE, "float32")) != place
    del held
    again = replace(variable, pool)
    assert again != place
    assert address(pool.take(SHAPE, "float32")) == again


@pytest.mark.parametrize("shape", [(400, 300), (120_000,), (1, 300, 1, 400)])
def test_a_buffer_of_another_shape_takes_memory_of_the_same_size(shape: tuple[int, ...]) -> None:
    pool = BufferPool(1 << 30)
    place = replace(tf.Variable(tf.zeros(SHAPE)), pool)
    buffer = pool.take(shape, "float32")
    assert (address(buffer), buffer.array.shape) == (place, shape)
    buffer.array[...] = np.arange(120_000, dtype=np.float32).reshape(shape)
    variable = tf.Variable(tf.zeros(shape))
    Assigner(tf.distribute.get_strategy()).assign(variable, buffer)
    del buffer, pool
    variable.assign_add(tf.ones(shape))
    np.testing.assert_array_equal(variable.numpy().ravel(), np.arange(1, 120_001, dtype=np.float32))
    assert host_memory.view(variable).ctypes.data == place, "updated in its place"


@pytest.mark.parametrize(("shape", "dtype"), [((300, 401), "float32"), (SHAPE, "int32"), ((300, 200), "float64")])
def test_other_sizes_and_dtypes_get_new_memory(shape: tuple[int, ...], dtype: str) -> None:
    pool = BufferPool(1 << 30)
    place = replace(tf.Variable(tf.zeros(SHAPE)), pool)
    buffer = pool.take(shape, dtype)
    assert (buffer.array.shape, buffer.tensor.dtype.name) == (shape, dtype)
    assert address(buffer) != place


@pytest.mark.parametrize(("limit", "kept"), [(0, 0), (SIZE - 1, 0), (SIZE, 1), (3 * SIZE - 1, 2), (9 * SIZE, 4)])
def test_no_more_than_the_limit_waits(limit: int, kept: int) -> None:
    pool = BufferPool(limit)
    variables = [tf.Variable(tf.zeros(SHAPE)) for _ in range(4)]
    buffers = [host_memory.new_buffer(SHAPE, "float32") for _ in variables]
    places = {replace_with(v, b, pool) for v, b in zip(variables, buffers, strict=True)}
    assert pool._nbytes == kept * SIZE
    found = [pool.take(SHAPE, "float32") for _ in range(8)]
    assert len(places & set(map(address, found[:kept]))) == kept
    assert pool._nbytes == 0


def replace_with(variable: tf.Variable, buffer: host_memory.HostBuffer, pool: BufferPool) -> int:
    place = host_memory.view(variable).ctypes.data
    Assigner(tf.distribute.get_strategy()).assign(variable, buffer, pool=pool)
    return place


def test_little_memory_is_not_worth_the_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    pool = BufferPool(1 << 30)
    replace(tf.Variable(tf.zeros(SHAPE)), pool)
    assert pool._nbytes == 0
    replace(tf.Variable(tf.zeros((1024, 256))), pool)
    assert pool._nbytes == 1 << 20


@pytest.mark.parametrize("budget", [SIZE, 40 << 20, 256 << 20, 4 << 30])
def test_what_is_in_flight_and_what_waits_are_within_the_budget_together(
    budget: int, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[int] = []

    def stream(works: Iterable[Work[Values]], ahead: int, *, helps: bool) -> Iterator[Values]:
        limits.append(ahead)
        return original_stream(works, ahead, helps=helps)

    def pool(limit: int, mapped_above: int | None) -> BufferPool:
        limits.append(limit)
        return BufferPool(limit, mapped_above)

    original_stream = assign_pass.stream
    monkeypatch.setattr(assign_pass, "stream", stream)
    monkeypatch.setattr(assign_pass, "BufferPool", pool)
    path = tf.train.Checkpoint(weight=tf.Variable(tf.ones(SHAPE))).write(str(tmp_path / "ckpt"))
    live = tf.Variable(tf.zeros(SHAPE))
    DistributedRestorer(tf.train.Checkpoint(weight=live), memory_budget=budget, verify="checksum").restore(path)
    assert (live.numpy() == 1).all()
    assert len(limits) == 2
    assert sum(limits) <= budget


def test_where_all_old_values_are_held_no_more_of_them_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = counted(monkeypatch, host_memory.Replacer, "_alone")
    pool = BufferPool(1 << 30)
    variables = [tf.Variable(tf.zeros(SHAPE)) for _ in range(_ENOUGH + 2)]
    held = [variable.read_value() for variable in variables[:_ENOUGH]]
    for variable in variables:
        replace(variable, pool)
        pool.take(SHAPE, "float32")
    assert len(tried) == _ENOUGH
    assert all((tensor.numpy() == 0).all() for tensor in held)
    assert all((variable.numpy() == 7).all() for variable in variables)


@pytest.mark.parametrize("replicas", [2, 4])
def test_replicas_that_share_their_memory_leave_it_when_the_last_one_has_changed(replicas: int) -> None:
    strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(replicas)])
    with strategy.scope():
        variable = tf.Variable(tf.zeros(SHAPE))
    pool, assigner = BufferPool(1 << 30), Assigner(strategy)
    first = host_memory.new_buffer(SHAPE, "float32")
    first.array[...] = 1.0
    place = address(first)
    assigner.assign(variable, first)
    del first
    second = host_memory.new_buffer(SHAPE, "float32")
    second.array[...] = 2.0
    assigner.assign(variable, second, pool=pool)
    again = pool.take(SHAPE, "float32")
    assert address(again) == place
    again.array[...] = 3.0
    assert all((value.numpy() == 2.0).all() for value in variable.values)


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_restore_changes_nothing_that_shared_memory_with_what_it_replaces(
    replicas: int, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "USEFUL", 2 * SIZE)  # so little in flight that memory is wanted again at once
    devices = [f"CPU:{i}" for i in range(replicas)]
    strategy = tf.distribute.MirroredStrategy(devices) if replicas > 1 else tf.distribute.get_strategy()
    with strategy.scope():
        saved = [tf.Variable(tf.fill(SHAPE, float(i))) for i in range(12)]
        prefix = tf.train.Checkpoint(weights=saved).write(str(tmp_path / "ckpt"))
        live = [tf.Variable(tf.fill(SHAPE, 100.0 + i)) for i in range(12)]
        averages = [tf.Variable(tf.zeros(SHAPE)) for _ in live]
    for average, weight in zip(averages[::3], live[::3], strict=True):
        average.assign(weight)
    arrays = [np.asarray(weight.read_value()) for weight in live[1::3]]
    for _ in range(3):
        DistributedRestorer(tf.train.Checkpoint(weights=live)).restore(prefix)
        for number, weight in enumerate(live):
            assert (weight.numpy() == number).all()
    for number, average in enumerate(averages[::3]):
        assert (average.numpy() == 100.0 + 3 * number).all()
    for number, array in enumerate(arrays):
        assert (array == 100.0 + 1 + 3 * number).all()


def test_who_reads_meanwhile_sees_the_old_value_or_the_new_one() -> None:
    pool, assigner = BufferPool(1 << 30), Assigner(tf.distribute.get_strategy())
    variable, other = tf.Variable(tf.zeros(SHAPE)), tf.Variable(tf.zeros(SHAPE))
    stopped, mixed = threading.Event(), list[np.ndarray]()

    def read() -> None:
        while not stopped.is_set():
            value = np.asarray(variable.read_value())
            first = value[0, 0]
            time.sleep(0)  # others fill memory now
            if not (value == first).all():
                mixed.append(value)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(300):
        for target in (variable, other):
            buffer = pool.take(SHAPE, "float32")
            buffer.array[...] = number
            assigner.assign(target, buffer, pool=pool)
            del buffer
    stopped.set()
    for reader in readers:
        reader.join()
    assert not mixed


def test_a_variable_that_was_updated_by_rows_is_restored_too(tmp_path: pathlib.Path) -> None:
    # Such an update makes TensorFlow copy whatever is read from the variable afterwards, and whatever is assigned.
    saved, live = tf.Variable(tf.fill(SHAPE, 5.0)), tf.Variable(tf.zeros(SHAPE))
    prefix = tf.train.Checkpoint(table=saved).write(str(tmp_path / "ckpt"))
    live.scatter_update(tf.IndexedSlices(tf.ones([1, SHAPE[1]]), tf.constant([4])))
    for _ in range(3):
        DistributedRestorer(tf.train.Checkpoint(table=live)).restore(prefix)
        assert (live.numpy() == 5.0).all()
        live.scatter_add(tf.IndexedSlices(tf.ones([1, SHAPE[1]]), tf.constant([2])))
        assert (live.numpy()[2] == 6.0).all()


def test_old_values_are_reclaimed_together_when_one_of_their_size_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    reclaimed = counted(monkeypatch, host_memory.Replacer, "reclaim")
    pool = BufferPool(1 << 30)
    variables = [tf.Variable(tf.zeros(SHAPE)) for _ in range(3)]
    buffers = [host_memory.new_buffer(SHAPE, "float32") for _ in variables]
    places = {replace_with(v, b, pool) for v, b in zip(variables, buffers, strict=True)}
    assert (pool._nbytes, len(reclaimed)) == (3 * SIZE, 0)
    pool.take((7,), "float32")
    assert not reclaimed, "of no size that was left"
    assert {address(pool.take(SHAPE, "float32")) for _ in range(3)} == places
    assert len(reclaimed) == 3


# Mapped memory.


def restore_mapped(variable: tf.Variable, strategy: tf.distribute.Strategy, value: float) -> tuple[int, list[int]]:
    """Assigns a value through mapped memory; gives where that is, and where the components were and are."""
    components = host_memory.plain_components(variable)
    before = [host_memory.view(c).ctypes.data for c in components]
    pool = BufferPool(1 << 30, mapped_above=SIZE - 1)
    buffer = pool.take(variable.shape.as_list(), variable.dtype.name)
    buffer.array[...] = value
    place = address(buffer)
    Assigner(strategy).assign(variable, buffer, pool=pool)
    assert pool._nbytes == 0
    return place, [*before, *(host_memory.view(c).ctypes.data for c in components)]


@pytest.mark.parametrize("dtype", sorted(host_memory.DTYPES))
def test_a_value_moves_from_mapped_memory_to_what_its_variable_left(dtype: str) -> None:
    shape = (SIZE,)  # of at least so many bytes, whatever the dtype
    variable = tf.Variable(tf.zeros(shape, dtype))
    mapped, (before, after) = restore_mapped(variable, tf.distribute.get_strategy(), 1.0)
    np.testing.assert_array_equal(variable.numpy(), np.ones(shape, variable.dtype.as_numpy_dtype))
    if tf.__version__.startswith("2.21."):
        assert (after, mapped != before) == (before, True)


@pytest.mark.parametrize("replicas", [2, 4])
def test_all_replicas_leave_mapped_memory(replicas: int) -> None:
    strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(replicas)])
    with strategy.scope():
        variable = tf.Variable(tf.zeros(SHAPE))
    mapped, places = restore_mapped(variable, strategy, 5.0)
    assert mapped not in places
    assert all((value.numpy() == 5.0).all() for value in variable.values)
    with strategy.scope():
        variable.assign_add(tf.ones(SHAPE))
    assert all((value.numpy() == 6.0).all() for value in variable.values)


@pytest.mark.parametrize("hold", HOLDERS)
def test_a_value_never_moves_to_memory_that_somebody_holds(hold: Callable[[tf.Variable], object]) -> None:
    variable = tf.Variable(tf.fill(SHAPE, 3.0))
    held = hold(variable)
    _, (before, after) = restore_mapped(variable, tf.distribute.get_strategy(), 5.0)
    assert after != before
    assert (variable.numpy() == 5.0).all()
    if hold is holds_a_capsule:
        held = tf.experimental.dlpack.from_dlpack(held)
    assert (np.asarray(held) == 3.0).all()


def test_a_value_that_cannot_move_stays_in_mapped_memory_and_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory.Replacer, "reclaim", lambda self, tensors: None)
    variable = tf.Variable(tf.zeros(SHAPE))
    mapped, (_, after) = restore_mapped(variable, tf.distribute.get_strategy(), 5.0)
    assert after == mapped
    gc.collect()
    held = variable.read_value()
    variable.assign_add(tf.ones(SHAPE))
    assert (held.numpy() == 5.0).all()
    assert (variable.numpy() == 6.0).all()


def test_mapped_memory_goes_back_to_the_system() -> None:
    shape, size = (4096, 4096), 64 << 20
    variable = tf.Variable(tf.zeros(shape))
    before = anonymous()
    pool = BufferPool(1 << 30, mapped_above=size - 1)
    buffer = pool.take(shape, "float32")
    buffer.array[...] = 5.0
    assert anonymous() - before > 0.9 * size
    Assigner(tf.distribute.get_strategy()).assign(variable, buffer, pool=pool)
    del buffer
    host_memory.new_buffer((1,), "float32")  # TensorFlow lets arrays go when the next one comes
    assert anonymous() - before < 0.1 * size


def test_where_an_update_does_not_copy_what_is_held_no_old_memory_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    # As if another TensorFlow left a variable alone that is asked for an update of no rows.
    original = pywrap_tfe.TFE_Py_FastPathExecute

    def call(eager: object, op: str, *args: object) -> object:
        return None if op == "ResourceScatterUpdate" else original(eager, op, *args)

    monkeypatch.setattr(pywrap_tfe, "TFE_Py_FastPathExecute", call)
    variable, pool = tf.Variable(tf.fill(SHAPE, 3.0)), BufferPool(1 << 30)
    held = variable.read_value()
    place = replace(variable, pool)
    buffer = pool.take(SHAPE, "float32")
    assert address(buffer) != place
    buffer.array[...] = 9.0
    assert (held.numpy() == 3.0).all()


def test_nothing_is_mapped_once_old_values_have_all_been_held() -> None:
    pool = BufferPool(1 << 30, mapped_above=SIZE - 1)
    variables = [tf.Variable(tf.zeros(SHAPE)) for _ in range(_ENOUGH)]
    held = [variable.read_value() for variable in variables]
    assert pool.take(SHAPE, "float32").is_mapped
    for variable in variables:
        replace(variable, pool)
    assert not pool.take(SHAPE, "float32").is_mapped
    assert all((tensor.numpy() == 0).all() for tensor in held)


@pytest.mark.parametrize("plain", [True, False])
def test_only_variables_that_leave_their_memory_get_mapped_memory(
    plain: bool, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mapped = counted(monkeypatch, host_memory, "mapped_buffer")
    prefix = tf.train.Checkpoint(weight=tf.Variable(tf.ones(SHAPE))).write(str(tmp_path / "ckpt"))
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        kind = tf.VariableSynchronization.AUTO if plain else tf.VariableSynchronization.ON_READ
        live = tf.Variable(tf.zeros(SHAPE), synchronization=kind, aggregation=tf.VariableAggregation.MEAN)
    DistributedRestorer(tf.train.Checkpoint(weight=live), memory_budget=SIZE // 2).restore(prefix)
    assert (live.numpy() == 1).all()
    assert bool(mapped) == plain


@pytest.mark.parametrize(("mapped", "limit"), [(True, 1 << 30), (False, 1 << 30), (False, 0)])
def test_a_variable_that_copies_what_it_gets_takes_the_memory_all_the_same(mapped: bool, limit: int) -> None:
    variable = tf.Variable(tf.zeros(SHAPE))
    tf.nn.embedding_lookup(variable, [1, 2])  # from now on TensorFlow copies, until it is told not to
    place = host_memory.view(host_memory.plain_components(variable)[0]).ctypes.data
    host_memory.share_memory(variable)
    own = host_memory.view(variable).ctypes.data
    assert own != place, "what was read before was a copy"
    tf.nn.embedding_lookup(variable, [1, 2])
    pool = BufferPool(limit, mapped_above=SIZE - 1 if mapped else None)
    buffer = pool.take(SHAPE, "float32")
    buffer.array[...] = 5.0
    given = address(buffer)
    Assigner(tf.distribute.get_strategy()).assign(variable, buffer, pool=pool)
    del buffer
    assert host_memory.view(variable).ctypes.data == (own if mapped else given)
    held = variable.read_value()
    variable.scatter_update(tf.IndexedSlices(tf.ones([1, SHAPE[1]]), tf.constant([4])))
    assert (held.numpy() == 5.0).all()
    assert (variable.numpy()[4] == 1.0).all()
    assert (variable.numpy()[5] == 5.0).all()


def test_one_variable_that_leaves_no_memory_is_enough_to_map_none(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mapped = counted(monkeypatch, host_memory, "mapped_buffer")
    shape, size = (600, 400), 2 * SIZE  # stored it takes half, and is no small tensor all the same
    saved = {name: tf.Variable(tf.ones(shape, tf.float16)) for name in ("plain", "other")}
    prefix = tf.train.Checkpoint(**saved).write(str(tmp_path / "ckpt"))
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        live = {
            "plain": tf.Variable(tf.zeros(shape)),
            "other": tf.Variable(
                tf.zeros(shape),
                synchronization=tf.VariableSynchronization.ON_READ,
                aggregation=tf.VariableAggregation.MEAN,
            ),
        }
    # Between what is stored and what it becomes.
    DistributedRestorer(tf.train.Checkpoint(**live), memory_budget=size * 3 // 4).restore(prefix)
    assert all((variable.numpy() == 1).all() for variable in live.values())
    assert not mapped
