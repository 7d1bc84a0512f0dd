"""Units -> the values of their targets, read and checked by threads, ahead of whoever assigns them.

A large tensor that is assigned as it is goes straight from the file into the memory that its variable will have; small
tensors that lie side by side in the file are read at once; what is joined or averaged is made piece by piece; the rest
is read tensor by tensor.
Knows sources, ops and memory; knows no variables.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

import msgspec
import numpy as np

from dist_restore.checkpoints.reader import DirectSource, Source, Stored
from dist_restore.core import crc32c as checksum
from dist_restore.core.arrays import bytes_of
from dist_restore.core.errors import DtypeMismatchError
from dist_restore.core.phases import during
from dist_restore.core.tensors import Box
from dist_restore.engine.averaged import Piecewise, cost_of, is_piecewise
from dist_restore.engine.chunks import BRIEF, SCRATCH, joined_pieces, pieces_of, read_checked, require_checksum
from dist_restore.engine.joined import Joining, is_joined
from dist_restore.engine.pipeline import Started, Work
from dist_restore.engine.units import Unit, parts_of
from dist_restore.ops import Live, apply, apply_boxed, numpy_dtype
from dist_restore.planning.entries import PlanEntry
from dist_restore.tf_internals.host_memory import HostBuffer, new_buffer

# From here on a tensor has its own memory and its own request; below, copying it costs less.
_LARGE = 256 << 10
# Unwanted bytes between two small tensors that are read along with them.
_GAP = 16 << 10


class Value(msgspec.Struct, frozen=True, gc=False):
    """What one target gets.

    Attributes:
      entry: of the plan.
      buffer: holds it.
      crc32c: of the value's bytes, where that is known already.
    """

    entry: PlanEntry
    buffer: HostBuffer
    crc32c: int | None


LiveOf: TypeAlias = Callable[[PlanEntry], Live]
MakeBuffer: TypeAlias = Callable[[Sequence[int], str], HostBuffer | None]
Values: TypeAlias = list[Value]


class Located(msgspec.Struct, frozen=True, gc=False):
    """A unit, and where what it reads lies; None where some of it can only be read by `Source.read`."""

    unit: Unit
    places: tuple[Stored, ...] | None


def stored_size(item: Located) -> int:
    """Bytes of a unit's tensor; of one that is no single tensor with a place, all that it reads and makes."""
    places = item.places
    return places[0].size if places is not None and len(places) == 1 else item.unit.nbytes


def locate(units: Iterable[Unit], source: Source) -> list[Located]:
    """Finds where units lie, and puts them in file order: reading is sequential, and neighbours come together."""
    if not isinstance(source, DirectSource):
        return [Located(unit, None) for unit in units]
    located = [Located(unit, _places(unit, source)) for unit in units]
    # Largest first was tried: the peak of memory is the same.
    return sorted(located, key=lambda item: (item.places[0].file, item.places[0].offset) if item.places else (-1, 0))


def _places(unit: Unit, source: DirectSource) -> tuple[Stored, ...] | None:
    found: list[Stored] = []
    for read in unit.reads:
        stored = source.stored(read.name) if read.whole else None
        if stored is None:
            return None
        found.append(stored)
    return tuple(found)


def make_works(
    located: Iterable[Located], source: Source, live_of: LiveOf, make_buffer: MakeBuffer = new_buffer
) -> Iterator[Work[Values]]:
    """The work of reading units, in their order.

    Args:
      located: from `locate`.
      source: the opened checkpoint.
      live_of: gives what gives an entry's present value, for `fill = "keep"`; called by the consumer's thread.
      make_buffer: makes what large tensors are read into; called by the consumer's thread.
    """
    batch = _Batch(source, live_of)
    for item in located:
        places = item.places
        if places is not None and len(places) == 1 and places[0].size < _LARGE:
            if not batch.accepts(places[0]):
                yield from batch.take()
            batch.add(item.unit, places[0])
            continue
        yield from batch.take()
        if places is not None and is_direct(item.unit):
            yield direct_work(item, source, make_buffer)
        elif is_joined(item.unit, places):
            size = item.unit.entries[0].bytes
            yield Work(size + min(size, SCRATCH), functools.partial(_start_joined, item, source, make_buffer))
        elif is_piecewise(item.unit, places):
            cost = cost_of(item.unit) + item.unit.entries[0].bytes
            yield Work(cost, functools.partial(_start_piecewise, item, source, make_buffer))
        else:
            yield _single(item, source, live_of, make_buffer)
    yield from batch.take()


def is_direct(unit: Unit) -> bool:
    """Whether a unit is one tensor that becomes one variable as it is."""
    return len(unit.reads) == len(unit.entries) == 1 and is_copy(unit.entries[0])


def is_copy(entry: PlanEntry) -> bool:
    """Whether a target gets a source's bytes as they are."""
    return not entry.ops and entry.source_specs == (entry.spec,)


def direct_work(item: Located, source: Source, make_buffer: MakeBuffer = new_buffer) -> Work[Values]:
    """The work for a unit with a place that `is_direct`: right into the memory that its variable takes over."""
    assert isinstance(source, DirectSource) and item.places is not None
    start = functools.partial(_start_large, item.unit, item.places[0], source, make_buffer)
    return Work(item.unit.entries[0].bytes, start)


def _start_large(unit: Unit, stored: Stored, source: DirectSource, make_buffer: MakeBuffer) -> Started[Values]:
    entry, name = unit.entries[0], unit.reads[0].name
    buffer = _buffer(entry, make_buffer)
    data = bytes_of(buffer.array)
    pieces = pieces_of(stored.size)
    crcs = [0] * len(pieces)

    def fill(number: int) -> None:
        begin, size = pieces[number]
        crcs[number] = read_checked(source, name, begin, size, data[begin : begin + size])

    def finish() -> Values:
        crc = joined_pieces(crcs, stored.size)
        require_checksum(source, name, stored, crc)
        return [Value(entry, buffer, crc)]

    return Started(tuple(functools.partial(fill, i) for i in range(len(pieces))), finish, data, brief=True)


def buffer_for(entry: PlanEntry, make_buffer: MakeBuffer = new_buffer) -> HostBuffer:
    """Memory for a target's value; where it is large, memory that its variable can take over."""
    return _buffer(entry, make_buffer) if entry.bytes >= _LARGE else _buffer_to_copy(entry)


def _buffer(entry: PlanEntry, make_buffer: MakeBuffer) -> HostBuffer:
    return make_buffer(entry.spec.shape, entry.spec.dtype) or _buffer_to_copy(entry)


def _buffer_to_copy(entry: PlanEntry) -> HostBuffer:
    return HostBuffer(np.empty(entry.spec.shape, numpy_dtype(entry.spec.dtype)))


def _single(item: Located, source: Source, live_of: LiveOf, make_buffer: MakeBuffer) -> Work[Values]:
    """Work for a unit whose values go through ops, or that cannot be read by parts."""
    # Ops may hold one more copy of what they make than the result.
    made = sum(e.bytes * (1 if is_copy(e) else 2) for e in item.unit.entries)
    cost = sum(r.spec.nbytes for r in item.unit.reads) + made
    return Work(cost, functools.partial(_start_single, item, source, live_of, make_buffer))


def _start_single(item: Located, source: Source, live_of: LiveOf, make_buffer: MakeBuffer) -> Started[Values]:
    unit = item.unit
    buffers = [_buffer(e, make_buffer) if e.bytes >= _LARGE and not _keeps(e) else None for e in unit.entries]
    # Made here and not in a thread: glibc keeps apart what each thread frees (287 MB at most, and so 272).
    arrays = {r.name: np.empty(r.spec.shape, numpy_dtype(r.spec.dtype)) for r in unit.reads if item.places}
    done: dict[int, Value] = {}

    def work() -> None:
        if item.places is None or not isinstance(source, DirectSource):
            arrays.update(read_whole(unit, source))
        else:
            for (name, array), place in zip(arrays.items(), item.places, strict=True):
                require_checksum(source, name, place, read_checked(source, name, 0, place.size, bytes_of(array)))
        for number, entry in enumerate(unit.entries):
            if not _keeps(entry):
                done[number] = _value(entry, arrays, source, None, buffers[number])

    def finish() -> Values:
        for number, entry in enumerate(unit.entries):
            if number not in done:
                done[number] = _value(entry, arrays, source, live_of(entry), None)
        return [done[number] for number in range(len(unit.entries))]

    return Started((work,), finish, brief=unit.nbytes <= BRIEF)


def _start_joined(item: Located, source: Source, make_buffer: MakeBuffer) -> Started[Values]:
    assert item.places is not None and isinstance(source, DirectSource)
    entry = item.unit.entries[0]
    buffer = buffer_for(entry, make_buffer)
    joining = Joining(item.unit, item.places, source, bytes_of(buffer.array))
    return Started(joining.tasks, lambda: [Value(entry, buffer, joining.finish())], brief=joining.is_brief)


def _start_piecewise(item: Located, source: Source, make_buffer: MakeBuffer) -> Started[Values]:
    entry = item.unit.entries[0]
    buffer = buffer_for(entry, make_buffer)
    work = read_piecewise(item, source, buffer.array.reshape(-1))
    return Started((work,), lambda: [Value(entry, buffer, checksum.extend(0, bytes_of(buffer.array)))])


def read_piecewise(item: Located, source: Source, out: np.ndarray | None) -> Callable[[], None]:
    """What makes a target piece by piece, and checks each tensor as its bytes pass.

    Args:
      item: for which `is_piecewise` is true.
      source: the opened checkpoint.
      out: takes the target's elements, without further axes; None to drop them.
    """
    unit, places = item.unit, item.places
    assert places is not None and isinstance(source, DirectSource)
    parts = Piecewise(unit, source, lambda values: transform(unit.entries[0], values, source, None))

    def work() -> None:
        crcs = parts.run(out)
        for read, place in zip(unit.reads, places, strict=True):
            require_checksum(source, read.name, place, crcs[read.name])

    return work


def _keeps(entry: PlanEntry) -> bool:
    """Whether the present value is needed; variables are read by the consumer's thread alone."""
    return any(op.keeps for op in entry.ops)


def _value(
    entry: PlanEntry,
    arrays: Mapping[str, np.ndarray],
    source: Source,
    live: Live | None,
    buffer: HostBuffer | None,
) -> Value:
    value = transform(entry, arrays, source, live)
    if buffer is None or buffer.tensor is None:
        return Value(entry, HostBuffer(value), None)
    buffer.array[...] = value
    return Value(entry, buffer, checksum.extend(0, bytes_of(buffer.array)))


def read_whole(unit: Unit, source: Source) -> dict[str, np.ndarray]:
    """The tensors that a unit needs whole."""
    return {r.name: source.read(r.name) for r in unit.reads if r.whole}


def transform(entry: PlanEntry, values: Mapping[str, np.ndarray], source: Source, live: Live | None) -> np.ndarray:
    """One target's value; parts of tensors that were not read whole are read now.

    Raises:
      DtypeMismatchError: a cast or a scale loses a value; the message names the target and its sources.
    """
    with during("transform"):
        try:
            return _transformed(entry, values, source, live)
        except DtypeMismatchError as error:  # the ops know no names
            what = " + ".join(repr(name) for name in entry.sources)
            raise DtypeMismatchError(
                f"{entry.target!r} {entry.spec} from {what}: {error}", names=(entry.target,)
            ) from error


def _transformed(entry: PlanEntry, values: Mapping[str, np.ndarray], source: Source, live: Live | None) -> np.ndarray:
    if all(name in values for name in entry.sources):
        return apply(entry.ops, [values[name] for name in entry.sources], live=live)
    boxes = parts_of(entry)
    arrays = [_part(name, box, values, source) for name, box in zip(entry.sources, boxes, strict=True)]
    return apply_boxed(entry.ops, entry.source_specs, boxes, arrays, live)


def _part(name: str, box: Box | None, values: Mapping[str, np.ndarray], source: Source) -> np.ndarray | None:
    if box is None:
        return None
    if name in values:
        return values[name][box.slices()]
    with during("read"):
        return source.read(name, box)


class Neighbours:
    """Small tensors that lie side by side in one file, so that one request reads them all."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.places: list[Stored] = []

    @property
    def size(self) -> int:
        """Bytes that the request reads."""
        return self.places[-1].offset + self.places[-1].size - self.places[0].offset if self.places else 0

    def accepts(self, place: Stored) -> bool:
        """Whether a tensor lies behind the last one, and close by."""
        if not self.places:
            return True
        first, last = self.places[0], self.places[-1]
        gap = place.offset - last.offset - last.size
        return place.file == first.file and 0 <= gap <= _GAP and place.offset + place.size - first.offset <= SCRATCH

    def add(self, name: str, place: Stored) -> None:
        """Adds a tensor."""
        self.names.append(name)
        self.places.append(place)

    def read(self, source: DirectSource, data: np.ndarray) -> None:
        """Reads all into the first bytes of an array, and checks each tensor that has a checksum."""
        source.read_stored(self.names[0], 0, data[: self.size])
        view = data.data  # its parts are made in half of the time that an array's take
        for name, place, begin in zip(self.names, self.places, self.begins(), strict=True):
            crc = place.crc32c
            if crc is not None and (found := checksum.extend(0, view[begin : begin + place.size])) != crc:
                require_checksum(source, name, place, found)

    def begins(self) -> list[int]:
        """Where each tensor begins in what is read."""
        first = self.places[0].offset
        return [place.offset - first for place in self.places]


class _Batch:
    """Small units that one request serves."""

    def __init__(self, source: Source, live_of: LiveOf) -> None:
        self._source, self._live_of = source, live_of
        self._units: list[Unit] = []
        self._neighbours = Neighbours()

    def accepts(self, place: Stored) -> bool:
        return self._neighbours.accepts(place)

    def add(self, unit: Unit, place: Stored) -> None:
        self._units.append(unit)
        self._neighbours.add(unit.reads[0].name, place)

    def take(self) -> Iterator[Work[Values]]:
        """The work for all that was added, which is forgotten."""
        units, neighbours = self._units, self._neighbours
        self._units, self._neighbours = [], Neighbours()
        if units:
            cost = neighbours.size + sum(e.bytes for u in units for e in u.entries)
            yield Work(cost, functools.partial(_start_batch, units, neighbours, self._source, self._live_of))


def _start_batch(units: Sequence[Unit], neighbours: Neighbours, source: Source, live_of: LiveOf) -> Started[Values]:
    assert isinstance(source, DirectSource)
    data = np.empty(neighbours.size, np.uint8)

    def finish() -> Values:
        values: Values = []
        for unit, place, begin in zip(units, neighbours.places, neighbours.begins(), strict=True):
            read = unit.reads[0]
            spec = read.spec
            array = np.ndarray(spec.shape, numpy_dtype(spec.dtype), data, begin)
            for entry in unit.entries:
                if is_copy(entry):
                    values.append(Value(entry, HostBuffer(array), place.crc32c))
                else:
                    values.append(_value(entry, {read.name: array}, source, live_of(entry), None))
        return values

    return Started((lambda: neighbours.read(source, data),), finish, brief=True)
