"""Tensors against their checksums: read into threads' scratch memory, and dropped.

Knows sources and where tensors lie; knows neither ops nor variables.
"""

from __future__ import annotations

import functools

from dist_restore.checkpoints.reader import DirectSource, Source, Stored
from dist_restore.engine.chunks import SCRATCH, in_pieces, scratch
from dist_restore.engine.located import Located
from dist_restore.engine.neighbours import Neighbours
from dist_restore.engine.pipeline import Started, Work
from dist_restore.engine.units import Read


class Checksums:
    """Makes the work that compares tensors with their checksums; each gives how many bytes were read.

    Args:
      source: the opened checkpoint.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._direct = source if isinstance(source, DirectSource) else None
        self._neighbours = Neighbours()

    def add(self, item: Located) -> list[Work[int]]:
        """Adds the tensors of a unit, and gives what work is complete: small ones wait for their neighbours."""
        if item.places is None or self._direct is None:
            return [self._other(read) for read in item.unit.reads if read.whole]
        works: list[Work[int]] = []
        for read, place in zip(item.unit.reads, item.places, strict=True):
            if place.crc32c is None:
                continue  # nothing to compare; that the file is long enough was seen when it was opened
            if place.size >= SCRATCH:
                works.append(Work(SCRATCH, functools.partial(_start_large, read.name, place, self._direct)))
                continue
            if not self._neighbours.accepts(place):
                works += self.rest()
            self._neighbours.add(read.name, place)
        return works

    def rest(self) -> list[Work[int]]:
        """The work for those that wait, if any do."""
        neighbours, self._neighbours = self._neighbours, Neighbours()
        if not neighbours.names or self._direct is None:
            return []
        return [Work(SCRATCH, functools.partial(_start_small, neighbours, self._direct))]

    def _other(self, read: Read) -> Work[int]:
        return Work(SCRATCH, functools.partial(_start_other, read.name, self._source))


def _start_other(name: str, source: Source) -> Started[int]:
    sizes: list[int] = []
    return Started((lambda: sizes.append(source.check(name)),), lambda: sizes[0])


def _start_small(neighbours: Neighbours, source: DirectSource) -> Started[int]:
    def task() -> None:
        neighbours.read(source, scratch(neighbours.places[0].offset))

    return Started((task,), lambda: neighbours.size, brief=True)


def _start_large(name: str, place: Stored, source: DirectSource) -> Started[int]:
    tasks, finish = in_pieces(source, name, place, None)

    def size() -> int:
        finish()
        return place.size

    return Started(tasks, size, brief=True)
