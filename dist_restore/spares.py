"""Memory that variables have left, filled again with what others will hold.

The first touch of new memory is what a restore into large variables spends most of its time on: 0.15 to 0.8 s per GB,
as large as its pages are (Zen 3, virtual machine), where reading the file takes 0.15. Every assignment leaves just
as much memory as it took. Knows tensors and memory; knows no strategies.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence

import tensorflow as tf

from dist_restore import host_memory
from dist_restore.host_memory import Blank, Replacer

# To win the memory of one old value takes six calls, 0.2 to 0.3 ms among threads that empty the caches; to touch new
# memory of this size 0.15 to 0.8 ms. With 0.2 GB in tensors of 0.4 and 1.6 MB a restore took 0.16 s with all of them,
# and 0.13 with none.
_LEAST = 1 << 20


class Spares:
    """Blanks of old memory, and new ones. For one thread.

    Args:
      limit: bytes of old memory that may wait for use; what would be more is given back.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._replacer = Replacer()
        self._waiting: collections.deque[Blank] = collections.deque()

    def blank(self, shape: Sequence[int], dtype: str) -> Blank | None:
        """See `host_memory.blank`; the memory may hold something already."""
        size = math.prod(shape)
        for spare in self._waiting:
            if spare.array.size == size and spare.tensor.dtype.name == dtype:
                self._waiting.remove(spare)
                return host_memory.reshaped(spare, shape)
        return host_memory.blank(shape, dtype)

    def write(self, component: tf.Variable, tensor: tf.Tensor) -> None:
        """As `host_memory.write`; the old value's memory waits for use, or that of a copy if somebody else holds it."""
        if not _LEAST <= tensor.shape.num_elements() * tensor.dtype.size <= self._limit:
            host_memory.write(component, tensor)
            return
        old = self._replacer.write(component, tensor)
        if old is not None:
            self._keep(old)

    @property
    def _held(self) -> int:
        """Bytes that wait."""
        return sum(blank.array.nbytes for blank in self._waiting)

    def _keep(self, blank: Blank) -> None:
        while self._held + blank.array.nbytes > self._limit:
            self._waiting.popleft()
        self._waiting.append(blank)
