"""Ops that turn many tensors into one: concat and stack."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from dist_restore.core.errors import DtypeMismatchError
from dist_restore.core.tensors import Box, TensorSpec
from dist_restore.ops.base import (
    Array,
    Boxes,
    Live,
    MergeOp,
    Op,
    Site,
    Specs,
    normal_axis,
    shape_error,
    some,
    with_axis,
)
from dist_restore.ops.fields import Fields
from dist_restore.ops.split import Split, Unstack


@dataclasses.dataclass(frozen=True, slots=True)
class Concat(MergeOp):
    """Joins tensors along an axis that they have."""

    NAME: ClassVar[str] = "concat"

    axis: int

    @classmethod
    def read(cls, fields: Fields) -> Concat:
        """See `Op`."""
        return cls(fields.integer("axis"))

    def bind(self, specs: Specs, site: Site) -> Concat:
        """See `Op`."""
        return Concat(self._axis(specs))

    def infer_all(self, specs: Specs) -> TensorSpec:
        """See `MergeOp`."""
        axis = self._axis(specs)
        check_same(self.NAME, tuple(with_axis(s.shape, axis, -1) for s in specs), specs)
        return TensorSpec(with_axis(specs[0].shape, axis, sum(s.shape[axis] for s in specs)), specs[0].dtype)

    def apply(self, arrays: Sequence[Array], live: Live | None) -> tuple[Array, ...]:
        """See `Op`."""
        return tuple(arrays) if len(arrays) == 1 else (np.concatenate(arrays, self.axis),)

    def pull_back_all(self, specs: Specs, box: Box) -> Boxes:
        """See `MergeOp`."""
        axis, found, start = self._axis(specs), list[Box | None](), 0
        for size in (s.shape[axis] for s in specs):
            found.append(some(_overlap(box, axis, start, size)))
            start += size
        return tuple(found)

    def inverse(self, specs: Specs) -> tuple[Op, ...]:
        """See `Op`."""
        axis = self._axis(specs)
        sizes = tuple(s.shape[axis] for s in specs)
        return tuple(Split(axis, sizes, part) for part in range(len(specs)))

    def _axis(self, specs: Specs) -> int:
        if any(len(s.shape) != len(specs[0].shape) for s in specs):
            raise shape_error(self.NAME, "tensors with equally many axes", _listed(specs), "Reshape them first")
        return normal_axis(self.NAME, self.axis, len(specs[0].shape), specs[0].shape)


@dataclasses.dataclass(frozen=True, slots=True)
class Stack(MergeOp):
    """Joins tensors of one shape along a new axis."""

    NAME: ClassVar[str] = "stack"

    axis: int

    @classmethod
    def read(cls, fields: Fields) -> Stack:
        """See `Op`."""
        return cls(fields.integer("axis"))

    def bind(self, specs: Specs, site: Site) -> Stack:
        """See `Op`."""
        return Stack(self._axis(specs))

    def infer_all(self, specs: Specs) -> TensorSpec:
        """See `MergeOp`."""
        check_same(self.NAME, tuple(s.shape for s in specs), specs)
        axis, shape = self._axis(specs), specs[0].shape
        return TensorSpec((*shape[:axis], len(specs), *shape[axis:]), specs[0].dtype)

    def apply(self, arrays: Sequence[Array], live: Live | None) -> tuple[Array, ...]:
        """See `Op`."""
        return (np.expand_dims(arrays[0], self.axis) if len(arrays) == 1 else np.stack(arrays, self.axis),)

    def pull_back_all(self, specs: Specs, box: Box) -> Boxes:
        """See `MergeOp`."""
        axis = self._axis(specs)
        first, last = box.begin[axis], box.begin[axis] + box.size[axis]
        inside = some(Box((*box.begin[:axis], *box.begin[axis + 1 :]), (*box.size[:axis], *box.size[axis + 1 :])))
        return tuple(inside if first <= i < last else None for i in range(len(specs)))

    def inverse(self, specs: Specs) -> tuple[Op, ...]:
        """See `Op`."""
        return tuple(Unstack(self._axis(specs), part) for part in range(len(specs)))

    def _axis(self, specs: Specs) -> int:
        return normal_axis(self.NAME, self.axis, len(specs[0].shape) + 1, specs[0].shape)


def _overlap(box: Box, axis: int, start: int, size: int) -> Box:
    low = max(box.begin[axis], start)
    high = min(box.begin[axis] + box.size[axis], start + size)
    return Box(with_axis(box.begin, axis, low - start), with_axis(box.size, axis, max(0, high - low)))


def check_same(op: str, shapes: tuple[tuple[int, ...], ...], specs: Specs) -> None:
    """Raises unless all tensors have one dtype and, of their shapes, what counts is equal."""
    if any(shape != shapes[0] for shape in shapes):
        expected = "equal shapes but for the axis" if op == Concat.NAME else "equal shapes"
        raise shape_error(op, expected, _listed(specs), "Transpose, reshape or slice them first, or correct axis")
    if any(s.dtype != specs[0].dtype for s in specs):
        raise DtypeMismatchError(
            f"{op}: expected tensors of one dtype, found {_listed(specs)}. "
            f'Write {{ cast = {{ dtype = "{specs[0].dtype}" }} }} before {op}.'
        )


def _listed(specs: Specs) -> str:
    text = ", ".join(map(str, specs[:6]))
    return text if len(specs) <= 6 else f"{text} and {len(specs) - 6} more"
