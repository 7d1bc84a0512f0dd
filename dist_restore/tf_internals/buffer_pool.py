"""A pool of memory that variables have left, for what others will hold; and mapped memory for what is too large.

The first touch of new memory is what a restore into large variables spends most of its time on: 0.15 to 0.8 s per GB,
as large as its pages are (Zen 3, virtual machine), where reading the file takes 0.15. Every assignment leaves just
as much memory as it took. Knows tensors and memory; knows no strategies.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence

import msgspec
import numpy as np
import tensorflow as tf

from dist_restore.tf_internals import host_memory
from dist_restore.tf_internals.host_memory import HostBuffer, Replacer

# To reclaim the memory of one old value takes six calls, 0.2 to 0.3 ms among threads that empty the caches; to touch
# new memory of this size 0.15 to 0.8 ms. With 0.2 GB in tensors of 0.4 and 1.6 MB a restore took 0.16 s with all of
# them, and 0.13 with none.
_LEAST = 1 << 20


class _OldValue(msgspec.Struct, frozen=True):
    """A value that a variable has left; whether somebody else holds it is not known yet."""

    tensor: tf.Tensor
    elements: int
    dtype: str

    @property
    def nbytes(self) -> int:
        return self.elements * int(self.tensor.dtype.size)


class BufferPool:
    """Buffers of old memory, and new ones. For one thread.

    Args:
      limit: bytes of old memory that may wait for use; what would be more is given back.
      mapped_above: what is larger gets mapped memory where none of its size waits, and is moved to what its
        variable leaves as soon as it is assigned.
    """

    def __init__(self, limit: int, mapped_above: int | None = None) -> None:
        self._limit, self._mapped_above = limit, mapped_above
        self._replacer = Replacer()
        self._old: collections.deque[_OldValue] = collections.deque()
        self._free: collections.deque[HostBuffer] = collections.deque()

    def take(self, shape: Sequence[int], dtype: str) -> HostBuffer | None:
        """See `host_memory.new_buffer`; the memory may hold something already."""
        size = math.prod(shape)
        if any(old.elements == size and old.dtype == dtype for old in self._old):
            self._reclaim()
        for free in self._free:
            if free.array.size == size and free.tensor is not None and free.tensor.dtype.name == dtype:
                self._free.remove(free)
                return host_memory.reshaped(free, shape)
        return self._new(shape, dtype)

    def write(self, components: Sequence[tf.Variable], buffer: HostBuffer) -> None:
        """Writes plain components as `host_memory.take_over` does; what the first one held waits for use."""
        first, *others = components
        for component in others:
            host_memory.take_over(component, buffer.tensor)
        # The first one comes last: replicas which shared their memory have let it go then.
        if buffer.is_mapped:
            self._write_mapped(components, buffer)
        elif _LEAST <= buffer.array.nbytes <= self._limit:
            self._keep(self._replacer.write(first, buffer.tensor))
        else:
            host_memory.take_over(first, buffer.tensor)

    @property
    def _nbytes(self) -> int:
        """Bytes that wait."""
        return sum(old.nbytes for old in self._old) + sum(buffer.array.nbytes for buffer in self._free)

    def _new(self, shape: Sequence[int], dtype: str) -> HostBuffer | None:
        is_large = self._mapped_above is not None and _nbytes(shape, dtype) > self._mapped_above
        mapped = host_memory.mapped_buffer(shape, dtype) if is_large and self._replacer.is_wanted else None
        return mapped or host_memory.new_buffer(shape, dtype)

    def _write_mapped(self, components: Sequence[tf.Variable], mapped: HostBuffer) -> None:
        """Writes the first component, and moves the value from mapped memory to what the variable has left.

        Where that cannot be reclaimed the variable keeps what was mapped, and TensorFlow copies it at its first update.
        """
        old = [self._replacer.write(components[0], mapped.tensor)]  # held by the list alone
        buffer = self._replacer.reclaim(old) if old[0] is not None else None
        if buffer is not None:
            np.copyto(buffer.array, mapped.array)
            for component in components:
                host_memory.take_over(component, buffer.tensor)

    def _keep(self, tensor: tf.Tensor | None) -> None:
        if tensor is None:
            return
        old = _OldValue(tensor, tensor.shape.num_elements(), tensor.dtype.name)
        while self._nbytes + old.nbytes > self._limit:
            (self._free or self._old).popleft()
        self._old.append(old)

    def _reclaim(self) -> None:
        """Reclaims the memory of all values that were left: each takes 60 us right after another, and 280 by itself."""
        while self._old:
            tensors = [self._old.popleft().tensor]
            buffer = self._replacer.reclaim(tensors)
            if buffer is not None:
                self._free.append(buffer)


def _nbytes(shape: Sequence[int], dtype: str) -> int:
    return math.prod(shape) * int(tf.as_dtype(dtype).size)
