"""Resize: interpolates axes, and tables whose rows are positions.

With half-pixel centres and no antialiasing, as `tf.image.resize`; `cubic` has the coefficient -0.5 and scales the
weights at the borders, as `tf.image.resize(method="bicubic")` has and does (which rounds positions to 1/1024).

How published recipes resample the position table of a ViT, `{ resize = { method = "cubic", axes = [1, 2],
grid = [14, 14], prefix = 1 } }` for a table `[1, 197, 768]`:

- HF transformers, `TFViTEmbeddings.interpolate_pos_encoding` (modeling_tf_vit.py): tf.image.resize, bicubic: the same.
- timm, `resample_abs_pos_embed` (layers/pos_embed.py): bicubic with antialiasing: the same where the grid grows,
  smoother where it shrinks.
- HF transformers, `ViTEmbeddings.interpolate_pos_encoding` (PyTorch): bicubic with the coefficient -0.75 and clamped
  borders: `cubic_torch`.
- big_vision, `resample_posemb` (models/vit.py): `scipy.ndimage.zoom(order=1)`: linear with the outermost positions laid
  upon each other; near to `linear`, and not the same.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
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
    common,
    normal_axis,
    require_sizes,
    shape_error,
    with_axis,
)
from dist_restore.ops.dtypes import Kind, kind_of
from dist_restore.ops.fields import Fields, rule_error
from dist_restore.ops.interpolation import Method, Taps, axis_taps, grid_taps, resample
from dist_restore.ops.lossless import require_finite

_Shape = tuple[int, ...]
_METHODS = tuple(m.value for m in Method)


@dataclasses.dataclass(frozen=True, slots=True)
class Resize(MapOp):
    """Interpolates some axes to other sizes: the target's, unless `sizes` says otherwise.

    Attributes:
      method: nearest, linear, cubic or cubic_torch.
      axes: which axes. With `grid` they are those of the tensor whose positions are laid out as the grid: for a table
        `[1, 197, 768]` of 14 x 14 positions, of which `[1, 14, 14, 768]` is made, they are 1 and 2.
      grid: the sizes of the grid that one axis of positions holds in C order. The new grid has the same proportions
        unless `sizes` gives it.
      prefix: positions before the grid that are copied as they are: class tokens, or BART's two unused rows.
      sizes: the new sizes of `axes`; a plan has them always.
    """

    NAME: ClassVar[str] = "resize"

    method: Method
    axes: _Shape
    grid: _Shape | None = None
    prefix: int = 0
    sizes: _Shape | None = None

    def __post_init__(self) -> None:
        require_sizes(self.NAME, "grid", self.grid or (), least=1)
        require_sizes(self.NAME, "sizes", self.sizes or (), least=1)
        require_sizes(self.NAME, "prefix", (self.prefix,))
        if not self.axes or len(set(self.axes)) != len(self.axes):
            raise rule_error(self.NAME, f"axes {list(self.axes)} are none or repeat", "Name each axis once in axes")
        for key, value in (("grid", self.grid), ("sizes", self.sizes)):
            if value is not None and len(value) != len(self.axes):
                problem = f"axes {list(self.axes)} and {key} {list(value)} differ in length"
                raise rule_error(self.NAME, problem, f"Give {key} one size for each axis")
        if self.prefix and self.grid is None and len(self.axes) > 1:
            raise rule_error(self.NAME, "prefix needs to know the grid", "Write grid = [rows, columns]")

    @classmethod
    def read(cls, fields: Fields) -> Resize:
        """See `Op`."""
        method = Method(fields.choice("method", _METHODS))
        return cls(
            method,
            fields.integers("axes"),
            fields.maybe_integers("grid"),
            fields.integer("prefix", 0),
            fields.maybe_integers("sizes"),
        )

    def bind(self, specs: Specs, site: Site) -> Resize:
        """See `Op`."""
        grid = common([self._grid(s) for s in specs])
        if grid is None:
            raise shape_error(self.NAME, "tables of one size", ", ".join(map(str, specs[:6])), "Write a rule for each")
        bound = dataclasses.replace(self, axes=self._axes(specs[0]), grid=grid or None)
        return dataclasses.replace(bound, sizes=self.sizes or bound._sizes_for(specs[0], site.target.shape))

    def for_slot(self, degree: int) -> tuple[Op, ...]:
        """See `Op`; means of gradients and averages of weights are interpolated as the weights are."""
        return (self,)

    def refuses_slot(self, degree: int | None) -> str:
        """A mean of squares between two positions is not what interpolating the two gives."""
        return "" if degree is not None and degree < 2 else refuses_mixing(self.NAME, degree)

    def may_refuse(self, spec: TensorSpec) -> bool:
        """Cubic weights add up to more than 1 where signs are left out, so a value may leave the dtype's range."""
        return self.method.cubic

    @property
    def may_turn_negative(self) -> bool:
        """See `Op`; two of the four cubic weights are negative."""
        return self.method.cubic

    def infer_one(self, spec: TensorSpec) -> TensorSpec:
        """See `MapOp`."""
        if self.method is not Method.NEAREST and kind_of(spec.dtype) not in (Kind.FLOAT, Kind.COMPLEX):
            raise rule_error(
                self.NAME, f"{self.method.value} needs floating numbers, found {spec}", 'Use method = "nearest"'
            )
        shape = spec.shape
        for axis, new in zip(*self._changes(spec), strict=True):
            if not shape[axis]:
                raise shape_error(self.NAME, f"elements on axis {axis}", str(spec), "An empty axis cannot grow")
            shape = with_axis(shape, axis, new)
        return TensorSpec(shape, spec.dtype)

    def apply_one(self, array: Array, live: Live | None) -> Array:
        """See `MapOp`."""
        return _mixed(array, self.steps(array.shape), self.method)

    def pull_back_one(self, spec: TensorSpec, box: Box) -> Box:
        """See `MapOp`."""
        for axis, taps in self.steps(spec.shape):
            low, count = taps.span(box.begin[axis], box.size[axis])
            box = Box(with_axis(box.begin, axis, low), with_axis(box.size, axis, count))
        return box

    def narrow_one(self, spec: TensorSpec, before: Box, after: Box) -> tuple[Op, ...]:
        """See `MapOp`."""
        whole = before.covers(spec.shape) and after.covers(self.infer_one(spec).shape)
        return (self,) if whole else (_ResizedPart(self, spec.shape, before, after),)

    def sourced_one(self, spec: TensorSpec, count: int) -> int:
        """Where some of the input is filled, so is about the same share of the result."""
        return self.infer_one(spec).elements * count // max(1, spec.elements)

    def inverse_one(self, spec: TensorSpec) -> Resize | None:
        """Only what changes nothing can be undone."""
        return self if not self.steps(spec.shape) else None

    def describe(self) -> str:
        """See `Op`."""
        sizes = "->" + "x".join(map(str, self.sizes)) if self.sizes else ""
        grid = "x".join(map(str, self.grid)) if self.grid else f"axes={list(self.axes)}"
        return f"{self.NAME} {self.method.value} {grid}{sizes}" + (f" prefix={self.prefix}" if self.prefix else "")

    def steps(self, shape: _Shape) -> tuple[tuple[int, Taps], ...]:
        """For each axis of the tensor that changes: the axis, and what becomes of it."""
        sizes = self._known_sizes()
        if self.grid is None:
            found = zip(self.axes, sizes, strict=True)
            return tuple((a, axis_taps(self.method, shape[a], n)) for a, n in found if shape[a] != n)
        if self.grid == sizes:
            return ()
        taps = tuple(axis_taps(self.method, n, new) for n, new in zip(self.grid, sizes, strict=True))
        return ((self.axes[0], grid_taps(taps, self.grid, self.prefix)),)

    def _changes(self, spec: TensorSpec) -> tuple[_Shape, _Shape]:
        """The axes of the tensor itself that are resized, and their new sizes."""
        axes, sizes = self._axes(spec), self._known_sizes()
        if self.grid is None:
            return axes, sizes
        self._check_positions(spec, self.grid)
        return axes[:1], (self.prefix + math.prod(sizes),)

    def _check_positions(self, spec: TensorSpec, sizes: _Shape) -> None:
        axis, rows = self._axes(spec)[0], self.prefix + math.prod(sizes)
        if spec.shape[axis] != rows:
            grid = " x ".join(map(str, sizes))
            raise shape_error(
                self.NAME,
                f"{self.prefix} + {grid} = {rows} positions on axis {axis}",
                str(spec),
                "Correct grid, prefix or axes in the resize op",
            )

    def _known_sizes(self) -> _Shape:
        if self.sizes is None or (self.prefix and self.grid is None):
            raise rule_error(self.NAME, "the sizes are not known", "Bind the ops to a target first, with bind()")
        return self.sizes

    def _axes(self, spec: TensorSpec) -> _Shape:
        unfolded = (1,) * (len(self.grid) - 1 if self.grid else 0) + spec.shape
        axes = tuple(normal_axis(self.NAME, a, len(unfolded), unfolded) for a in self.axes)
        if len(set(axes)) != len(axes):
            raise rule_error(self.NAME, f"axes {list(self.axes)} name one axis twice", "Name each axis once in axes")
        if self.grid is not None and axes != tuple(range(axes[0], axes[0] + len(axes))):
            raise rule_error(
                self.NAME,
                f"axes {list(self.axes)} do not follow one another",
                "A grid is laid out in neighbouring axes, such as axes = [0, 1]",
            )
        return axes

    def _grid(self, spec: TensorSpec) -> _Shape:
        """The grid, empty where there is none; of one axis with a prefix it is what is left of the axis."""
        if self.grid is not None or not self.prefix:
            return self.grid or ()
        (axis,) = self._axes(spec)
        if spec.shape[axis] <= self.prefix:
            raise shape_error(
                self.NAME, f"more than {self.prefix} positions on axis {axis}", str(spec), "Correct prefix"
            )
        return (spec.shape[axis] - self.prefix,)

    def _sizes_for(self, spec: TensorSpec, shape: _Shape) -> _Shape:
        """The new sizes for a target of this shape; axes are normal here."""
        if len(spec.shape) != len(shape):
            raise shape_error(
                self.NAME, f"as many axes as the target's shape {list(shape)} has", str(spec), "Write sizes = [...]"
            )
        if self.grid is None:
            return tuple(shape[a] for a in self.axes)
        self._check_positions(spec, self.grid)
        return self._like_grid(self.grid, shape[self.axes[0]] - self.prefix)

    def _like_grid(self, grid: _Shape, positions: int) -> _Shape:
        divisor = math.gcd(*grid)
        unit = tuple(n // divisor for n in grid)
        factor = round((max(0, positions) / math.prod(unit)) ** (1 / len(grid)))
        sizes = tuple(n * factor for n in unit)
        if math.prod(sizes) != positions or not factor:
            raise shape_error(
                self.NAME,
                f"a new grid of the proportions of {list(grid)} behind {self.prefix} position(s)",
                f"{positions} positions in the target",
                "Write the new grid, sizes = [rows, columns], in the resize op; or correct prefix",
            )
        return sizes


@dataclasses.dataclass(frozen=True, slots=True)
class _ResizedPart(MapOp):
    """A part of a resize, from a part of its input; only `narrow` makes it."""

    NAME: ClassVar[str] = "resize"

    whole: Resize
    shape: _Shape
    before: Box
    after: Box

    @classmethod
    def read(cls, fields: Fields) -> _ResizedPart:
        raise rule_error(cls.NAME, "a part of it is no op of rule files or plans", "Write the resize op itself")

    def infer_one(self, spec: TensorSpec) -> TensorSpec:
        return TensorSpec(self.after.size, spec.dtype)

    def apply_one(self, array: Array, live: Live | None) -> Array:
        pairs = [
            (axis, taps.part(self.after.begin[axis], self.after.size[axis], self.before.begin[axis]))
            for axis, taps in self.whole.steps(self.shape)
        ]
        return _mixed(array, pairs, self.whole.method)

    def pull_back_one(self, spec: TensorSpec, box: Box) -> Box:
        return Box.whole(spec.shape)


def refuses_mixing(op: str, degree: int | None) -> str:
    """Why an op that mixes elements is not carried over to a slot of squared gradients, or of unknown meaning."""
    holds = "it is not known what it holds" if degree is None else "it holds squares of gradients"
    return f"{holds}, and {op} would mix its elements, which is never done unasked"


def _mixed(array: Array, steps: Sequence[tuple[int, Taps]], method: Method) -> Array:
    if not steps:
        return array
    if method is Method.NEAREST:
        for axis, taps in steps:
            array = resample(array, axis, taps)
        return array
    wide: Array = array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
    for axis, taps in steps:
        wide = resample(wide, axis, taps)
    with np.errstate(all="ignore"):
        result = wide.astype(array.dtype)
    require_finite(Resize.NAME, wide, result)
    return result
