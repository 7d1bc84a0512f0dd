"""What is read together, in both passes: one class for each kind (`read_tasks.py` tells them apart).

Knows sources, ops and memory; knows no variables.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Iterator, Sequence

import numpy as np

from dist_restore.checkpoints.reader import DirectSource, Source
from dist_restore.engine.checksums import Checksums
from dist_restore.engine.located import Located, stored_size
from dist_restore.engine.lossy import Lossy, may_lose
from dist_restore.engine.pipeline import Started, Work
from dist_restore.engine.units import Unit
from dist_restore.engine.values import LiveOf, MakeBuffer, Values, read_whole, transform
from dist_restore.ops import numpy_dtype
from dist_restore.planning.entries import PlanEntry
from dist_restore.tf_internals.host_memory import new_buffer


class ReadTask(abc.ABC):
    """Units that are read together. Holds nothing of what it reads.

    Args:
      located: the units, and where they lie.
      source: the opened checkpoint.
    """

    def __init__(self, located: Sequence[Located], source: Source) -> None:
        self.located, self._source = located, source

    @property
    def entries(self) -> Iterator[PlanEntry]:
        """All that it fills."""
        return (entry for item in self.located for entry in item.unit.entries)

    @property
    def stored_size(self) -> int:
        """Bytes, see `located.stored_size`."""
        return sum(map(stored_size, self.located))

    def check(self, checksums: Checksums, lossy: Lossy) -> Iterator[Work[int]]:
        """The work of the first pass, which keeps nothing; it gives how many bytes were read.

        Args:
          checksums: for tensors of which nothing but their checksum matters.
          lossy: gathers casts that would change a value.
        """
        for item in self.located:
            if any(map(may_lose, item.unit.entries)):
                yield self._check_values(item.unit, lossy)
            else:
                yield from checksums.add(item)

    @abc.abstractmethod
    def load(self, live_of: LiveOf, make_buffer: MakeBuffer = new_buffer) -> Work[Values]:
        """The work of the second pass: values in memory of their own, compared with their checksums.

        Args:
          live_of: gives what gives an entry's present value, for `fill = "keep"`; called by the consumer's thread.
          make_buffer: makes what large values are read into; called by the consumer's thread.
        """

    def _check_values(self, unit: Unit, lossy: Lossy) -> Work[int]:
        size = sum(read.spec.nbytes for read in unit.reads)
        task = functools.partial(_check_casts, unit, self._source, lossy)
        return Work(unit.nbytes, lambda: Started((task,), lambda: size))


class PlacedTask(ReadTask):
    """One unit of one target, all of whose tensors have places.

    Args:
      item: the unit.
      source: the opened checkpoint.
    """

    def __init__(self, item: Located, source: DirectSource) -> None:
        super().__init__((item,), source)
        assert item.places is not None
        self._unit, self._places, self._direct = item.unit, item.places, source
        (self._entry,) = item.unit.entries


def _check_casts(unit: Unit, source: Source, lossy: Lossy) -> None:
    """Reads a unit as it will be read for assignment; whole tensors are checked as their bytes pass."""
    values = read_whole(unit, source)
    for entry in unit.entries:
        if may_lose(entry):
            # The fill's values do not matter to the check, so the live value is not needed for it.
            with lossy.gathered(entry):
                transform(entry, values, source, functools.partial(_zeros, entry))


def _zeros(entry: PlanEntry) -> np.ndarray:
    return np.zeros(entry.spec.shape, numpy_dtype(entry.spec.dtype))
