"""Reshape, and which part of its input a part of its result needs.

Axes fall into groups that are merged or split among themselves: [12, 5] -> [3, 4, 5] has the groups
[12] -> [3, 4] and [5] -> [5]. Within a group a part is a range of positions in C order, widened to whole rows
where it is not one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import ClassVar, Literal

from dist_restore.core.tensors import Box, TensorSpec
from dist_restore.ops.base import Array, Live, MapOp, Op, Site, Specs, common, require_sizes, shape_error
from dist_restore.ops.fields import Fields, rule_error
from dist_restore.ops.transpose import Slice

_Shape = tuple[int, ...]
# How a rule file says that the program's variable has the shape, so that one rule serves models of every size.
_TARGET: Literal["target"] = "target"


@dataclasses.dataclass(frozen=True, slots=True)
class Reshape(MapOp):
    """Gives the same elements, in C order, another shape.

    Attributes:
      shape: the sizes, one of which may be -1; or `target`, the shape of the variable. A plan has sizes always.
    """

    NAME: ClassVar[str] = "reshape"

    shape: _Shape | Literal["target"]

    def __post_init__(self) -> None:
        if isinstance(self.shape, str):
            return
        require_sizes(self.NAME, "shape", self.shape, least=-1)
        if self.shape.count(-1) > 1:
            raise rule_error(self.NAME, f"shape {list(self.shape)} holds more than one -1", "Leave one size open")

    @classmethod
    def read(cls, fields: Fields) -> Reshape:
        """See `Op`."""
        return cls(_TARGET if fields.values["shape"] == _TARGET else fields.integers("shape"))

    def bind(self, specs: Specs, site: Site) -> Reshape:
        """See `Op`."""
        if isinstance(self.shape, str):
            return _reshape_for(site.target, specs)
        # Sources that are merged later may differ in size; then -1 means something else for each.
        shape = common([self._resolve(s) for s in specs])
        return self if shape is None else Reshape(shape)

    def infer_one(self, spec: TensorSpec) -> TensorSpec:
        """See `MapOp`."""
        return TensorSpec(self._resolve(spec), spec.dtype)

    def apply_one(self, array: Array, live: Live | None) -> Array:
        """See `MapOp`."""
        return array.reshape(self._sizes())

    def pull_back_one(self, spec: TensorSpec, box: Box) -> Box:
        """See `MapOp`."""
        pairs = list(_groups(spec.shape, self._resolve(spec), box))
        parts = [_box_around(shape, *_range_of(rows, sizes)) for shape, sizes, rows in _widened(pairs)]
        return Box(_joined(p.begin for p in parts), _joined(p.size for p in parts))

    def narrow_one(self, spec: TensorSpec, before: Box, after: Box) -> tuple[Op, ...]:
        """See `MapOp`."""
        # Behind a pad all is needed, and a slice, be it of everything, is refused.
        if before.covers(spec.shape) and after.covers(self._resolve(spec)):
            return (self,)
        after_groups = list(_widened(list(_groups(spec.shape, self._resolve(spec), after))))
        sizes = tuple(n for n, _, _ in after_groups)
        starts = _starts(sizes, before)
        ranges = [_range_of(rows, outer) for _, outer, rows in after_groups]
        flat = Slice(
            tuple(low - start for (low, _), (start, _) in zip(ranges, starts, strict=True)),
            tuple(high - low + 1 for low, high in ranges),
        )
        rows = Box(_joined(r.begin for _, _, r in after_groups), _joined(r.size for _, _, r in after_groups))
        rest = Slice(tuple(a - b for a, b in zip(after.begin, rows.begin, strict=True)), after.size)
        return Reshape(tuple(n for _, n in starts)), flat, Reshape(rows.size), rest

    def inverse_one(self, spec: TensorSpec) -> Reshape:
        """See `MapOp`."""
        return Reshape(spec.shape)

    def _sizes(self) -> _Shape:
        if isinstance(self.shape, str):
            raise rule_error(
                self.NAME, "the target's shape is not known", "Bind the ops to a target first, with bind()"
            )
        return self.shape

    def _resolve(self, spec: TensorSpec) -> _Shape:
        shape = self._sizes()
        known = math.prod(n for n in shape if n >= 0)
        if -1 in shape and known and spec.elements % known == 0:
            return tuple(spec.elements // known if n < 0 else n for n in shape)
        if -1 in shape or known != spec.elements:
            raise shape_error(
                self.NAME,
                f"a shape of {spec.elements} elements for {spec}",
                f"{list(shape)}",
                "Correct shape; one size may be -1",
            )
        return shape


def _reshape_for(target: TensorSpec, specs: Specs) -> Reshape:
    for spec in specs:
        if spec.elements != target.elements:
            raise shape_error(
                Reshape.NAME,
                f"{target.elements} elements, as the variable's shape {list(target.shape)} has",
                f"{spec.elements} elements in {spec}",
                "Correct the ops before it, or build the model with the checkpoint's sizes",
            )
    return Reshape(target.shape)


def _groups(inner: _Shape, outer: _Shape, box: Box) -> Iterator[tuple[_Shape, _Shape, Box]]:
    # Both shapes have the same, non-zero number of elements, so each group ends where the products meet.
    i = j = 0
    while i < len(inner) or j < len(outer):
        i_end, j_end = _group_end(inner, i, outer, j)
        yield inner[i:i_end], outer[j:j_end], Box(box.begin[j:j_end], box.size[j:j_end])
        i, j = i_end, j_end


def _group_end(inner: _Shape, i: int, outer: _Shape, j: int) -> tuple[int, int]:
    i_end, j_end = min(i + 1, len(inner)), min(j + 1, len(outer))
    while (a := math.prod(inner[i:i_end])) != (b := math.prod(outer[j:j_end])):
        if a < b:
            i_end += 1
        else:
            j_end += 1
    return i_end, j_end


def _widened(groups: list[tuple[_Shape, _Shape, Box]]) -> Iterator[tuple[_Shape, _Shape, Box]]:
    for inner, outer, box in groups:
        axis = next((k for k, n in enumerate(box.size) if n > 1), len(outer))
        begin = (*box.begin[: axis + 1], *(0,) * (len(outer) - axis - 1))
        yield inner, outer, Box(begin, (*box.size[: axis + 1], *outer[axis + 1 :]))


def _range_of(box: Box, shape: _Shape) -> tuple[int, int]:
    low = _position(box.begin, shape)
    return low, _position(tuple(b + n - 1 for b, n in zip(box.begin, box.size, strict=True)), shape)


def _position(index: tuple[int, ...], shape: _Shape) -> int:
    position = 0
    for i, n in zip(index, shape, strict=True):
        position = position * n + i
    return position


def _index(position: int, shape: _Shape) -> tuple[int, ...]:
    index: list[int] = []
    for n in reversed(shape):
        position, i = divmod(position, n)
        index.append(i)
    return tuple(reversed(index))


def _box_around(shape: _Shape, low: int, high: int) -> Box:
    first, last = _index(low, shape), _index(high, shape)
    axis = next((k for k, (a, b) in enumerate(zip(first, last, strict=True)) if a != b), len(shape))
    begin = (*first[: axis + 1], *(0,) * (len(shape) - axis - 1))
    size = tuple(b - a + 1 for a, b in zip(first[: axis + 1], last[: axis + 1], strict=True))
    return Box(begin, (*size, *shape[axis + 1 :]))


def _starts(shapes: tuple[_Shape, ...], box: Box) -> list[tuple[int, int]]:
    starts, axis = [], 0
    for shape in shapes:
        end = axis + len(shape)
        starts.append((_position(box.begin[axis:end], shape), math.prod(box.size[axis:end])))
        axis = end
    return starts


def _joined(parts: Iterator[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(n for part in parts for n in part)
