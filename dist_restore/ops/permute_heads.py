"""Permute heads: from one layout of rotary position embeddings to the other.

A head's elements are rotated in pairs. *Interleaved*: pairs of neighbours, `x0 y0 x1 y1` (GPT-J, Meta's Llama).
*Half*: the first half with the second, `x0 x1 y0 y1` (GPT-NeoX, Llama in HF transformers). Weights of query and key
(and their biases) that were trained with one give the same attention with the other once their outputs are permuted
so in each head. HF's `convert_llama_weights_to_hf.py` does it to Meta's weights in its function `permute`: interleaved
to half, on the output axis, which is the first of a PyTorch weight and the last of a Keras kernel.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from dist_restore.core.tensors import Box, TensorSpec
from dist_restore.ops.base import (
    Array,
    Live,
    MapOp,
    Op,
    Site,
    Specs,
    normal_axis,
    require_sizes,
    shape_error,
    with_axis,
)
from dist_restore.ops.fields import Fields
from dist_restore.ops.pad import Fill
from dist_restore.ops.remap_rows import RemapRows
from dist_restore.ops.row_map import RowMap


class HeadLayout(str, enum.Enum):
    """From which layout to which."""

    INTERLEAVED_TO_HALF = "interleaved_to_half"
    HALF_TO_INTERLEAVED = "half_to_interleaved"

    @property
    def opposite(self) -> HeadLayout:
        """The way back."""
        both = (HeadLayout.INTERLEAVED_TO_HALF, HeadLayout.HALF_TO_INTERLEAVED)
        return both[self is both[0]]


@dataclasses.dataclass(frozen=True, slots=True)
class PermuteHeads(MapOp):
    """Permutes the elements of each head.

    Attributes:
      heads: how many heads lie on the axis, one after the other: for keys and values of grouped attention the number
        of their own heads; 1 where the heads have an axis of their own (`[width, heads, head]`).
      layout: from which layout to which.
      axis: where the heads' elements lie; the last one unless told, as in a Keras kernel `[width, heads * head]` and
        its bias.
      rotary: how many first elements of each head are rotated (GPT-J: 64 of 256); all unless told.
    """

    NAME: ClassVar[str] = "permute_heads"

    heads: int
    layout: HeadLayout
    axis: int = -1
    rotary: int | None = None

    def __post_init__(self) -> None:
        require_sizes(self.NAME, "heads", (self.heads,), least=1)
        require_sizes(self.NAME, "rotary", () if self.rotary is None else (self.rotary,), least=2)

    @classmethod
    def read(cls, fields: Fields) -> PermuteHeads:
        """See `Op`."""
        layout = HeadLayout(fields.choice("layout", tuple(x.value for x in HeadLayout)))
        return cls(fields.integer("heads"), layout, fields.integer("axis", -1), fields.maybe_integer("rotary"))

    def bind(self, specs: Specs, site: Site) -> PermuteHeads:
        """See `Op`."""
        return dataclasses.replace(self, axis=self._axis(specs[0]))

    def infer_one(self, spec: TensorSpec) -> TensorSpec:
        """See `MapOp`."""
        axis = self._axis(spec)
        head, rest = divmod(spec.shape[axis], self.heads)
        rotary = head if self.rotary is None else self.rotary
        if rest or rotary % 2 or rotary > head:
            pairs = "of an even size" if self.rotary is None else f"that hold {rotary} elements in pairs"
            raise shape_error(
                self.NAME,
                f"{self.heads} equal heads {pairs} on axis {axis}",
                f"{spec.shape[axis]} elements in {spec}",
                "Correct heads, axis or rotary in the permute_heads op",
            )
        return spec

    def apply_one(self, array: Array, live: Live | None) -> Array:
        """See `MapOp`."""
        axis = self.axis % array.ndim
        return np.take(array, self._sources(array.shape[axis]), axis)

    def pull_back_one(self, spec: TensorSpec, box: Box) -> Box:
        """See `MapOp`; from the first element that is needed to the last."""
        axis = self._axis(spec)
        needed = self._sources(spec.shape[axis])[box.begin[axis] : box.begin[axis] + box.size[axis]]
        low, high = int(needed.min()), int(needed.max())
        return Box(with_axis(box.begin, axis, low), with_axis(box.size, axis, high - low + 1))

    def narrow_one(self, spec: TensorSpec, before: Box, after: Box) -> tuple[Op, ...]:
        """See `MapOp`."""
        axis = self._axis(spec)
        begin, size = after.begin[axis], after.size[axis]
        if size == spec.shape[axis]:
            return (self,)
        rows = RowMap.of(self._sources(spec.shape[axis]), spec.shape[axis])
        part = rows.part(begin, size, before.begin[axis], before.size[axis])
        return (RemapRows(new_rows=Fill.ZEROS, axis=axis, rows=part),)

    def inverse_one(self, spec: TensorSpec) -> PermuteHeads:
        """See `MapOp`."""
        return dataclasses.replace(self, axis=self._axis(spec), layout=self.layout.opposite)

    def _sources(self, size: int) -> npt.NDArray[np.int64]:
        """For each element of the result the element of the input."""
        head = size // self.heads
        rotary = head if self.rotary is None else self.rotary
        places = np.arange(rotary, dtype=np.int64)
        pairs = (rotary // 2, 2) if self.layout is HeadLayout.INTERLEAVED_TO_HALF else (2, rotary // 2)
        order = np.concatenate([places.reshape(pairs).T.ravel(), np.arange(rotary, head)])
        found: npt.NDArray[np.int64] = (np.arange(self.heads)[:, None] * head + order).ravel()
        return found

    def _axis(self, spec: TensorSpec) -> int:
        return normal_axis(self.NAME, self.axis, len(spec.shape), spec.shape)
