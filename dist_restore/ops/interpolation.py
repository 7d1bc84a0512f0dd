"""How an axis is resampled: which input positions each new position is made of, and with which weights.

The weights are a matrix with few entries in each row, kept as such. Rows are applied by multiplication and addition
in one fixed order, so that every machine makes the same bits; a matrix product leaves the order to its library.
Positions are compared as integers: where a weight is zero it is exactly zero.
"""

from __future__ import annotations

import enum
import math
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from dist_restore.core.tensors import Box
from dist_restore.ops.base import CHUNK, Array, at

Indexes: TypeAlias = npt.NDArray[np.int64]


class Method(str, enum.Enum):
    """How new values come from old ones.

    Attributes:
      NEAREST: the nearest old value; between two of them the later.
      LINEAR: of the two nearest.
      CUBIC: of the four nearest, with Keys' kernel and its coefficient -0.5, as TensorFlow does it.
      CUBIC_TORCH: the same with the coefficient -0.75, as PyTorch does it: outside an axis its outermost value goes on.
    """

    NEAREST = "nearest"
    LINEAR = "linear"
    CUBIC = "cubic"
    CUBIC_TORCH = "cubic_torch"

    @property
    def cubic(self) -> bool:
        """Whether some weights are negative, and add up to more than 1 without their signs."""
        return self in (Method.CUBIC, Method.CUBIC_TORCH)


class Taps(NamedTuple):
    """A sparse matrix: row `i` of the result is the sum over `k` of `weights[i, k]` times row `indexes[i, k]`.

    Attributes:
      indexes: int64 `[new, k]`; all of them have a weight that is not zero, or repeat one that has. Weights of an
        index that repeats are added up.
      weights: float64 `[new, k]`; each row adds up to 1.
    """

    indexes: Indexes
    weights: npt.NDArray[np.float64]

    def part(self, begin: int, size: int, start: int) -> Taps:
        """The rows `begin` to `begin + size`, for an input whose first row is `start`."""
        return Taps(self.indexes[begin : begin + size] - start, self.weights[begin : begin + size])

    def span(self, begin: int, size: int) -> tuple[int, int]:
        """First input row that some rows need, and how many there are up to the last one."""
        needed = self.indexes[begin : begin + size]
        low = int(needed.min())
        return low, int(needed.max()) - low + 1


def axis_taps(method: Method, size: int, new: int) -> Taps:
    """Resamples an axis of `size` positions to `new`.

    Position `i` lies at `(i + 0.5) * size / new - 0.5` (half-pixel centres), and is not smoothed when the axis
    shrinks (no antialiasing). Outside the axis there is nothing: the weights inside are scaled to add up to 1. Only
    `cubic_torch` has the outermost values go on there.
    """
    # Twice the position, over `2 * new`: in integers, for float32 misses ties (2 -> 41 positions in tf.image.resize).
    double = (2 * np.arange(new, dtype=np.int64) + 1) * size
    if method is Method.NEAREST:
        return Taps((double // (2 * new))[:, None], np.ones((new, 1)))
    base, rest = np.divmod(double - new, 2 * new)
    fraction = rest / (2 * new)
    offsets = np.arange(-1, 3) if method.cubic else np.arange(2)
    distance = np.abs(fraction[:, None] - offsets)
    if method is Method.CUBIC_TORCH:
        return _normal(np.clip(base[:, None] + offsets, 0, size - 1), _keys(distance, -0.75), size)
    weights = _keys(distance, -0.5) if method.cubic else 1 - distance
    return _normal(base[:, None] + offsets, weights, size)


def grid_taps(axes: tuple[Taps, ...], sizes: tuple[int, ...], prefix: int) -> Taps:
    """Resamples a table whose rows are the points of a grid in C order, behind `prefix` rows that stay as they are.

    Args:
      axes: of the grid.
      sizes: of the grid before.
      prefix: number of rows before the grid.
    """
    found = Taps(np.zeros((1, 1), np.int64), np.ones((1, 1)))
    for taps, size in zip(axes, sizes, strict=True):
        indexes = found.indexes[:, None, :, None] * size + taps.indexes[None, :, None, :]
        weights = found.weights[:, None, :, None] * taps.weights[None, :, None, :]
        rows, width = indexes.shape[0] * indexes.shape[1], indexes.shape[2] * indexes.shape[3]
        found = Taps(indexes.reshape(rows, width), weights.reshape(rows, width))
    width = found.indexes.shape[1]
    head = np.repeat(np.arange(prefix, dtype=np.int64)[:, None], width, axis=1)
    ones = np.zeros((prefix, width))
    ones[:, 0] = 1
    return Taps(np.concatenate([head, found.indexes + prefix]), np.concatenate([ones, found.weights]))


def resample(array: Array, axis: int, taps: Taps) -> Array:
    """Applies taps to one axis, in the array's own dtype; rows of a single tap are copied, whatever they hold."""
    if taps.indexes.shape[1] == 1:
        return np.take(array, taps.indexes[:, 0], axis)
    result = np.zeros((*array.shape[:axis], len(taps.indexes), *array.shape[axis + 1 :]), array.dtype)
    for box in _slabs(result.shape, axis):
        rows = array[at(_with_whole(box, axis, array.shape[axis]))]
        for k in range(taps.indexes.shape[1]):
            weights = taps.weights[:, k].reshape((-1, *(1,) * (array.ndim - axis - 1)))
            # A weight of zero must not make a NaN out of an infinity.
            with np.errstate(all="ignore"):
                term = np.multiply(np.take(rows, taps.indexes[:, k], axis), weights)
                result[at(box)] += np.where(weights == 0, 0, term)
    return result


def _keys(distance: npt.NDArray[np.float64], a: float) -> npt.NDArray[np.float64]:
    """Keys' cubic convolution kernel with its coefficient (R. Keys, 1981)."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))


def _normal(indexes: Indexes, weights: npt.NDArray[np.float64], size: int) -> Taps:
    inside = (indexes >= 0) & (indexes < size)
    weights = np.where(inside, weights, 0.0)
    weights = weights / weights.sum(axis=1, keepdims=True)
    main = indexes[np.arange(len(indexes)), np.abs(weights).argmax(axis=1)]
    return Taps(np.where(weights != 0, indexes, main[:, None]), weights)


def _slabs(shape: tuple[int, ...], axis: int) -> list[Box]:
    """Parts of a result, whole on one axis and cut on the largest other one, so that temporaries stay small."""
    others = [a for a in range(len(shape)) if a != axis]
    if not others or math.prod(shape) <= CHUNK:
        return [Box.whole(shape)]
    cut = max(others, key=lambda a: shape[a])
    step = max(1, CHUNK * shape[cut] // math.prod(shape))
    starts = range(0, shape[cut], step)
    return [
        Box(
            tuple(i if a == cut else 0 for a in range(len(shape))),
            tuple(min(step, n - i) if a == cut else n for a, n in enumerate(shape)),
        )
        for i in starts
    ]


def _with_whole(box: Box, axis: int, size: int) -> Box:
    begin, sizes = list(box.begin), list(box.size)
    begin[axis], sizes[axis] = 0, size
    return Box(tuple(begin), tuple(sizes))
