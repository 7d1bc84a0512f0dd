"""Work ahead in order, within a budget of bytes, and no thread left behind; the values are those of the plain path."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import pathlib
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

import dist_restore as dr
from dist_restore.checkpoints.open import open_checkpoint
from dist_restore.checkpoints.reader import Source
from dist_restore.core import crc32c as checksum
from dist_restore.core.errors import CheckpointCorruptError
from dist_restore.core.graph import Scene
from dist_restore.engine.check_pass import check_sources
from dist_restore.engine.pipeline import Started, Work, stream
from dist_restore.engine.read_tasks import load_all
from dist_restore.engine.units import make_units
from dist_restore.report.progress import progress


class Meter:
    """Counts bytes in flight: from a start until the result after it is asked for."""

    def __init__(self) -> None:
        self.now = self.peak = 0
        self.brief = True
        self.alone: list[int] = []

    def work(self, number: int, nbytes: int, task: Callable[[], None] = lambda: None) -> Work[tuple[int, int]]:
        def start() -> Started[tuple[int, int]]:
            if not self.now:
                self.alone.append(number)
            self.now += nbytes
            self.peak = max(self.peak, self.now)
            return Started((task,), lambda: (number, nbytes), brief=self.brief)

        return Work(nbytes, start)

    def consume(self, results: Iterator[tuple[int, int]]) -> list[int]:
        found = []
        for number, nbytes in results:
            found.append(number)
            self.now -= nbytes
        return found


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    left = [t.name for t in set(threading.enumerate()) - before if t.name.startswith("dist_restore")]
    assert left == []


def test_results_come_in_order_whatever_finishes_first() -> None:
    meter = Meter()
    works = [meter.work(i, 1, lambda i=i: time.sleep(0.02 if i % 3 == 0 else 0)) for i in range(20)]
    assert meter.consume(stream(works, budget=8, threads=4)) == list(range(20))


def test_what_is_in_flight_stays_within_the_budget() -> None:
    meter = Meter()
    sizes = np.random.default_rng(0).integers(1, 60, 200).tolist()
    meter.consume(stream((meter.work(i, n) for i, n in enumerate(sizes)), budget=100, threads=3))
    assert 60 <= meter.peak <= 100


def test_what_is_larger_than_the_budget_passes_alone() -> None:
    meter = Meter()
    sizes = [10, 10, 500, 10, 10]
    assert meter.consume(stream((meter.work(i, n) for i, n in enumerate(sizes)), budget=30, threads=2)) == [
        0,
        1,
        2,
        3,
        4,
    ]
    assert meter.peak == 500
    assert {2, 3} <= set(meter.alone)


def test_work_is_started_ahead_of_the_consumer() -> None:
    meter = Meter()
    results = stream((meter.work(i, 1) for i in range(10)), budget=4, threads=2)
    next(results)
    assert meter.now == 4
    results.close()


def test_an_exception_in_a_thread_surfaces_at_its_place() -> None:
    def fail() -> None:
        raise ValueError("disk on fire")

    meter = Meter()
    works = [meter.work(i, 1, fail if i == 3 else lambda: None) for i in range(50)]
    seen = []
    with pytest.raises(ValueError, match="disk on fire"):
        for number, _ in stream(works, budget=8, threads=2):
            seen.append(number)
    assert seen == [0, 1, 2]


def test_an_exception_at_the_start_of_work_surfaces() -> None:
    def start() -> Started[None]:
        raise MemoryError("no memory")

    with pytest.raises(MemoryError):
        list(stream([Meter().work(0, 1), Work(1, start)], budget=8, threads=2))


def workers_of(results: Callable[[list[Work[tuple[int, int]]]], None]) -> set[threading.Thread]:
    """The threads that did the tasks of some work, the first of which waits until another thread has done one."""
    seen: list[threading.Thread] = []
    another = threading.Event()

    def task(number: int) -> None:
        seen.append(threading.current_thread())
        if number == 0:
            assert another.wait(30)
        else:
            another.set()

    meter = Meter()
    results([meter.work(i, 1, lambda i=i: task(i)) for i in range(20)])
    assert len(seen) == 20
    return set(seen)


def test_a_consumer_that_would_wait_does_some_of_the_work() -> None:
    def consume(works: list[Work[tuple[int, int]]]) -> None:
        assert len(list(stream(works, budget=20, threads=2, helps=True))) == 20

    workers = workers_of(consume)
    assert threading.current_thread() in workers
    assert len(workers) == 2


def test_a_consumer_with_other_things_to_do_takes_no_part() -> None:
    def consume(works: list[Work[tuple[int, int]]]) -> None:
        assert len(list(stream(works, budget=20, threads=2))) == 20

    assert threading.current_thread() not in workers_of(consume)


def test_long_tasks_are_for_threads_and_there_is_one_more_of_them() -> None:
    seen: list[threading.Thread] = []
    both = threading.Barrier(2)

    def task() -> None:
        seen.append(threading.current_thread())
        both.wait(30)

    meter = Meter()
    meter.brief = False
    works = [meter.work(i, 1, task) for i in range(20)]
    assert meter.consume(stream(works, budget=20, threads=2, helps=True)) == list(range(20))
    assert threading.current_thread() not in seen
    assert len(set(seen)) == 2


def test_brief_tasks_behind_long_ones_are_done_too() -> None:
    works = [Work(1, functools.partial(_started, number, brief=number % 3 != 0)) for number in range(60)]
    for threads in (1, 2, 4):
        assert list(stream(works, budget=25, threads=threads, helps=True)) == list(range(60))


def _started(number: int, *, brief: bool) -> Started[int]:
    return Started((lambda: time.sleep(0.001),) * 3, lambda: number, brief=brief)


def test_an_error_in_a_task_that_the_consumer_did_surfaces_at_its_place() -> None:
    def task(number: int) -> None:
        if number == 0:
            time.sleep(0.1)  # in a thread; the consumer does all others meanwhile
        elif number == 7:
            raise ValueError("a bad disk")

    meter, seen = Meter(), []
    works = [meter.work(i, 1, lambda i=i: task(i)) for i in range(20)]
    with pytest.raises(ValueError, match="a bad disk"):
        for number, _ in stream(works, budget=20, threads=2, helps=True):
            seen.append(number)
    assert seen == list(range(7))


def test_an_error_keeps_nothing_of_what_was_in_flight() -> None:
    class Memory:
        pass

    def started(number: int, memory: Memory) -> Started[Memory]:
        def task() -> None:
            assert memory is not None
            if number == 3:
                raise ValueError("a bad disk")

        return Started((task,), lambda: memory, brief=True)

    memories = [Memory() for _ in range(10)]
    alive = [weakref.ref(memory) for memory in memories]
    gc.disable()
    try:
        works = [Work(1, functools.partial(started, i, memory)) for i, memory in enumerate(memories)]
        with pytest.raises(ValueError, match="a bad disk") as error:
            list(stream(works, budget=10, threads=2, helps=True))
        traceback.clear_frames(error.tb)
        del works, memories, error
        assert [ref() for ref in alive] == [None] * 10
    finally:
        gc.enable()


def test_an_interrupt_that_meets_a_task_of_the_consumer_is_raised_at_once() -> None:
    done: list[int] = []

    def task(number: int) -> None:
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        time.sleep(0.05)
        done.append(number)

    meter = Meter()
    works = [meter.work(i, 1, lambda i=i: task(i)) for i in range(100)]
    with (
        pytest.raises(KeyboardInterrupt),
        contextlib.closing(stream(works, budget=100, threads=2, helps=True)) as results,
    ):
        for number, _ in results:
            assert number < 50
    assert len(done) < 50


def test_after_an_interrupt_queued_work_is_not_done() -> None:
    done = []

    def task() -> None:
        time.sleep(0.01)
        done.append(1)

    meter = Meter()
    works = [meter.work(i, 1, task) for i in range(100)]
    with pytest.raises(KeyboardInterrupt), contextlib.closing(stream(works, budget=100, threads=2)) as results:
        for _ in results:
            raise KeyboardInterrupt
    assert len(done) < 50
    count = len(done)
    time.sleep(0.05)
    assert len(done) == count


VALUES = {
    "float32": np.arange(-60, 60, dtype=np.float32).reshape(3, 40),
    "float64": np.linspace(0, 1, 7),
    "float16": np.array([0.5, -65504.0, np.nan], np.float16),
    "bfloat16": np.array([[1.5, -2.0], [np.inf, 3e38]], ml_dtypes.bfloat16),
    "int8": np.array([-128, 127], np.int8),
    "uint16": np.array([65535], np.uint16),
    "int32": np.array(-7, np.int32),
    "int64": np.array([2**62], np.int64),
    "bool": np.array([True, False, True]),
    "complex64": np.array([1 + 2j], np.complex64),
    "scalar": np.float32(3.5),
    "empty": np.zeros((0, 4), np.float32),
    "strings": np.array([b"a", b"", b"\x00\xff" * 5], object),
    "large": np.random.default_rng(1).standard_normal((300, 301)).astype(np.float32),
    "large_half": np.random.default_rng(2).standard_normal((400, 401)).astype(np.float16),
    "several_pieces": np.arange(5 << 20, dtype=np.float32).reshape(5, -1),
}


def variables(values: dict[str, np.ndarray]) -> dict[str, tf.Variable]:
    made = {n: tf.Variable(tf.constant(v, tf.string if v.dtype == object else None)) for n, v in values.items()}
    return made


def blank(value: np.ndarray) -> np.ndarray:
    return np.full_like(value, b"?") if value.dtype == object else np.zeros_like(value)


def save(tmp_path: pathlib.Path, values: dict[str, np.ndarray]) -> str:
    return str(tf.train.Checkpoint(**variables(values)).write(str(tmp_path / "ckpt")))


@pytest.mark.parametrize("budget", [1, 1 << 16, 1 << 30])
def test_every_dtype_arrives_as_by_tensorflows_own_restore(tmp_path: pathlib.Path, budget: int) -> None:
    path = save(tmp_path, VALUES)
    ours, native = (
        variables({n: blank(v) for n, v in VALUES.items()}),
        variables({n: blank(v) for n, v in VALUES.items()}),
    )
    report = dr.DistributedRestorer(tf.train.Checkpoint(**ours), memory_budget=budget).restore(path)
    tf.train.Checkpoint(**native).read(path).assert_existing_objects_matched()
    for name, value in VALUES.items():
        found = ours[name].numpy()
        assert np.asarray(found).dtype == np.asarray(native[name].numpy()).dtype
        np.testing.assert_array_equal(found, native[name].numpy(), name)
        np.testing.assert_array_equal(found, value, name)
    assert report.verified


@pytest.mark.parametrize("budget", [1, 1 << 30])
def test_the_stream_gives_what_reading_one_by_one_gives(tmp_path: pathlib.Path, budget: int) -> None:
    path = save(tmp_path, VALUES)
    plan = dr.DistributedRestorer(tf.train.Checkpoint(**variables(VALUES))).plan(path)
    source = open_checkpoint(path)
    seen = {}
    for values in stream(load_all(make_units(plan.entries), source, no_live), budget):
        for value in values:
            array = value.buffer.array
            np.testing.assert_array_equal(array, source.read(value.entry.sources[0]))
            if value.crc32c is not None:
                assert value.crc32c == checksum.extend(0, np.ascontiguousarray(array).reshape(-1).view(np.uint8))
            seen[value.entry.target] = True
    assert len(seen) >= len(VALUES)
    source.close()


def no_live(entry: object) -> Callable[[], np.ndarray]:
    raise AssertionError("nothing here is kept")


class Plain:
    """A source that can only read tensor by tensor."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.bytes_read = 0
        self.index, self.read, self.check, self.close = source.index, source.read, source.check, source.close


def test_a_source_without_places_is_read_tensor_by_tensor(tmp_path: pathlib.Path) -> None:
    path = save(tmp_path, VALUES)
    plan = dr.DistributedRestorer(tf.train.Checkpoint(**variables(VALUES))).plan(path)
    source = Plain(open_checkpoint(path))
    with progress(0, False) as bar:
        tasks = check_sources(make_units(plan.entries), source, bar, 1 << 20).tasks
    assert all(item.places is None for task in tasks for item in task.located)
    works = [task.load(no_live) for task in tasks]
    targets = [v.entry.target for values in stream(works, 1 << 20) for v in values]
    assert targets == [e.target for task in tasks for e in task.entries]


@pytest.mark.parametrize("several", [False, True])
def test_object_graphs_are_gone_before_weights_are_read(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, several: bool
) -> None:
    path = save(tmp_path, VALUES)
    paths = {"one": path} if several else path
    alive: list[int] = []

    def checked(*args: object, **kwargs: object) -> object:
        alive.append(sum(type(o) is Scene for o in gc.get_objects()))
        return check_sources(*args, **kwargs)

    monkeypatch.setattr("dist_restore.restore.run.check_sources", checked)
    live = variables({n: blank(v) for n, v in VALUES.items()})
    before = sum(type(o) is Scene for o in gc.get_objects())
    dr.DistributedRestorer(tf.train.Checkpoint(**live)).restore(paths)
    assert alive == [before]


@pytest.mark.parametrize("name", ["bool", "large", "several_pieces"])
@pytest.mark.parametrize("verify", ["none", "checksum"])
def test_a_flipped_bit_is_found_before_its_tensor_is_assigned(tmp_path: pathlib.Path, name: str, verify: str) -> None:
    path = save(tmp_path, VALUES)
    source = open_checkpoint(path)
    place = source.stored(f"{name}")
    source.close()
    data = tmp_path / "ckpt.data-00000-of-00001"
    raw = bytearray(data.read_bytes())
    raw[place.offset + place.size - 1] ^= 1
    data.write_bytes(raw)
    live = variables({n: blank(v) for n, v in VALUES.items()})
    with pytest.raises(CheckpointCorruptError, match=name):
        dr.DistributedRestorer(tf.train.Checkpoint(**live), verify=verify).restore(path)
    np.testing.assert_array_equal(live[name].numpy(), blank(VALUES[name]))
    if verify == "checksum":
        assert all(np.array_equal(live[n].numpy(), blank(v)) for n, v in VALUES.items())


def test_an_interrupt_while_assigning_leaves_no_thread(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, VALUES)
    live = variables({n: blank(v) for n, v in VALUES.items()})
    from dist_restore.targets.assigner import Assigner

    original, calls = Assigner.assign, []

    def interrupted(self: Assigner, *args: object) -> tuple[int, ...]:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(Assigner, "assign", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        dr.DistributedRestorer(tf.train.Checkpoint(**live)).restore(path)
    assert "4 variable(s) had changed already" in caught.value.__notes__[0]


@pytest.mark.parametrize("size", [0, 1, 7, 1000, 70_001])
def test_checksums_of_two_parts_join_to_that_of_the_whole(size: int) -> None:
    data = np.random.default_rng(size).integers(0, 256, 1500 + size).astype(np.uint8)
    first, second = checksum.extend(0, data[:1500]), checksum.extend(0, data[1500:])
    assert checksum.combine(first, second, size) == checksum.extend(0, data)
    assert checksum.unmask(checksum.mask(first)) == first


@pytest.mark.parametrize("cut", [0, 1, 1 << 20, (1 << 20) + 1])
def test_parts_are_shown_once_they_are_filled_and_a_short_file_is_named(tmp_path: pathlib.Path, cut: int) -> None:
    values = {"large": VALUES["several_pieces"]}
    path = save(tmp_path, values)
    source = open_checkpoint(path)
    place = source.stored("large")
    data = tmp_path / "ckpt.data-00000-of-00001"
    raw = data.read_bytes()
    os.truncate(data, place.offset + place.size - cut)
    out, shown = np.zeros(place.size, np.uint8), list[int]()
    parts = [out.data[i : i + (1 << 20)] for i in range(0, place.size, 1 << 20)]

    def seen(part: memoryview) -> None:
        begin = sum(shown)
        assert bytes(part) == raw[place.offset + begin : place.offset + begin + len(part)]
        shown.append(len(part))

    if cut:
        with pytest.raises(CheckpointCorruptError, match=f"large.*{place.size} bytes.*{place.size - cut} bytes"):
            source.read_parts("large", 0, parts, seen)
    else:
        source.read_parts("large", 0, parts, seen)
    assert shown == [1 << 20] * ((place.size - cut) >> 20)
    source.close()


@pytest.mark.parametrize("before", [True, False])
def test_an_interrupt_while_a_thread_starts_leaves_none(monkeypatch: pytest.MonkeyPatch, before: bool) -> None:
    made: list[threading.Thread] = []

    class Interrupted(threading.Thread):
        def start(self) -> None:
            made.append(self)
            if len(made) < 3 or not before:
                super().start()
            if len(made) == 3:
                raise KeyboardInterrupt

    monkeypatch.setattr(threading, "Thread", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(stream([Work(1, lambda: Started((), lambda: 1))], 10, threads=4))
    assert len(made) == 3
    assert not any(thread.is_alive() for thread in made)
