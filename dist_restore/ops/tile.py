"""Ops that repeat elements: tile and repeat.

Neither can be run backwards: what the copies became since is not one value. Only where there is one copy they can.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import numpy as np

from dist_restore.core.tensors import Box, TensorSpec
from dist_restore.ops.base import (
    Array,
    Live,
    MapOp,
    Op,
    Site,
    Specs,
    check_rank,
    normal_axis,
    require_sizes,
    with_axis,
)
from dist_restore.ops.fields import Fields
from dist_restore.ops.transpose import Slice


@dataclasses.dataclass(frozen=True, slots=True)
class Tile(MapOp):
    """Lays whole copies of the tensor side by side, `multiples` of them on each axis: `a b` becomes `a b a b`."""

    NAME: ClassVar[str] = "tile"

    multiples: tuple[int, ...]

    def __post_init__(self) -> None:
        require_sizes(self.NAME, "multiples", self.multiples, least=1)

    @classmethod
    def read(cls, fields: Fields) -> Tile:
        """See `Op`."""
        return cls(fields.integers("multiples"))

    def infer_one(self, spec: TensorSpec) -> TensorSpec:
        """See `MapOp`."""
        check_rank(self.NAME, "multiples", len(self.multiples), spec)
        return TensorSpec(tuple(n * m for n, m in zip(spec.shape, self.multiples, strict=True)), spec.dtype)

    def apply_one(self, array: Array, live: Live | None) -> Array:
        """See `MapOp`."""
        return array if set(self.multiples) <= {1} else np.tile(array, self.multiples)

    def pull_back_one(self, spec: TensorSpec, box: Box) -> Box:
        """See `MapOp`."""
        ranges = [_within(b, n, period) for b, n, period in zip(box.begin, box.size, spec.shape, strict=True)]
        return Box(tuple(b for b, _ in ranges), tuple(n for _, n in ranges))

    def narrow_one(self, spec: TensorSpec, before: Box, after: Box) -> tuple[Op, ...]:
        """See `MapOp`."""
        if after.covers(self.infer_one(spec).shape):
            return (self,)
        begin = tuple(b % n - low for b, n, low in zip(after.begin, spec.shape, before.begin, strict=True))
        rows = zip(begin, after.size, before.size, strict=True)
        return Tile(tuple(-(-(b + n) // size) for b, n, size in rows)), Slice(begin, after.size)

    def sourced_one(self, spec: TensorSpec, count: int) -> int:
        """See `MapOp`."""
        return count * math.prod(self.multiples)

    def inverse_one(self, spec: TensorSpec) -> Tile | None:
        """See `MapOp`."""
        return self if set(self.multiples) <= {1} else None


@dataclasses.dataclass(frozen=True, slots=True)
class Repeat(MapOp):
    """Repeats each element of an axis `times` times in its place: `a b` becomes `a a b b`."""

    NAME: ClassVar[str] = "repeat"

    axis: int
    times: int

    def __post_init__(self) -> None:
        require_sizes(self.NAME, "times", (self.times,), least=1)

    @classmethod
    def read(cls, fields: Fields) -> Repeat:
        """See `Op`."""
        return cls(fields.integer("axis"), fields.integer("times"))

    def bind(self, specs: Specs, site: Site) -> Repeat:
        """See `Op`."""
        return Repeat(self._axis(specs[0]), self.times)

    def infer_one(self, spec: TensorSpec) -> TensorSpec:
        """See `MapOp`."""
        axis = self._axis(spec)
        return TensorSpec(with_axis(spec.shape, axis, spec.shape[axis] * self.times), spec.dtype)

    def apply_one(self, array: Array, live: Live | None) -> Array:
        """See `MapOp`."""
        return array if self.times == 1 else np.repeat(array, self.times, self.axis)

    def pull_back_one(self, spec: TensorSpec, box: Box) -> Box:
        """See `MapOp`."""
        axis = self._axis(spec)
        low, high = box.begin[axis] // self.times, (box.begin[axis] + box.size[axis] - 1) // self.times
        return Box(with_axis(box.begin, axis, low), with_axis(box.size, axis, high - low + 1))

    def narrow_one(self, spec: TensorSpec, before: Box, after: Box) -> tuple[Op, ...]:
        """See `MapOp`."""
        if after.covers(self.infer_one(spec).shape):
            return (self,)
        axis = self._axis(spec)
        first = after.begin[axis] - before.begin[axis] * self.times
        return self, Slice(with_axis((0,) * len(spec.shape), axis, first), after.size)

    def sourced_one(self, spec: TensorSpec, count: int) -> int:
        """See `MapOp`."""
        return count * self.times

    def inverse_one(self, spec: TensorSpec) -> Repeat | None:
        """See `MapOp`."""
        return self if self.times == 1 else None

    def _axis(self, spec: TensorSpec) -> int:
        return normal_axis(self.NAME, self.axis, len(spec.shape), spec.shape)


def _within(begin: int, size: int, period: int) -> tuple[int, int]:
    """Where a range lies in one copy; all of the copy, where it reaches into the next."""
    low = begin % period
    return (low, size) if low + size <= period else (0, period)
