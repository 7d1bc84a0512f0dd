"""Concat joins tensors along an axis that they have, and split cuts one into pieces again; each undoes the other."""

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
    Index,
    Live,
    MergeOp,
    Op,
    PartOp,
    Site,
    Specs,
    normal_axis,
    require_sizes,
    shape_error,
    some,
    with_axis,
)
from dist_restore.ops.fields import MAX_PIECES, Fields, rule_error


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
class Split(PartOp):
    """Cuts an axis into pieces, equal ones unless `sizes` says otherwise."""

    NAME: ClassVar[str] = "split"

    axis: int
    sizes: tuple[int, ...] | None = None
    part: int | None = None

    def __post_init__(self) -> None:
        require_sizes(self.NAME, "sizes", self.sizes or ())
        require_sizes(self.NAME, "part", () if self.part is None else (self.part,))
        if self.sizes is not None and not self.sizes:
            raise rule_error(self.NAME, "sizes is empty", "Give one size for each target")

    @classmethod
    def read(cls, fields: Fields) -> Split:
        """See `Op`."""
        return cls(fields.integer("axis"), fields.maybe_integers("sizes", MAX_PIECES), fields.maybe_integer("part"))

    def siblings(self) -> tuple[PartOp, ...]:
        """See `PartOp`."""
        first = {size: part for part, size in reversed(list(enumerate(self.sizes or ())))}
        return tuple(Split(self.axis, self.sizes, part) for part in first.values())

    def pieces(self, specs: Specs, parts: int) -> int:
        """See `PartOp`."""
        return parts if self.sizes is None else len(self.sizes)

    def unbound(self) -> Split:
        """See `PartOp`."""
        return Split(self.axis, self.sizes)

    def bind(self, specs: Specs, site: Site) -> Split:
        """See `Op`."""
        sizes = self.sizes or self._equal(specs, site.parts)
        axis = self._axis(specs[0])
        return Split(axis, sizes, self.piece_for(specs, site) if self.part is None else self.part)

    def infer_one(self, spec: TensorSpec) -> TensorSpec:
        """See `MapOp`."""
        axis, sizes, part = self._axis(spec), self.sizes or (), self.taken(self.part)
        if sum(sizes) != spec.shape[axis] or part >= len(sizes):
            raise shape_error(
                self.NAME,
                f"sizes that add up to {spec.shape[axis]} on axis {axis} of {spec}, and a piece of them",
                f"sizes {list(sizes[:8])} with sum {sum(sizes)}, piece {part}",
                "Correct sizes or axis in the split op",
            )
        return TensorSpec(with_axis(spec.shape, axis, sizes[part]), spec.dtype)

    def apply_one(self, array: Array, live: Live | None) -> Array:
        """See `MapOp`."""
        start, size = self._range()
        index: Index = (*(slice(None),) * (self.axis % array.ndim), slice(start, start + size), ...)
        return array[index]

    def pull_back_one(self, spec: TensorSpec, box: Box) -> Box:
        """See `MapOp`."""
        axis = self._axis(spec)
        return Box(with_axis(box.begin, axis, box.begin[axis] + self._range()[0]), box.size)

    def narrow_one(self, spec: TensorSpec, before: Box, after: Box) -> tuple[Op, ...]:
        """See `MapOp`."""
        return ()

    def inverse_one(self, spec: TensorSpec) -> Concat:
        """Joins all pieces again, this op's among them."""
        return Concat(self._axis(spec))

    def describe(self) -> str:
        """See `Op`."""
        if self.part is None or self.sizes is None:
            sizes = "" if self.sizes is None else f" sizes={list(self.sizes)}"
            return f"{self.NAME} axis={self.axis}{sizes}"
        start, size = self._range()
        return f"{self.NAME} axis={self.axis}[{start}:{start + size}]"

    def _range(self) -> tuple[int, int]:
        sizes, part = self.sizes or (), self.taken(self.part)
        return sum(sizes[:part]), sum(sizes[part : part + 1])

    def _axis(self, spec: TensorSpec) -> int:
        return normal_axis(self.NAME, self.axis, len(spec.shape), spec.shape)

    def _equal(self, specs: Specs, parts: int) -> tuple[int, ...]:
        found = {s.shape[self._axis(s)] for s in specs}
        if len(found) > 1 or min(found) % parts:
            raise shape_error(
                self.NAME,
                f"a size that {parts} equal pieces fit on axis {self.axis} of {specs[0]}",
                f"{sorted(found)}",
                "Write sizes = [...] with one size for each target",
            )
        return (found.pop() // parts,) * parts


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
