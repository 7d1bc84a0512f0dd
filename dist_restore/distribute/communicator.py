"""Talking between workers: one interface, whatever the strategy.

Every call is made by all workers in the same order. One of the two places that tell strategies apart (the
other is `targets/assigner`). Knows bytes and ranks; knows no tensors.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Protocol

import tensorflow as tf

from dist_restore.distribute.messaging.exchange import CollectiveExchange, Exchange, LocalExchange, keys_of
from dist_restore.distribute.messaging.protocol import ClusterCommunicator

# All workers restore equally often, so that they agree on the name of each session without asking each other.
_SESSIONS = itertools.count()


class Communicator(Protocol):
    """How workers agree. All methods are called by all workers, in the same order.

    Entered with `with` for one restore: leaving it waits until all have heard everything, and an exception that leaves
    it is told to the others. No wait is longer than the timeout, plus a second for every 10 MB of the `nbytes` that
    the caller says are read or sent meanwhile; a worker whose process is gone ends the others within seconds.
    """

    @property
    def rank(self) -> int:
        """This worker, 0 to `world_size` - 1; 0 is the chief."""

    @property
    def world_size(self) -> int:
        """Number of workers."""

    def broadcast(self, payload: bytes, phase: str, nbytes: int = 0) -> bytes:
        """Gives every worker the chief's payload; that of others is ignored.

        Raises:
          WorkerError: a worker failed or was lost; it names rank and phase.
        """

    def gather(self, payload: bytes, phase: str, nbytes: int = 0) -> tuple[bytes, ...]:
        """Gives every worker the payloads of all, by rank.

        Raises:
          WorkerError: a worker failed or was lost; it names rank and phase.
        """

    def phase(self, name: str, nbytes: int = 0) -> AbstractContextManager[None]:
        """A block that every worker runs; leaving it waits for all.

        Raises:
          WorkerError: on all workers, as they leave the block, when any of them raised in it; it names the lowest rank
            of those, and is chained from the original where that was raised.
        """

    def exchange(self, senders: Sequence[int]) -> Exchange:
        """What passes tensors' bytes between workers: a new one, whose rounds all workers start alike.

        Args:
          senders: ranks that send any.
        """

    def __enter__(self) -> Communicator:
        """Begins the session."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the session."""


class LocalCommunicator:
    """One process drives all replicas (default, Mirrored, TPU): there is nobody to talk to."""

    rank = 0
    world_size = 1

    def broadcast(self, payload: bytes, phase: str, nbytes: int = 0) -> bytes:
        """See `Communicator.broadcast`."""
        del phase, nbytes
        return payload

    def gather(self, payload: bytes, phase: str, nbytes: int = 0) -> tuple[bytes, ...]:
        """See `Communicator.gather`."""
        del phase, nbytes
        return (payload,)

    def phase(self, name: str, nbytes: int = 0) -> AbstractContextManager[None]:
        """See `Communicator.phase`; the block's own exception is the best message where there is one worker."""
        del name, nbytes
        return contextlib.nullcontext()

    def exchange(self, senders: Sequence[int]) -> Exchange:
        """See `Communicator.exchange`."""
        del senders
        return LocalExchange()

    def __enter__(self) -> LocalCommunicator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


def communicator_for(strategy: tf.distribute.Strategy, timeout: float = 600.0) -> Communicator:
    """The communicator that a strategy needs.

    Args:
      strategy: where the variables live.
      timeout: seconds that any one wait for another worker may take, when no bytes are at stake.
    """
    if is_alone(strategy):
        return LocalCommunicator()
    rank, tasks = _place(strategy.cluster_resolver)
    # Here and not above, for it imports what TF does not promise: whoever trains alone need not have it.
    from dist_restore.distribute.messaging.coordination import CoordinationService

    session = next(_SESSIONS)
    keys = keys_of(session)
    return ClusterCommunicator(
        CoordinationService(tasks),
        rank,
        len(tasks),
        name=f"dist_restore/{session}",
        timeout=timeout,
        exchange=lambda senders: CollectiveExchange(tasks, rank, senders, keys),
    )


def is_alone(strategy: tf.distribute.Strategy) -> bool:
    """Whether there is nobody to talk to: with parameter servers as with TPU pods one program drives all hosts."""
    several = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    return not several or len(_place(strategy.cluster_resolver)[1]) <= 1


def _place(resolver: tf.distribute.cluster_resolver.ClusterResolver) -> tuple[int, list[str]]:
    """This process's rank, and the device names of all workers: a job called chief comes first, as in TF."""
    jobs = resolver.cluster_spec().as_dict()
    # An evaluator is a cluster of its own.
    kinds = [resolver.task_type] if resolver.task_type == "evaluator" else ["chief", "worker"]
    places = [(kind, index) for kind in kinds for index in range(len(jobs.get(kind, ())))]
    tasks = [f"/job:{kind}/replica:0/task:{index}" for kind, index in places]
    return (places.index((resolver.task_type, resolver.task_id)) if len(tasks) > 1 else 0), tasks
