"""What components on other hosts must hold, as fingerprints, and whether they do. The bytes stay where they are."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import tensorflow as tf

from dist_restore.core.errors import VerificationError
from dist_restore.core.tensors import TensorSpec
from dist_restore.distribute.hosts.functions import COUNTS, Action, Kind, Placed
from dist_restore.distribute.hosts.lanes import Step, run_on_hosts
from dist_restore.distribute.hosts.placement import batches


class Held(NamedTuple):
    """One component, and the fingerprint of what it must hold."""

    target: str
    number: int
    component: tf.Variable
    spec: TensorSpec
    fingerprint: bytes


class Holdings:
    """The components that were assigned, by host. May be called by several threads at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[str, list[Held]] = {}

    def add(self, host: str, held: Sequence[Held]) -> None:
        """Says what components of a host must hold from now on."""
        with self._lock:
            self._held.setdefault(host, []).extend(held)

    def verify(self, placed: Placed, timeout: float, budget: int) -> None:
        """Hashes every component on its host.

        Raises:
          VerificationError: a component holds something else.
          WorkerError: a host is gone.
        """
        wrong: set[str] = set()
        work = {host: [*_steps(placed, host, held, wrong, budget)] for host, held in self._held.items()}
        run_on_hosts(work, "verify", timeout)
        if wrong:
            raise VerificationError(
                f"{len(wrong)} component(s) do not hold what was assigned: {', '.join(sorted(wrong)[:10])}. Something "
                "else wrote them during the restore, or a device lost data. Restore again with nothing else running.",
                names=tuple(sorted(wrong)),
            )


def _steps(placed: Placed, host: str, held: Sequence[Held], wrong: set[str], budget: int) -> Iterator[Step]:
    groups: dict[str, list[Held]] = {}
    for item in held:
        groups.setdefault(item.spec.dtype, []).append(item)
    for group in groups.values():
        for indexes in batches([item.spec.nbytes for item in group], COUNTS, budget):
            part = [group[index] for index in indexes]
            size = sum(item.spec.nbytes for item in part)
            yield Step(size, functools.partial(_compare, placed, host, part, wrong))


def _compare(placed: Placed, host: str, held: Sequence[Held], wrong: set[str]) -> None:
    kind = Kind(Action.HOLD, held[0].spec.dtype, len(held))
    found = placed.call(host, kind, *(item.component.handle for item in held))
    for item, seen in zip(held, found, strict=True):
        if seen != item.fingerprint:
            wrong.add(f"{item.target!r} on replica {item.number} ({item.component.device})")


def as_held(
    target: str, numbers: Sequence[int], components: Sequence[tf.Variable], spec: TensorSpec, fingerprint: bytes
) -> list[Held]:
    """The same fingerprint for several components of a target."""
    return [Held(target, number, components[number], spec, fingerprint) for number in numbers]


ComponentsOf = Mapping[str, Sequence[tf.Variable]]
