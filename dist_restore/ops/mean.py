"""Mean: several tensors of one shape become one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from dist_restore.core.errors import DtypeMismatchError
from dist_restore.core.tensors import Box, TensorSpec
from dist_restore.ops.base import Array, Boxes, Live, MergeOp, Op, Specs, at, blocks, plain_text
from dist_restore.ops.concat import check_same
from dist_restore.ops.dtypes import Kind, dtype_name, kind_of
from dist_restore.ops.fields import MAX_PIECES, Fields, rule_error
from dist_restore.ops.resize import refuses_mixing

_AVERAGED = (Kind.FLOAT, Kind.COMPLEX)


@dataclasses.dataclass(frozen=True, slots=True)
class Mean(MergeOp):
    """The weighted mean of tensors of one shape and dtype, added up in float64 and rounded once.

    Tensors without floating numbers (counters, strings) have a mean only where they are all equal.

    Attributes:
      weights: one positive number for each tensor; only their proportions count. Equal unless told.
    """

    NAME: ClassVar[str] = "mean"

    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.weights is None:
            return
        good = all(math.isfinite(w) and w > 0 for w in self.weights) and self.weights
        if not good or not math.isfinite(sum(self.weights)):
            raise rule_error(
                self.NAME,
                f"weights must be positive numbers, found {list(self.weights[:8])}",
                "A tensor that does not count is left out of 'from'",
            )

    @classmethod
    def read(cls, fields: Fields) -> Mean:
        """See `Op`."""
        return cls(fields.maybe_numbers("weights", MAX_PIECES))

    def refuses_slot(self, degree: int | None) -> str:
        """See `Op`."""
        return "" if degree is not None and degree < 2 else refuses_mixing(self.NAME, degree)

    def may_refuse(self, spec: TensorSpec) -> bool:
        """See `Op`."""
        return kind_of(spec.dtype) not in _AVERAGED

    @property
    def pointwise(self) -> bool:
        """See `Op`."""
        return True

    def infer_all(self, specs: Specs) -> TensorSpec:
        """See `MergeOp`."""
        check_same(self.NAME, tuple(s.shape for s in specs), specs)
        if self.weights is not None and len(self.weights) != len(specs):
            raise rule_error(
                self.NAME,
                f"{len(self.weights)} weights for {len(specs)} tensor(s)",
                "Write one weight for each name in 'from'",
            )
        return specs[0]

    def apply(self, arrays: Sequence[Array], live: Live | None) -> tuple[Array, ...]:
        """See `Op`."""
        first = arrays[0]
        if kind_of(dtype_name(first.dtype)) not in _AVERAGED:
            self._check_equal(arrays)
        elif len(arrays) > 1:
            return (self._averaged(arrays),)
        return (first,)

    def pull_back_all(self, specs: Specs, box: Box) -> Boxes:
        """See `MergeOp`."""
        return (box,) * len(specs)

    def sourced(self, specs: Specs, counts: tuple[int, ...]) -> tuple[int, ...]:
        """Where a tensor was filled, the result is not from sources alone."""
        return (min(counts),)

    def inverse(self, specs: Specs) -> tuple[Op, ...] | None:
        """See `Op`."""
        return (self,) if len(specs) == 1 else None

    def describe(self) -> str:
        """See `Op`."""
        return self.NAME if self.weights is None else f"{self.NAME} weights={plain_text(self.weights)}"

    def _averaged(self, arrays: Sequence[Array]) -> Array:
        weights = self.weights or (1.0,) * len(arrays)
        # By a power of two, which rounds nothing: sums stay in range, and are divided once.
        _, exponent = math.frexp(math.fsum(weights))
        scaled = [math.ldexp(w, -exponent) for w in weights]
        total = math.fsum(scaled)
        result = np.empty_like(arrays[0], subok=False)
        wide = np.complex128 if result.dtype.kind == "c" else np.float64
        for box in blocks(result):
            added: Array = np.zeros(box.size, wide)
            with np.errstate(all="ignore"):
                for array, weight in zip(arrays, scaled, strict=True):
                    added = np.add(added, array[at(box)].astype(wide) * weight)
                result[at(box)] = np.divide(added, total).astype(result.dtype)
        return result

    def _check_equal(self, arrays: Sequence[Array]) -> None:
        for number, array in enumerate(arrays[1:], 2):
            if not np.array_equal(arrays[0], array):
                dtype = dtype_name(array.dtype)
                raise DtypeMismatchError(
                    f"{self.NAME}: expected {dtype} tensors that are equal, as such have no mean, found others in the "
                    f"first and number {number} of them. Take one of them, in a rule of its own; or cast before mean."
                )
