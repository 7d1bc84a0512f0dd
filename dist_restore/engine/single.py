"""Units whose values go through ops, or that only `Source.read` gives: read tensor by tensor."""

from __future__ import annotations

import functools

import numpy as np

from dist_restore.checkpoints.reader import DirectSource, Source
from dist_restore.core.arrays import bytes_of
from dist_restore.engine.chunks import BRIEF, read_checked, require_checksum
from dist_restore.engine.located import Located
from dist_restore.engine.pipeline import Started, Work
from dist_restore.engine.read_task import ReadTask
from dist_restore.engine.values import (
    LARGE,
    LiveOf,
    MakeBuffer,
    Value,
    Values,
    buffer_for,
    is_copy,
    keeps,
    read_whole,
    value_of,
)
from dist_restore.ops import numpy_dtype
from dist_restore.tf_internals.host_memory import new_buffer


class SingleTask(ReadTask):
    """One unit that no other kind fits.

    Args:
      item: the unit.
      source: the opened checkpoint.
    """

    def __init__(self, item: Located, source: Source) -> None:
        super().__init__((item,), source)
        self._unit, self._places = item.unit, item.places
        self._direct = source if item.places is not None and isinstance(source, DirectSource) else None

    def load(self, live_of: LiveOf, make_buffer: MakeBuffer = new_buffer) -> Work[Values]:
        """See `ReadTask.load`."""
        # Ops may hold one more copy of what they make than the result.
        made = sum(e.bytes * (1 if is_copy(e) else 2) for e in self._unit.entries)
        cost = sum(r.spec.nbytes for r in self._unit.reads) + made
        return Work(cost, functools.partial(self._start, live_of, make_buffer))

    def _start(self, live_of: LiveOf, make_buffer: MakeBuffer) -> Started[Values]:
        entries = self._unit.entries
        buffers = [buffer_for(e, make_buffer) if e.bytes >= LARGE and not keeps(e) else None for e in entries]
        arrays = self._arrays()
        done: dict[int, Value] = {}

        def work() -> None:
            self._read(arrays)
            for number, entry in enumerate(entries):
                if not keeps(entry):  # variables are read by the consumer's thread alone
                    done[number] = value_of(entry, arrays, self._source, None, buffers[number])

        def finish() -> Values:
            for number, entry in enumerate(entries):
                if number not in done:
                    done[number] = value_of(entry, arrays, self._source, live_of(entry))
            return [done[number] for number in range(len(entries))]

        return Started((work,), finish, brief=self._unit.nbytes <= BRIEF)

    def _arrays(self) -> dict[str, np.ndarray]:
        """What is read into; made here and not in a thread: glibc keeps apart what each frees (287 MB, and so 272)."""
        if self._direct is None:
            return {}
        return {r.name: np.empty(r.spec.shape, numpy_dtype(r.spec.dtype)) for r in self._unit.reads}

    def _read(self, arrays: dict[str, np.ndarray]) -> None:
        """Reads the tensors that are needed whole, and checks them."""
        if self._direct is None or self._places is None:
            arrays.update(read_whole(self._unit, self._source))
            return
        for (name, array), place in zip(arrays.items(), self._places, strict=True):
            crc = read_checked(self._direct, name, 0, place.size, bytes_of(array))
            require_checksum(self._direct, name, place, crc)
