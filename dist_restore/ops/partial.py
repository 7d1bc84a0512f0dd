"""Which parts of the sources a target needs, and the chain that makes the target from these parts alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from dist_restore.core.tensors import Box
from dist_restore.ops.base import Array, Boxes, Live, MapOp, Op, Specs
from dist_restore.ops.chain import apply, infer, keep_last, stages
from dist_restore.ops.dtypes import numpy_dtype
from dist_restore.ops.fields import Fields, rule_error
from dist_restore.ops.transpose import Slice


def pull_back(ops: Sequence[Op], specs: Specs, box: Box) -> Boxes:
    """The part of each source that a part of the target needs; None where nothing of a source is needed.

    Exact, but that a reshape may widen to whole rows, that `mean` and `normal` need their whole input, and that
    all sources are needed whole where a chain passes through a tensor without elements.

    Args:
      ops: a bound chain.
      specs: its sources.
      box: the part of the target.
    """
    return _traced(keep_last(ops), stages(keep_last(ops), specs), box)[0]


def source_boxes(ops: Sequence[Op], specs: Specs) -> Boxes:
    """The part of each source that the whole target needs; None where nothing of a source is needed."""
    return pull_back(ops, specs, Box.whole(infer(ops, specs).shape))


def narrow(ops: Sequence[Op], specs: Specs, boxes: Boxes) -> tuple[tuple[Op, ...], Specs]:
    """The chain that makes the whole target from parts of the sources.

    Args:
      ops: a bound chain.
      specs: its sources.
      boxes: what was read of each source: what `source_boxes` says, or more.

    Returns:
      The chain, and the shapes of its sources: those of which something is needed, in order. It is for
      `apply` on this machine; it may hold ops that plans do not have.

    Raises:
      RuleError: a box holds less than is needed.
    """
    ordered = keep_last(ops)
    levels = stages(ordered, specs)
    traced = _traced(ordered, levels, Box.whole(levels[-1][0].shape))
    _check_read(traced[0], boxes)
    if _degenerate(levels):
        return ordered, specs
    found = [_per_tensor(_trims(boxes, traced[0]))]
    steps = zip(ordered, levels, traced, traced[1:], strict=False)
    found += [_narrowed(op, before, needed, after) for op, before, needed, after in steps]
    read = tuple(
        dataclasses.replace(s, shape=b.size) for s, b, n in zip(specs, boxes, traced[0], strict=True) if b and n
    )
    return tuple(op for part in found for op in part), read


def apply_boxed(
    ops: Sequence[Op],
    specs: Specs,
    boxes: Boxes,
    arrays: Sequence[Array | None],
    live: Live | None = None,
) -> Array:
    """Carries out a bound chain when only parts of its sources were read.

    Args:
      ops: the bound chain.
      specs: its sources, whole.
      boxes: what was read of each source: what `source_boxes` says, or more.
      arrays: what was read, one for each source; None where the box is None.
      live: gives the target's present value; called only for `fill = "keep"`.

    Raises:
      RestoreError: as `apply`; or a box holds less than is needed, or an array is not of its box's shape.
    """
    needed = source_boxes(ops, specs)
    if all(n is None for n in needed):
        return _nothing(ops, specs)
    narrowed, read = narrow(ops, specs, boxes)
    values = [a for a, n in zip(arrays, needed, strict=True) if a is not None and n is not None]
    if [v.shape for v in values] != [s.shape for s in read]:
        expected, found = [list(s.shape) for s in read], [list(v.shape) for v in values]
        raise rule_error("ops", f"expected parts of shapes {expected}, found {found}", "Read what source_boxes says")
    return apply(narrowed, values, live=live)


@dataclasses.dataclass(frozen=True, slots=True)
class _Each(Op):
    """Other ops for each tensor; only `narrow` makes it, for the parts of tensors differ in place and size."""

    NAME: ClassVar[str] = "each"

    chains: tuple[tuple[Op, ...], ...]

    @classmethod
    def read(cls, fields: Fields) -> _Each:
        raise rule_error(cls.NAME, "is no op of rule files or plans", "Write the ops themselves")

    def infer(self, specs: Specs) -> Specs:
        return tuple(infer(ops, (s,)) for ops, s in zip(self.chains, specs, strict=True))

    def apply(self, arrays: Sequence[Array], live: Live | None) -> tuple[Array, ...]:
        return tuple(apply(ops, (a,), live=live) for ops, a in zip(self.chains, arrays, strict=True))

    def pull_back(self, specs: Specs, boxes: Boxes) -> Boxes:
        pairs = zip(self.chains, specs, boxes, strict=True)
        return tuple(None if b is None else pull_back(ops, (s,), b)[0] for ops, s, b in pairs)

    def sourced(self, specs: Specs, counts: tuple[int, ...]) -> tuple[int, ...]:
        return counts

    def inverse(self, specs: Specs) -> tuple[Op, ...] | None:
        return None


def _traced(ops: Sequence[Op], levels: tuple[Specs, ...], box: Box) -> tuple[Boxes, ...]:
    """The parts that are needed of the tensors of each stage, the sources first."""
    _check_box(box, levels[-1][0].shape)
    if _degenerate(levels):
        return tuple(tuple(Box.whole(s.shape) for s in specs) for specs in levels)
    found: list[Boxes] = [(box if box.elements else None,)]
    for op, specs in zip(reversed(ops), reversed(levels[:-1]), strict=True):
        found.append(op.pull_back(specs, found[-1]))
    return tuple(reversed(found))


def _degenerate(levels: tuple[Specs, ...]) -> bool:
    # A fill of nothing needs nothing of its source and yet makes something, which no narrowed chain could.
    return levels[-1][0].elements > 0 and any(not s.elements for specs in levels for s in specs)


def _narrowed(op: Op, specs: Specs, before: Boxes, after: Boxes) -> tuple[Op, ...]:
    if not isinstance(op, MapOp):
        return (op,)
    steps = zip(specs, before, after, strict=True)
    return _per_tensor([op.narrow_one(s, b, a) for s, b, a in steps if b is not None and a is not None])


def _per_tensor(chains: Sequence[tuple[Op, ...]]) -> tuple[Op, ...]:
    same = not chains or all(ops == chains[0] for ops in chains)
    return (chains[0] if chains else ()) if same else (_Each(tuple(chains)),)


def _trims(boxes: Boxes, needed: Boxes) -> list[tuple[Op, ...]]:
    pairs = [(b, n) for b, n in zip(boxes, needed, strict=True) if b is not None and n is not None]
    return [() if b == n else (Slice(_minus(n.begin, b.begin), n.size),) for b, n in pairs]


def _minus(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a - b for a, b in zip(first, second, strict=True))


def _check_read(needed: Boxes, boxes: Boxes) -> None:
    for number, (need, box) in enumerate(zip(needed, boxes, strict=True)):
        if need is not None and (box is None or not _holds(box, need)):
            raise rule_error(
                "ops", f"source {number}: {need} is needed and {box} was read", "Read what source_boxes says"
            )


def _holds(box: Box, need: Box) -> bool:
    rows = zip(box.begin, box.size, need.begin, need.size, strict=True)
    return len(box.begin) == len(need.begin) and all(b <= n and n + k <= b + m for b, m, n, k in rows)


def _check_box(box: Box, shape: tuple[int, ...]) -> None:
    if len(box.begin) != len(shape) or not _holds(Box.whole(shape), box):
        raise rule_error("ops", f"{box} is not inside shape {list(shape)}", "Give a part of the target")


def _nothing(ops: Sequence[Op], specs: Specs) -> Array:
    spec = infer(ops, specs)
    return np.empty(spec.shape, numpy_dtype(spec.dtype))
