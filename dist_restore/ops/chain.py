"""Chains of ops: made concrete for a target, checked, applied, reversed, and carried over to optimizer slots."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from dist_restore.core.dtypes import ITEM_SIZES
from dist_restore.core.errors import ShapeMismatchError
from dist_restore.core.tensors import TensorSpec
from dist_restore.ops.arithmetic import Cast
from dist_restore.ops.base import Array, Live, Op, PartOp, Site, Specs
from dist_restore.ops.dtypes import spec_of
from dist_restore.ops.fields import MAX_RANK, rule_error
from dist_restore.ops.pad import Fit

# No variable is so large; a plan that says so is wrong or hostile.
MAX_BYTES = 1 << 40
_NUMPY_RANK = 32 if np.lib.NumpyVersion(np.__version__) < "2.0.0" else 64


def bind(
    ops: Sequence[Op],
    sources: Specs,
    target: TensorSpec,
    *,
    part: int = 0,
    parts: int = 1,
    seed: int = 0,
) -> tuple[Op, ...]:
    """Makes a rule's ops concrete for one of its targets.

    Axes are counted from the front, open sizes are resolved, each part op gets its piece, and fit the target's
    shape. A cast behind `fill = "keep"` is moved before it, so that kept values are never cast. Whether the
    result has the target's shape and dtype is for the caller to compare, with `infer`: it knows the names.

    Args:
      ops: the ops of a rule, in order. Ops that are bound already stay as they are.
      sources: the tensors that the rule takes, in order.
      target: the variable that the result is for.
      part: which of the rule's targets this is.
      parts: how many targets the rule has.
      seed: for `fill = "normal"`.

    Raises:
      RuleError: the ops contradict each other, the number of targets, or what their inputs are.
      ShapeMismatchError: an op does not fit its inputs.
      DtypeMismatchError: tensors of several dtypes are merged, or strings are cast.
    """
    if not 0 <= part < parts:
        raise rule_error("ops", f"part {part} of {parts}", "Count the targets of a rule from 0")
    ordered = keep_last(ops)
    _check_order(ordered)
    site = Site(target, part, parts, seed)
    bound: list[Op] = []
    pieces: list[int] = []
    specs, filled = _some_sources(sources), False
    for op in ordered:
        if isinstance(op, PartOp) and op.part is None:
            pieces.append(op.pieces(specs, parts))
        bound.append(op.bind(specs, site))
        specs, filled = _step(bound[-1], specs, filled), filled or op.FILLS
    _check_parts(pieces, parts)
    single(specs)
    return tuple(bound)


def infer(ops: Sequence[Op], specs: Specs) -> TensorSpec:
    """Shape and dtype that a bound chain makes of its sources.

    Raises:
      RestoreError: the chain does not fit; the class says how, as for `bind`.
    """
    return single(stages(keep_last(ops), specs)[-1])


def apply(ops: Sequence[Op], arrays: Sequence[Array], *, live: Live | None = None) -> Array:
    """Carries out a bound chain.

    Args:
      ops: the bound chain.
      arrays: the sources, in order.
      live: gives the target's present value; called only for `fill = "keep"`.

    Returns:
      The result; a view of a source where no op needs a copy.

    Raises:
      RestoreError: the chain does not fit the arrays (found out before anything is computed), or a cast or
        scale loses a value.
    """
    ordered = keep_last(ops)
    single(stages(ordered, tuple(map(spec_of, arrays)))[-1])
    values = tuple(arrays)
    for op in ordered:
        values = op.apply(values, live)
    return values[0]


def inverse(ops: Sequence[Op], specs: Specs) -> tuple[Op, ...] | None:
    """The ops of the rule that goes back: from what the targets were to what the sources were.

    Part and merge ops change places, so the result is to be bound again: with as many parts as there were
    sources, and with all pieces as sources.

    Args:
      ops: a bound chain.
      specs: its sources.

    Returns:
      None when something is lost on the way, such as the elements outside a slice.
    """
    # A rule has one chain for all of its targets, so what undoes the pieces of one size must undo all.
    own = _undone(keep_last(ops), specs)
    try:
        same = all(_undone(chain, specs) == own for chain in _siblings(keep_last(ops)))
    except ShapeMismatchError:
        return None  # what follows the cut was bound to this piece and fits no other
    return own if same else None


def for_slot(ops: Sequence[Op], degree: int) -> tuple[Op, ...]:
    """What an optimizer slot gets when its owner gets `ops`.

    Elements move as the owner's do. New elements of a slot are zero, as in a fresh optimizer, but those of an
    average of the weight are what the owner's are. Casts are dropped, for slots have dtypes of their own.

    A scale follows from the chain rule: where w' = by * w computes the same function, dL/dw' = (dL/dw) / by.
    What is of degree d in the gradient is therefore multiplied by by**-d.

    Args:
      ops: the owner's ops, bound or not.
      degree: 1 for a mean of gradients (momentum), 2 for a mean of their squares (velocity), -1 for an average
        of the weight itself.

    Raises:
      RuleError: a scale by 0 leaves the slot without a value.
    """
    return tuple(itertools.chain.from_iterable(op.for_slot(degree) for op in ops))


def refuses_slot(ops: Sequence[Op], degree: int | None) -> str:
    """Why an optimizer slot cannot follow an owner that gets `ops`; empty when it can.

    Args:
      ops: the owner's ops, bound or not.
      degree: as for `for_slot`; None where it is not known.
    """
    return next(filter(None, (op.refuses_slot(degree) for op in ops)), "")


def may_refuse(ops: Sequence[Op], specs: Specs) -> bool:
    """Whether a bound chain must be tried on the values before it is known that `apply` does not raise."""
    ordered = keep_last(ops)
    return any(any(map(op.may_refuse, s)) for op, s in zip(ordered, stages(ordered, specs), strict=False))


def filled_elements(ops: Sequence[Op], specs: Specs) -> int:
    """How many elements of the target come from the sources; pad and fit make the rest.

    Args:
      ops: a bound chain.
      specs: its sources.
    """
    ordered = keep_last(ops)
    counts = tuple(s.elements for s in specs)
    for op, before in zip(ordered, stages(ordered, specs), strict=False):
        counts = op.sourced(before, counts)
    return sum(counts)


def describe(ops: Sequence[Op]) -> str:
    """The chain in a few words, for tables: `concat axis=1 + scale by=0.5`; empty for no ops."""
    return " + ".join(op.describe() for op in ops)


def keep_last(ops: Sequence[Op]) -> tuple[Op, ...]:
    """The ops with casts moved before a `fill = "keep"`: kept values have the target's dtype already."""
    at = next((i for i, op in enumerate(ops) if op.keeps), len(ops))
    rest = ops[at + 1 :]
    casts = all(isinstance(op, Cast) for op in rest)
    return (*ops[:at], *rest, *ops[at : at + 1]) if casts else tuple(ops)


def stages(ops: Sequence[Op], specs: Specs) -> tuple[Specs, ...]:
    """The tensors before the first op, between the ops and after the last one."""
    _check_order(ops)
    found, filled = [_some_sources(specs)], False
    for op in ops:
        found.append(_step(op, found[-1], filled))
        filled = filled or op.FILLS
    return tuple(found)


def single(specs: Specs) -> TensorSpec:
    """The one tensor that is left; raises when there are more."""
    if len(specs) != 1:
        raise rule_error(
            "ops",
            f"{len(specs)} tensors are left and a target takes one",
            "Add { concat = { axis = ... } } or { stack = { axis = 0 } }",
        )
    return specs[0]


def _some_sources(specs: Specs) -> Specs:
    if not specs:
        raise rule_error("ops", "there are no sources", "Name at least one tensor in 'from'")
    return specs


def _siblings(ops: tuple[Op, ...]) -> Iterator[tuple[Op, ...]]:
    for i, op in enumerate(ops):
        for other in op.siblings() if isinstance(op, PartOp) else ():
            yield (*ops[:i], other, *ops[i + 1 :])


def _undone(ops: tuple[Op, ...], specs: Specs) -> tuple[Op, ...] | None:
    steps = zip(ops, stages(ops, specs), strict=False)
    found = tuple(op for op in itertools.starmap(_inverse_step, steps) if op is not None)
    return found[::-1] if len(found) == len(ops) else None


def _inverse_step(op: Op, before: Specs) -> Op | None:
    found = op.inverse(before) or ()
    whole = [o.unbound() if isinstance(o, PartOp) else o for o in found]
    return whole[0] if whole and all(o == whole[0] for o in whole) else None


def _step(op: Op, specs: Specs, filled: bool) -> Specs:
    if filled and any(op.cuts(s) for s in specs):
        raise rule_error(op.NAME, "cuts away from a tensor that was padded before", "Write slice first, then pad")
    results = op.infer(specs)
    for spec in results:
        _check_size(op.NAME, spec)
    return results


def _check_size(op: str, spec: TensorSpec) -> None:
    if len(spec.shape) > min(MAX_RANK, _NUMPY_RANK):
        raise rule_error(
            op, f"makes {len(spec.shape)} axes; at most {_NUMPY_RANK} are possible", f"Correct the {op} op"
        )
    # NumPy counts an empty axis as 1 here, so a huge axis beside it is refused too.
    if math.prod(max(1, n) for n in spec.shape) * (ITEM_SIZES.get(spec.dtype, 0) or 8) > MAX_BYTES:
        raise rule_error(op, f"makes more than {MAX_BYTES >> 30} GiB", f"Correct the sizes in the {op} op")


def _check_order(ops: Sequence[Op]) -> None:
    for op, after in itertools.pairwise(ops):
        if op.keeps:
            raise rule_error(
                op.NAME,
                f'fill = "keep" gives the target\'s own value, and {after.NAME} follows',
                f"Write {op.NAME} last; only cast may follow",
            )
    fits = [i for i, op in enumerate(ops) if isinstance(op, Fit)]
    for op in ops[fits[0] + 1 :] if fits else ():
        if not op.ELEMENTWISE and not op.FILLS and not isinstance(op, PartOp):
            raise rule_error("fit", f"gives the target's shape, and {op.NAME} follows", "Write fit last")


def _check_parts(pieces: Sequence[int], parts: int) -> None:
    several = [n for n in pieces if n > 1]
    if len(several) > 1:
        raise rule_error(
            "split, unstack", f"{len(several)} ops make several pieces", "Use one of them in a rule; write two rules"
        )
    if pieces and parts > 1 and not several:
        raise rule_error("split, unstack", f"1 piece for {parts} targets", "Name one target in 'to'")
