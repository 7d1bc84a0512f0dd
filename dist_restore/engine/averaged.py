"""Averages of many tensors, piece by piece: all are read in step, and none of them is ever held whole.

Knows where tensors lie, and that the ops of an entry act on each element by itself; knows neither models nor variables.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from dist_restore.checkpoints.reader import DirectSource, Stored
from dist_restore.core import crc32c as checksum
from dist_restore.core.arrays import bytes_of
from dist_restore.core.dtypes import ITEM_SIZES
from dist_restore.engine.chunks import require_checksum
from dist_restore.engine.lossy import Lossy
from dist_restore.engine.pipeline import Started, Work
from dist_restore.engine.read_task import PlacedTask
from dist_restore.engine.units import Unit
from dist_restore.engine.values import LiveOf, MakeBuffer, Value, Values, buffer_for, transform
from dist_restore.ops import numpy_dtype
from dist_restore.tf_internals.host_memory import new_buffer

# What is held of each tensor at a time, in bytes: of 100 checkpoints 100 MB.
PIECE = 1 << 20

Arrays: TypeAlias = Mapping[str, np.ndarray]


def is_piecewise(unit: Unit, places: Sequence[Stored] | None) -> bool:
    """Whether a unit is one target whose elements are each made of those at the same place of several tensors."""
    if places is None or len(unit.entries) != 1 or len(unit.reads) < 2:
        return False
    entry = unit.entries[0]
    return all(op.pointwise for op in entry.ops) and all(s.shape == entry.spec.shape for s in entry.source_specs)


class PiecewiseTask(PlacedTask):
    """See `is_piecewise`."""

    def load(self, live_of: LiveOf, make_buffer: MakeBuffer = new_buffer) -> Work[Values]:
        """See `ReadTask.load`."""
        del live_of
        return Work(cost_of(self._unit) + self._entry.bytes, functools.partial(self._start, make_buffer))

    def _start(self, make_buffer: MakeBuffer) -> Started[Values]:
        entry, buffer = self._entry, buffer_for(self._entry, make_buffer)
        work = self._reading(buffer.array.reshape(-1))
        return Started((work,), lambda: [Value(entry, buffer, checksum.extend(0, bytes_of(buffer.array)))])

    def _check_values(self, unit: Unit, lossy: Lossy) -> Work[int]:
        return Work(cost_of(unit), functools.partial(self._start_check, lossy))

    def _start_check(self, lossy: Lossy) -> Started[int]:
        work = self._reading(None)

        def task() -> None:
            with lossy.gathered(self._entry):
                work()

        return Started((task,), lambda: sum(r.spec.nbytes for r in self._unit.reads))

    def _reading(self, out: np.ndarray | None) -> Callable[[], None]:
        """What makes the target's elements in an array, or drops them, and checks each tensor as its bytes pass."""
        unit, source = self._unit, self._direct
        parts = Piecewise(unit, source, lambda arrays: transform(self._entry, arrays, source, None))

        def work() -> None:
            crcs = parts.run(out)
            for read, place in zip(unit.reads, self._places, strict=True):
                require_checksum(source, read.name, place, crcs[read.name])

        return work


class Piecewise:
    """One such target on its way. Holds a buffer for each of its tensors, which one thread uses at a time.

    Args:
      unit: for which `is_piecewise` is true.
      source: the opened checkpoint.
      make: gives the elements of the target from those of all tensors, by name.
    """

    def __init__(self, unit: Unit, source: DirectSource, make: Callable[[Arrays], np.ndarray]) -> None:
        self._unit, self._source, self._make = unit, source, make
        self._step = step_of(unit)
        self._buffers = {r.name: np.empty(self._step * ITEM_SIZES[r.spec.dtype], np.uint8) for r in unit.reads}

    def run(self, out: np.ndarray | None) -> dict[str, int]:
        """Reads all tensors and makes the target; returns the CRC32C of what was read, by name.

        Args:
          out: an array without further axes that takes the target's elements; None to drop them.
        """
        crcs = dict.fromkeys(self._buffers, 0)
        count = self._unit.entries[0].spec.elements
        for begin in range(0, count, self._step):
            end = min(begin + self._step, count)
            values = self._make({r.name: self._read(r.name, r.spec.dtype, begin, end, crcs) for r in self._unit.reads})
            if out is not None:
                out[begin:end] = values
        return crcs

    def _read(self, name: str, dtype: str, begin: int, end: int, crcs: dict[str, int]) -> np.ndarray:
        size = ITEM_SIZES[dtype]
        data = self._buffers[name][: (end - begin) * size]
        self._source.read_stored(name, begin * size, data)
        crcs[name] = checksum.extend(crcs[name], data)
        return data.view(numpy_dtype(dtype))


def step_of(unit: Unit) -> int:
    """How many elements are worked on at a time."""
    widest = max(ITEM_SIZES[read.spec.dtype] for read in unit.reads)
    return max(1, min(unit.entries[0].spec.elements, PIECE // widest))


def cost_of(unit: Unit) -> int:
    """Bytes that are held at a time, the target's own left out: a buffer for each tensor, and what the ops make."""
    piece = step_of(unit) * max(8, *(ITEM_SIZES[read.spec.dtype] for read in unit.reads))
    return (len(unit.reads) + 3) * piece
