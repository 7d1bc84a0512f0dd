"""Ops that change values and move none: cast and scale."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import numpy as np

from dist_restore.core.errors import DtypeMismatchError, RuleError
from dist_restore.core.tensors import Box, TensorSpec
from dist_restore.ops.base import Array, Live, MapOp, Op, at, blocks
from dist_restore.ops.dtypes import Kind, is_possible_cast, is_safe_cast, kind_of, unknown_dtype
from dist_restore.ops.fields import Fields, rule_error
from dist_restore.ops.lossless import cast_values, check_lossless, require_finite


@dataclasses.dataclass(frozen=True, slots=True)
class Cast(MapOp):
    """Gives the values another dtype; an error where a value would change, unless `lossy`."""

    NAME: ClassVar[str] = "cast"
    ELEMENTWISE: ClassVar[bool] = True

    dtype: str
    lossy: bool = False

    def __post_init__(self) -> None:
        if problem := unknown_dtype(self.dtype):
            raise RuleError(f"{self.NAME}: {problem}")

    @classmethod
    def read(cls, fields: Fields) -> Cast:
        """See `Op`."""
        return cls(fields.text("dtype"), fields.flag("lossy", False))

    def for_slot(self, degree: int) -> tuple[Op, ...]:
        """A slot has a dtype of its own, so its owner's cast says nothing about it."""
        return ()

    def may_refuse(self, spec: TensorSpec) -> bool:
        """See `Op`."""
        return not self.lossy and not is_safe_cast(spec.dtype, self.dtype)

    def infer_one(self, spec: TensorSpec) -> TensorSpec:
        """See `MapOp`."""
        if not is_possible_cast(spec.dtype, self.dtype):
            raise DtypeMismatchError(
                f"cast: expected numbers or bool to cast to {self.dtype}, found {spec}. "
                f"Drop the cast, or give the target dtype {spec.dtype}."
            )
        return TensorSpec(spec.shape, self.dtype)

    def apply_one(self, array: Array, live: Live | None) -> Array:
        """See `MapOp`."""
        if not self.lossy:
            check_lossless(array, self.dtype, self.NAME)
        return cast_values(array, self.dtype)

    def pull_back_one(self, spec: TensorSpec, box: Box) -> Box:
        """See `MapOp`."""
        return box

    def inverse_one(self, spec: TensorSpec) -> Cast | None:
        """See `MapOp`."""
        both = is_safe_cast(spec.dtype, self.dtype) and is_safe_cast(self.dtype, spec.dtype)
        return Cast(spec.dtype) if both else None


@dataclasses.dataclass(frozen=True, slots=True)
class Scale(MapOp):
    """Multiplies by a number, rounding once."""

    NAME: ClassVar[str] = "scale"
    ELEMENTWISE: ClassVar[bool] = True

    by: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.by):
            raise rule_error(self.NAME, f"by must be a finite number, found {self.by}", "Correct by in the scale op")

    @classmethod
    def read(cls, fields: Fields) -> Scale:
        """See `Op`."""
        return cls(fields.number("by"))

    def for_slot(self, degree: int) -> tuple[Op, ...]:
        """By the chain rule: with w' = by * w the gradient dL/dw' is (dL/dw) / by, so by**-degree for its power."""
        try:
            return () if degree == 0 else (Scale(self.by**-degree),)
        except (ZeroDivisionError, OverflowError) as error:
            raise rule_error(
                self.NAME,
                f"by {self.by} leaves a slot of degree {degree} without a finite value",
                "Keep or drop the optimizer's slots of this variable by a rule of their own",
            ) from error

    def refuses_slot(self, degree: int | None) -> str:
        """See `Op`."""
        return "it is not known how it changes when its owner is scaled" if degree is None else ""

    def may_refuse(self, spec: TensorSpec) -> bool:
        """See `Op`."""
        return abs(self.by) > 1

    @property
    def may_turn_negative(self) -> bool:
        """See `Op`."""
        return self.by < 0

    def infer_one(self, spec: TensorSpec) -> TensorSpec:
        """See `MapOp`."""
        if kind_of(spec.dtype) not in (Kind.FLOAT, Kind.COMPLEX):
            raise rule_error(self.NAME, f"needs floating numbers, found {spec}", "Cast to a float dtype first")
        return spec

    def apply_one(self, array: Array, live: Live | None) -> Array:
        """See `MapOp`."""
        if self.by == 1.0:
            return array
        wide = np.complex128 if array.dtype.kind == "c" else np.float64
        result = np.empty_like(array, subok=False)
        for box in blocks(array):
            values = array[at(box)].astype(wide)
            with np.errstate(all="ignore"):
                result[at(box)] = (values * self.by).astype(array.dtype)
            require_finite(self.NAME, values, result[at(box)], f"times {self.by} ")
        return result

    def pull_back_one(self, spec: TensorSpec, box: Box) -> Box:
        """See `MapOp`."""
        return box

    def inverse_one(self, spec: TensorSpec) -> Scale | None:
        """See `MapOp`."""
        inverse = 1 / self.by if self.by else math.inf
        return Scale(inverse) if math.isfinite(inverse) else None
