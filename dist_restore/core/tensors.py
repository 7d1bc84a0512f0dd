"""What a tensor is: shape, dtype, and rectangular parts of it. Pure values."""

from __future__ import annotations

import dataclasses
import functools
import math

from dist_restore.core.dtypes import ITEM_SIZES

# What stands for the dtype of an object whose state is no tensor; see also `table_dtype`.
ITERATOR = "iterator"
_TABLE = "table<"
_DENSE_TABLE = "dense_table<"


def table_dtype(keys: str, values: str, *, dense: bool) -> str:
    """What stands for the dtype of a lookup table: `table<string, int64>`."""
    return f"{_DENSE_TABLE if dense else _TABLE}{keys}, {values}>"


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype of a tensor.

    Attributes:
      shape: sizes of the axes, outermost first.
      dtype: TensorFlow's name of the dtype, such as `float32`, `bfloat16` or `string`.
    """

    shape: tuple[int, ...]
    dtype: str

    # Kept, because most tensors of an index share a few specs, and each is asked several times.
    @functools.cached_property
    def elements(self) -> int:
        """Number of elements (1 for a scalar)."""
        return math.prod(self.shape)

    @functools.cached_property
    def nbytes(self) -> int:
        """Bytes of the elements; 0 for strings, whose size only the file knows."""
        return self.elements * ITEM_SIZES.get(self.dtype, 0)

    @functools.cached_property
    def is_object(self) -> bool:
        """Whether it stands for an object that is restored by a method of its own, not for a tensor."""
        return self.dtype == ITERATOR or self.dtype.startswith((_TABLE, _DENSE_TABLE))

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


@dataclasses.dataclass(frozen=True, slots=True)
class Box:
    """A rectangular part of a tensor: `begin` and `size` per axis, in elements."""

    begin: tuple[int, ...]
    size: tuple[int, ...]

    @staticmethod
    def whole(shape: tuple[int, ...]) -> Box:
        """The box that covers all of a tensor of this shape."""
        return Box((0,) * len(shape), shape)

    def covers(self, shape: tuple[int, ...]) -> bool:
        """Whether this box is all of a tensor of this shape."""
        return self.size == shape and not any(self.begin)

    @property
    def elements(self) -> int:
        """Number of elements inside the box."""
        return math.prod(self.size)

    def slices(self) -> tuple[slice, ...]:
        """The box as indexes for `array[...]`."""
        return tuple(slice(b, b + s) for b, s in zip(self.begin, self.size, strict=True))
