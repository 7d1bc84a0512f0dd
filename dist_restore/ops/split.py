"""Ops that cut one tensor into the pieces of several targets: split and unstack."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

from dist_restore.core.tensors import Box, TensorSpec
from dist_restore.ops.base import (
    Array,
    Index,
    Live,
    Op,
    PartOp,
    Site,
    Specs,
    normal_axis,
    require_sizes,
    shape_error,
    with_axis,
)
from dist_restore.ops.fields import MAX_PIECES, Fields, rule_error

if TYPE_CHECKING:
    from dist_restore.ops.concat import Concat, Stack


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
        from dist_restore.ops.concat import Concat

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


@dataclasses.dataclass(frozen=True, slots=True)
class Unstack(PartOp):
    """Cuts an axis into pieces of one element and drops the axis."""

    NAME: ClassVar[str] = "unstack"

    axis: int
    part: int | None = None

    def __post_init__(self) -> None:
        require_sizes(self.NAME, "part", () if self.part is None else (self.part,))

    @classmethod
    def read(cls, fields: Fields) -> Unstack:
        """See `Op`."""
        return cls(fields.integer("axis"), fields.maybe_integer("part"))

    def pieces(self, specs: Specs, parts: int) -> int:
        """See `PartOp`."""
        return specs[0].shape[self._axis(specs[0])]

    def unbound(self) -> Unstack:
        """See `PartOp`."""
        return Unstack(self.axis)

    def bind(self, specs: Specs, site: Site) -> Unstack:
        """See `Op`."""
        return Unstack(self._axis(specs[0]), self.piece_for(specs, site) if self.part is None else self.part)

    def infer_one(self, spec: TensorSpec) -> TensorSpec:
        """See `MapOp`."""
        axis, part = self._axis(spec), self.taken(self.part)
        if part >= spec.shape[axis]:
            raise shape_error(
                self.NAME,
                f"a piece below {spec.shape[axis]} on axis {axis} of {spec}",
                f"piece {part}",
                "Correct axis, or name as many targets as the axis has elements",
            )
        return TensorSpec((*spec.shape[:axis], *spec.shape[axis + 1 :]), spec.dtype)

    def apply_one(self, array: Array, live: Live | None) -> Array:
        """See `MapOp`."""
        # The ellipsis makes it an array even where a single element is left.
        index: Index = (*(slice(None),) * (self.axis % array.ndim), self.taken(self.part), ...)
        return array[index]

    def pull_back_one(self, spec: TensorSpec, box: Box) -> Box:
        """See `MapOp`."""
        axis = self._axis(spec)
        begin = (*box.begin[:axis], self.taken(self.part), *box.begin[axis:])
        return Box(begin, (*box.size[:axis], 1, *box.size[axis:]))

    def narrow_one(self, spec: TensorSpec, before: Box, after: Box) -> tuple[Op, ...]:
        """See `MapOp`."""
        return (Unstack(self._axis(spec), 0),)

    def inverse_one(self, spec: TensorSpec) -> Stack:
        """Stacks all pieces again, this op's among them."""
        from dist_restore.ops.concat import Stack

        return Stack(self._axis(spec))

    def describe(self) -> str:
        """See `Op`."""
        return f"{self.NAME} axis={self.axis}" + ("" if self.part is None else f"[{self.part}]")

    def _axis(self, spec: TensorSpec) -> int:
        return normal_axis(self.NAME, self.axis, len(spec.shape), spec.shape)
