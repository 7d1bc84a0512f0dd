"""Tensors that hosts read by themselves, check, and assign to all their components."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from dist_restore.core.errors import CheckpointCorruptError, CheckpointNotFoundError, RestoreError
from dist_restore.core.progress import Progress
from dist_restore.distribute.hosts.fingerprints import ComponentsOf, Holdings, as_held
from dist_restore.distribute.hosts.functions import COUNTS, UNEXPECTED, Action, Kind, Placed
from dist_restore.distribute.hosts.lanes import Step, gist, run_on_hosts
from dist_restore.distribute.hosts.placement import batches
from dist_restore.engine.budget import Limits
from dist_restore.engine.ledger import Ledger
from dist_restore.planning.entries import PlanEntry

_OTHER_CHECKPOINT = "Use another checkpoint."


class HostRead(NamedTuple):
    """One tensor that a host reads, and the numbers of the components there that get it."""

    entry: PlanEntry
    key: bytes
    numbers: tuple[int, ...]


Run = Callable[[str, Sequence[HostRead]], None]


class HostReads:
    """The reads of all hosts.

    Args:
      placed: the functions over the checkpoint.
      reads: by host, in the order of the files.
      components: of each target.
      limits: bytes in flight on each host, and seconds that one wait for a host may take.

    Attributes:
      bytes_read: by all hosts, from storage.
    """

    def __init__(
        self, placed: Placed, reads: Mapping[str, Sequence[HostRead]], components: ComponentsOf, limits: Limits
    ) -> None:
        self._placed, self._reads, self._components, self._limits = placed, reads, components, limits
        self._checked: dict[tuple[str, str], bytes] = {}
        self._lock = threading.Lock()
        self.bytes_read = 0

    def check(self, progress: Progress) -> None:
        """Each host reads what it will assign, and drops it; its fingerprints are remembered.

        Raises:
          CheckpointCorruptError: bytes on a host are not what was written, or not those that another host reads.
          WorkerError: a host is gone.
        """
        self._run("check", functools.partial(self._check_batch, progress))
        found: dict[str, set[bytes]] = {}
        for (_, target), seen in self._checked.items():
            found.setdefault(target, set()).add(seen)
        differing = tuple(sorted(target for target, seen in found.items() if len(seen) > 1))
        if differing:
            raise CheckpointCorruptError(
                f"Hosts read different bytes for {', '.join(map(repr, differing[:10]))}. {_OTHER_CHECKPOINT}",
                names=differing,
            )

    def assign(self, ledger: Ledger, holdings: Holdings) -> None:
        """Each host reads and assigns; what it reads must be what it checked.

        Raises:
          CheckpointCorruptError: as `check`; the tensors of that call were not assigned.
          WorkerError: a host is gone.
        """
        self._run("assign", functools.partial(self._assign_batch, ledger, holdings))

    def _run(self, phase: str, run: Run) -> None:
        work = {host: [*self._steps(host, reads, run)] for host, reads in self._reads.items()}
        run_on_hosts(work, phase, self._limits.seconds)

    def _steps(self, host: str, reads: Sequence[HostRead], run: Run) -> Iterator[Step]:
        groups: dict[tuple[str, int], list[HostRead]] = {}
        for read in reads:
            groups.setdefault((read.entry.spec.dtype, len(read.numbers)), []).append(read)
        for group in groups.values():
            for indexes in batches([read.entry.bytes for read in group], COUNTS, self._limits.memory_budget):
                part = [group[index] for index in indexes]
                yield Step(sum(read.entry.bytes for read in part), functools.partial(run, host, part))

    def _check_batch(self, progress: Progress, host: str, reads: Sequence[HostRead]) -> None:
        kind = Kind(Action.CHECK, reads[0].entry.spec.dtype, len(reads))
        found = self._call(host, kind, reads)
        with self._lock:
            for read, seen in zip(reads, found, strict=True):
                progress.advance(0 if self._is_known(read) else read.entry.bytes, read.entry.target)
                self._checked[host, read.entry.target] = seen

    def _is_known(self, read: HostRead) -> bool:
        return any((host, read.entry.target) in self._checked for host in self._reads)

    def _assign_batch(self, ledger: Ledger, holdings: Holdings, host: str, reads: Sequence[HostRead]) -> None:
        with self._lock:
            ledger.touch(read.entry.target for read in reads)
        parts = [self._column(reads, column) for column in range(len(reads[0].numbers))]
        expected = self._expected(host, reads)
        kind = Kind(Action.FILL, reads[0].entry.spec.dtype, len(reads), len(parts), expected is not None)
        handles = [component.handle for part in parts for component in part]
        found = self._call(host, kind, reads, *([] if expected is None else [expected]), *handles)
        for name, (read, seen) in {r.entry.target: (r, seen) for r, seen in zip(reads, found, strict=True)}.items():
            holdings.add(host, as_held(name, read.numbers, self._components[name], read.entry.spec, seen))

    def _column(self, reads: Sequence[HostRead], column: int) -> list[tf.Variable]:
        return [self._components[read.entry.target][read.numbers[column]] for read in reads]

    def _expected(self, host: str, reads: Sequence[HostRead]) -> tf.Tensor | None:
        rows = [self._checked.get((host, read.entry.target)) for read in reads]
        known = [row for row in rows if row is not None]
        return tf.constant(_rows(known)) if len(known) == len(rows) else None

    def _call(self, host: str, kind: Kind, reads: Sequence[HostRead], *arguments: object) -> tuple[bytes, ...]:
        try:
            found = self._placed.call(host, kind, tf.constant([read.key for read in reads]), *arguments)
        except tf.errors.OpError as error:
            wrong = _explained(host, self._culprits(host, reads), error)
            if wrong is None:
                raise
            raise wrong from error
        with self._lock:
            self.bytes_read += sum({read.entry.target: read.entry.bytes for read in reads}.values())
        return found

    def _culprits(self, host: str, reads: Sequence[HostRead]) -> tuple[str, ...]:
        """Which tensors a host cannot read: TensorFlow says of a damaged one only in which file it is."""
        unique = {read.entry.sources[0]: read for read in reads}
        return tuple(name for name, read in unique.items() if not self._can_read(host, read))

    def _can_read(self, host: str, read: HostRead) -> bool:
        try:
            self._placed.call(host, Kind(Action.CHECK, read.entry.spec.dtype), tf.constant([read.key]))
        except tf.errors.UnavailableError:
            raise
        except tf.errors.OpError:
            return False
        return True


def _rows(fingerprints: Sequence[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(fingerprints), np.uint8).reshape(-1, 8)


def _explained(host: str, culprits: tuple[str, ...], error: tf.errors.OpError) -> RestoreError | None:
    """The error of a read on a host; None where the host itself has failed."""
    where = f"tensor {', '.join(map(repr, culprits[:10]))}, read on host {host}" if culprits else f"host {host}"
    if isinstance(error, (tf.errors.DataLossError, tf.errors.OutOfRangeError)):
        return CheckpointCorruptError(f"{where}: {gist(error)}. {_OTHER_CHECKPOINT}", names=culprits)
    if isinstance(error, tf.errors.NotFoundError):
        return CheckpointNotFoundError(f"{where}: {gist(error)}. Copy what is missing to the host.", names=culprits)
    if isinstance(error, tf.errors.InvalidArgumentError) and UNEXPECTED in str(error.message):
        return CheckpointCorruptError(
            f"{where}: what was read is not what was checked before. Something writes to the checkpoint. Restore again "
            "with nothing else running.",
            names=culprits,
        )
    if isinstance(error, tf.errors.InvalidArgumentError):
        return CheckpointCorruptError(f"{where}: {gist(error)}. {_OTHER_CHECKPOINT}", names=culprits)
    return None
