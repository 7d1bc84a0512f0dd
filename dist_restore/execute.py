"""Carrying out a plan: check every byte that it needs, then assign, then look at the replicas.

Nothing changes before all checks have passed. Knows units of reading and handles of variables; knows no names
beyond those of the plan.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence

import tensorflow as tf

from dist_restore.assign import Assigner, Replicas
from dist_restore.checking import check_located
from dist_restore.distribute.schedule import Unit
from dist_restore.entries import PlanEntry
from dist_restore.errors import RestoreError, VerificationError
from dist_restore.pipeline import Started, Work, stream
from dist_restore.reading import Value, locate, make_works
from dist_restore.report.progress import Progress
from dist_restore.sources.base import Source
from dist_restore.transforms import Live

DEFAULT_BUDGET = 256 << 20
# Enough for several pieces per thread; that more in flight would be no faster is a guess that nobody has measured.
_USEFUL = 64 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class Assigned:
    """What the replicas of one variable must hold now: a checksum per local replica; and the variable's size."""

    name: str
    checksums: tuple[int, ...]
    nbytes: int = 0


def check_sources(
    units: Sequence[Unit], source: Source, progress: Progress, memory_budget: int = DEFAULT_BUDGET
) -> None:
    """Reads all that the plan needs once: checksums of whole tensors, and values that a cast might lose.

    Raises:
      CheckpointCorruptError: bytes are not what was written.
      DtypeMismatchError: a cast would change a value.
    """
    check_located(locate(units, source), source, progress, memory_budget)


def assign_units(
    units: Sequence[Unit],
    source: Source,
    handles: Mapping[str, tf.Variable],
    assigner: Assigner,
    progress: Progress,
    memory_budget: int = DEFAULT_BUDGET,
) -> list[Assigned]:
    """Reads, transforms and assigns, in file order. Called by all workers.

    Raises:
      RestoreError: something failed half way; the message names the variables that had changed.
    """

    def live_of(entry: PlanEntry) -> Live:
        return functools.partial(assigner.live_value, handles[entry.target])

    works = make_works(locate(units, source), source, live_of)
    with contextlib.closing(stream(works, min(memory_budget, _USEFUL))) as results:
        return assign_values(results, handles, assigner, progress)


def assign_values(
    results: Iterator[list[Value]], handles: Mapping[str, tf.Variable], assigner: Assigner, progress: Progress
) -> list[Assigned]:
    """Assigns what a reader, or another worker, hands over, in its order.

    Raises:
      RestoreError: as `assign_units`.
    """
    done: list[Assigned] = []
    touched: list[str] = []
    try:
        for values in results:
            while values:  # each is let go before the next one is assigned: its memory is the variable's now
                value = values.pop(0)
                touched.append(value.entry.target)
                done.append(_assign(value, handles, assigner))
                progress.advance(value.entry.bytes, value.entry.target)
                del value
    except RestoreError as error:
        raise type(error)(f"{error} {_changed(touched)}", names=error.names) from error
    except BaseException as error:
        error.add_note(_changed(touched))
        raise
    return done


def _assign(value: Value, handles: Mapping[str, tf.Variable], assigner: Assigner) -> Assigned:
    name = value.entry.target
    return Assigned(name, assigner.assign(handles[name], value.value, value.crc32c), value.entry.bytes)


def _changed(touched: Sequence[str]) -> str:
    if not touched:
        return "No variable had changed."
    names = ", ".join(repr(name) for name in touched[:20])
    return f"{len(touched)} variable(s) had changed already: {names}{', ...' if len(touched) > 20 else ''}."


def verify_replicas(assigned: Sequence[Assigned], handles: Mapping[str, tf.Variable], assigner: Assigner) -> None:
    """Hashes what every local replica holds and compares it with what was assigned. Called by all workers.

    Raises:
      VerificationError: a replica holds something else.
    """
    works = (_verification(group, handles, assigner) for group in _groups(assigned))
    with contextlib.closing(stream(works, _USEFUL)) as results:
        wrong = [text for found in results for text in found]
    if wrong:
        raise VerificationError(
            f"{len(wrong)} variable(s) do not hold what was assigned: {', '.join(wrong[:10])}. Something else wrote "
            "them during the restore, or a device lost data. Restore again with nothing else running.",
            names=tuple(wrong),
        )


def _groups(assigned: Sequence[Assigned]) -> Iterator[list[Assigned]]:
    """Many small variables together, so that threads are not handed crumbs; large ones alone."""
    group: list[Assigned] = []
    size = 0
    for item in assigned:
        group.append(item)
        size += item.nbytes
        if size >= _GROUP:
            yield group
            group, size = [], 0
    if group:
        yield group


_GROUP = 1 << 20


def _verification(group: Sequence[Assigned], handles: Mapping[str, tf.Variable], assigner: Assigner) -> Work[list[str]]:
    """Variables are read by the consumer's thread, and hashed by others."""
    size = sum(item.nbytes for item in group)

    def start() -> Started[list[str]]:
        held = [assigner.replicas(handles[item.name]) for item in group]
        wrong: list[str] = []
        return Started((functools.partial(_compare, group, held, wrong),), lambda: wrong)

    return Work(size, start)


def _compare(group: Sequence[Assigned], held: Sequence[Replicas], wrong: list[str]) -> None:
    for item, replicas in zip(group, held, strict=True):
        found = replicas.checksums()
        if found != item.checksums:
            numbers = [i for i, (a, b) in enumerate(zip(found, item.checksums, strict=True)) if a != b]
            wrong.append(f"{item.name!r} on replica(s) {numbers}")
