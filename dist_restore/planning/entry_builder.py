"""From a decision (these sources, these ops) to a plan entry: shapes, dtypes and statuses."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import msgspec

from dist_restore.core.errors import DtypeMismatchError, RuleError, ShapeMismatchError
from dist_restore.core.index import SourceTensor, TargetVariable
from dist_restore.core.tensors import TensorSpec
from dist_restore.ops import (
    Cast,
    Op,
    bind,
    describe,
    filled_elements,
    holds_codes,
    infer,
    is_narrowing_cast,
    is_safe_cast,
)
from dist_restore.planning.entries import PlanEntry, Problem, Proof, Status


class Choice(msgspec.Struct, frozen=True, gc=False):
    """Sources and unbound ops for one target, and what decided them.

    Attributes:
      sources: the tensors, in the order in which the ops take them.
      ops: unbound ops.
      evidence: what decided, for `PlanEntry.evidence`.
      part: which of several targets of one rule this is.
      parts: how many there are.
      proof: which kind of evidence that is.
      seed: whose name random fills are drawn by; the target's own where empty.
    """

    sources: tuple[SourceTensor, ...]
    ops: tuple[Op, ...] = ()
    evidence: str = ""
    part: int = 0
    parts: int = 1
    proof: Proof = Proof.RULE
    seed: str = ""


def build_entry(target: TargetVariable, choice: Choice) -> PlanEntry:
    """The entry for a chosen target; a shape or dtype that does not fit is a problem of the entry, not an error.

    Raises:
      RuleError: the ops cannot be applied to these sources at all.
    """
    specs = tuple([s.spec for s in choice.sources])
    if not choice.ops and len(specs) == 1 and specs[0] == target.spec:
        return _copy(target, choice)  # most of a restore, and many times faster
    if target.spec.is_object or any(spec.is_object for spec in specs):
        return _problem(target, choice, Problem.DTYPE, _object_reason(target, choice))
    seed = zlib.crc32(
        (choice.seed or target.name).encode("utf-8", "surrogatepass")
    )  # same on all workers and in all runs
    try:
        ops = bind(choice.ops, specs, target.spec, part=choice.part, parts=choice.parts, seed=seed)
        result = infer(ops, specs)
    except ShapeMismatchError as error:
        return _problem(target, choice, Problem.SHAPE, str(error))
    except DtypeMismatchError as error:
        return _problem(target, choice, Problem.DTYPE, str(error))
    except RuleError as error:
        raise RuleError(f"{choice.evidence}: {target.name!r}: {error}") from error
    if result.shape != target.spec.shape:
        return _problem(target, choice, Problem.SHAPE, _shape_reason(target, choice, ops, result))
    try:
        castable = _castable(result.dtype, target.spec.dtype)
    except DtypeMismatchError as error:  # of a later TensorFlow
        return _problem(target, choice, Problem.DTYPE, _unknown_reason(target, choice, error))
    if not castable:
        return _problem(target, choice, Problem.DTYPE, _dtype_reason(target, choice, result))
    if choice.proof is not Proof.RULE and holds_codes(result.dtype, target.spec.dtype):
        return _problem(target, choice, Problem.DTYPE, _codes_reason(target, choice, result))
    return _entry(target, choice, _with_cast(ops, result, target), specs)


def unfilled(
    target: TargetVariable,
    status: Status,
    reason: str,
    *,
    evidence: str = "",
    problem: Problem = Problem.NONE,
    candidates: Sequence[str] = (),
) -> PlanEntry:
    """The entry for a target that nothing fills."""
    return PlanEntry(
        target=target.name,
        sources=(),
        ops=(),
        status=status,
        evidence=evidence,
        reason=f"{reason} {target.note}".strip() if problem is not Problem.NONE else reason,
        bytes=target.spec.nbytes,
        spec=target.spec,
        group=target.group,
        problem=problem,
        candidates=tuple(candidates),
    )


def _problem(target: TargetVariable, choice: Choice, problem: Problem, reason: str) -> PlanEntry:
    names = tuple(s.name for s in choice.sources)
    return unfilled(target, Status.UNMATCHED, reason, evidence=choice.evidence, problem=problem, candidates=names)


def _shape_reason(target: TargetVariable, choice: Choice, ops: tuple[Op, ...], result: TensorSpec) -> str:
    what = " + ".join(f"{s.name!r} {list(s.spec.shape)}" for s in choice.sources)
    gives = f", which the ops ({describe(ops)}) make {list(result.shape)}" if ops else ""
    fix = '{ fit = { fill = "keep" } }'
    if result.elements == target.spec.elements:
        # Which of the two is meant, equal numbers of elements do not tell.
        fix = f"{{ reshape = {{ shape = {list(target.spec.shape)} }} }}"
        permuted = sorted(result.shape) == sorted(target.spec.shape)
        fix = f"a {{ transpose = {{ perm = ... }} }} or {fix}, whichever is meant" if permuted else fix
    return (
        f"expected shape {list(target.spec.shape)}, found {what}{gives}. Declare what to do with a rule whose ops end "
        f"in {fix}."
    )


def _dtype_reason(target: TargetVariable, choice: Choice, result: TensorSpec) -> str:
    what = " + ".join(f"{s.name!r} ({s.spec.dtype})" for s in choice.sources)
    return (
        f"expected dtype {target.spec.dtype}, found {what}: a change from {result.dtype} must be declared, with a rule "
        f'whose ops end in {{ cast = {{ dtype = "{target.spec.dtype}" }} }}.'
    )


def _codes_reason(target: TargetVariable, choice: Choice, result: TensorSpec) -> str:
    what = " + ".join(repr(s.name) for s in choice.sources)
    return (
        f"expected dtype {target.spec.dtype}, found {what} ({result.dtype}): such small integers are codes of a "
        "quantized weight, and not its values. Quantize the model as it was, or restore a checkpoint from before that. "
        f'If they are values, say so in a rule: from = "{choice.sources[0].name}", to = "{target.name}".'
    )


def _unknown_reason(target: TargetVariable, choice: Choice, error: DtypeMismatchError) -> str:
    what = " + ".join(f"{s.name!r} ({s.spec.dtype})" for s in choice.sources)
    return f'expected dtype {target.spec.dtype}, found {what}: {error} Or write keep = "{target.name}".'


def _object_reason(target: TargetVariable, choice: Choice) -> str:
    what = " + ".join(f"{s.name!r} ({s.spec.dtype})" for s in choice.sources)
    return (
        f"expected {target.spec.dtype}, found {what}. Tables and iterators are restored by their own method, as they "
        f'are: without ops, and from their like. Correct the rule, or write keep = "{target.name}".'
    )


def _castable(source: str, target: str) -> bool:
    return source == target or is_safe_cast(source, target) or is_narrowing_cast(source, target)


def _with_cast(ops: tuple[Op, ...], result: TensorSpec, target: TargetVariable) -> tuple[Op, ...]:
    return ops if result.dtype == target.spec.dtype else (*ops, Cast(target.spec.dtype))


def _copy(target: TargetVariable, choice: Choice) -> PlanEntry:
    """What `_entry` gives for a source of the target's shape and dtype, without ops."""
    (source,), spec = choice.sources, target.spec
    status = Status.EXACT if source.own_name == target.name else Status.RENAMED
    # By position: keywords add a third to the time that making it takes.
    return PlanEntry(
        target.name,
        (source.name,),
        (),
        status,
        choice.evidence,
        "",
        spec.nbytes,
        spec,
        (spec,),
        target.group,
        spec.elements,
        proof=choice.proof,
    )


def _entry(target: TargetVariable, choice: Choice, ops: tuple[Op, ...], specs: tuple[TensorSpec, ...]) -> PlanEntry:
    filled = filled_elements(ops, specs) if ops else target.spec.elements
    status = _status(target, choice, filled)
    return PlanEntry(
        target=target.name,
        sources=tuple(s.name for s in choice.sources),
        ops=ops,
        status=status,
        evidence=choice.evidence,
        reason=_reason(target, choice, filled),
        bytes=target.spec.nbytes,
        spec=target.spec,
        source_specs=specs,
        group=target.group,
        elements=filled,
        proof=choice.proof,
    )


def _status(target: TargetVariable, choice: Choice, filled: int) -> Status:
    if filled < target.spec.elements:
        return Status.RESIZED
    if choice.ops:
        return Status.TRANSFORMED
    return Status.EXACT if choice.sources[0].own_name == target.name else Status.RENAMED


def _reason(target: TargetVariable, choice: Choice, filled: int) -> str:
    source, missing = choice.sources[0].spec.dtype, target.spec.elements - filled
    parts = []
    if not any(isinstance(op, Cast) for op in choice.ops) and source != target.spec.dtype:
        safe = is_safe_cast(source, target.spec.dtype)
        how = "which loses nothing" if safe else "refused if any value would change"
        parts.append(f"cast from {source} to {target.spec.dtype}, {how}")
    if missing:
        parts.append(f"{missing} of {target.spec.elements} elements come from the fill")
    return "; ".join(parts)
