"""Units -> the values of their targets, read and checked by threads, ahead of whoever assigns them.

Three ways: a large tensor that is assigned as it is goes straight from the file into the memory that its variable will
have; small tensors that lie side by side in the file are read at once; the rest is read tensor by tensor.
Knows sources, ops and memory; knows no variables.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from dist_restore import host_memory
from dist_restore.distribute.schedule import Read, Unit, parts_of
from dist_restore.entries import PlanEntry
from dist_restore.errors import CheckpointCorruptError
from dist_restore.host_memory import Blank
from dist_restore.pipeline import Started, Task, Work
from dist_restore.sources import checksum
from dist_restore.sources.base import DirectSource, Source, Stored
from dist_restore.specs import Box
from dist_restore.transforms import Concat, Live, Stack, apply, apply_boxed, numpy_dtype

# What is read before its checksum is computed: fits a core's own cache. Reading and checking 1 GB so takes 0.10 s
# of one thread; in pieces of 128 KB or of 4 MB, 0.13.
_CHUNK = 1 << 20
# What one task reads of a large tensor; the threads share each tensor, and an interrupt waits for one piece.
_PIECE = 8 << 20
# From here on a tensor has its own memory and its own request; below, copying it costs less (55 us for the memory).
_LARGE = 256 << 10
# Unwanted bytes between two small tensors that are read along with them.
_GAP = 16 << 10


class Value(NamedTuple):
    """What one target gets.

    Attributes:
      entry: of the plan.
      value: an array, or a filled tensor whose memory the variable may take over.
      crc32c: of the value's bytes, where that is known already.
    """

    entry: PlanEntry
    value: np.ndarray | Blank
    crc32c: int | None


LiveOf: TypeAlias = Callable[[PlanEntry], Live]
Values: TypeAlias = list[Value]


def in_file_order(units: Iterable[Unit], source: Source) -> list[Unit]:
    """Units by where their first tensor lies, so that reading is sequential and neighbours are beside each other."""
    if not isinstance(source, DirectSource):
        return list(units)

    def place(unit: Unit) -> tuple[int, int]:
        stored = source.stored(unit.reads[0].name)
        return (stored.file, stored.offset) if stored is not None else (-1, 0)

    return sorted(units, key=place)


def make_works(units: Iterable[Unit], source: Source, live_of: LiveOf) -> Iterator[Work[Values]]:
    """The work of reading units, in their order.

    Args:
      units: in file order, for speed.
      source: the opened checkpoint.
      live_of: gives what gives an entry's present value, for `fill = "keep"`; called by the consumer's thread.
    """
    batch = _Batch()
    for unit in units:
        places = _places(unit, source)
        if places is None or _is_large(unit):
            yield from batch.take(source, live_of)
            yield _large(unit, places[0], source) if places and _is_direct(unit) else _single(unit, source, live_of)
        else:
            if not batch.accepts(places):
                yield from batch.take(source, live_of)
            batch.add(unit, places)
    yield from batch.take(source, live_of)


def _places(unit: Unit, source: Source) -> list[Stored] | None:
    """Where all that a unit reads lies; None where some of it can only be read by `Source.read`."""
    if not isinstance(source, DirectSource):
        return None
    places = [source.stored(r.name) for r in unit.reads if r.whole]
    found = [p for p in places if p is not None]
    return found if len(found) == len(unit.reads) else None


def _is_large(unit: Unit) -> bool:
    return sum(r.spec.nbytes for r in unit.reads) >= _LARGE


def _is_direct(unit: Unit) -> bool:
    """Whether a unit is one tensor that becomes one variable as it is."""
    return len(unit.reads) == len(unit.entries) == 1 and is_copy(unit.entries[0])


def is_copy(entry: PlanEntry) -> bool:
    """Whether a target gets a source's bytes as they are."""
    return not entry.ops and entry.source_specs == (entry.spec,)


def read_checked(source: DirectSource, name: str, begin: int, out: np.ndarray) -> int:
    """Fills an array of bytes with a part of a stored tensor; returns its CRC32C, computed while it is in the cache."""
    crc = 0
    for start in range(0, len(out), _CHUNK):
        chunk = out[start : start + _CHUNK]
        source.read_stored(name, begin + start, chunk)
        crc = checksum.extend(crc, chunk)
    return crc


def require_checksum(source: Source, name: str, stored: Stored, crc: int) -> None:
    """Raises `CheckpointCorruptError` unless the checksum is the stored one."""
    if crc == stored.crc32c:
        return
    source.check(name)  # says where and what, if the bytes are still wrong
    raise CheckpointCorruptError(
        f"tensor {name!r}: its bytes did not have their checksum when they were read, and have it now. Something writes "
        "to the checkpoint, or the memory is faulty. Restore again with nothing else running.",
        names=(name,),
    )


def pieces_of(size: int) -> list[tuple[int, int]]:
    """`(begin, size)` of the parts of a tensor that threads read."""
    return [(begin, min(_PIECE, size - begin)) for begin in range(0, size, _PIECE)]


def joined(crcs: Sequence[int], pieces: Sequence[tuple[int, int]]) -> int:
    """The checksum of a tensor from those of its pieces."""
    total = 0
    for crc, (_, size) in zip(crcs, pieces, strict=True):
        total = checksum.combine(total, crc, size)
    return total


def _large(unit: Unit, stored: Stored, source: Source) -> Work[Values]:
    assert isinstance(source, DirectSource)
    return Work(unit.entries[0].bytes, lambda: _start_large(unit, stored, source))


def _start_large(unit: Unit, stored: Stored, source: DirectSource) -> Started[Values]:
    entry, name = unit.entries[0], unit.reads[0].name
    target = _memory(entry)
    data = _bytes_of(target.array if isinstance(target, Blank) else target)
    pieces = pieces_of(stored.size)
    crcs = [0] * len(pieces)

    def fill(number: int) -> None:
        begin, size = pieces[number]
        crcs[number] = read_checked(source, name, begin, data[begin : begin + size])

    def finish() -> Values:
        crc = joined(crcs, pieces)
        require_checksum(source, name, stored, crc)
        return [Value(entry, target, crc)]

    return Started(tuple(functools.partial(fill, i) for i in range(len(pieces))), finish)


def _memory(entry: PlanEntry) -> Blank | np.ndarray:
    dtype = numpy_dtype(entry.spec.dtype)
    return host_memory.blank(entry.spec.shape, entry.spec.dtype) or np.empty(entry.spec.shape, dtype)


def _bytes_of(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view(np.uint8)


def _single(unit: Unit, source: Source, live_of: LiveOf) -> Work[Values]:
    """Work for a unit whose values go through ops, or that cannot be read by parts."""
    # Ops may hold one more copy of what they make than the result.
    cost = sum(r.spec.nbytes for r in unit.reads) + sum(e.bytes * (1 if is_copy(e) else 2) for e in unit.entries)
    return Work(cost, lambda: _start_single(unit, source, live_of))


def _start_single(unit: Unit, source: Source, live_of: LiveOf) -> Started[Values]:
    memories = [_memory(e) if e.bytes >= _LARGE and not _keeps(e) else None for e in unit.entries]
    done: dict[int, Value] = {}
    arrays: dict[str, np.ndarray] = {}

    def work() -> None:
        arrays.update(read_whole(unit, source))
        for number, entry in enumerate(unit.entries):
            if not _keeps(entry):
                done[number] = _value(entry, arrays, source, None, memories[number])

    def finish() -> Values:
        for number, entry in enumerate(unit.entries):
            if number not in done:
                done[number] = _value(entry, arrays, source, live_of(entry), None)
        return [done[number] for number in range(len(unit.entries))]

    return Started((work,), finish)


def _keeps(entry: PlanEntry) -> bool:
    """Whether the present value is needed; variables are read by the consumer's thread alone."""
    return any(op.keeps for op in entry.ops)


def _value(
    entry: PlanEntry,
    arrays: Mapping[str, np.ndarray],
    source: Source,
    live: Live | None,
    memory: Blank | np.ndarray | None,
) -> Value:
    if not isinstance(memory, Blank):
        return Value(entry, transform(entry, arrays, source, live), None)
    sources = [arrays[name] for name in entry.sources if name in arrays]
    if len(sources) == len(entry.sources) and len(sources) > 1 and len(entry.ops) == 1 and _merge_into(entry, sources, memory.array):
        return Value(entry, memory, checksum.extend(0, _bytes_of(memory.array)))
    memory.array[...] = transform(entry, arrays, source, live)
    return Value(entry, memory, checksum.extend(0, _bytes_of(memory.array)))


def _merge_into(entry: PlanEntry, sources: Sequence[np.ndarray], out: np.ndarray) -> bool:
    """Joins tensors right in their target's memory, which saves a copy: fused q/k/v is the commonest op of all."""
    op = entry.ops[0]
    if any(s.dtype != out.dtype for s in sources):
        return False
    if isinstance(op, Concat):
        np.concatenate(sources, op.axis, out=out)
    elif isinstance(op, Stack):
        np.stack(sources, op.axis, out=out)
    else:
        return False
    return True


def read_whole(unit: Unit, source: Source) -> dict[str, np.ndarray]:
    """The tensors that a unit needs whole."""
    return {r.name: source.read(r.name) for r in unit.reads if r.whole}


def transform(
    entry: PlanEntry, values: Mapping[str, np.ndarray], source: Source, live: Live | None
) -> np.ndarray:
    """One target's value; parts of tensors that were not read whole are read now."""
    if all(name in values for name in entry.sources):
        return apply(entry.ops, [values[name] for name in entry.sources], live=live)
    boxes = parts_of(entry)
    arrays = [_part(name, box, values, source) for name, box in zip(entry.sources, boxes, strict=True)]
    return apply_boxed(entry.ops, entry.source_specs, boxes, arrays, live)


def _part(name: str, box: Box | None, values: Mapping[str, np.ndarray], source: Source) -> np.ndarray | None:
    if box is None:
        return None
    return values[name][box.slices()] if name in values else source.read(name, box)


class Neighbours:
    """Small tensors that lie side by side in one file, and what one request reads of them."""

    def __init__(self) -> None:
        self.members: list[tuple[Read, Stored]] = []
        self.end = 0

    @property
    def size(self) -> int:
        """Bytes that one request reads."""
        return self.end - self.members[0][1].offset if self.members else 0

    def accepts(self, stored: Stored) -> bool:
        """Whether a tensor lies behind the last one, and close by."""
        if not self.members:
            return True
        first = self.members[0][1]
        near = stored.file == first.file and 0 <= stored.offset - self.end <= _GAP
        return near and stored.offset + stored.size - first.offset <= _CHUNK

    def add(self, read: Read, stored: Stored) -> None:
        """Adds a tensor."""
        self.members.append((read, stored))
        self.end = stored.offset + stored.size

    def read(self, source: DirectSource, buffer: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """The bytes of each, checked; views of the buffer."""
        first_read, first = self.members[0]
        data = np.empty(self.size, np.uint8) if buffer is None else buffer[: self.size]
        source.read_stored(first_read.name, 0, data)
        found: dict[str, np.ndarray] = {}
        for read, stored in self.members:
            start = stored.offset - first.offset
            part = found[read.name] = data[start : start + stored.size]
            require_checksum(source, read.name, stored, checksum.extend(0, part))
        return found


class _Batch:
    """Small units that one request serves."""

    def __init__(self) -> None:
        self._units: list[Unit] = []
        self._neighbours = Neighbours()

    def accepts(self, places: Sequence[Stored]) -> bool:
        return len(places) == 1 and self._neighbours.accepts(places[0])

    def add(self, unit: Unit, places: Sequence[Stored]) -> None:
        self._units.append(unit)
        for read, stored in zip(unit.reads, places, strict=True):
            self._neighbours.add(read, stored)
