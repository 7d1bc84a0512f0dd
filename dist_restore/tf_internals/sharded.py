"""Variables in several parts, each of some rows: what ParameterServerStrategy makes of a variable under a partitioner.

Such a variable is one target, with the shape of the whole. TensorFlow has no public name for its class; its attributes
`variables`, `shape` and `dtype` are public
(`tests/tf_internals/test_sharded.py` says on which version that was tried; TF 2.21).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf


def is_sharded(item: object) -> bool:
    """Whether an object is a sharded variable."""
    return is_sharded_class(type(item))


def is_sharded_class(kind: type) -> bool:
    """Whether objects of a class are sharded variables."""
    return kind.__name__ == "ShardedVariable" and not issubclass(kind, tf.Variable)


def parts_of(variable: tf.Variable) -> tuple[tf.Variable, ...] | None:
    """The parts of a sharded variable, in the order of their rows; None for any other."""
    return tuple(variable.variables) if is_sharded(variable) else None


def rows_of(value: np.ndarray, parts: Sequence[tf.Variable]) -> tuple[np.ndarray, ...]:
    """The rows of a value that belong to each part, as views.

    Raises:
      ValueError: the parts do not hold just the value's rows.
    """
    counts = [part.shape.as_list()[0] for part in parts]
    if sum(counts) != len(value):
        raise ValueError(f"parts of {counts} rows do not hold {len(value)}")
    ends = np.cumsum(counts)
    return tuple(value[end - count : end] for count, end in zip(counts, ends, strict=True))


def whole_of(parts: Sequence[tf.Variable]) -> np.ndarray:
    """The present value of all parts together."""
    return np.concatenate([part.numpy() for part in parts])
