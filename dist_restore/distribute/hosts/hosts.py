"""The part of a restore that concerns devices of other hosts, which one program drives.

Hosts that see the files read what their own variables get, check it (TensorFlow's restore op compares each whole
tensor's CRC32C) and assign it to all their components; nothing but names and fingerprints passes the client. What goes
through ops, and what a host cannot see, the client reads, transforms, and sends once to each host.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
from absl import logging

from dist_restore.checkpoints.reader import BundleSource, Source
from dist_restore.core.progress import Progress
from dist_restore.distribute.hosts.fingerprints import Holdings
from dist_restore.distribute.hosts.functions import Placed
from dist_restore.distribute.hosts.host_reads import HostRead, HostReads
from dist_restore.distribute.hosts.lanes import Step, run_on_hosts
from dist_restore.distribute.hosts.placement import Division, Holding, divide, host_of, remote_units
from dist_restore.distribute.hosts.uploads import Sender, row_of
from dist_restore.distribute.hosts.visibility import seeing_hosts
from dist_restore.engine.budget import Limits
from dist_restore.engine.ledger import Ledger, live_values
from dist_restore.engine.pipeline import stream
from dist_restore.engine.read_tasks import load_all
from dist_restore.engine.units import Unit
from dist_restore.engine.values import LiveOf, is_copy
from dist_restore.ops import Live
from dist_restore.planning.entries import PlanEntry
from dist_restore.targets.assigner import Assigned, Assigner

_USEFUL = 64 << 20


class Remote:
    """Reads, checks, assigns and verifies what other hosts hold. Used once, by the client.

    Making it asks every host which files it sees; nothing is asked where all variables are in this process.

    Args:
      units: all of the plan.
      source: the opened checkpoint; None where this process does not see it.
      handles: the variables.
      assigner: of their strategy.
      limits: bytes in flight on each host, and seconds that one wait for a host may take.

    Attributes:
      reason: who reads what, and why; empty where all variables are in this process.

    Raises:
      PlanMismatchError: a host sees other files than the client.
      WorkerError: a host is gone.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        source: Source | None,
        handles: Mapping[str, tf.Variable],
        assigner: Assigner,
        limits: Limits,
    ) -> None:
        self._source, self._limits, self._client = source, limits, _client()
        # To look at each of 50,000 variables took 0.3 s; where there is no other host none can be on one.
        looked_at = units if _has_other_hosts(self._client) else ()
        entries = [entry for unit in looked_at for entry in unit.entries]
        self._components = {e.target: assigner.components(handles[e.target]) for e in entries}
        divided = {e.target: assigner.is_divided(handles[e.target]) for e in entries}
        self._holdings = {name: self._holding(name, divided[name]) for name in self._components}
        self._division = Division(tuple(units), (), (), ())
        remote = remote_units(looked_at, self._holdings, self._client)
        self._entries = tuple(entry for unit in remote for entry in unit.entries)
        self._names = frozenset(entry.target for entry in self._entries)
        self._placed = Placed(self._prefix(), self._client)
        if remote:
            self._division = divide(units, self._holdings, self._client, self._look(), self._is_readable)
        self._reads = HostReads(self._placed, self._host_reads(), self._components, limits)
        self._held = Holdings()
        self.reason = self._reason()
        if self.reason:
            logging.info("dist_restore: %s", self.reason)

    @property
    def local(self) -> tuple[Unit, ...]:
        """Units that concern this process alone."""
        return self._division.local

    @property
    def client_reads(self) -> tuple[Unit, ...]:
        """Units that this process reads: its own, and what it sends."""
        return (*self._division.local, *self._division.sent)

    @property
    def is_needed(self) -> bool:
        """Whether any variable has a component on another host."""
        return bool(self._entries)

    @property
    def other_hosts_read(self) -> bool:
        """Whether any host reads by itself."""
        return bool(self._division.read)

    @property
    def bytes_read(self) -> int:
        """From storage, by hosts that read by themselves."""
        return self._reads.bytes_read

    def only_local(self, assigned: Sequence[Assigned]) -> list[Assigned]:
        """Those that are not restored here."""
        return [item for item in assigned if item.name not in self._names]

    def check(self, progress: Progress) -> None:
        """Hosts read all that they will assign, and drop it.

        Raises:
          CheckpointCorruptError: bytes on a host are not what was written.
          PlanMismatchError: the files on a host have been changed.
          WorkerError: a host is gone.
        """
        if self._division.read:
            self._reads.check(progress)
            self._look()  # what was read lay there at the first look too

    def assign(self, ledger: Ledger) -> None:
        """Hosts read and assign what they can read; they are sent the rest.

        Raises:
          RestoreError: something failed half way; the message names the variables that had changed.
        """
        if not self._entries:
            return
        with ledger.accounting():
            self._reads.assign(ledger, self._held)
            receivers = dict(self._division.receivers)
            ledger.assigned += [self._row(e) for e in self._entries if not receivers[e.target]]
            self._send(ledger)

    def verify(self) -> None:
        """Every component is hashed on its host, and compared with what it was assigned.

        Raises:
          VerificationError: a component holds something else.
          WorkerError: a host is gone.
        """
        self._held.verify(self._placed, self._limits.seconds, self._limits.memory_budget)

    def _send(self, ledger: Ledger) -> None:
        sent = self._division.sent
        if not sent or self._source is None:
            return
        receivers = dict(self._division.receivers)
        sender = Sender(self._placed, self._holdings, self._components, receivers, self._limits.seconds)
        works = load_all(sent, self._source, self._live_of(ledger))
        with contextlib.closing(stream(works, min(self._limits.memory_budget, _USEFUL))) as results:
            for values in results:
                while values:
                    value = values.pop(0)
                    sender.send(value, ledger, self._held)
                    ledger.assigned.append(row_of(value))
                    del value

    def _live_of(self, ledger: Ledger) -> LiveOf:
        """Present values, for `fill = "keep"`, asked for without waiting for ever."""
        ask = live_values(self._division.sent, ledger)

        def live_of(entry: PlanEntry) -> Live:
            return functools.partial(self._ask, entry, ask(entry))

        return live_of

    def _ask(self, entry: PlanEntry, live: Live) -> np.ndarray:
        found: list[np.ndarray] = []
        step = Step(entry.bytes, lambda: found.append(live()))
        run_on_hosts({self._holdings[entry.target].hosts[0]: [step]}, "transform", self._limits.seconds)
        return found[0]

    def _holding(self, name: str, divided: bool) -> Holding:
        devices = (component.device for component in self._components[name])
        return Holding(tuple(host_of(device, self._client) for device in devices), uniform=not divided)

    def _prefix(self) -> str:
        if not isinstance(self._source, BundleSource):
            return ""
        prefix = self._source.bundle_prefix
        return prefix if "://" in prefix else os.path.abspath(prefix)

    def _look(self) -> tuple[str, ...]:
        hosts = sorted({host for e in self._entries for host in self._holdings[e.target].hosts})
        if not self._prefix():
            return ()
        return seeing_hosts(self._placed, self._prefix(), hosts, self._client, self._limits.seconds)

    def _is_readable(self, entry: PlanEntry) -> bool:
        return is_copy(entry) and self._key(entry) is not None

    def _reason(self) -> str:
        if not self._entries:
            return ""
        receivers = dict(self._division.receivers)
        sent = [entry for entry in self._entries if receivers[entry.target]]
        hosts = {host for name in self._holdings for host in self._holdings[name].hosts}
        return (
            f"one program drives {len(hosts)} hosts: {len(self._division.read)} of them see the files and read by "
            f"themselves what is copied as it is; {len(sent)} of {len(self._entries)} tensors pass this process"
        )

    def _key(self, entry: PlanEntry) -> bytes | None:
        return self._source.bundle_key(entry.sources[0]) if isinstance(self._source, BundleSource) else None

    def _host_reads(self) -> dict[str, list[HostRead]]:
        return {host: self._in_file_order(host, entries) for host, entries in self._division.read}

    def _in_file_order(self, host: str, entries: Sequence[PlanEntry]) -> list[HostRead]:
        reads = [HostRead(e, self._key(e) or b"", self._holdings[e.target].on(host)) for e in entries]
        return sorted(reads, key=lambda read: self._place(read.entry))

    def _place(self, entry: PlanEntry) -> tuple[int, int]:
        stored = self._source.stored(entry.sources[0]) if isinstance(self._source, BundleSource) else None
        return (stored.file, stored.offset) if stored is not None else (0, 0)

    def _row(self, entry: PlanEntry) -> Assigned:
        stored = self._source.stored(entry.sources[0]) if isinstance(self._source, BundleSource) else None
        crc = (stored.crc32c or 0) if stored is not None else 0
        return Assigned(entry.target, (crc,), entry.bytes, crc)


def _has_other_hosts(client: str) -> bool:
    return any(host_of(device.name, client) != client for device in tf.config.list_logical_devices())


def _client() -> str:
    """The host of this process, as devices are named here; joining a cluster changes it."""
    with tf.device("/CPU:0"):
        return host_of(str(tf.constant(0).device), "/job:localhost/replica:0/task:0")
