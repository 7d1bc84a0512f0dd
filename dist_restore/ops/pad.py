"""Ops that make a tensor larger, and what the new elements are: pad and fit."""

from __future__ import annotations

import abc
import dataclasses
import enum
import math
from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from dist_restore.core.errors import DtypeMismatchError, ShapeMismatchError
from dist_restore.core.tensors import Box, TensorSpec
from dist_restore.ops.base import (
    Array,
    Live,
    MapOp,
    Op,
    Site,
    Specs,
    at,
    blocks,
    check_rank,
    require_sizes,
    shape_error,
    some,
)
from dist_restore.ops.dtypes import Kind, dtype_name, kind_of, spec_of
from dist_restore.ops.fields import Fields, rule_error
from dist_restore.ops.transpose import Slice


class Fill(str, enum.Enum):
    """Where elements come from that no source gives.

    Attributes:
      KEEP: the target's present value.
      ZEROS: zero, or the empty string.
      MEAN: the mean of all elements of the op's input.
      NORMAL: drawn from a normal distribution with the mean and deviation of all elements of the op's input.
    """

    KEEP = "keep"
    ZEROS = "zeros"
    MEAN = "mean"
    NORMAL = "normal"


FILL_NAMES = tuple(f.value for f in Fill)
MEASURED = (Fill.MEAN, Fill.NORMAL)


@dataclasses.dataclass(frozen=True, slots=True)
class _Layout:
    """The part `crop` of the input becomes the part `place` of a result of shape `shape`."""

    crop: Box
    place: Box
    shape: tuple[int, ...]

    @property
    def grows(self) -> bool:
        return not self.place.covers(self.shape)


class FillOp(MapOp):
    """What pad and fit share: a part of the input lies somewhere in the result, and the rest is filled."""

    FILLS: ClassVar[bool] = True
    BOUND: ClassVar[frozenset[str]] = frozenset({"seed"})
    __slots__ = ()
    fill: Fill
    seed: int

    @abc.abstractmethod
    def layout(self, spec: TensorSpec) -> _Layout:
        """Which part of the input goes where."""

    @property
    def keeps(self) -> bool:
        """See `Op`."""
        return self.fill == Fill.KEEP

    def cuts(self, spec: TensorSpec) -> bool:
        """See `Op`."""
        return not self.layout(spec).crop.covers(spec.shape)

    def infer_one(self, spec: TensorSpec) -> TensorSpec:
        """See `MapOp`."""
        layout = self.layout(spec)
        if self.fill in MEASURED and layout.grows:
            check_measurable(self.NAME, "fill", self.fill, spec)
        return TensorSpec(layout.shape, spec.dtype)

    def sourced_one(self, spec: TensorSpec, count: int) -> int:
        """See `MapOp`."""
        return self.layout(spec).crop.elements if count == spec.elements else count

    def apply_one(self, array: Array, live: Live | None) -> Array:
        """See `MapOp`."""
        layout = self.layout(spec_of(array))
        part = array[at(layout.crop)]
        if not layout.grows:
            return part
        # Bytes of a fixed length would cut off longer strings that are kept.
        dtype = np.dtype(object) if array.dtype.kind in "SU" else array.dtype
        result = self._ground(layout.shape, dtype, live)
        result[at(layout.place)] = part
        if self.fill in MEASURED:
            self._measured(array, result, layout)
        return result

    def pull_back_one(self, spec: TensorSpec, box: Box) -> Box | None:
        """See `MapOp`."""
        layout = self.layout(spec)
        inside = _intersection(box, layout.place)
        if self.fill in MEASURED and inside != box:
            return Box.whole(spec.shape)
        moved = zip(inside.begin, layout.place.begin, layout.crop.begin, strict=True)
        return some(Box(tuple(b - p + c for b, p, c in moved), inside.size))

    def inverse_one(self, spec: TensorSpec) -> Op | None:
        """See `MapOp`."""
        layout = self.layout(spec)
        return Slice(layout.place.begin, layout.place.size) if layout.crop.covers(spec.shape) else None

    def _ground(self, shape: tuple[int, ...], dtype: np.dtype[np.generic], live: Live | None) -> Array:
        if self.keeps:
            return present(self.NAME, shape, dtype, live)
        if dtype == np.dtype(object):
            return np.full(shape, b"", object)
        return np.empty(shape, dtype) if self.fill in MEASURED else np.zeros(shape, dtype)

    def _measured(self, array: Array, result: Array, layout: _Layout) -> None:
        mean, deviation = _moments(array)
        # RandomState's stream is frozen for good, so that workers with other NumPy versions draw the same numbers.
        noise = np.random.RandomState([self.seed & 0xFFFFFFFF, self.seed >> 32])
        for slab in _around(layout.place, layout.shape):
            region = result[at(slab)]
            for box in blocks(region):
                draws = noise.standard_normal(box.size) if self.fill == Fill.NORMAL else np.zeros(box.size)
                region[at(box)] = (mean + deviation * draws).astype(result.dtype)


def check_measurable(op: str, key: str, fill: Fill, spec: TensorSpec) -> None:
    """Raises unless a tensor has a mean that can be computed; `key` is what the rule file calls the fill."""
    fix = f'Use {key} = "zeros" or "keep"'
    if kind_of(spec.dtype) is not Kind.FLOAT:
        raise rule_error(op, f"{key} {fill.value} needs floating numbers, found {spec}", fix)
    if not spec.elements:
        raise rule_error(op, f"{key} {fill.value} of {spec}, which has no elements", fix)


def present(op: str, shape: tuple[int, ...], dtype: np.dtype[np.generic], live: Live | None) -> Array:
    """A copy of the target's present value; raises when there is none of this shape and dtype."""
    if live is None:
        raise rule_error(op, "the present value is to be kept and none was given", "Pass live=")
    found = live()
    if found.shape != shape:
        raise ShapeMismatchError(
            f"{op}: expected a present value of shape {list(shape)}, found {list(found.shape)}. "
            f"What is kept must have the target's own shape; correct the {op} op."
        )
    if dtype_name(found.dtype) != dtype_name(dtype):
        name = dtype_name(found.dtype)
        raise DtypeMismatchError(
            f"{op}: expected a present value of dtype {dtype_name(dtype)}, found {name}. "
            f'Write {{ cast = {{ dtype = "{name}" }} }} before {op}.'
        )
    return found.astype(dtype, order="C", copy=True)


@dataclasses.dataclass(frozen=True, slots=True)
class Pad(FillOp):
    """Adds elements before and after those of each axis."""

    NAME: ClassVar[str] = "pad"

    before: tuple[int, ...]
    after: tuple[int, ...]
    fill: Fill
    seed: int = 0

    def __post_init__(self) -> None:
        require_sizes(self.NAME, "before", self.before)
        require_sizes(self.NAME, "after", self.after)
        require_sizes(self.NAME, "seed", (self.seed,))

    @classmethod
    def read(cls, fields: Fields) -> Pad:
        """See `Op`."""
        fill = Fill(fields.choice("fill", FILL_NAMES))
        return cls(fields.integers("before"), fields.integers("after"), fill, fields.integer("seed", 0))

    def bind(self, specs: Specs, site: Site) -> Pad:
        """See `Op`."""
        return dataclasses.replace(self, seed=site.seed) if self.fill == Fill.NORMAL else self

    def for_slot(self, degree: int) -> tuple[Op, ...]:
        """See `Op`."""
        return (self,) if degree < 0 else (dataclasses.replace(self, fill=Fill.ZEROS, seed=0),)

    def layout(self, spec: TensorSpec) -> _Layout:
        """See `FillOp`."""
        check_rank(self.NAME, "before", len(self.before), spec)
        check_rank(self.NAME, "after", len(self.after), spec)
        sizes = zip(self.before, spec.shape, self.after, strict=True)
        return _Layout(Box.whole(spec.shape), Box(self.before, spec.shape), tuple(map(sum, sizes)))


@dataclasses.dataclass(frozen=True, slots=True)
class Fit(FillOp):
    """Crops or pads every axis, from its start, to the target's shape."""

    NAME: ClassVar[str] = "fit"
    BOUND: ClassVar[frozenset[str]] = frozenset({"shape", "seed"})

    fill: Fill
    shape: tuple[int, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require_sizes(self.NAME, "shape", self.shape or ())
        require_sizes(self.NAME, "seed", (self.seed,))

    @classmethod
    def read(cls, fields: Fields) -> Fit:
        """See `Op`."""
        fill = Fill(fields.choice("fill", FILL_NAMES))
        return cls(fill, fields.maybe_integers("shape"), fields.integer("seed", 0))

    def bind(self, specs: Specs, site: Site) -> Fit:
        """See `Op`."""
        return Fit(self.fill, site.target.shape, site.seed if self.fill == Fill.NORMAL else self.seed)

    def for_slot(self, degree: int) -> tuple[Op, ...]:
        """See `Op`."""
        return (self,) if degree < 0 else (dataclasses.replace(self, fill=Fill.ZEROS, seed=0),)

    def layout(self, spec: TensorSpec) -> _Layout:
        """See `FillOp`."""
        if self.shape is None:
            raise rule_error(
                self.NAME, "the target's shape is not known", "Bind the ops to a target first, with bind()"
            )
        if len(self.shape) != len(spec.shape):
            raise shape_error(
                self.NAME,
                f"as many axes as the target's shape {list(self.shape)} has",
                str(spec),
                "Reshape first, then fit",
            )
        inner = Box.whole(tuple(map(min, spec.shape, self.shape)))
        return _Layout(inner, inner, self.shape)


def _intersection(box: Box, other: Box) -> Box:
    begin = tuple(map(max, box.begin, other.begin))
    ends = zip(box.begin, box.size, other.begin, other.size, begin, strict=True)
    return Box(begin, tuple(max(0, min(a + m, b + n) - low) for a, m, b, n, low in ends))


def _around(place: Box, shape: tuple[int, ...]) -> Iterator[Box]:
    """Boxes without overlap that cover everything but `place`."""
    for axis, size in enumerate(shape):
        end = place.begin[axis] + place.size[axis]
        for low, high in ((0, place.begin[axis]), (end, size)):
            if low < high:
                begin = (*place.begin[:axis], low, *(0,) * (len(shape) - axis - 1))
                yield Box(begin, (*place.size[:axis], high - low, *shape[axis + 1 :]))


def _moments(array: Array) -> tuple[float, float]:
    mean = math.fsum(float(array[at(b)].astype(np.float64).sum()) for b in blocks(array)) / array.size
    squares = (np.square(array[at(b)].astype(np.float64) - mean).sum() for b in blocks(array))
    return mean, math.sqrt(math.fsum(map(float, squares)) / array.size)
