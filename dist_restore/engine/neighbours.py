"""Small tensors that lie side by side in one file. Knows where tensors lie; knows neither units nor variables."""

from __future__ import annotations

import numpy as np

from dist_restore.checkpoints.reader import DirectSource, Stored
from dist_restore.core import crc32c as checksum
from dist_restore.engine.chunks import SCRATCH, require_checksum

# Unwanted bytes between two small tensors that are read along with them.
_GAP = 16 << 10


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
