"""Which kind each unit is: the one place that tells them apart, once for both passes.

A large tensor that is assigned as it is goes straight from the file into the memory that its variable will have; small
tensors that lie side by side in the file are read at once; what is joined or averaged is made piece by piece; the rest
is read tensor by tensor.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from dist_restore.checkpoints.reader import DirectSource, Source
from dist_restore.engine.averaged import PiecewiseTask, is_piecewise
from dist_restore.engine.direct import DirectTask, is_direct
from dist_restore.engine.joined import JoinedTask, is_joined
from dist_restore.engine.located import Located, locate
from dist_restore.engine.pipeline import Work
from dist_restore.engine.read_task import ReadTask
from dist_restore.engine.single import SingleTask
from dist_restore.engine.small_batch import is_small, small_batches
from dist_restore.engine.units import Unit
from dist_restore.engine.values import LiveOf, Values


def make_tasks(units: Iterable[Unit], source: Source) -> list[ReadTask]:
    """What reads units, in file order.

    Args:
      units: of the plan.
      source: the opened checkpoint.
    """
    located = locate(units, source)
    if not isinstance(source, DirectSource):
        return [SingleTask(item, source) for item in located]
    tasks: list[ReadTask] = []
    for small, group in itertools.groupby(located, is_small):
        items = list(group)
        tasks += small_batches(items, source) if small else [_task(item, source) for item in items]
    return tasks


def load_all(units: Iterable[Unit], source: Source, live_of: LiveOf) -> Iterator[Work[Values]]:
    """The work of reading units, in file order, for who checks nothing before.

    Args:
      units: of the plan.
      source: the opened checkpoint.
      live_of: as for `ReadTask.load`.
    """
    return (task.load(live_of) for task in make_tasks(units, source))


def _task(item: Located, source: DirectSource) -> ReadTask:
    if item.places is None:
        return SingleTask(item, source)
    if is_direct(item.unit):
        return DirectTask(item, source)
    if is_joined(item.unit, item.places):
        return JoinedTask(item, source)
    if is_piecewise(item.unit, item.places):
        return PiecewiseTask(item, source)
    return SingleTask(item, source)
