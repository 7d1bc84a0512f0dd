"""What the first pass reads to where it will stay, so that the second need not read it again.

A tensor of more than what is in flight passes alone, and takes new memory: it may have that from the start. Knows units
and their values; knows no variables.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import msgspec

from dist_restore.engine.direct import DirectTask
from dist_restore.engine.pipeline import Started, Work
from dist_restore.engine.read_task import ReadTask
from dist_restore.engine.values import Values


class Prefetched(msgspec.Struct, frozen=True):
    """A unit that the first pass has read and checked.

    Attributes:
      task: that reads it.
      values: of its entry; who assigns it empties the list.
    """

    task: DirectTask
    values: Values


def worth_prefetching(tasks: Iterable[ReadTask], above: int, limit: int) -> DirectTask | None:
    """The largest unit of more than `above` bytes and at most `limit` that is one tensor and becomes one variable."""
    fitting = (task for task in tasks if isinstance(task, DirectTask) and above < task.stored_size <= limit)
    return max(fitting, key=lambda task: task.stored_size, default=None)


def prefetching_work(prefetched: Prefetched) -> Work[int]:
    """Reads and checks the unit, whose value the list gets; the result is how many bytes were read."""
    work = prefetched.task.read()
    return Work(work.nbytes, functools.partial(_start, work, prefetched.values))


def _start(work: Work[Values], into: Values) -> Started[int]:
    started = work.start()

    def finish() -> int:
        into.extend(started.finish())
        return work.nbytes

    return Started(started.tasks, finish, brief=started.brief)


def prefetched_work(prefetched: Prefetched) -> Work[Values]:
    """What has been read already, to be consumed first: nothing else takes memory before it is the variable's."""
    return Work(prefetched.task.nbytes, lambda: Started((), lambda: prefetched.values))
