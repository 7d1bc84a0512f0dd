"""The second pass: reads, transforms, assigns. Knows units and the ledger; knows no names beyond those of the plan."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from dist_restore.checkpoints.files.mounts import are_local
from dist_restore.checkpoints.reader import Source
from dist_restore.core.phases import during
from dist_restore.engine.budget import Share
from dist_restore.engine.check_pass import Checked
from dist_restore.engine.chunks import release_scratch
from dist_restore.engine.ledger import Ledger
from dist_restore.engine.pipeline import Work, stream
from dist_restore.engine.prefetch import prefetched_work
from dist_restore.engine.read_task import ReadTask
from dist_restore.engine.read_tasks import make_tasks
from dist_restore.engine.units import Unit
from dist_restore.engine.values import LiveOf, MakeBuffer, Values
from dist_restore.tf_internals.buffer_pool import BufferPool


def assign_units(
    units: tuple[Unit, ...],
    source: Source,
    ledger: Ledger,
    live_of: LiveOf,
    memory_budget: int,
    checked: Checked | None = None,
) -> None:
    """Reads, transforms and assigns, in file order, and before it what was prefetched: every worker all units.

    Args:
      units: of the plan.
      source: the opened checkpoint.
      ledger: who assigns.
      live_of: gives what gives an entry's present value, for `fill = "keep"`.
      memory_budget: bytes.
      checked: from `check_sources`, where that ran.

    Raises:
      RestoreError: something failed half way; the message names the variables that had changed.
    """
    if checked is None or checked.units != units:  # quick where they are the same objects
        checked = Checked(units, make_tasks(units, source), None)
    share = Share.of(checked.tasks, memory_budget)
    pool = BufferPool(share.pooled, share.alone if _all_leave_memory(checked.tasks, share.alone, ledger) else None)
    works = _works(checked, live_of, pool.take)
    # On storage behind a network a read may take long, and no signal is heard meanwhile.
    helps = are_local(source.index().paths)
    with ledger.accounting(), contextlib.closing(stream(works, share.ahead, helps=helps)) as results:
        for values in _reading(results):
            ledger.assign(values, pool)
    release_scratch()


def _works(checked: Checked, live_of: LiveOf, make_buffer: MakeBuffer) -> Iterator[Work[Values]]:
    """What was prefetched, and all else."""
    prefetched = checked.prefetched
    if prefetched is not None:
        yield prefetched_work(prefetched)
    for task in checked.tasks:
        if prefetched is None or task is not prefetched.task:
            yield task.load(live_of, make_buffer)


def _all_leave_memory(tasks: Sequence[ReadTask], above: int, ledger: Ledger) -> bool:
    """Whether the variables of more than so many bytes do."""
    large = [entry.target for task in tasks for entry in task.entries if entry.bytes > above]
    return all(ledger.assigner.leaves_memory(ledger.handles[name]) for name in large)


def _reading(results: Iterator[Values]) -> Iterator[Values]:
    while True:
        with during("read"):
            values = next(results, None)
        if values is None:
            return
        yield values
