"""Values that the client makes for other hosts: each is sent once to a host, and assigned there to all components."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from dist_restore.core.errors import VerificationError
from dist_restore.distribute.hosts.fingerprints import ComponentsOf, Holdings, as_held
from dist_restore.distribute.hosts.functions import UNEXPECTED, Action, Kind, Placed, fingerprint
from dist_restore.distribute.hosts.lanes import Step, gist, run_on_hosts
from dist_restore.distribute.hosts.placement import Holding
from dist_restore.engine.ledger import Ledger
from dist_restore.engine.values import Value
from dist_restore.targets.assigner import Assigned, Assigner, checksum
from dist_restore.tf_internals import host_memory
from dist_restore.tf_internals.host_memory import HostBuffer


class _Parcel(NamedTuple):
    """One tensor, and the components of one host that get it."""

    host: str
    tensor: tf.Tensor
    fingerprint: tf.Tensor
    numbers: tuple[int, ...]


class Sender:
    """Sends values to the hosts of their variables.

    Args:
      placed: functions that assign on hosts.
      holdings: of each target, where its components are.
      components: of each target.
      receivers: of each target, the hosts that do not read it by themselves.
      timeout: seconds that one wait for a host may take.
    """

    def __init__(
        self,
        placed: Placed,
        holdings: Mapping[str, Holding],
        components: ComponentsOf,
        receivers: Mapping[str, Sequence[str]],
        timeout: float,
    ) -> None:
        self._placed, self._holdings, self._components = placed, holdings, components
        self._receivers, self._timeout = receivers, timeout

    def send(self, value: Value, ledger: Ledger, held: Holdings) -> None:
        """Assigns a value on the hosts that get it from here.

        Raises:
          VerificationError: other bytes arrived than were sent; the host did not assign them.
          WorkerError: a host is gone.
        """
        ledger.touch([value.entry.target])
        work: dict[str, list[Step]] = {}
        for parcel in self._parcels(value, ledger.assigner, ledger.handles[value.entry.target]):
            size = value.entry.bytes
            work.setdefault(parcel.host, []).append(Step(size, functools.partial(self._put, value, parcel, held)))
        run_on_hosts(work, "assign", self._timeout)

    def _parcels(self, value: Value, assigner: Assigner, variable: tf.Variable) -> Iterator[_Parcel]:
        name = value.entry.target
        whole = value.buffer
        for share, numbers in _alike(assigner.shares(variable, whole.array)):
            buffer = whole if share is whole.array else HostBuffer(share)
            tensor = host_memory.tensor_of(buffer, variable.dtype)
            mark = fingerprint(tensor)
            for host in self._receivers[name]:
                there = tuple(n for n in self._holdings[name].on(host) if n in numbers)
                if there:
                    yield _Parcel(host, tensor, mark, there)

    def _put(self, value: Value, parcel: _Parcel, held: Holdings) -> None:
        name, spec = value.entry.target, value.entry.spec
        components = self._components[name]
        handles = [components[number].handle for number in parcel.numbers]
        kind = Kind(Action.PUT, spec.dtype, 1, len(handles))
        try:
            found = self._placed.call(parcel.host, kind, parcel.tensor, parcel.fingerprint, *handles)
        except tf.errors.InvalidArgumentError as error:
            if UNEXPECTED not in str(error.message):
                raise
            raise VerificationError(
                f"{name!r} on host {parcel.host}: other bytes arrived than were sent ({gist(error)}).", names=(name,)
            ) from error
        held.add(parcel.host, as_held(name, parcel.numbers, components, spec, found[0]))


def _alike(shares: Sequence[np.ndarray]) -> list[tuple[np.ndarray, frozenset[int]]]:
    """Different shares, each with the numbers of the components that get it; equal ones are one object."""
    found: dict[int, list[int]] = {}
    for number, share in enumerate(shares):
        found.setdefault(id(share), []).append(number)
    return [(shares[numbers[0]], frozenset(numbers)) for numbers in found.values()]


def row_of(value: Value) -> Assigned:
    """What the report says of a value that was sent."""
    crc = checksum(value.buffer.array) if value.crc32c is None else value.crc32c
    return Assigned(value.entry.target, (crc,), value.entry.bytes, crc)
