"""The first pass: every byte that a plan needs against its checksum, and every cast that might lose a value.

Reads into buffers that are used again; keeps one value at most. Knows sources and ops; knows no variables.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

from dist_restore.checkpoints.reader import Source
from dist_restore.core.progress import Progress
from dist_restore.engine.budget import Share
from dist_restore.engine.checksums import Checksums
from dist_restore.engine.chunks import release_scratch
from dist_restore.engine.lossy import Lossy
from dist_restore.engine.pipeline import Work, stream
from dist_restore.engine.prefetch import Prefetched, prefetching_work, worth_prefetching
from dist_restore.engine.read_task import ReadTask
from dist_restore.engine.read_tasks import make_tasks
from dist_restore.engine.units import Unit

# Checks hold little; this many bytes of scratch allow for enough of them to keep all threads busy.
_AHEAD = 64 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class Checked:
    """What the first pass has found, for the second one.

    Attributes:
      units: what was checked.
      tasks: what reads it, in file order.
      prefetched: a unit whose value need not be read again.
    """

    units: tuple[Unit, ...]
    tasks: Sequence[ReadTask]
    prefetched: Prefetched | None


def check_sources(
    units: tuple[Unit, ...], source: Source, progress: Progress, memory_budget: int, *, keeps: bool = True
) -> Checked:
    """Reads all that the plan needs once: checksums of whole tensors, and values that a cast might lose.

    Args:
      units: of the plan.
      source: the opened checkpoint.
      progress: counts the bytes.
      memory_budget: bytes, for all but what is prefetched.
      keeps: whether `assign_units` comes next, and may have a value that was read.

    Raises:
      CheckpointCorruptError: bytes are not what was written.
      DtypeMismatchError: a cast would change a value.
    """
    tasks = make_tasks(units, source)
    share = Share.of(tasks, memory_budget)
    chosen = worth_prefetching(tasks, share.ahead, share.alone) if keeps else None
    prefetched = Prefetched(chosen, []) if chosen is not None else None
    lossy = Lossy()
    works = _works(tasks, Checksums(source), lossy, prefetched)
    with contextlib.closing(stream(works, min(memory_budget, _AHEAD), helps=True)) as sizes:
        for size in sizes:
            progress.advance(size)
    release_scratch()
    lossy.refuse()
    return Checked(units, tasks, prefetched)


def _works(
    tasks: Sequence[ReadTask], checksums: Checksums, lossy: Lossy, prefetched: Prefetched | None
) -> Iterator[Work[int]]:
    """Checks of all; threads share large tensors."""
    for task in tasks:
        if prefetched is None or task is not prefetched.task:
            yield from task.check(checksums, lossy)
    yield from checksums.rest()
    if prefetched is not None:  # last: casts before it may hold as much, and have let it go then
        yield prefetching_work(prefetched)
