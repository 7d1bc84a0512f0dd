"""The only writer of variables; and the only reader of what replicas hold.

One of the two places that tell strategies apart: replicated variables are assigned in cross-replica context,
`ON_READ` ones component by component, because what they read is an aggregate of what they hold.
"""

from __future__ import annotations

import google_crc32c
import numpy as np
import tensorflow as tf


class Assigner:
    """Writes and reads the variables of one strategy. Every worker has its own and writes its own replicas."""

    def __init__(self, strategy: tf.distribute.Strategy) -> None:
        self._strategy = strategy

    def live_value(self, variable: tf.Variable) -> np.ndarray:
        """The present value, as a read outside of replicas gives it."""
        with self._strategy.scope():
            return np.asarray(variable.read_value().numpy())

    def assign(self, variable: tf.Variable, value: np.ndarray) -> tuple[int, ...]:
        """Assigns a value to all replicas of a variable on this worker.

        Args:
          variable: of the strategy.
          value: of the variable's shape and dtype.

        Returns:
          The checksum that each local replica must have now; one for all where all hold the same.
        """
        components = self._components(variable)
        if _is_on_read(variable):
            return _assign_components(variable, components, value)
        expected = (checksum(value),) * len(components)
        with self._strategy.scope():
            variable.assign(tf.convert_to_tensor(value, dtype=variable.dtype), read_value=False)
        return expected

    def checksums(self, variable: tf.Variable) -> tuple[int, ...]:
        """The checksum of what each local replica holds."""
        return tuple(checksum(np.asarray(c.numpy())) for c in self._components(variable))

    def _components(self, variable: tf.Variable) -> tuple[tf.Variable, ...]:
        return tuple(self._strategy.experimental_local_results(variable))


def checksum(value: np.ndarray) -> int:
    """CRC32C of an array's bytes (10 GB/s and more); strings are joined with their lengths."""
    if value.dtype == object:
        items = [bytes(item) for item in value.ravel()]
        data = b"".join(len(item).to_bytes(8, "little") + item for item in items)
        return int(google_crc32c.extend(0, data))
    return int(google_crc32c.extend(0, np.ascontiguousarray(value).reshape(-1).view(np.uint8)))


def _is_on_read(variable: tf.Variable) -> bool:
    # Only distributed variables have replicas to aggregate; a plain tf.Variable may carry the flag all the same.
    on_read = variable.synchronization is tf.VariableSynchronization.ON_READ
    return on_read and hasattr(variable, "values")


def _assign_components(
    variable: tf.Variable, components: tuple[tf.Variable, ...], value: np.ndarray
) -> tuple[int, ...]:
    if variable.aggregation is tf.VariableAggregation.SUM:
        shares = split_sum(value, len(components))
    else:
        shares = (value,) * len(components)
    expected = tuple(checksum(share) for share in shares)
    for component, share in zip(components, shares, strict=True):
        component.assign(tf.convert_to_tensor(share, dtype=component.dtype), read_value=False)
    return expected


def split_sum(total: np.ndarray, count: int) -> tuple[np.ndarray, ...]:
    """Divides a total over replicas so that their sum is the total again, exactly.

    What does not divide evenly goes to the first: TF's own restore turns an int64 total of 7 on two replicas
    into 6, and a float share may be rounded.
    """
    if np.issubdtype(total.dtype, np.integer):
        share = np.asarray(total // count, dtype=total.dtype)
        rest = np.asarray(total - share * (count - 1), dtype=total.dtype)
        return (rest, *(share,) * (count - 1))
    share = np.asarray(total / count).astype(total.dtype)
    back = share
    for _ in range(count - 1):
        back = (back + share).astype(total.dtype)
    even = (back == total) | (total != total)
    others = np.where(even, share, np.zeros_like(share)).astype(total.dtype)
    first = np.where(even, share, total).astype(total.dtype)
    return (first, *(others,) * (count - 1))
