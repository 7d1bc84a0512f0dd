"""What the budget of memory is spent on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from dist_restore.engine.chunks import PIECE
from dist_restore.engine.pipeline import thread_count
from dist_restore.engine.read_task import ReadTask

# Two pieces per thread. TensorFlow's CPU allocator (2.21) gives no memory back to the system and cuts up what it gets
# back, so that more in flight leaves more of it taken: with q/k/v fused, 1.3 GB once took 274 MB beyond the variables
# with 64 MB in flight, and 199 with 24 (136 with 24 and 32 on a slower machine). With 24 MB, and as much old memory
# in the pool, 200 of 556 tensors found none of their size, with 32 MB 116: assigning took 0.56 and 0.40 s.
USEFUL = 2 * PIECE * thread_count()

# TensorFlow's CPU allocator (2.21) takes memory from the system in regions, each as large as all before together, and
# touches a table of 8 bytes for each 256 of a region at once: 134 MB where 4 GB of variables want one tensor more.
_TABLE = 8 / 256


@dataclasses.dataclass(frozen=True, slots=True)
class Share:
    """What becomes of one worker's budget, in bytes.

    Attributes:
      ahead: may be in flight.
      pooled: old memory that may wait in the pool.
      alone: what one larger tensor may take of TensorFlow's allocator, which gives nothing back.
    """

    ahead: int
    pooled: int
    alone: int

    @classmethod
    def of(cls, tasks: Iterable[ReadTask], memory_budget: int) -> Share:
        """The share of each, for what is to be read."""
        ahead = min(memory_budget, USEFUL)
        left = memory_budget - ahead
        table = int(_TABLE * sum(task.stored_size for task in tasks))
        # Twice as much may wait, so that a value of more than `ahead` can: 4 GB with fused tensors of 41 and 55 MB took
        # 806 MB beyond the variables with `ahead`, and 489 so.
        return cls(ahead, min(2 * ahead, left), max(ahead, left - table))


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """What a restore may take: bytes in flight, and seconds of one wait for other workers."""

    memory_budget: int
    seconds: float
