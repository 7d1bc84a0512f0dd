"""What a worker checks of a plan before a byte of weights is read, and what all workers must have alike.

All that names, shapes and dtypes can show is refused here.
"""

from __future__ import annotations

import dataclasses

from dist_restore.checkpoints.open import Resolved
from dist_restore.checkpoints.reader import Source
from dist_restore.core.errors import PlanMismatchError
from dist_restore.core.index import TargetIndex
from dist_restore.core.options import Order, Reads, RestoreConfig
from dist_restore.distribute.decisions import Acknowledgement
from dist_restore.planning.order import refuse_order
from dist_restore.planning.plan import RestorePlan
from dist_restore.planning.refusal import refuse_problems
from dist_restore.planning.validate import require_checkpoint, require_targets
from dist_restore.restore.objects import refuse_shared_iterators


def acknowledge(
    plan: RestorePlan,
    given: RestorePlan | None,
    targets: TargetIndex,
    source: Source | None,
    config: RestoreConfig,
    world_size: int,
) -> Acknowledgement:
    """Checks the chief's plan against what this worker has. Called by all workers.

    Args:
      plan: the chief's.
      given: the plan that this worker was told to apply, if it was.
      targets: this worker's variables.
      source: the checkpoint as this worker sees it; None where it does not.
      config: the options.
      world_size: number of workers.

    Raises:
      PlanMismatchError: the plan is not for these variables, or not for this checkpoint.
      RestoreError: the plan has problems; each has its own class.
    """
    if given is not None and given is not plan and given.digest != plan.digest:
        raise PlanMismatchError(f"The chief applies the plan {plan.digest[:12]}, and this worker {given.digest[:12]}.")
    # What a single process planned a moment ago, out of these two, need not be compared with them: 4 us a variable.
    if given is not None or world_size > 1:
        require_targets(plan, targets)
        if source is not None:
            require_checkpoint(plan, source.index())
    refuse_problems(_as_allowed(plan, given, config))
    refuse_shared_iterators(plan.entries, world_size)
    # One worker has nobody to compare it with, and for 50,000 variables it takes 0.3 s.
    digest = plan.digest if world_size > 1 else ""
    # Without checksums equal samples are no proof, and the chief alone reads, unless others were told to.
    may_read = source is not None and (source.is_proof() or config.reads is not Reads.AUTO)
    return Acknowledgement(digest, source.identity() if source else "", may_read, _options(config))


def _as_allowed(plan: RestorePlan, given: RestorePlan | None, config: RestoreConfig) -> RestorePlan:
    """A plan that was made before may rest on more than this restorer allows."""
    if given is None or config.order is not Order.REFUSE:
        return plan
    return dataclasses.replace(plan, entries=tuple(refuse_order(plan.entries)))


def _options(config: RestoreConfig) -> str:
    return f"reads={config.reads.value} verify={config.verify.value} memory_budget={config.memory_budget}"


def require_alike(mine: Acknowledgement, chiefs: Acknowledgement, path: Resolved) -> None:
    """Compares what two workers said.

    Raises:
      PlanMismatchError: they have different plans, options or files.
    """
    if mine.digest != chiefs.digest:
        raise PlanMismatchError(f"The chief has the plan {chiefs.digest[:12]}, and this worker {mine.digest[:12]}.")
    if mine.options != chiefs.options:
        raise PlanMismatchError(
            f"This worker's restorer has {mine.options}, the chief's {chiefs.options}. Give all workers the same."
        )
    if mine.identity and mine.identity != chiefs.identity:
        raise PlanMismatchError(
            f"{path}: this worker sees other files under this path than the chief (their checksums or sizes "
            "differ). Copy the chief's there, remove them, or pass reads='chief'."
        )
