"""Stack joins tensors of one shape along a new axis, and unstack cuts that axis away again; each undoes the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

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
)
from dist_restore.ops.concat import check_same
from dist_restore.ops.fields import Fields


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
        return Stack(self._axis(spec))

    def describe(self) -> str:
        """See `Op`."""
        return f"{self.NAME} axis={self.axis}" + ("" if self.part is None else f"[{self.part}]")

    def _axis(self, spec: TensorSpec) -> int:
        return normal_axis(self.NAME, self.axis, len(spec.shape), spec.shape)
