"""The first pass: every byte that a plan needs against its checksum, and every cast that might lose a value.

Reads into buffers that are used again; keeps one value at most. Knows sources and ops; knows no variables.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
from collections.abc import Iterator, Sequence

import numpy as np

from dist_restore.checkpoints.reader import DirectSource, Source, Stored
from dist_restore.core.errors import DtypeMismatchError
from dist_restore.core.phases import during
from dist_restore.core.progress import Progress
from dist_restore.engine.averaged import cost_of, is_piecewise
from dist_restore.engine.budget import Share
from dist_restore.engine.chunks import (
    SCRATCH,
    joined_pieces,
    pieces_of,
    read_checked,
    release_scratch,
    require_checksum,
    scratch,
)
from dist_restore.engine.pipeline import Started, Work, stream
from dist_restore.engine.prefetch import Prefetched, prefetching_work, worth_prefetching
from dist_restore.engine.reading import Located, Neighbours, locate, read_piecewise, read_whole, transform
from dist_restore.engine.units import Unit
from dist_restore.ops import may_refuse, numpy_dtype
from dist_restore.planning.entries import PlanEntry

_Check = Work[int]
# Checks hold little; this many bytes of scratch allow for enough of them to keep all threads busy.
_AHEAD = 64 << 20
# Variables with lossy values that one error lists.
_MAX_LOSSY = 20


@dataclasses.dataclass(frozen=True, slots=True)
class Checked:
    """What the first pass has found, for the second one.

    Attributes:
      units: what was checked.
      located: where it lies, in file order.
      prefetched: a unit whose value need not be read again.
    """

    units: tuple[Unit, ...]
    located: Sequence[Located]
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
    located = locate(units, source)
    share = Share.of(located, memory_budget)
    chosen = worth_prefetching(located, share.ahead, share.alone) if keeps else None
    return Checked(units, located, _check(located, source, progress, memory_budget, chosen))


def _check(
    located: Sequence[Located], source: Source, progress: Progress, budget: int, chosen: Located | None
) -> Prefetched | None:
    """Checks all; threads share large tensors."""
    prefetched = Prefetched(chosen.unit, []) if chosen is not None else None
    lossy = _Lossy()
    works = _checks([item for item in located if item is not chosen], source, lossy)
    if chosen is not None and prefetched is not None:  # last: casts before it may hold as much, and have let it go then
        works = itertools.chain(works, [prefetching_work(chosen, source, prefetched.values)])
    with contextlib.closing(stream(works, min(budget, _AHEAD), helps=True)) as sizes:
        for size in sizes:
            progress.advance(size)
    release_scratch()
    lossy.refuse()
    return prefetched


class _Lossy:
    """Entries whose casts would change a value, so that one attempt shows many of them."""

    def __init__(self) -> None:
        self._found: list[tuple[PlanEntry, DtypeMismatchError]] = []  # by any thread

    @contextlib.contextmanager
    def gathered(self, entry: PlanEntry) -> Iterator[None]:
        """Keeps the error that leaves the block; raises once there are enough."""
        try:
            yield
        except DtypeMismatchError as error:
            self._found.append((entry, error))
            if len(self._found) >= _MAX_LOSSY:
                self.refuse()

    def refuse(self) -> None:
        """Raises what was found; nothing where nothing was."""
        found = sorted(self._found, key=lambda pair: pair[0].target)[:_MAX_LOSSY]
        with during("transform"):
            if len(found) == 1:
                raise found[0][1]
            if found:
                raise DtypeMismatchError(_lossy_text(found), names=tuple(entry.target for entry, _ in found))


def _lossy_text(found: Sequence[tuple[PlanEntry, DtypeMismatchError]]) -> str:
    more = ", and maybe more" if len(found) == _MAX_LOSSY else ""
    lines = [f"{len(found)} variables would lose values{more}:", *(f"  {error}" for _, error in found)]
    cast = [entry for entry, _ in found if len(entry.ops) == len(entry.sources) == 1]
    if cast:
        lines += ["Rules that allow it, if that is meant:", *map(_lossy_rule, cast)]
    return "\n".join(lines)


def _lossy_rule(entry: PlanEntry) -> str:
    names = f"from = {json.dumps(entry.sources[0])}\n  to = {json.dumps(entry.target)}"
    return f'  [[rule]]\n  {names}\n  ops = [{{ cast = {{ dtype = "{entry.spec.dtype}", lossy = true }} }}]'


def _checks(located: Sequence[Located], source: Source, lossy: _Lossy) -> Iterator[_Check]:
    direct = source if isinstance(source, DirectSource) else None
    neighbours = Neighbours()
    for item in located:
        if any(map(may_lose, item.unit.entries)):
            if is_piecewise(item.unit, item.places):
                yield Work(cost_of(item.unit), functools.partial(_start_piecewise, item, source, lossy))
                continue
            yield Work(item.unit.nbytes, functools.partial(_start_unit, item.unit, source, lossy))
            continue
        for read, place in zip(item.unit.reads, item.places or (None,) * len(item.unit.reads), strict=True):
            if place is None or direct is None:
                if read.whole:
                    yield Work(SCRATCH, functools.partial(_start_other, read.name, source))
            elif place.crc32c is None:
                continue  # nothing to compare; that the file is long enough was seen when it was opened
            elif place.size >= SCRATCH:
                yield Work(SCRATCH, functools.partial(_start_large, read.name, place, direct))
            else:
                if not neighbours.accepts(place):
                    yield Work(SCRATCH, functools.partial(_start_small, neighbours, direct))
                    neighbours = Neighbours()
                neighbours.add(read.name, place)
    if neighbours.names and direct is not None:
        yield Work(SCRATCH, functools.partial(_start_small, neighbours, direct))


def _start_piecewise(item: Located, source: Source, lossy: _Lossy) -> Started[int]:
    work = read_piecewise(item, source, None)

    def task() -> None:
        with lossy.gathered(item.unit.entries[0]):
            work()

    return Started((task,), lambda: sum(r.spec.nbytes for r in item.unit.reads))


def _start_unit(unit: Unit, source: Source, lossy: _Lossy) -> Started[int]:
    return Started((lambda: _check_casts(unit, source, lossy),), lambda: sum(r.spec.nbytes for r in unit.reads))


def _start_other(name: str, source: Source) -> Started[int]:
    sizes: list[int] = []
    return Started((lambda: sizes.append(source.check(name)),), lambda: sizes[0])


def _start_small(neighbours: Neighbours, source: DirectSource) -> Started[int]:
    def task() -> None:
        neighbours.read(source, scratch(neighbours.places[0].offset))

    return Started((task,), lambda: neighbours.size, brief=True)


def _start_large(name: str, place: Stored, source: DirectSource) -> Started[int]:
    pieces = pieces_of(place.size)
    crcs = [0] * len(pieces)

    def read(number: int) -> None:
        crcs[number] = read_checked(source, name, *pieces[number], scratch(place.offset))

    def finish() -> int:
        require_checksum(source, name, place, joined_pieces(crcs, place.size))
        return place.size

    return Started(tuple(functools.partial(read, i) for i in range(len(pieces))), finish, brief=True)


def _check_casts(unit: Unit, source: Source, lossy: _Lossy) -> None:
    """Reads a unit as it will be read for assignment; whole tensors are checked as their bytes pass."""
    values = read_whole(unit, source)
    for entry in unit.entries:
        if may_lose(entry):
            # The fill's values do not matter to the check, so the live value is not needed for it.
            with lossy.gathered(entry):
                transform(entry, values, source, functools.partial(_zeros, entry))


def _zeros(entry: PlanEntry) -> np.ndarray:
    return np.zeros(entry.spec.shape, numpy_dtype(entry.spec.dtype))


def may_lose(entry: PlanEntry) -> bool:
    """Whether values decide if this entry can be made: a cast that may lose one, a scale that may overflow."""
    return bool(entry.ops) and may_refuse(entry.ops, entry.source_specs)
