"""Small units of one tensor each that lie side by side, so that one request reads them all."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from dist_restore.checkpoints.reader import DirectSource
from dist_restore.engine.located import Located
from dist_restore.engine.neighbours import Neighbours
from dist_restore.engine.pipeline import Started, Work
from dist_restore.engine.read_task import ReadTask
from dist_restore.engine.values import LARGE, LiveOf, MakeBuffer, Value, Values, is_copy, value_of
from dist_restore.ops import numpy_dtype
from dist_restore.tf_internals.host_memory import HostBuffer, new_buffer


def is_small(item: Located) -> bool:
    """Whether a unit is one small tensor that lies in one piece."""
    return item.places is not None and len(item.places) == 1 and item.places[0].size < LARGE


def small_batches(items: Iterable[Located], source: DirectSource) -> Iterator[SmallBatch]:
    """Units that are `is_small`, in their order: neighbours together.

    Args:
      items: in file order.
      source: the opened checkpoint.
    """
    batch, neighbours = list[Located](), Neighbours()
    for item in items:
        (place,) = item.places or ()
        if not neighbours.accepts(place):
            yield SmallBatch(batch, neighbours, source)
            batch, neighbours = [], Neighbours()
        batch.append(item)
        neighbours.add(item.unit.reads[0].name, place)
    if batch:
        yield SmallBatch(batch, neighbours, source)


class SmallBatch(ReadTask):
    """Small neighbours.

    Args:
      located: the units.
      neighbours: their tensors.
      source: the opened checkpoint.
    """

    def __init__(self, located: Sequence[Located], neighbours: Neighbours, source: DirectSource) -> None:
        super().__init__(located, source)
        self._neighbours, self._direct = neighbours, source

    def load(self, live_of: LiveOf, make_buffer: MakeBuffer = new_buffer) -> Work[Values]:
        """See `ReadTask.load`; none of them needs a buffer of its own."""
        del make_buffer
        cost = self._neighbours.size + sum(entry.bytes for entry in self.entries)
        return Work(cost, functools.partial(self._start, live_of))

    def _start(self, live_of: LiveOf) -> Started[Values]:
        data = np.empty(self._neighbours.size, np.uint8)
        read = functools.partial(self._neighbours.read, self._direct, data)
        return Started((read,), functools.partial(self._values, data, live_of), brief=True)

    def _values(self, data: np.ndarray, live_of: LiveOf) -> Values:
        values: Values = []
        neighbours = self._neighbours
        for item, place, begin in zip(self.located, neighbours.places, neighbours.begins(), strict=True):
            read = item.unit.reads[0]
            array = np.ndarray(read.spec.shape, numpy_dtype(read.spec.dtype), data, begin)
            for entry in item.unit.entries:
                if is_copy(entry):
                    values.append(Value(entry, HostBuffer(array), place.crc32c))
                else:
                    values.append(value_of(entry, {read.name: array}, self._source, live_of(entry)))
        return values
