"""Whether a plan, this program's variables and the opened checkpoint belong together. Before a byte of weights is read.

Run by every worker for itself: what it raises goes to all of them, with its rank.
"""

from __future__ import annotations

from dist_restore.core.errors import PlanMismatchError, RestoreError
from dist_restore.core.index import CheckpointIndex, TargetIndex
from dist_restore.core.tensors import TensorSpec
from dist_restore.ops import infer
from dist_restore.planning.entries import PlanEntry
from dist_restore.planning.plan import RestorePlan

_SHOWN = 5


def require_targets(plan: RestorePlan, targets: TargetIndex) -> None:
    """Raises `PlanMismatchError`, with the first differing variables, unless a plan was made for these variables."""
    if plan.target_fingerprint != targets.fingerprint:
        raise PlanMismatchError(
            f"The plan {plan.digest[:12]} was made for other variables than this program's: "
            f"{_difference(plan, targets)}. All workers must build the same model under the same options; "
            "make the plan again with restorer.plan(path)."
        )
    specs = {v.name: v.spec for v in targets.variables}
    if [e.target for e in plan.entries] != sorted(specs):
        raise PlanMismatchError(
            f"The plan {plan.digest[:12]} does not have one entry for each variable. Make it again."
        )
    for entry in plan.entries:
        if not (_same(entry.spec, specs[entry.target]) and _is_whole(entry)):
            raise _unfit(plan, entry)


def require_checkpoint(plan: RestorePlan, index: CheckpointIndex) -> None:
    """Raises `PlanMismatchError` unless a plan was made for this checkpoint, and names its tensors as they are."""
    if plan.checkpoint_fingerprint != index.fingerprint:
        raise PlanMismatchError(
            f"The plan {plan.digest[:12]} was made for {plan.checkpoint!r}, whose tensors are not those of "
            f"{index.path!r}. Make it again with restorer.plan(path)."
        )
    specs = {t.name: t.spec for t in index.tensors}
    for entry in plan.entries:
        for name, spec in zip(entry.sources, entry.source_specs, strict=False):
            if not _same(specs.get(name), spec):
                raise _unfit(plan, entry)


def _same(one: TensorSpec | None, other: TensorSpec) -> bool:
    return one is other or one == other  # most tensors of an index share a few specs, and identity is quicker


def _is_whole(entry: PlanEntry) -> bool:
    """A plan may have been edited, and its digest made anew: its entries must fit all the same."""
    return len(entry.sources) == len(entry.source_specs) and (not entry.filled or _makes(entry))


def _makes(entry: PlanEntry) -> bool:
    """Whether an entry's ops make a value of its target's shape and dtype out of its sources."""
    if not entry.ops:
        return len(entry.source_specs) == 1 and _same(entry.source_specs[0], entry.spec)
    try:
        return bool(entry.sources) and infer(entry.ops, entry.source_specs) == entry.spec
    except (RestoreError, ValueError, TypeError, IndexError):
        return False


def _unfit(plan: RestorePlan, entry: PlanEntry) -> PlanMismatchError:
    return PlanMismatchError(
        f"The plan {plan.digest[:12]} does not fit: its entry for {entry.target!r} names sources, shapes or ops "
        "that are not those of the checkpoint and the program. Make it again.",
        names=(entry.target,),
    )


def _difference(plan: RestorePlan, targets: TargetIndex) -> str:
    planned = {e.target: str(e.spec) for e in plan.entries}
    found = {v.name: str(v.spec) for v in targets.variables}
    names = sorted(n for n in planned.keys() | found.keys() if planned.get(n) != found.get(n))
    parts = [f"{n!r} is {planned.get(n, 'absent')} in the plan and {found.get(n, 'absent')} here" for n in names]
    return "; ".join(parts[:_SHOWN]) or "their order or owners differ"
