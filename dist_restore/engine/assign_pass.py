"""Carrying out a plan: check every byte that it needs, then assign.

Nothing changes before all checks have passed. Knows units of reading and handles of variables; knows no names
beyond those of the plan.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Hashable, Iterator, Mapping, Sequence

import tensorflow as tf

from dist_restore.checkpoints.files.mounts import are_local
from dist_restore.checkpoints.reader import Source
from dist_restore.core.errors import RestoreError, WorkerError
from dist_restore.core.phases import during, phase_of
from dist_restore.core.progress import Progress
from dist_restore.engine.check_pass import check_located
from dist_restore.engine.chunks import PIECE, release_scratch
from dist_restore.engine.pipeline import stream, thread_count
from dist_restore.engine.prefetch import Kept, kept_work, worth_keeping
from dist_restore.engine.reading import LiveOf, Located, Value, make_works, stored_size
from dist_restore.engine.units import Unit
from dist_restore.ops import Live
from dist_restore.planning.entries import PlanEntry
from dist_restore.targets.assigner import Assigned, Assigner, Write, checksum
from dist_restore.tf_internals.batched import together
from dist_restore.tf_internals.buffer_pool import Spares
from dist_restore.tf_internals.host_memory import Blank

# Two pieces per thread. TensorFlow's CPU allocator (2.21) gives no memory back to the system and cuts up what it gets
# back, so that more in flight leaves more of it taken: with q/k/v fused, 1.3 GB once took 274 MB beyond the variables
# with 64 MB in flight, and 199 with 24 (136 with 24 and 32 on a slower machine). With 24 MB, and as much old memory
# kept (`spares`), 200 of 556 tensors found none of their size, with 32 MB 116: assigning took 0.56 and 0.40 s.
USEFUL = 2 * PIECE * thread_count()


# TensorFlow's CPU allocator (2.21) takes memory from the system in regions, each as large as all before together, and
# touches a table of 8 bytes for each 256 of a region at once: 134 MB where 4 GB of variables want one tensor more.
_TABLE = 8 / 256


@dataclasses.dataclass(frozen=True, slots=True)
class _Share:
    """What becomes of one worker's budget, in bytes.

    Attributes:
      ahead: may be in flight.
      waiting: old memory that may wait to be filled again.
      alone: what one larger tensor may take of TensorFlow's allocator, which gives nothing back.
    """

    ahead: int
    waiting: int
    alone: int

    @classmethod
    def of(cls, located: Sequence[Located], memory_budget: int) -> _Share:
        ahead = min(memory_budget, USEFUL)
        left = memory_budget - ahead
        table = int(_TABLE * sum(map(stored_size, located)))
        # Twice as much may wait, so that a value of more than `ahead` can: 4 GB with fused tensors of 41 and 55 MB took
        # 806 MB beyond the variables with `ahead`, and 489 so.
        return cls(ahead, min(2 * ahead, left), max(ahead, left - table))


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """What a restore may take: bytes in flight, and seconds of one wait for other workers."""

    memory_budget: int
    seconds: float


def check_sources(
    located: Sequence[Located], source: Source, progress: Progress, memory_budget: int, *, keeps: bool = True
) -> Kept | None:
    """Reads all that the plan needs once: checksums of whole tensors, and values that a cast might lose.

    Args:
      located: the units, from `reading.locate`.
      source: the opened checkpoint.
      progress: counts the bytes.
      memory_budget: bytes.
      keeps: whether `assign_units` comes next.

    Returns:
      What `assign_units` need not read again.

    Raises:
      CheckpointCorruptError: bytes are not what was written.
      DtypeMismatchError: a cast would change a value.
    """
    share = _Share.of(located, memory_budget)
    keep = worth_keeping(located, share.ahead, share.alone) if keeps else None
    return check_located(located, source, progress, memory_budget, keep)


def live_values(units: Sequence[Unit], ledger: Ledger) -> LiveOf:
    """What gives an entry's present value, for `fill = "keep"`. Called by all workers.

    What workers can only read together is read now, in the same order by all: later a worker may be alone with it.
    """
    handles, assigner = ledger.handles, ledger.assigner
    kept = [e for unit in units for e in unit.entries if e.ops and any(op.keeps for op in e.ops)]
    together = [e.target for e in kept if assigner.is_read_together(handles[e.target])]
    known = {name: assigner.live_value(handles[name]) for name in together}

    def live_of(entry: PlanEntry) -> Live:
        if entry.target in known:
            return lambda: known[entry.target]
        return functools.partial(assigner.live_value, handles[entry.target])

    return live_of


class Ledger:
    """What has been assigned so far, and by whose hands."""

    def __init__(self, handles: Mapping[str, tf.Variable], assigner: Assigner, progress: Progress) -> None:
        self.handles, self.assigner, self._progress = handles, assigner, progress
        self._touched: dict[str, None] = {}
        self.assigned: list[Assigned] = []

    def assign(self, values: list[Value], spares: Spares | None = None) -> None:
        """Assigns values, in their order; the list is empty afterwards. `spares` gets the memory of large old ones."""
        with during("assign"):
            # Each is let go before the next one is assigned: its memory is the variable's now.
            for group in together(values, _small):
                self._touched.update(dict.fromkeys(value.entry.target for value in group))
                self.assigned += self._assign(group, spares)
                self._progress.advance(sum(value.entry.bytes for value in group), group[-1].entry.target)
                del group

    def touch(self, name: str) -> None:
        """Says that a variable may change from now on."""
        self._touched[name] = None

    def _assign(self, group: Sequence[Value], spares: Spares | None) -> list[Assigned]:
        writes = [Write(self.handles[v.entry.target], v.value, _crc(v)) for v in group]
        found = self.assigner.assign_many(writes, spares)
        return [
            Assigned(v.entry.target, checksums, v.entry.bytes, write.crc32c)
            for v, write, checksums in zip(group, writes, found, strict=True)
        ]

    @contextlib.contextmanager
    def accounting(self) -> Iterator[None]:
        """Adds to an error that leaves the block which variables had changed already."""
        try:
            yield
        except RestoreError as error:
            with during(phase_of(error) or "assign"):
                raise _with(error, self.changed()) from error
        except BaseException as error:
            error.add_note(self.changed())
            raise

    def changed(self) -> str:
        """Which variables have changed, as a sentence."""
        if not self._touched:
            return "No variable had changed."
        names = ", ".join(repr(name) for name in list(self._touched)[:20])
        more = ", ..." if len(self._touched) > 20 else ""
        return f"{len(self._touched)} variable(s) had changed already: {names}{more}."


def _small(value: Value) -> Hashable | None:
    return None if isinstance(value.value, Blank) else (value.value.shape, value.value.dtype)


def _crc(value: Value) -> int:
    if value.crc32c is not None:
        return value.crc32c
    return checksum(value.value.array if isinstance(value.value, Blank) else value.value)


def _with(error: RestoreError, sentence: str) -> RestoreError:
    """The same error with another sentence."""
    text = f"{error} {sentence}"
    if isinstance(error, WorkerError):
        return WorkerError(text, rank=error.rank, phase=error.phase, names=error.names)
    return type(error)(text, names=error.names)


def assign_units(
    located: Sequence[Located],
    source: Source,
    ledger: Ledger,
    live_of: LiveOf,
    memory_budget: int,
    kept: Kept | None = None,
) -> None:
    """Reads, transforms and assigns, in file order, and before it what was kept: every worker all units.

    Args:
      located: the units, from `reading.locate`.
      source: the opened checkpoint.
      ledger: who assigns.
      live_of: gives what gives an entry's present value, for `fill = "keep"`.
      memory_budget: bytes.
      kept: from `check_sources`.

    Raises:
      RestoreError: something failed half way; the message names the variables that had changed.
    """
    share = _Share.of(located, memory_budget)
    spares = Spares(share.waiting, share.alone if _all_leave_memory(located, share.alone, ledger) else None)
    first = [kept_work(kept) for item in located if kept is not None and item.unit is kept.unit]
    rest = [item for item in located if kept is None or item.unit is not kept.unit]
    works = itertools.chain(first, make_works(rest, source, live_of, spares.blank))
    # On storage behind a network a read may take long, and no signal is heard meanwhile.
    helps = are_local(source.index().paths)
    with ledger.accounting(), contextlib.closing(stream(works, share.ahead, helps=helps)) as results:
        for values in _reading(results):
            ledger.assign(values, spares)
    release_scratch()


def _all_leave_memory(located: Sequence[Located], above: int, ledger: Ledger) -> bool:
    """Whether the variables of more than so many bytes do."""
    large = [entry.target for item in located for entry in item.unit.entries if entry.bytes > above]
    return all(ledger.assigner.leaves_memory(ledger.handles[name]) for name in large)


def _reading(results: Iterator[list[Value]]) -> Iterator[list[Value]]:
    while True:
        with during("read"):
            values = next(results, None)
        if values is None:
            return
        yield values
