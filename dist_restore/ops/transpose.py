"""Ops that move elements and change none: transpose and slice."""

from __future__ import annotations

import dataclasses
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
    at,
    check_rank,
    common,
    require_sizes,
    shape_error,
)
from dist_restore.ops.fields import Fields


@dataclasses.dataclass(frozen=True, slots=True)
class Transpose(MapOp):
    """Reorders axes: axis `i` of the result is axis `perm[i]` of the input."""

    NAME: ClassVar[str] = "transpose"

    perm: tuple[int, ...]

    @classmethod
    def read(cls, fields: Fields) -> Transpose:
        """See `Op`."""
        return cls(fields.integers("perm"))

    def bind(self, specs: Specs, site: Site) -> Transpose:
        """See `Op`."""
        return Transpose(self._perm(specs[0]))

    def infer_one(self, spec: TensorSpec) -> TensorSpec:
        """See `MapOp`."""
        return TensorSpec(tuple(spec.shape[a] for a in self._perm(spec)), spec.dtype)

    def apply_one(self, array: Array, live: Live | None) -> Array:
        """See `MapOp`."""
        return array.transpose(self.perm)

    def pull_back_one(self, spec: TensorSpec, box: Box) -> Box:
        """See `MapOp`."""
        order = _argsort(self._perm(spec))
        return Box(tuple(box.begin[i] for i in order), tuple(box.size[i] for i in order))

    def inverse_one(self, spec: TensorSpec) -> Transpose:
        """See `MapOp`."""
        return Transpose(_argsort(self._perm(spec)))

    def _perm(self, spec: TensorSpec) -> tuple[int, ...]:
        rank = len(spec.shape)
        check_rank(self.NAME, "perm", len(self.perm), spec)
        perm = tuple(a + rank if a < 0 else a for a in self.perm)
        if sorted(perm) != list(range(rank)):
            raise shape_error(
                self.NAME,
                f"perm to be a permutation of {list(range(rank))}",
                f"{list(self.perm)}",
                "Name every axis once in perm",
            )
        return perm


@dataclasses.dataclass(frozen=True, slots=True)
class Slice(MapOp):
    """Takes `size` elements from `begin` on, on every axis; a size of -1 takes the rest."""

    NAME: ClassVar[str] = "slice"

    begin: tuple[int, ...]
    size: tuple[int, ...]

    def __post_init__(self) -> None:
        require_sizes(self.NAME, "begin", self.begin)
        require_sizes(self.NAME, "size", self.size, least=-1)

    @classmethod
    def read(cls, fields: Fields) -> Slice:
        """See `Op`."""
        return cls(fields.integers("begin"), fields.integers("size"))

    def bind(self, specs: Specs, site: Site) -> Slice:
        """See `Op`."""
        # Sources that are merged later may differ in size; then -1 means something else for each.
        size = common([self._box(s).size for s in specs])
        return self if size is None else Slice(self.begin, size)

    def cuts(self, spec: TensorSpec) -> bool:
        """See `Op`."""
        return True

    def infer_one(self, spec: TensorSpec) -> TensorSpec:
        """See `MapOp`."""
        return TensorSpec(self._box(spec).size, spec.dtype)

    def apply_one(self, array: Array, live: Live | None) -> Array:
        """See `MapOp`."""
        return array[at(_resolve(self.begin, self.size, array.shape))]

    def pull_back_one(self, spec: TensorSpec, box: Box) -> Box:
        """See `MapOp`."""
        return Box(tuple(a + b for a, b in zip(self.begin, box.begin, strict=True)), box.size)

    def narrow_one(self, spec: TensorSpec, before: Box, after: Box) -> tuple[Op, ...]:
        """See `MapOp`."""
        return ()

    def describe(self) -> str:
        """See `Op`."""
        ends = (f"{b}:" if s < 0 else f"{b}:{b + s}" for b, s in zip(self.begin, self.size, strict=False))
        return f"{self.NAME} [{', '.join(ends)}]"

    def _box(self, spec: TensorSpec) -> Box:
        check_rank(self.NAME, "begin", len(self.begin), spec)
        check_rank(self.NAME, "size", len(self.size), spec)
        box = _resolve(self.begin, self.size, spec.shape)
        if any(s < 0 or b + s > n for b, s, n in zip(box.begin, box.size, spec.shape, strict=True)):
            raise shape_error(
                self.NAME,
                f"begin + size within shape {list(spec.shape)}",
                f"begin {list(self.begin)}, size {list(self.size)}",
                "Correct begin and size; a size of -1 takes the rest",
            )
        return box


def _resolve(begin: tuple[int, ...], size: tuple[int, ...], shape: tuple[int, ...]) -> Box:
    return Box(begin, tuple(n - b if s < 0 else s for b, s, n in zip(begin, size, shape, strict=True)))


def _argsort(perm: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argsort(perm))
