"""What the first pass reads to where it will stay, so that the second need not read it again.

A tensor of more than what is in flight passes alone, and takes new memory: it may have that from the start. Knows units
and their values; knows no variables.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import msgspec

from dist_restore.checkpoints.reader import Source
from dist_restore.engine.pipeline import Started, Work
from dist_restore.engine.reading import Located, Values, direct_work, is_direct, stored_size
from dist_restore.engine.units import Unit


class Prefetched(msgspec.Struct, frozen=True):
    """A unit that the first pass has read and checked.

    Attributes:
      unit: of the plan.
      values: of its entry; who assigns it empties the list.
    """

    unit: Unit
    values: Values


def worth_prefetching(located: Sequence[Located], above: int, limit: int) -> Located | None:
    """The largest unit of more than `above` bytes and at most `limit` that is one tensor and becomes one variable."""
    fitting = [item for item in located if above < stored_size(item) <= limit]
    direct = [item for item in fitting if item.places and is_direct(item.unit)]
    return max(direct, key=stored_size, default=None)


def prefetching_work(item: Located, source: Source, into: Values) -> Work[int]:
    """Reads and checks a unit that is `worth_prefetching`; the result is how many bytes were read.

    Args:
      item: the unit.
      source: the opened checkpoint.
      into: gets the value.
    """
    work = direct_work(item, source)
    return Work(work.nbytes, functools.partial(_start, work, into))


def _start(work: Work[Values], into: Values) -> Started[int]:
    started = work.start()

    def finish() -> int:
        into.extend(started.finish())
        return work.nbytes

    return Started(started.tasks, finish, brief=started.brief)


def prefetched_work(prefetched: Prefetched) -> Work[Values]:
    """What has been read already, to be consumed first: nothing else takes memory before it is the variable's."""
    return Work(prefetched.unit.entries[0].bytes, lambda: Started((), lambda: prefetched.values))
