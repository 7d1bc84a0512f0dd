"""Carrying out a plan: check every byte that it needs, then assign, then look at the replicas.

Nothing changes before all checks have passed. Knows units of reading and handles of variables; knows no names
beyond those of the plan.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf

from dist_restore.assign import Assigner
from dist_restore.distribute.schedule import Read, Unit, parts_of
from dist_restore.entries import PlanEntry
from dist_restore.errors import DtypeMismatchError, RestoreError, VerificationError
from dist_restore.report.progress import Progress
from dist_restore.sources.base import Source
from dist_restore.specs import Box
from dist_restore.transforms import Cast, Live, apply, apply_boxed, is_safe_cast, numpy_dtype

# Two threads already reach the memory's speed on the machines measured; CRC32C releases the interpreter's lock.
CHECK_THREADS = 2


@dataclasses.dataclass(frozen=True, slots=True)
class Assigned:
    """What the replicas of one variable must hold now: a checksum per local replica."""

    name: str
    checksums: tuple[int, ...]


def check_sources(units: Sequence[Unit], source: Source, progress: Progress) -> None:
    """Reads all that the plan needs once: checksums of whole tensors, and values that a cast might lose.

    Raises:
      CheckpointCorruptError: bytes are not what was written.
      DtypeMismatchError: a cast would change a value.
    """
    with concurrent.futures.ThreadPoolExecutor(CHECK_THREADS, "dist_restore_check") as pool:
        try:
            for size in pool.map(lambda unit: _check_unit(unit, source), units):
                progress.advance(size)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _check_unit(unit: Unit, source: Source) -> int:
    risky = [e for e in unit.entries if _may_lose(e)]
    values = _read_whole(unit, source) if risky else {}
    for entry in risky:
        # The fill's values do not matter to the check, so the live value is not needed for it.
        _transform(entry, values, source, functools.partial(_zeros, entry))
    for read in unit.reads:
        if read.whole and read.name not in values:
            source.check(read.name)
    return sum(r.spec.nbytes for r in unit.reads)


def _zeros(entry: PlanEntry) -> np.ndarray:
    return np.zeros(entry.spec.shape, numpy_dtype(entry.spec.dtype))


def _may_lose(entry: PlanEntry) -> bool:
    if not any(isinstance(op, Cast) and not op.lossy for op in entry.ops):
        return False
    return any(not is_safe_cast(s.dtype, entry.spec.dtype) for s in entry.source_specs)


def assign_units(
    units: Sequence[Unit],
    source: Source,
    handles: Mapping[str, tf.Variable],
    assigner: Assigner,
    progress: Progress,
) -> list[Assigned]:
    """Reads, transforms and assigns, unit after unit. Called by all workers.

    Raises:
      RestoreError: something failed half way; the message names the variables that had changed.
    """
    done: list[Assigned] = []
    touched: list[str] = []
    try:
        for unit in units:
            for entry, value in _values(unit, source, handles, assigner):
                touched.append(entry.target)
                done.append(Assigned(entry.target, assigner.assign(handles[entry.target], value)))
                progress.advance(entry.bytes, entry.target)
    except RestoreError as error:
        raise type(error)(f"{error} {_changed(touched)}", names=error.names) from error
    except BaseException as error:
        error.add_note(_changed(touched))
        raise
    return done


def _changed(touched: Sequence[str]) -> str:
    if not touched:
        return "No variable had changed."
    names = ", ".join(repr(name) for name in touched[:20])
    return f"{len(touched)} variable(s) had changed already: {names}{', ...' if len(touched) > 20 else ''}."


def _values(
    unit: Unit, source: Source, handles: Mapping[str, tf.Variable], assigner: Assigner
) -> Iterator[tuple[PlanEntry, np.ndarray]]:
    values = _read_whole(unit, source)
    for entry in unit.entries:
        variable = handles[entry.target]
        yield entry, _transform(entry, values, source, functools.partial(assigner.live_value, variable))


def _read_whole(unit: Unit, source: Source) -> dict[str, np.ndarray]:
    return {r.name: source.read(r.name) for r in _whole(unit.reads)}


def _whole(reads: Iterable[Read]) -> Iterator[Read]:
    return (r for r in reads if r.whole)


def _transform(entry: PlanEntry, values: Mapping[str, np.ndarray], source: Source, live: Live) -> np.ndarray:
    """The value of one target; an error in it names the target, for the ops know no names."""
    try:
        return _apply(entry, values, source, live)
    except DtypeMismatchError as error:
        what = " + ".join(repr(name) for name in entry.sources)
        raise DtypeMismatchError(f"{entry.target!r} {entry.spec} from {what}: {error}", names=(entry.target,)) from error


def _apply(entry: PlanEntry, values: Mapping[str, np.ndarray], source: Source, live: Live) -> np.ndarray:
    if all(name in values for name in entry.sources):
        return apply(entry.ops, [values[name] for name in entry.sources], live=live)
    boxes = parts_of(entry)
    arrays = [_part(name, box, values, source) for name, box in zip(entry.sources, boxes, strict=True)]
    return apply_boxed(entry.ops, entry.source_specs, boxes, arrays, live)


def _part(name: str, box: Box | None, values: Mapping[str, np.ndarray], source: Source) -> np.ndarray | None:
    if box is None:
        return None
    return values[name][box.slices()] if name in values else source.read(name, box)


def verify_replicas(assigned: Sequence[Assigned], handles: Mapping[str, tf.Variable], assigner: Assigner) -> None:
    """Hashes what every local replica holds and compares it with what was assigned. Called by all workers.

    Raises:
      VerificationError: a replica holds something else.
    """
    wrong = []
    for item in assigned:
        found = assigner.checksums(handles[item.name])
        if found != item.checksums:
            replicas = [i for i, (a, b) in enumerate(zip(found, item.checksums, strict=True)) if a != b]
            wrong.append(f"{item.name!r} on replica(s) {replicas}")
    if wrong:
        raise VerificationError(
            f"{len(wrong)} variable(s) do not hold what was assigned: {', '.join(wrong[:10])}. Something else wrote "
            "them during the restore, or a device lost data. Restore again with nothing else running.",
            names=tuple(wrong),
        )
