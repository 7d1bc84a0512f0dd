"""Who reads what, and where it travels: every world from 1 to 9, without a process."""

from __future__ import annotations

import itertools

import pytest

from dist_restore.core.tensors import TensorSpec
from dist_restore.distribute.shared.schedule import (
    TRAILER,
    Schedule,
    bucket_size,
    make_schedule,
    parts_by_round,
    read_bytes,
    share_out,
)
from dist_restore.engine.units import Unit, make_units
from dist_restore.planning.entries import PlanEntry, Status

WORLDS = range(1, 10)
MB = 1 << 20
BUDGET = 256 * MB


def units(*sizes: int) -> tuple[Unit, ...]:
    """Units that read and make so many bytes each (multiples of 4), named by their number."""
    entries = []
    for number, size in enumerate(sizes):
        spec = TensorSpec((size // 4,), "float32")
        name = f"v{number:05d}"
        entries.append(
            PlanEntry(name, (name,), (), Status.EXACT, "equal names", "", size, spec=spec, source_specs=(spec,))
        )
    return make_units(entries)


def places(schedule: Schedule) -> list[tuple[str, int, int, range]]:
    """`(target, owner, offset, buckets)` of every value, by owner and offset."""
    return [
        (p.entry.target, p.owner, p.offset, p.buckets(schedule.bucket))
        for lane in schedule.lanes
        for p in lane.placements
    ]


def test_the_largest_goes_first_to_whoever_has_least_and_ties_to_what_comes_first() -> None:
    assert share_out([5, 9, 5, 9, 1], [0, 1, 2]) == (2, 0, 2, 1, 0)
    assert share_out([4, 4, 4, 4], [1, 3]) == (1, 3, 1, 3)
    assert share_out([], [0]) == ()


def test_owner_offset_and_bucket_of_two_workers() -> None:
    schedule = make_schedule(units(8 * MB, 2 * MB, 4 * MB, 4 * MB), [0, 1], 2, 64 * MB)
    assert schedule.bucket == 4 * MB and schedule.rounds == 3
    assert places(schedule) == [
        ("v00000", 0, 0, range(0, 3)),
        ("v00001", 0, 8 * MB + 4, range(2, 3)),
        ("v00002", 1, 0, range(0, 2)),
        ("v00003", 1, 4 * MB + 4, range(1, 3)),
    ]


def test_owner_offset_and_bucket_of_the_chief_alone() -> None:
    schedule = make_schedule(units(8 * MB, 4 * MB), [0], 4, 64 * MB)
    assert schedule.bucket == 2 * MB and schedule.rounds == 7
    assert places(schedule) == [("v00000", 0, 0, range(0, 5)), ("v00001", 0, 8 * MB + 4, range(4, 7))]


@pytest.mark.parametrize("world", WORLDS)
def test_equal_tensors_are_shared_out_in_turn(world: int) -> None:
    schedule = make_schedule(units(*[MB] * 27), range(world), world, BUDGET)
    for rank in range(world):
        numbers = range(rank, 27, world)
        assert [p.entry.target for p in schedule.lane(rank).placements] == [f"v{n:05d}" for n in numbers]
        assert [p.offset for p in schedule.lane(rank).placements] == [i * (MB + 4) for i in range(len(numbers))]


@pytest.mark.parametrize("world", WORLDS)
def test_everything_has_one_owner_and_shares_are_balanced(world: int) -> None:
    sizes = [4 * (1 + n * 7919 % 500_000) for n in range(300)]
    schedule = make_schedule(units(*sizes), range(world), world, BUDGET)
    names = sorted(name for name, *_ in places(schedule))
    assert names == [f"v{n:05d}" for n in range(300)]
    loads = [sum(map(read_bytes, lane.units)) for lane in schedule.lanes]
    assert max(loads) - min(loads) <= max(MB, max(sizes))


@pytest.mark.parametrize("world", WORLDS)
def test_streams_do_not_overlap_and_are_cut_into_all_their_bytes(world: int) -> None:
    sizes = [4 * (1 + n * 104729 % 900_000) for n in range(60)] + [0]
    schedule = make_schedule(units(*sizes), range(world), world, 16 * MB)
    for lane in schedule.lanes:
        ends = [0, *(p.end for p in lane.placements)]
        assert all(p.offset >= end for p, end in zip(lane.placements, ends, strict=False))
        seen = dict.fromkeys((p.entry.target for p in lane.placements), 0)
        for number, parts in enumerate(parts_by_round(lane, schedule.bucket, schedule.rounds)):
            for part in parts:
                assert part.begin == seen[part.placement.entry.target]
                assert part.placement.offset + part.begin == number * schedule.bucket + part.at
                assert 0 <= part.at < part.at + part.size <= schedule.bucket
                assert number in part.placement.buckets(schedule.bucket)
                seen[part.placement.entry.target] += part.size
        assert seen == {p.entry.target: p.entry.bytes + TRAILER for p in lane.placements}


@pytest.mark.parametrize("world", WORLDS)
def test_values_under_way_stay_within_the_budget(world: int) -> None:
    budget = 40 * MB
    schedule = make_schedule(units(*[16 * MB] * 18), range(world), world, budget)
    for number in range(schedule.rounds):
        begin, end = number * schedule.bucket, (number + 1) * schedule.bucket
        open_after = [p for lane in schedule.lanes for p in lane.placements if p.offset < end < p.end]
        assert sum(p.entry.bytes for p in open_after) <= budget, (begin, open_after)


@pytest.mark.parametrize("world", WORLDS)
def test_a_value_larger_than_the_budget_passes_alone(world: int) -> None:
    schedule = make_schedule(units(*[64 * MB] * 4), range(world), world, 8 * MB)
    spans = sorted((p.offset // schedule.bucket, (p.end - 1) // schedule.bucket) for p in all_placements(schedule))
    assert all(first[1] <= second[0] for first, second in itertools.pairwise(spans))


def all_placements(schedule: Schedule) -> list:
    return [p for lane in schedule.lanes for p in lane.placements]


def test_small_neighbours_stay_with_one_reader() -> None:
    schedule = make_schedule(units(*[1024] * 4096), [0, 1], 2, BUDGET)
    numbers = [int(p.entry.target[1:]) for p in schedule.lane(0).placements]
    runs = 1 + sum(b != a + 1 for a, b in itertools.pairwise(numbers))
    assert runs <= 40


@pytest.mark.parametrize("world", WORLDS)
def test_only_readers_read(world: int) -> None:
    readers = range(0, world, 2)
    schedule = make_schedule(units(*[MB] * 20), readers, world, BUDGET)
    assert [lane.owner for lane in schedule.lanes] == list(readers)
    assert schedule.lane(1).units == () and schedule.lane(1).length == 0


def test_nothing_to_do_takes_no_rounds() -> None:
    assert make_schedule((), [0, 1], 2, BUDGET).rounds == 0


@pytest.mark.parametrize("world", [1, 2, 4, 64, 512])
@pytest.mark.parametrize("budget", [1 * MB, 256 * MB])
def test_buckets_are_whole_words_and_small_enough(world: int, budget: int) -> None:
    size = bucket_size(world, budget)
    assert size % 4 == 0 and size >= 64 << 10
    assert size * world * 4 <= max(budget // 2, 4 * world * (64 << 10))
