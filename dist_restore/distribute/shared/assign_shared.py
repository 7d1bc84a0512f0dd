"""Assigning what each worker reads a share of: read and transformed once, sent to the others, assigned by all."""

from __future__ import annotations

import contextlib

from dist_restore.checkpoints.reader import Source
from dist_restore.distribute.messaging.exchange import Exchange
from dist_restore.distribute.shared.rounds import share
from dist_restore.distribute.shared.schedule import Schedule
from dist_restore.engine.budget import USEFUL, Limits
from dist_restore.engine.ledger import Ledger
from dist_restore.engine.pipeline import stream_pending
from dist_restore.engine.read_tasks import load_all
from dist_restore.engine.values import LiveOf


def assign_shared(
    schedule: Schedule,
    rank: int,
    source: Source | None,
    ledger: Ledger,
    live_of: LiveOf,
    exchange: Exchange,
    limits: Limits,
) -> bool:
    """Reads and transforms this worker's share, sends it to the others, and assigns everything. Called by all workers.

    Returns:
      Whether everything was assigned; `False` when another worker could not go on.

    Raises:
      RestoreError: as `assign_units`.
    """
    units = schedule.lane(rank).units
    works = load_all(units, source, live_of) if source is not None else iter(())
    with (
        ledger.accounting(),
        contextlib.closing(stream_pending(works, min(limits.memory_budget // 4, USEFUL))) as pending,
    ):
        return share(schedule, rank, pending, exchange, ledger.assign, limits.seconds)
