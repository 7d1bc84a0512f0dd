"""Remap rows: from one vocabulary to another, token by token."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

from dist_restore.core.tensors import Box, TensorSpec
from dist_restore.ops.base import (
    CHUNK,
    Array,
    Index,
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
from dist_restore.ops.fields import Fields, rule_error
from dist_restore.ops.lossless import require_finite
from dist_restore.ops.pad import FILL_NAMES, MEASURED, Fill, check_measurable, present
from dist_restore.ops.row_map import RowMap

Tokens: TypeAlias = tuple[str, ...]


@runtime_checkable
class HasVocabulary(Protocol):
    """What knows its own tokens, as Keras' StringLookup, IntegerLookup and TextVectorization do."""

    def get_vocabulary(self) -> Sequence[object]:
        """The tokens in the order of their rows, those of masks and of unknown tokens too."""


Vocabulary: TypeAlias = "str | Sequence[str] | HasVocabulary | None"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RemapRows(MapOp):
    """Gives each row of the result the source's row of the same token; rows of new tokens are filled.

    Tokens are compared as they are: no spaces are cut off, no case and no accents are changed. A token that the new
    vocabulary lacks loses its row. Two rows of one token are refused.

    Attributes:
      old_vocab: the checkpoint's tokens in the order of its rows: a text file with one token in each line, the tokens
        themselves, or from Python what has them: a StringLookup or TextVectorization layer. In a plan, a label.
      new_vocab: the target's, likewise.
      new_rows: what rows of new tokens are. `mean` and `normal` go by column: the mean of all source rows, or drawn
        with their mean and deviation.
      axis: which axis the rows lie on: 0 for an embedding and a bias, 1 for an output kernel.
      rows: what the vocabularies say; made when they are read, and all that `apply` needs.
      seed: for `normal`.
    """

    NAME: ClassVar[str] = "remap_rows"
    BOUND: ClassVar[frozenset[str]] = frozenset({"rows", "seed"})
    FILLS: ClassVar[bool] = True

    new_rows: Fill
    old_vocab: Vocabulary = None
    new_vocab: Vocabulary = None
    axis: int = 0
    rows: RowMap | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require_sizes(self.NAME, "seed", (self.seed,))
        object.__setattr__(self, "new_rows", Fill(self.new_rows))
        old, new = (_tokens(self.NAME, key, getattr(self, key)) for key in ("old_vocab", "new_vocab"))
        if self.rows is None and isinstance(old, tuple) and isinstance(new, tuple):
            object.__setattr__(self, "rows", RowMap.of_tokens(old, new))
        if self.rows is None and (old is None or new is None):
            raise rule_error(self.NAME, "needs old_vocab and new_vocab", "Name a file of tokens for each, or list them")
        # The tokens are in the rows now; a plan that is broadcast does without them.
        settled = self.rows is not None
        object.__setattr__(self, "old_vocab", None if settled and isinstance(old, tuple) else old)
        object.__setattr__(self, "new_vocab", None if settled and isinstance(new, tuple) else new)

    @classmethod
    def read(cls, fields: Fields) -> RemapRows:
        """See `Op`."""
        return cls(
            new_rows=Fill(fields.choice("new_rows", FILL_NAMES)),
            old_vocab=_given(fields, "old_vocab"),
            new_vocab=_given(fields, "new_vocab"),
            axis=fields.integer("axis", 0),
            rows=RowMap.parse(fields.text("rows")) if "rows" in fields.values else None,
            seed=fields.integer("seed", 0),
        )

    def with_files(self, rows_of: Callable[[str | Tokens, str | Tokens], RowMap]) -> RemapRows:
        """The op with its vocabularies read; itself when they are.

        Args:
          rows_of: makes the rows out of the old and the new vocabulary, each a path or tokens.
        """
        if self.rows is not None or self.old_vocab is None or self.new_vocab is None:
            return self
        old, new = (_tokens(self.NAME, "vocabulary", v) for v in (self.old_vocab, self.new_vocab))
        assert old is not None and new is not None
        return dataclasses.replace(self, rows=rows_of(old, new))

    def bind(self, specs: Specs, site: Site) -> RemapRows:
        """See `Op`."""
        seed = site.seed if self.new_rows == Fill.NORMAL else self.seed
        return dataclasses.replace(self, axis=self._axis(specs[0]), seed=seed)

    def for_slot(self, degree: int) -> tuple[Op, ...]:
        """See `Op`."""
        return (self,) if degree < 0 else (dataclasses.replace(self, new_rows=Fill.ZEROS, seed=0),)

    @property
    def keeps(self) -> bool:
        """See `Op`."""
        return self.new_rows == Fill.KEEP

    def cuts(self, spec: TensorSpec) -> bool:
        """See `Op`."""
        return self._known().dropped > 0

    def may_refuse(self, spec: TensorSpec) -> bool:
        """Drawn values may leave a narrow dtype's range."""
        return self.new_rows == Fill.NORMAL and self._known().new > 0

    def infer_one(self, spec: TensorSpec) -> TensorSpec:
        """See `MapOp`."""
        axis, rows = self._axis(spec), self._known()
        if spec.shape[axis] != rows.source_rows:
            raise shape_error(
                self.NAME,
                f"{rows.source_rows} rows on axis {axis}, one per token of the old vocabulary{_named(self.old_vocab)}",
                f"{spec.shape[axis]} in {spec}",
                "Give the vocabulary that the checkpoint was trained with, or correct axis",
            )
        if self.new_rows in MEASURED and rows.new:
            check_measurable(self.NAME, "new_rows", self.new_rows, spec)
        return TensorSpec(with_axis(spec.shape, axis, rows.size), spec.dtype)

    def apply_one(self, array: Array, live: Live | None) -> Array:
        """See `MapOp`."""
        axis, rows = self.axis % array.ndim, self._known().rows()
        kept = np.flatnonzero(rows >= 0)
        if len(kept) == len(rows):
            return np.take(array, rows, axis)
        # Bytes of a fixed length would cut off longer strings that are kept.
        dtype = np.dtype(object) if array.dtype.kind in "SU" else array.dtype
        shape = with_axis(array.shape, axis, len(rows))
        result = present(self.NAME, shape, dtype, live) if self.keeps else _zeros(shape, dtype)
        result[_at(axis, kept)] = np.take(array, rows[kept], axis)
        if self.new_rows in MEASURED:
            self._measure(array, result, axis, np.flatnonzero(rows < 0))
        return result

    def pull_back_one(self, spec: TensorSpec, box: Box) -> Box | None:
        """See `MapOp`; the rows from the first that is needed to the last."""
        axis = self._axis(spec)
        needed = self._known().rows()[box.begin[axis] : box.begin[axis] + box.size[axis]]
        kept = needed[needed >= 0]
        if self.new_rows in MEASURED and len(kept) < len(needed):
            return Box.whole(spec.shape)
        if not len(kept):
            return None
        low = int(kept.min())
        return Box(with_axis(box.begin, axis, low), with_axis(box.size, axis, int(kept.max()) - low + 1))

    def narrow_one(self, spec: TensorSpec, before: Box, after: Box) -> tuple[Op, ...]:
        """See `MapOp`."""
        axis = self._axis(spec)
        rows = self._known().part(after.begin[axis], after.size[axis], before.begin[axis], before.size[axis])
        return (dataclasses.replace(self, rows=rows),)

    def sourced_one(self, spec: TensorSpec, count: int) -> int:
        """See `MapOp`."""
        rows = self._known()
        row = spec.elements // max(1, rows.source_rows)
        return (rows.size - rows.new) * row if count == spec.elements else count

    def inverse_one(self, spec: TensorSpec) -> RemapRows | None:
        """See `MapOp`; exists when no row is lost."""
        back = self._known().inverse()
        if back is None:
            return None
        return RemapRows(
            new_rows=Fill.ZEROS,
            old_vocab=self.new_vocab,
            new_vocab=self.old_vocab,
            axis=self._axis(spec),
            rows=back,
        )

    def describe(self) -> str:
        """See `Op`."""
        # Short, for a column of 40 characters; files and tokens are in the rule that the plan names.
        axis = f" axis={self.axis}" if self.axis else ""
        if self.rows is None:
            names = [v if isinstance(v, str) else "tokens" for v in (self.old_vocab, self.new_vocab)]
            return f"{self.NAME}{axis} {names[0]} -> {names[1]} new_rows={self.new_rows.value}"
        rows = self.rows
        new = f", {rows.new} new ({self.new_rows.value})" if rows.new else ""
        dropped = f", {rows.dropped} dropped" if rows.dropped else ""
        return f"{self.NAME}{axis} {rows.source_rows}->{rows.size}{new}{dropped}"

    def _measure(self, array: Array, result: Array, axis: int, new: npt.NDArray[np.int64]) -> None:
        mean, deviation = _row_moments(array, axis)
        # RandomState's stream is frozen for good, so that workers with other NumPy versions draw the same numbers.
        noise = np.random.RandomState([self.seed & 0xFFFFFFFF, self.seed >> 32])
        step = max(1, CHUNK // max(1, mean.size))
        for start in range(0, len(new), step):
            some = new[start : start + step]
            values = np.repeat(mean, len(some), axis)
            if self.new_rows == Fill.NORMAL:
                values = values + deviation * noise.standard_normal(values.shape)
            with np.errstate(all="ignore"):
                made = values.astype(result.dtype)
            require_finite(self.NAME, values, made)
            result[_at(axis, some)] = made

    def _known(self) -> RowMap:
        if self.rows is None:
            raise rule_error(
                self.NAME,
                "the vocabularies were not read",
                "Load the rules from their file, or give the op the tokens themselves",
            )
        return self.rows

    def _axis(self, spec: TensorSpec) -> int:
        return normal_axis(self.NAME, self.axis, len(spec.shape), spec.shape)


def _tokens(op: str, key: str, value: object) -> str | Tokens | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, HasVocabulary):
        value = [_text_of(token) for token in value.get_vocabulary()]
    if not isinstance(value, Sequence) or not all(isinstance(token, str) for token in value):
        raise rule_error(
            op,
            f"{key} must be the path of a file of tokens, a list of strings, or a layer with get_vocabulary()",
            f"Correct {key} in the {op} op",
        )
    return tuple(map(str, value))


def _given(fields: Fields, key: str) -> Vocabulary:
    value = fields.values.get(key)
    return value if isinstance(value, HasVocabulary) else fields.maybe_texts(key)


def _text_of(token: object) -> object:
    """An IntegerLookup's tokens are whole numbers; what is neither these nor text stays, to be refused."""
    return str(token) if isinstance(token, (int, np.integer)) and not isinstance(token, bool) else token


def _named(vocabulary: Vocabulary) -> str:
    return f" {vocabulary!r}" if isinstance(vocabulary, str) else ""


def _zeros(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Array:
    return np.full(shape, b"", object) if dtype == np.dtype(object) else np.zeros(shape, dtype)


def _at(axis: int, rows: npt.NDArray[np.int64]) -> tuple[slice | npt.NDArray[np.int64], ...]:
    return (*(slice(None),) * axis, rows)


def _row_moments(array: Array, axis: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean and deviation of all rows, column by column; the axis stays, with one element."""
    total, squares, count = 0.0, 0.0, array.shape[axis]
    for part in _parts(array, axis):
        total = total + part.sum(axis=axis, keepdims=True)
    mean = np.asarray(total / count)
    for part in _parts(array, axis):
        squares = squares + np.square(part - mean).sum(axis=axis, keepdims=True)
    return mean, np.sqrt(np.asarray(squares / count))


def _parts(array: Array, axis: int) -> Iterator[npt.NDArray[np.float64]]:
    step = max(1, CHUNK * array.shape[axis] // max(1, array.size))
    for start in range(0, array.shape[axis], step):
        index: Index = (*(slice(None),) * axis, slice(start, start + step))
        yield array[index].astype(np.float64)
