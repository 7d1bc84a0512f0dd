"""Who reads which units, and where in whose stream of bytes each value travels. Pure.

Each reader turns its share of the units into one stream of values, in file order. All streams are cut into buckets of
one size; in round n every worker sends its bucket n and gets those of all others. Every worker makes this schedule by
itself out of the same plan, so nobody has to say what comes next.
"""

from __future__ import annotations

import collections
import dataclasses
import heapq
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from dist_restore.core.tensors import TensorSpec
from dist_restore.engine.units import Unit, parts_of
from dist_restore.planning.entries import PlanEntry

# Behind each value its CRC32C, as little-endian uint32, so that what arrives can be compared.
TRAILER = 4
# Small neighbours in the file stay with one reader, which reads them at once: up to so many bytes, and not more than a
# small part of its share, for balance.
_CLUSTER, _SMALLEST_CLUSTER, _CLUSTERS_PER_SHARE = 1 << 20, 16 << 10, 32
# What all workers together send in one round, and the least that one of them does. With 4 workers on localhost, rounds
# of 1 / 2 / 4 / 8 / 16 MB took 0.63 / 0.52 / 0.43 / 0.39 / 0.33 s of each worker's processor time for 200 MB.
_ROUND = 16 << 20
_SMALLEST_BUCKET = 64 << 10
# Rounds under way at once: while one is assigned, others travel.
IN_FLIGHT = 4


@dataclasses.dataclass(frozen=True, slots=True)
class Placement:
    """Where one value travels.

    Attributes:
      entry: whose target it is for.
      owner: the rank that reads and sends it.
      offset: its first byte in the owner's stream; its checksum lies behind it.
    """

    entry: PlanEntry
    owner: int
    offset: int

    @property
    def end(self) -> int:
        """The byte behind its checksum."""
        return self.offset + self.entry.bytes + TRAILER

    def buckets(self, size: int) -> range:
        """Numbers of the buckets that carry it."""
        return range(self.offset // size, (self.end - 1) // size + 1)


@dataclasses.dataclass(frozen=True, slots=True)
class Lane:
    """What one reader does.

    Attributes:
      owner: its rank.
      units: what it reads, in this order.
      placements: the values of these units, in the order of its stream.
    """

    owner: int
    units: tuple[Unit, ...]
    placements: tuple[Placement, ...]

    @property
    def length(self) -> int:
        """Bytes of its stream."""
        return self.placements[-1].end if self.placements else 0


class Part(NamedTuple):
    """What one bucket carries of one value.

    Attributes:
      placement: the value's.
      begin: first byte of the value, its checksum counted to it.
      at: first byte in the bucket.
      size: how many bytes.
    """

    placement: Placement
    begin: int
    at: int
    size: int

    @property
    def is_last(self) -> bool:
        """Whether the value ends here."""
        return self.begin + self.size == self.placement.entry.bytes + TRAILER


@dataclasses.dataclass(frozen=True, slots=True)
class Schedule:
    """Who sends what, when.

    Attributes:
      world_size: number of workers.
      bucket: bytes that each worker sends in a round; a multiple of 4.
      lanes: one for each reader, by rank.
    """

    world_size: int
    bucket: int
    lanes: tuple[Lane, ...]

    @property
    def rounds(self) -> int:
        """How many buckets the longest stream has."""
        return max((-(-lane.length // self.bucket) for lane in self.lanes), default=0)

    def lane(self, rank: int) -> Lane:
        """What a rank reads; nothing where it is no reader."""
        return next((lane for lane in self.lanes if lane.owner == rank), Lane(rank, (), ()))


def parts_by_round(lane: Lane, bucket: int, rounds: int) -> Iterator[list[Part]]:
    """What each bucket of a stream carries, in order; an empty list for a bucket that carries nothing."""
    waiting = collections.deque(lane.placements)
    for begin in range(0, rounds * bucket, bucket):
        parts: list[Part] = []
        while waiting and waiting[0].offset < begin + bucket:
            first = max(begin, waiting[0].offset)
            last = min(begin + bucket, waiting[0].end)
            parts.append(Part(waiting[0], first - waiting[0].offset, first - begin, last - first))
            if not parts[-1].is_last:
                break
            waiting.popleft()
        yield parts


def make_schedule(units: Sequence[Unit], readers: Sequence[int], world_size: int, memory_budget: int) -> Schedule:
    """Shares units out among readers.

    Args:
      units: in file order, the same on all workers; none that makes strings.
      readers: ranks that can read the files, ascending.
      world_size: number of workers.
      memory_budget: bytes of values that are under way at once; a larger value passes alone.
    """
    clusters = list(_clusters(units, len(readers)))
    owners = share_out([sum(map(read_bytes, cluster)) for cluster in clusters], readers)
    shares = {rank: [u for c, o in zip(clusters, owners, strict=True) if o == rank for u in c] for rank in readers}
    bucket = bucket_size(world_size, memory_budget)
    offsets = _lay_out(
        [[e.bytes + TRAILER for u in shares[r] for e in u.entries] for r in readers], bucket, memory_budget
    )
    lanes = (_lane(rank, shares[rank], places) for rank, places in zip(readers, offsets, strict=True))
    return Schedule(world_size, bucket, tuple(lanes))


def bucket_size(world_size: int, memory_budget: int) -> int:
    """Bytes that each worker sends in a round: so that all rounds under way take half the budget at most."""
    most = min(_ROUND, memory_budget // 2 // IN_FLIGHT) // world_size
    return max(most, _SMALLEST_BUCKET) // 4 * 4


def read_bytes(unit: Unit) -> int:
    """Bytes of a unit that are read from storage."""
    whole = sum(read.spec.nbytes for read in unit.reads if read.whole)
    partly = {read.name for read in unit.reads if not read.whole}
    return whole + sum(_part_bytes(entry, partly) for entry in unit.entries if partly)


def _part_bytes(entry: PlanEntry, names: set[str]) -> int:
    items = zip(entry.sources, entry.source_specs, parts_of(entry), strict=True)
    return sum(TensorSpec(box.size, spec.dtype).nbytes for name, spec, box in items if box and name in names)


def share_out(sizes: Sequence[int], readers: Sequence[int]) -> tuple[int, ...]:
    """The reader of each item: the largest goes first, to whoever has least; ties go to what comes first."""
    loads = [(0, rank) for rank in sorted(readers)]
    owners = [0] * len(sizes)
    for number in sorted(range(len(sizes)), key=lambda n: (-sizes[n], n)):
        load, rank = heapq.heappop(loads)
        owners[number] = rank
        heapq.heappush(loads, (load + sizes[number], rank))
    return tuple(owners)


def _clusters(units: Sequence[Unit], readers: int) -> Iterator[list[Unit]]:
    sizes = [read_bytes(unit) for unit in units]
    most = max(_SMALLEST_CLUSTER, min(_CLUSTER, sum(sizes) // readers // _CLUSTERS_PER_SHARE))
    cluster: list[Unit] = []
    size = 0
    for unit, nbytes in zip(units, sizes, strict=True):
        if cluster and size + nbytes > most:
            yield cluster
            cluster, size = [], 0
        cluster.append(unit)
        size += nbytes
    if cluster:
        yield cluster


def _lane(rank: int, units: Sequence[Unit], offsets: Sequence[int]) -> Lane:
    entries = [entry for unit in units for entry in unit.entries]
    placements = (Placement(entry, rank, offset) for entry, offset in zip(entries, offsets, strict=True))
    return Lane(rank, tuple(units), tuple(placements))


def _lay_out(streams: Sequence[Sequence[int]], bucket: int, budget: int) -> list[list[int]]:
    """Offsets of all values. A stream pauses to the next round where its next value would not fit the budget.

    Every worker holds memory for all values that have begun and not ended: as many as there are streams.
    """
    lanes = [_Cursor(sizes) for sizes in streams]
    round_, begun = 0, 0
    while any(lane.busy for lane in lanes):
        for lane in lanes:
            others = begun - lane.begun
            lane.advance(round_ * bucket, bucket, max(0, budget - others) if others else None)
            begun = others + lane.begun
        round_ += 1
    return [lane.offsets for lane in lanes]


class _Cursor:
    """How far one stream has come; `begun` is the size of the value that has begun and not ended."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = sizes
        self._left = 0
        self.offsets: list[int] = []

    @property
    def begun(self) -> int:
        return self._sizes[len(self.offsets) - 1] if self._left else 0

    @property
    def busy(self) -> bool:
        return self._left > 0 or len(self.offsets) < len(self._sizes)

    def advance(self, begin: int, bucket: int, room: int | None) -> None:
        """Fills one bucket. A value that reaches beyond it begins only if it has that much room; None is any."""
        used = min(self._left, bucket)
        self._left -= used
        while used < bucket and not self._left and len(self.offsets) < len(self._sizes):
            size = self._sizes[len(self.offsets)]
            sent = min(size, bucket - used)
            if sent < size and room is not None and size > room:
                return
            self.offsets.append(begin + used)
            used, self._left = used + sent, size - sent
