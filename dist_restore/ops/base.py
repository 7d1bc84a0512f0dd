"""What every op is: plain data that can say its result's shape, compute it, and say which inputs it needs.

An op maps a tuple of tensors to a tuple of tensors. A `MapOp` acts on each tensor by itself, a `PartOp` is a
`MapOp` that takes one piece out of its tensor, a `MergeOp` turns many tensors into one.
"""

from __future__ import annotations

import abc
import dataclasses
import enum
import math
from collections.abc import Callable, Iterator, Sequence
from types import EllipsisType
from typing import ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from dist_restore.core.errors import ShapeMismatchError
from dist_restore.core.tensors import Box, TensorSpec
from dist_restore.ops.fields import Fields, rule_error

Array: TypeAlias = npt.NDArray[np.generic]
Live: TypeAlias = Callable[[], Array]
Specs: TypeAlias = tuple[TensorSpec, ...]
Boxes: TypeAlias = tuple[Box | None, ...]
Index: TypeAlias = tuple[int | slice | EllipsisType, ...]

# Elements that are worked on at a time where temporaries are needed; 16 bytes each make 2 MiB.
CHUNK = 1 << 17


@dataclasses.dataclass(frozen=True, slots=True)
class Site:
    """What an op is made concrete for.

    Attributes:
      target: shape and dtype of the target.
      part: which of the rule's targets it is.
      parts: how many targets the rule has.
      seed: for random fills.
    """

    target: TensorSpec
    part: int
    parts: int
    seed: int


@dataclasses.dataclass(frozen=True, slots=True)
class Op(abc.ABC):
    """One step of turning source tensors into a target; each op of the vocabulary is a subclass.

    Attributes:
      NAME: how rule files and plans call it.
      BOUND: fields that a plan sets and a rule file may not.
      FILLS: makes elements that come from no source.
      ELEMENTWISE: changes neither shape nor places of elements.
    """

    NAME: ClassVar[str] = ""
    BOUND: ClassVar[frozenset[str]] = frozenset()
    FILLS: ClassVar[bool] = False
    ELEMENTWISE: ClassVar[bool] = False

    @classmethod
    @abc.abstractmethod
    def read(cls, fields: Fields) -> Op:
        """Makes the op from the fields of a rule file or a plan."""

    @abc.abstractmethod
    def infer(self, specs: Specs) -> Specs:
        """Shapes and dtypes of the results; raises where the op does not fit."""

    @abc.abstractmethod
    def apply(self, arrays: Sequence[Array], live: Live | None) -> tuple[Array, ...]:
        """The results, as views where that is possible."""

    @abc.abstractmethod
    def pull_back(self, specs: Specs, boxes: Boxes) -> Boxes:
        """The parts of the inputs that the given parts of the results need."""

    @abc.abstractmethod
    def inverse(self, specs: Specs) -> tuple[Op, ...] | None:
        """For each input the op that gets it back from the results, or None where there is none."""

    @abc.abstractmethod
    def sourced(self, specs: Specs, counts: tuple[int, ...]) -> tuple[int, ...]:
        """How many elements of the results come from sources, when `counts` of the inputs' do."""

    def bind(self, specs: Specs, site: Site) -> Op:
        """The same op with everything resolved that depends on the tensors and the target."""
        return self

    def for_slot(self, degree: int) -> tuple[Op, ...]:
        """What an optimizer slot gets when its owner gets this op."""
        return (self,)

    def refuses_slot(self, degree: int | None) -> str:
        """Why a slot of this degree cannot get what its owner gets; empty when it can.

        Args:
          degree: the power of the gradient that the slot holds, as for `for_slot`; None where it is not known.
        """
        return ""

    def may_refuse(self, spec: TensorSpec) -> bool:
        """Whether it depends on the values of such an input if `apply` raises; shapes and dtypes tell all else."""
        return False

    def cuts(self, spec: TensorSpec) -> bool:
        """Whether elements of such an input are left out of the result."""
        return False

    @property
    def may_turn_negative(self) -> bool:
        """Whether inputs that are all positive can give a negative result."""
        return False

    @property
    def pointwise(self) -> bool:
        """Whether each element of a result is made of the elements at its own place in the inputs, and of no other."""
        return self.ELEMENTWISE

    @property
    def keeps(self) -> bool:
        """Whether the target's present value is needed."""
        return False

    def describe(self) -> str:
        """The op in a few words, for tables."""
        named = ((f.name, getattr(self, f.name)) for f in dataclasses.fields(self) if f.name not in self.BOUND)
        return " ".join([self.NAME, *(f"{k}={plain_text(v)}" for k, v in named if v is not None and v is not False)])


@dataclasses.dataclass(frozen=True, slots=True)
class MapOp(Op):
    """An op that acts on each tensor by itself."""

    @abc.abstractmethod
    def infer_one(self, spec: TensorSpec) -> TensorSpec:
        """Shape and dtype of one result."""

    @abc.abstractmethod
    def apply_one(self, array: Array, live: Live | None) -> Array:
        """One result."""

    @abc.abstractmethod
    def pull_back_one(self, spec: TensorSpec, box: Box) -> Box | None:
        """The part of an input that a part of its result needs."""

    def narrow_one(self, spec: TensorSpec, before: Box, after: Box) -> tuple[Op, ...]:
        """The ops that turn the part `before` of the input into the part `after` of the result."""
        return (self,)

    def inverse_one(self, spec: TensorSpec) -> Op | None:
        """The op that gets an input back from its result."""
        return None

    def sourced_one(self, spec: TensorSpec, count: int) -> int:
        """How many elements of a result come from sources."""
        # Nothing may be cut away once something was filled, so what is not whole stays as it is.
        return self.infer_one(spec).elements if count == spec.elements else count

    def sourced(self, specs: Specs, counts: tuple[int, ...]) -> tuple[int, ...]:
        """See `Op`."""
        return tuple(self.sourced_one(s, n) for s, n in zip(specs, counts, strict=True))

    def infer(self, specs: Specs) -> Specs:
        """See `Op`."""
        return tuple(self.infer_one(s) for s in specs)

    def apply(self, arrays: Sequence[Array], live: Live | None) -> tuple[Array, ...]:
        """See `Op`."""
        return tuple(self.apply_one(a, live) for a in arrays)

    def pull_back(self, specs: Specs, boxes: Boxes) -> Boxes:
        """See `Op`."""
        pairs = zip(specs, boxes, strict=True)
        return tuple(None if b is None or not b.elements else some(self.pull_back_one(s, b)) for s, b in pairs)

    def inverse(self, specs: Specs) -> tuple[Op, ...] | None:
        """See `Op`."""
        found = tuple(op for op in map(self.inverse_one, specs) if op is not None)
        return found if len(found) == len(specs) else None


class PartOp(MapOp):
    """An op that cuts a tensor into pieces; bound, it takes the piece of one target."""

    BOUND: ClassVar[frozenset[str]] = frozenset({"part"})
    __slots__ = ()
    part: int | None

    @abc.abstractmethod
    def pieces(self, specs: Specs, parts: int) -> int:
        """How many pieces there are, for a rule with so many targets."""

    def cuts(self, spec: TensorSpec) -> bool:
        """See `Op`."""
        return True

    @abc.abstractmethod
    def unbound(self) -> PartOp:
        """The op for all pieces, as rule files have it."""

    def siblings(self) -> tuple[PartOp, ...]:
        """This op, bound to a piece of each size that occurs."""
        return (self,)

    def piece_for(self, specs: Specs, site: Site) -> int:
        """Which piece the target of this site gets."""
        pieces = self.pieces(specs, site.parts)
        if pieces == 1:
            return 0
        if pieces != site.parts:
            raise rule_error(
                self.NAME,
                f"makes {pieces} pieces and the rule has {site.parts} target(s)",
                f"Name {pieces} targets in 'to', or correct the {self.NAME} op",
            )
        return site.part

    def taken(self, part: int | None) -> int:
        """The bound piece; raises when the op was never bound."""
        if part is None:
            raise rule_error(self.NAME, "no piece was chosen", "Bind the ops to a target first, with bind()")
        return part


@dataclasses.dataclass(frozen=True, slots=True)
class MergeOp(Op):
    """An op that turns many tensors into one."""

    @abc.abstractmethod
    def infer_all(self, specs: Specs) -> TensorSpec:
        """Shape and dtype of the result."""

    @abc.abstractmethod
    def pull_back_all(self, specs: Specs, box: Box) -> Boxes:
        """The parts of the inputs that a part of the result needs."""

    def sourced(self, specs: Specs, counts: tuple[int, ...]) -> tuple[int, ...]:
        """See `Op`."""
        return (sum(counts),)

    def infer(self, specs: Specs) -> Specs:
        """See `Op`."""
        return (self.infer_all(specs),)

    def pull_back(self, specs: Specs, boxes: Boxes) -> Boxes:
        """See `Op`."""
        (box,) = boxes
        return (None,) * len(specs) if box is None else self.pull_back_all(specs, box)


def some(box: Box | None) -> Box | None:
    """The box, or None when it is empty."""
    return box if box is not None and box.elements else None


def with_axis(values: tuple[int, ...], axis: int, value: int) -> tuple[int, ...]:
    """The values with that of one axis replaced."""
    return (*values[:axis], value, *values[axis + 1 :])


def at(box: Box) -> Index:
    """The box as an index that gives an array even where a tensor has no axes."""
    return (*box.slices(), ...)


def blocks(array: Array) -> Iterator[Box]:
    """Boxes of at most `CHUNK` elements that cover an array, in C order, without a copy."""
    yield from _blocks((), array.shape)


def _blocks(head: tuple[int, ...], shape: tuple[int, ...]) -> Iterator[Box]:
    row = math.prod(shape[1:])
    if not shape:
        yield Box(head, (1,) * len(head))
    elif row > CHUNK:
        for i in range(shape[0]):
            yield from _blocks((*head, i), shape[1:])
    else:
        step = max(1, CHUNK // max(1, row))
        for i in range(0, shape[0], step):
            ones = (1,) * len(head)
            yield Box((*head, i, *(0,) * (len(shape) - 1)), (*ones, min(step, shape[0] - i), *shape[1:]))


def shape_error(op: str, expected: str, found: str, fix: str) -> ShapeMismatchError:
    """The error for an op that does not fit the tensors it gets."""
    return ShapeMismatchError(f"{op}: expected {expected}, found {found}. {fix}")


def check_rank(op: str, what: str, length: int, spec: TensorSpec) -> None:
    """Raises unless a per-axis list has one value for each axis."""
    if length != len(spec.shape):
        raise shape_error(
            op, f"{what} with one value per axis", f"{length} for {spec}", f"Give {what} {len(spec.shape)} value(s)"
        )


def normal_axis(op: str, axis: int, rank: int, shape: tuple[int, ...]) -> int:
    """The axis counted from the front; raises when there is no such axis."""
    if -rank <= axis < rank:
        return axis % rank
    raise shape_error(
        op,
        f"an axis from {-rank} to {rank - 1} for shape {list(shape)}",
        f"axis {axis}",
        f"Correct axis in the {op} op",
    )


def require_sizes(op: str, key: str, values: tuple[int, ...], *, least: int = 0) -> None:
    """Raises unless all sizes are at least `least`."""
    for value in values:
        if value < least:
            raise rule_error(op, f"{key} holds {value}, which is less than {least}", f"Correct {key} in the {op} op")


def common(values: Sequence[tuple[int, ...]]) -> tuple[int, ...] | None:
    """The value that all share, or None where they differ."""
    return values[0] if values and all(v == values[0] for v in values) else None


def plain_text(value: object) -> str:
    """A field's value in the spelling of rule files, without quotes."""
    if isinstance(value, tuple):
        return "[" + ", ".join(map(str, value)) + "]"
    if isinstance(value, enum.Enum):
        return str(value.value)
    return str(value).lower() if isinstance(value, bool) else str(value)
