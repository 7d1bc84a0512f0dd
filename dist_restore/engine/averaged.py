"""Averages of many tensors, piece by piece: all are read in step, and none of them is ever held whole.

Knows where tensors lie, and that the ops of an entry act on each element by itself; knows neither models nor variables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from dist_restore.checkpoints.reader import DirectSource, Stored
from dist_restore.core import crc32c as checksum
from dist_restore.core.dtypes import ITEM_SIZES
from dist_restore.engine.units import Unit
from dist_restore.ops import numpy_dtype

# What is held of each tensor at a time, in bytes: of 100 checkpoints 100 MB.
PIECE = 1 << 20

Arrays: TypeAlias = Mapping[str, np.ndarray]


def is_piecewise(unit: Unit, places: Sequence[Stored] | None) -> bool:
    """Whether a unit is one target whose elements are each made of those at the same place of several tensors."""
    if places is None or len(unit.entries) != 1 or len(unit.reads) < 2:
        return False
    entry = unit.entries[0]
    return all(op.pointwise for op in entry.ops) and all(s.shape == entry.spec.shape for s in entry.source_specs)


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
