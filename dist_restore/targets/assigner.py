"""The only writer of variables; and the only reader of what replicas hold.

One of the two places that tell strategies apart: replicated variables are assigned in cross-replica context,
`ON_READ` ones component by component, because what they read is an aggregate of what they hold; of sharded ones each
part gets its rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeAlias

import ml_dtypes
import msgspec
import numpy as np
import tensorflow as tf

from dist_restore.core.arrays import bytes_of
from dist_restore.core.crc32c import extend
from dist_restore.tf_internals import batched as grouped
from dist_restore.tf_internals import host_memory
from dist_restore.tf_internals.buffer_pool import BufferPool
from dist_restore.tf_internals.host_memory import HostBuffer
from dist_restore.tf_internals.sharded import is_sharded, parts_of, rows_of, whole_of

Place: TypeAlias = tuple[int, int]


@dataclasses.dataclass(frozen=True, slots=True)
class Replicas:
    """What the local replicas of a variable hold, by replica; to be hashed at once, and let go."""

    arrays: tuple[np.ndarray, ...]

    def checksums(self) -> tuple[int, ...]:
        """One for each replica; replicas that share their memory (TF shares what it assigns) are hashed once."""
        known = {place: checksum(array) for place, array in self.distinct().items()}
        return tuple([known[place_of(array)] for array in self.arrays])

    def distinct(self) -> dict[Place, np.ndarray]:
        """The arrays by where they lie: one for replicas that share their memory."""
        return {place_of(array): array for array in self.arrays}


def place_of(array: np.ndarray) -> Place:
    """Where an array lies: address and bytes."""
    return array.ctypes.data, array.nbytes


class Write(msgspec.Struct, frozen=True, gc=False):
    """A value for a variable: as for `Assigner.assign`."""

    variable: tf.Variable
    buffer: HostBuffer
    crc32c: int


class Assigned(msgspec.Struct, frozen=True, gc=False):
    """What one variable must hold now.

    Attributes:
      name: of the target.
      checksums: of what each local replica holds.
      nbytes: size of the variable.
      crc32c: of the value that was assigned, before it was divided over replicas: the same on all workers.
    """

    name: str
    checksums: tuple[int, ...]
    nbytes: int = 0
    crc32c: int = 0


class Assigner:
    """Writes and reads the variables of one strategy. Every worker has its own and writes its own replicas.

    Args:
      strategy: the strategy that the variables were created under.
      rank: this worker.
      world_size: number of workers; all have equally many replicas.
    """

    def __init__(self, strategy: tf.distribute.Strategy, rank: int = 0, world_size: int = 1) -> None:
        self._strategy, self._rank, self._world_size = strategy, rank, world_size

    def is_read_together(self, variable: tf.Variable) -> bool:
        """Whether its present value is an aggregate over workers, which all must read at the same time."""
        return self._world_size > 1 and _is_on_read(variable)

    def leaves_memory(self, variable: tf.Variable) -> bool:
        """Whether what it holds is this host's memory, which is filled again once the variable has another value."""
        plain = host_memory.plain_components(variable)
        return plain is not None and host_memory.is_here(plain[0])

    def live_value(self, variable: tf.Variable) -> np.ndarray:
        """The present value, as a read outside of replicas gives it."""
        parts = parts_of(variable)
        if parts is not None:
            return whole_of(parts)
        with self._strategy.scope():
            return host_memory.as_array(variable.read_value().numpy())

    def assign(
        self,
        variable: tf.Variable,
        buffer: HostBuffer,
        crc32c: int | None = None,
        pool: BufferPool | None = None,
    ) -> tuple[int, ...]:
        """Assigns a value to all replicas of a variable on this worker.

        Args:
          variable: of the strategy.
          buffer: holds a value of the variable's shape and dtype. Where it has a tensor, its memory becomes the
            variable's.
          crc32c: the checksum of the value's bytes, where it is known.
          pool: gets the memory of the old value, where the buffer's became the variable's.

        Returns:
          The checksum that each local replica must have now; one for all where all hold the same.
        """
        plain = host_memory.plain_components(variable)
        if plain is None and (_is_on_read(variable) or is_sharded(variable)):
            return self._assign_components(variable, buffer.array)
        crc = checksum(buffer.array) if crc32c is None else crc32c
        tensor = host_memory.tensor_of(buffer, variable.dtype)
        if plain is None or not host_memory.has_shape(variable, buffer.array.shape) or tensor.dtype != variable.dtype:
            return self._assign_whole(variable, tensor, crc)
        # What strategy.extended.update does for a mirrored variable in cross-replica context: the same assignment to
        # each component, on its device. It costs 300 us a variable on two replicas, this 40.
        # tests/tf_internals/test_host_memory.py compares the two.
        if pool is not None and buffer.tensor is not None:
            pool.write(plain, buffer)
        else:
            for component in plain:
                host_memory.write(component, tensor)
        return (crc,) * len(plain)

    def assign_many(self, writes: Sequence[Write], pool: BufferPool | None = None) -> list[tuple[int, ...]]:
        """Assigns what `grouped.together` put together: for each replica in one call, where that can be.

        Returns:
          For each variable what `assign` returns. Where it raises, any of the variables may have changed.
        """
        rows = host_memory.plain_rows([w.variable for w in writes]) if len(writes) > 1 else []
        arrays = [w.buffer.array for w in writes if w.buffer.tensor is None]
        if rows and len(arrays) == len(rows) and grouped.write(rows, arrays):
            return [(w.crc32c,) * len(row or ()) for w, row in zip(writes, rows, strict=True)]
        return [self.assign(w.variable, w.buffer, w.crc32c, pool) for w in writes]

    def _assign_whole(self, variable: tf.Variable, tensor: tf.Tensor, crc: int) -> tuple[int, ...]:
        with self._strategy.scope():
            variable.assign(tensor, read_value=False)
        return (crc,) * len(self._components(variable))

    def components(self, variable: tf.Variable) -> tuple[tf.Variable, ...]:
        """The local components of a variable, whichever hosts their devices are on."""
        return self._components(variable)

    def is_divided(self, variable: tf.Variable) -> bool:
        """Whether the components get different things: parts of a sum, or rows."""
        return is_sharded(variable) or _is_summed(variable)

    def shares(self, variable: tf.Variable, value: np.ndarray) -> tuple[np.ndarray, ...]:
        """What each local component must hold so that the variable reads a value; equal shares are one array."""
        parts = parts_of(variable)
        if parts is not None:
            return rows_of(value, parts)
        count = len(self._components(variable))
        if not _is_summed(variable):
            return (value,) * count
        first = self._rank * count
        return split_sum(value, self._world_size * count)[first : first + count]

    def _assign_components(self, variable: tf.Variable, value: np.ndarray) -> tuple[int, ...]:
        components, shares = self._components(variable), self.shares(variable, value)
        expected = tuple(checksum(share) for share in shares)
        for component, share in zip(components, shares, strict=True):
            component.assign(tf.convert_to_tensor(share, dtype=component.dtype), read_value=False)
        return expected

    def replicas(self, variable: tf.Variable) -> Replicas:
        """What each local replica holds, without copies where that is possible."""
        return Replicas(tuple(host_memory.view(c) for c in self._components(variable)))

    def replicas_of(self, variables: Sequence[tf.Variable]) -> list[Replicas]:
        """The same of variables that `grouped.together` put together: copies, of each replica in one call."""
        rows = host_memory.plain_rows(variables) if len(variables) > 1 else []
        columns = grouped.read(rows) if rows else None
        if columns is None:
            return [self.replicas(variable) for variable in variables]
        # With `...` the part of a vector is an array too.
        return [Replicas(tuple([column[i, ...] for column in columns])) for i in range(len(variables))]

    def checksums(self, variable: tf.Variable) -> tuple[int, ...]:
        """The checksum of what each local replica holds."""
        return self.replicas(variable).checksums()

    def _components(self, variable: tf.Variable) -> tuple[tf.Variable, ...]:
        known = host_memory.plain_components(variable) or parts_of(variable)
        return tuple(self._strategy.experimental_local_results(variable)) if known is None else known


def checksum(value: np.ndarray) -> int:
    """CRC32C of an array's bytes (10 GB/s and more); strings are joined with their lengths."""
    if value.dtype == object:
        items = [bytes(item) for item in value.ravel()]
        data = b"".join(len(item).to_bytes(8, "little") + item for item in items)
        return extend(0, data)
    return extend(0, bytes_of(np.ascontiguousarray(value)))


def _is_summed(variable: tf.Variable) -> bool:
    return _is_on_read(variable) and variable.aggregation is tf.VariableAggregation.SUM


def _is_on_read(variable: tf.Variable) -> bool:
    if is_sharded(variable):
        return False
    # Only distributed variables have replicas to aggregate; a plain tf.Variable may carry the flag all the same.
    on_read = variable.synchronization is tf.VariableSynchronization.ON_READ
    return on_read and hasattr(variable, "values")


def split_sum(total: np.ndarray, count: int) -> tuple[np.ndarray, ...]:
    """Divides a total over replicas so that their sum is the total again, exactly.

    What does not divide evenly goes to the first: TF's own restore turns an int64 total of 7 on two replicas
    into 6, and a float share may be rounded.
    """
    if np.issubdtype(total.dtype, np.integer):
        share = np.asarray(total // count, dtype=total.dtype)
        rest = np.asarray(total - share * (count - 1), dtype=total.dtype)
        return (rest, *(share,) * (count - 1))
    if total.dtype.kind in "bc":
        return (total, *(np.zeros_like(total),) * (count - 1))
    share = np.asarray(total / count).astype(total.dtype)
    # TF's kernels flush subnormal floats to zero, so a share may not be one.
    tiny = float(ml_dtypes.finfo(share.dtype).tiny)  # type: ignore[no-untyped-call]
    normal = (abs(share) >= tiny) | (share == 0)
    even = (_is_exact(share, total, count) & normal) | (total != total)
    others = np.where(even, share, np.zeros_like(share)).astype(total.dtype)
    first = np.where(even, share, total).astype(total.dtype)
    return (first, *(others,) * (count - 1))


def _is_exact(share: np.ndarray, total: np.ndarray, count: int) -> np.ndarray:
    """Whether so many shares make the total in whatever order they are added: no partial sum is rounded."""
    wide = share.astype(np.longdouble)
    exact = wide * count == total.astype(np.longdouble)
    with np.errstate(over="ignore"):
        for number in range(2, count):
            partial = wide * number
            exact = np.logical_and(exact, partial.astype(share.dtype).astype(np.longdouble) == partial)
    return np.asarray(exact)
