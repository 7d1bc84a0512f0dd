"""A tensor that becomes one variable as it is: from the file right into the memory that the variable will have."""

from __future__ import annotations

import functools

from dist_restore.core.arrays import bytes_of
from dist_restore.engine.chunks import in_pieces
from dist_restore.engine.pipeline import Started, Work
from dist_restore.engine.read_task import PlacedTask
from dist_restore.engine.units import Unit
from dist_restore.engine.values import LiveOf, MakeBuffer, Value, Values, buffer_for, is_copy
from dist_restore.tf_internals.host_memory import new_buffer


def is_direct(unit: Unit) -> bool:
    """Whether a unit is one tensor that becomes one variable as it is."""
    return len(unit.reads) == len(unit.entries) == 1 and is_copy(unit.entries[0])


class DirectTask(PlacedTask):
    """See `is_direct`; threads share it piece by piece."""

    @property
    def nbytes(self) -> int:
        """Of the variable."""
        return self._entry.bytes

    def load(self, live_of: LiveOf, make_buffer: MakeBuffer = new_buffer) -> Work[Values]:
        """See `ReadTask.load`."""
        del live_of
        return self.read(make_buffer)

    def read(self, make_buffer: MakeBuffer = new_buffer) -> Work[Values]:
        """See `ReadTask.load`: no present value is needed."""
        return Work(self.nbytes, functools.partial(self._start, make_buffer))

    def _start(self, make_buffer: MakeBuffer) -> Started[Values]:
        entry, buffer = self._entry, buffer_for(self._entry, make_buffer)
        data = bytes_of(buffer.array)
        tasks, finish = in_pieces(self._direct, self._unit.reads[0].name, self._places[0], data)
        return Started(tasks, lambda: [Value(entry, buffer, finish())], data, brief=True)
