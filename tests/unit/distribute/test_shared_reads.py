"""Shared reads between threads: what each worker gets, and how one that cannot go on stops all after the same round."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future

import ml_dtypes
import numpy as np
import pytest

import dist_restore as dr
from dist_restore.core.tensors import TensorSpec
from dist_restore.distribute.messaging.exchange import Round
from dist_restore.distribute.messaging.protocol import ClusterCommunicator
from dist_restore.distribute.shared.rounds import share
from dist_restore.distribute.shared.schedule import make_schedule
from dist_restore.engine.chunks import PIECE
from dist_restore.engine.pipeline import Pending, Started
from dist_restore.engine.units import Unit, make_units
from dist_restore.engine.values import Value, Values
from dist_restore.planning.entries import PlanEntry, Status
from dist_restore.tf_internals.host_memory import HostBuffer
from fake_cluster import in_phase, run_workers

KB = 1 << 10
# Buckets of 64 KB, the smallest there are.
BUDGET = 1 << 20
DTYPES = ["float32", "bfloat16", "int8", "bool", "complex64"]


def tensors(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Values of many sizes and dtypes, empty ones and scalars among them."""
    rng = np.random.default_rng(seed)
    found = {}
    for number in range(count):
        dtype = DTYPES[number % len(DTYPES)]
        shape = [(), (0, 3), (7,), (40, 100), (300, 517)][int(rng.integers(5))]
        value = rng.normal(size=shape) * 50
        found[f"v{number:03d}"] = value.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    return found


def make(values: dict[str, np.ndarray]) -> tuple[Unit, ...]:
    entries = []
    for name, value in values.items():
        spec = TensorSpec(value.shape, value.dtype.name)
        entries.append(
            PlanEntry(name, (name,), (), Status.EXACT, "equal names", "", spec.nbytes, spec=spec, source_specs=(spec,))
        )
    return make_units(entries)


def pending(values: Values) -> Pending[Values]:
    """What is read already."""
    return Pending(Started((), lambda: values), [], 0)


def run(values: dict[str, np.ndarray], world: int, readers: list[int], trouble: dict[int, str] | None = None):
    """What each worker assigned; its own values come from `values`, all others through the exchange."""
    schedule = make_schedule(make(values), readers, world, BUDGET)
    got: list[dict[str, np.ndarray]] = [{} for _ in range(world)]

    def read(rank: int) -> Iterator[Pending[Values]]:
        for unit in schedule.lane(rank).units:
            if (trouble or {}).get(rank) == unit.entries[0].target:
                raise OSError(f"cannot read {unit.entries[0].target}")
            yield pending([Value(entry, HostBuffer(values[entry.target]), None) for entry in unit.entries])

    def program(communicator: ClusterCommunicator) -> bool:
        def assign(items: Values) -> None:
            while items:
                value = items.pop(0)
                if (trouble or {}).get(communicator.rank) == f"assign {value.entry.target}":
                    raise OSError("cannot assign")
                got[communicator.rank][value.entry.target] = np.array(value.buffer.array)

        exchange = communicator.exchange(readers)
        rank = communicator.rank
        return in_phase(communicator, "assign", lambda: share(schedule, rank, read(rank), exchange, assign, 5.0))

    return schedule, run_workers(world, program), got


@pytest.mark.parametrize("world", range(1, 10))
@pytest.mark.parametrize("who", ["all", "the chief", "some"])
def test_all_workers_get_all_values(world: int, who: str) -> None:
    values = tensors(40, world)
    readers = {"all": list(range(world)), "the chief": [0], "some": list(range(0, world, 2))}[who]
    _, results, got = run(values, world, readers)
    assert results == [True] * world
    for mine in got:
        assert mine.keys() == values.keys()
        for name, value in values.items():
            assert mine[name].dtype == value.dtype and mine[name].shape == value.shape
            assert mine[name].tobytes() == value.tobytes()


@pytest.mark.parametrize("culprit", [0, 1, 2])
@pytest.mark.parametrize("what", ["read", "assign"])
def test_one_that_cannot_go_on_stops_all(culprit: int, what: str) -> None:
    values = {f"v{n:03d}": np.full(50_000, n, np.float32) for n in range(60)}
    schedule, _, _ = run(values, 3, [0, 1, 2])
    name = schedule.lane(culprit).placements[3].entry.target
    _, results, got = run(values, 3, [0, 1, 2], {culprit: name if what == "read" else f"assign {name}"})
    for result in results:
        assert isinstance(result, dr.WorkerError) and result.rank == culprit
        assert result.phase == what
    assert all(len(mine) < len(values) for mine in got)


def test_two_that_cannot_go_on_at_once_stop_all() -> None:
    values = {f"v{n:03d}": np.full(50_000, n, np.float32) for n in range(60)}
    schedule, _, _ = run(values, 3, [0, 1, 2])
    trouble = {rank: schedule.lane(rank).placements[2].entry.target for rank in (0, 2)}
    _, results, _ = run(values, 3, [0, 1, 2], trouble)
    assert all(isinstance(r, dr.WorkerError) and r.rank == 0 and "so did worker 2" in str(r) for r in results)


class Flipping:
    """One worker that hears its own buckets with one bit flipped."""

    def start(self, *, failed: bool, bucket: np.ndarray) -> Future[Round]:
        heard = bucket.copy()
        heard[1000] ^= 1
        future: Future[Round] = Future()
        future.set_result(Round((0,) if failed else (), {0: bucket, 1: heard}))
        return future


def test_a_bit_that_flips_on_the_way_is_found_before_its_value_is_assigned() -> None:
    spec = TensorSpec((10_000,), "float32")
    values = {f"v{n}": np.arange(10_000, dtype=np.float32) for n in range(2)}
    schedule = make_schedule(make(values), [0, 1], 2, BUDGET)
    assigned: list[str] = []
    own = iter(
        [pending([Value(p.entry, HostBuffer(values[p.entry.target]), None)]) for p in schedule.lane(0).placements]
    )

    def assign(items: Values) -> None:
        assigned.extend(item.entry.target for item in items)
        items.clear()

    with pytest.raises(dr.RestoreError, match="'v1': worker 1 sent bytes with the checksum"):
        share(schedule, 0, own, Flipping(), assign, 5.0)
    assert assigned == ["v0"] and spec.nbytes == 40_000


class Silent:
    """Others never come."""

    def start(self, *, failed: bool, bucket: np.ndarray) -> Future[Round]:
        return Future()


def test_waiting_for_others_ends() -> None:
    values = tensors(30)
    schedule = make_schedule(make(values), [1], 2, BUDGET)
    with pytest.raises(dr.RestoreError, match=r"did not come to the next exchange of tensors in 0\.1 s"):
        share(schedule, 0, iter(()), Silent(), lambda items: None, 0.1)


@pytest.mark.parametrize("damaged", [False, True])
def test_a_large_value_sets_out_while_it_is_read_and_is_assigned_only_once_it_is_whole_and_right(damaged: bool) -> None:
    value = np.arange(PIECE // 2, dtype=np.float32)  # two pieces
    schedule = make_schedule(make({"large": value}), [0], 2, BUDGET)
    got: list[list[str]] = [[], []]
    sent = threading.Event()

    def program(communicator: ClusterCommunicator) -> bool:
        rank, memory, slow = communicator.rank, np.zeros_like(value), Future[None]()

        def finish() -> Values:
            if damaged:
                raise dr.CheckpointCorruptError("tensor 'large': its checksum differs", names=("large",))
            return [Value(schedule.lanes[0].placements[0].entry, HostBuffer(memory), None)]

        def read_the_rest() -> None:
            sent.wait(10)
            memory[:] = value
            slow.set_result(None)

        class Watched(type(communicator.exchange([0]))):  # type: ignore[misc]
            def start(self, *, failed: bool, bucket: np.ndarray) -> Future[Round]:
                sent.set()  # the first bucket is out, and the second piece is not read yet
                return super().start(failed=failed, bucket=bucket)

        exchange = communicator.exchange([0])
        exchange.__class__ = Watched
        memory[: PIECE // 4] = value[: PIECE // 4]
        first = Future[None]()
        first.set_result(None)
        work = Pending(Started((), finish, memory.view(np.uint8)), [first, slow], 0)
        threading.Thread(target=read_the_rest, daemon=True).start()

        def assign(items: Values) -> None:
            for item in items:
                assert np.array_equal(item.buffer.array, value)
            got[rank] += [item.entry.target for item in items]
            items.clear()

        own = iter([work]) if rank == 0 else iter(())
        return in_phase(communicator, "assign", lambda: share(schedule, rank, own, exchange, assign, 10.0))

    results = run_workers(2, program)
    if damaged:
        assert all(isinstance(r, dr.CheckpointCorruptError) and isinstance(r, dr.WorkerError) for r in results)
        assert got == [[], []]
    else:
        assert results == [True, True] and got == [["large"], ["large"]]


def test_an_interrupt_while_waiting_for_others_is_told_in_the_next_round() -> None:
    schedule = make_schedule(make({f"v{n}": np.zeros(40_000, np.float32) for n in range(20)}), [1], 2, BUDGET)
    told: list[bool] = []

    class Interrupted(Future[Round]):
        def result(self, timeout: float | None = None) -> Round:
            if not told or not told[-1]:
                raise KeyboardInterrupt
            return super().result(timeout)

    class Watched:
        def start(self, *, failed: bool, bucket: np.ndarray) -> Future[Round]:
            told.append(failed)
            future = Interrupted() if len(told) == 1 else Future[Round]()
            future.set_result(Round((0,) if failed else (), {1: bucket}))
            return future

    with pytest.raises(KeyboardInterrupt):
        share(schedule, 0, iter(()), Watched(), lambda items: items.clear(), 5.0)
