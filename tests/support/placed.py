"""A source that says where tensors lie, and is never read."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dist_restore.checkpoints.reader import Stored


class Placed:
    """Tensors of so many bytes, one behind the other; without sizes, none that has a place."""

    bytes_read = 0

    def __init__(self, sizes: Mapping[str, int], crc32c: int | None = 1) -> None:
        self._places: dict[str, Stored] = {}
        end = 0
        for name, size in sizes.items():
            self._places[name] = Stored(0, end, size, crc32c)
            end += size

    def stored(self, name: str) -> Stored | None:
        return self._places.get(name)

    def read(self, *args: object) -> np.ndarray:
        raise AssertionError("nothing is read")

    index = identity = is_proof = check = close = read_stored = read_parts = read
