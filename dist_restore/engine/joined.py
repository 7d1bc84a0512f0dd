"""Tensors that are joined by one concat or stack (fused q/k/v, say), read right to their places in the target.

None of them is held whole, and threads share them as they share one large tensor. Knows where tensors lie and where in
the target their bytes belong; knows neither models nor variables.
"""

from __future__ import annotations

import collections
import functools
import itertools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from dist_restore.checkpoints.reader import DirectSource, Stored
from dist_restore.core import crc32c as checksum
from dist_restore.core.arrays import bytes_of
from dist_restore.core.dtypes import ITEM_SIZES
from dist_restore.engine.chunks import BRIEF, PIECE, SCRATCH, joined, read_checked, require_checksum, scratch
from dist_restore.engine.pipeline import Started, Work
from dist_restore.engine.read_task import PlacedTask
from dist_restore.engine.units import Unit
from dist_restore.engine.values import LiveOf, MakeBuffer, Value, Values, buffer_for
from dist_restore.ops import Concat, Stack
from dist_restore.tf_internals.host_memory import new_buffer


def is_joined(unit: Unit, places: Sequence[Stored] | None) -> bool:
    """Whether a unit is one target that consists of the bytes of several stored tensors, each of them once."""
    if places is None or len(unit.entries) != 1 or len(unit.entries[0].ops) != 1:
        return False
    entry = unit.entries[0]
    names = tuple(read.name for read in unit.reads)
    is_same = all(spec.dtype == entry.spec.dtype for spec in entry.source_specs)
    return isinstance(entry.ops[0], Concat | Stack) and names == entry.sources and is_same


class JoinedTask(PlacedTask):
    """See `is_joined`."""

    def load(self, live_of: LiveOf, make_buffer: MakeBuffer = new_buffer) -> Work[Values]:
        """See `ReadTask.load`."""
        del live_of
        size = self._entry.bytes
        return Work(size + min(size, SCRATCH), functools.partial(self._start, make_buffer))

    def _start(self, make_buffer: MakeBuffer) -> Started[Values]:
        entry, buffer = self._entry, buffer_for(self._entry, make_buffer)
        joining = Joining(self._unit, self._places, self._direct, bytes_of(buffer.array))
        return Started(joining.tasks, lambda: [Value(entry, buffer, joining.finish())], brief=joining.is_brief)


class _Part(NamedTuple):
    """Consecutive bytes of a tensor.

    Attributes:
      number: of the tensor.
      begin: first byte in the tensor.
      out: where the bytes belong: rows of bytes with others between them, or one run of bytes.
    """

    number: int
    begin: int
    out: np.ndarray


class Joining:
    """One such target on its way.

    Args:
      unit: for which `is_joined` is true.
      places: of its tensors.
      source: the opened checkpoint.
      out: the target's bytes.
    """

    def __init__(self, unit: Unit, places: Sequence[Stored], source: DirectSource, out: np.ndarray) -> None:
        self._unit, self._places, self._source, self._out = unit, places, source, out
        regions = _regions(unit, out)
        self._is_run = all(len(region) == 1 for region in regions)
        self._parts = [part for number, region in enumerate(regions) for part in _parts(number, region)]
        self._crcs = [0] * len(self._parts)
        self._left, self._lock, self._crc = len(self._parts), threading.Lock(), 0

    @property
    def tasks(self) -> tuple[Callable[[], None], ...]:
        """What threads do, in any order; small tensors are one task together."""
        ends = itertools.accumulate(part.out.size for part in self._parts)
        groups = itertools.groupby(enumerate(ends), lambda item: (item[1] - 1) // PIECE)
        return tuple(functools.partial(self._read, [index for index, _ in group]) for _, group in groups)

    @property
    def is_brief(self) -> bool:
        """Whether each task takes a few milliseconds; where rows are mixed, the last one hashes all of the target."""
        return self._is_run or self._out.size <= BRIEF

    def finish(self) -> int:
        """Compares the checksum of each tensor, once all tasks are done, and returns the target's."""
        sizes = [part.out.size for part in self._parts]
        crcs: dict[int, list[tuple[int, int]]] = collections.defaultdict(list)
        for part, crc, size in zip(self._parts, self._crcs, sizes, strict=True):
            crcs[part.number].append((crc, size))
        for number, (read, place) in enumerate(zip(self._unit.reads, self._places, strict=True)):
            require_checksum(self._source, read.name, place, joined(crcs[number]))
        return joined(zip(self._crcs, sizes, strict=True)) if self._is_run else self._crc

    def _read(self, indexes: Sequence[int]) -> None:
        for index in indexes:
            part = self._parts[index]
            name, place = self._unit.reads[part.number].name, self._places[part.number]
            if part.out.flags.c_contiguous:
                self._crcs[index] = read_checked(self._source, name, part.begin, part.out.size, part.out.reshape(-1))
            else:
                self._crcs[index] = self._read_rows(name, place.offset, part)
        with self._lock:
            self._left -= len(indexes)
            is_last = self._left == 0
        if is_last and not self._is_run:  # here and not in `finish`, which whoever assigns waits for
            self._crc = checksum.extend(0, self._out)

    def _read_rows(self, name: str, offset: int, part: _Part) -> int:
        rows, width = part.out.shape
        # Whole elements, for NumPy copies short rows of single bytes at a tenth of the speed.
        item = np.dtype(f"u{min(8, ITEM_SIZES[self._unit.entries[0].spec.dtype])}")
        step, crc = SCRATCH // width, 0
        for row in range(0, rows, step):
            target, begin = part.out[row : row + step], part.begin + row * width
            chunk = scratch(offset + begin)[: target.size]
            self._source.read_stored(name, begin, chunk)
            crc = checksum.extend(crc, chunk)
            target.view(item)[...] = chunk.reshape(target.shape).view(item)
        return crc


def _regions(unit: Unit, out: np.ndarray) -> list[np.ndarray]:
    """The part of a target's bytes that each tensor fills, as rows of bytes: one for each index before the axis."""
    (op,), specs = unit.entries[0].ops, unit.entries[0].source_specs
    assert isinstance(op, Concat | Stack)
    rank = len(specs[0].shape) + isinstance(op, Stack)
    rows = math.prod(specs[0].shape[: op.axis % rank])
    table = out.reshape(rows, out.size // rows if rows else 0)
    found, begin = [], 0
    for spec in specs:
        width = spec.nbytes // rows if rows else 0
        found.append(table[:, begin : begin + width])
        begin += width
    return found


def _parts(number: int, region: np.ndarray) -> Iterator[_Part]:
    rows, width = region.shape
    if width >= SCRATCH or rows == 1:  # a row goes straight to its place
        for row in range(rows):
            for begin in range(0, width, PIECE):
                yield _Part(number, row * width + begin, region[row, begin : begin + PIECE])
    elif width:
        step = PIECE // width
        for row in range(0, rows, step):
            yield _Part(number, row * width, region[row : row + step])
