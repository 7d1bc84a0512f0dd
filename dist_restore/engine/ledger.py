"""What has been assigned so far. The way to the variables for all that assigns; knows no source."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence

import tensorflow as tf

from dist_restore.core.errors import RestoreError, WorkerError
from dist_restore.core.phases import during, phase_of
from dist_restore.core.progress import Progress
from dist_restore.engine.units import Unit
from dist_restore.engine.values import LiveOf, Value
from dist_restore.ops import Live
from dist_restore.planning.entries import PlanEntry
from dist_restore.targets.assigner import Assigned, Assigner, Write, checksum
from dist_restore.tf_internals.batched import together
from dist_restore.tf_internals.buffer_pool import BufferPool


class Ledger:
    """What has been assigned so far, and by whose hands."""

    def __init__(self, handles: Mapping[str, tf.Variable], assigner: Assigner, progress: Progress) -> None:
        self.handles, self.assigner, self._progress = handles, assigner, progress
        self._touched: dict[str, None] = {}
        self.assigned: list[Assigned] = []

    def assign(self, values: list[Value], pool: BufferPool | None = None) -> None:
        """Assigns values, in their order; the list is empty afterwards. `pool` gets the memory of large old ones."""
        with during("assign"):
            # Each is let go before the next one is assigned: its memory is the variable's now.
            for group in together(values, _small):
                self._touched.update(dict.fromkeys(value.entry.target for value in group))
                self.assigned += self._assign(group, pool)
                self._progress.advance(sum(value.entry.bytes for value in group), group[-1].entry.target)
                del group

    def touch(self, names: Iterable[str]) -> None:
        """Says that variables may change from now on."""
        self._touched.update(dict.fromkeys(names))

    def _assign(self, group: Sequence[Value], pool: BufferPool | None) -> list[Assigned]:
        writes = [Write(self.handles[v.entry.target], v.buffer, _crc(v)) for v in group]
        found = self.assigner.assign_many(writes, pool)
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
    array = value.buffer.array
    return (array.shape, array.dtype) if value.buffer.tensor is None else None


def _crc(value: Value) -> int:
    return checksum(value.buffer.array) if value.crc32c is None else value.crc32c


def _with(error: RestoreError, sentence: str) -> RestoreError:
    """The same error with another sentence."""
    text = f"{error} {sentence}"
    if isinstance(error, WorkerError):
        return WorkerError(text, rank=error.rank, phase=error.phase, names=error.names)
    return type(error)(text, names=error.names)


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
