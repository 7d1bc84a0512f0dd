"""Talking between workers: one interface, whatever the strategy.

Every call is made by all workers in the same order. One of the two places that tell strategies apart (the
other is `assign`). Knows bytes and ranks; knows no tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import tensorflow as tf

from dist_restore.errors import RestoreError

Result = TypeVar("Result")


class Communicator(Protocol):
    """How workers agree. All methods are called by all workers, in the same order."""

    @property
    def rank(self) -> int:
        """This worker, 0 to `world_size` - 1; 0 is the chief."""

    @property
    def world_size(self) -> int:
        """Number of workers."""

    def broadcast(self, payload: bytes, phase: str) -> bytes:
        """Gives every worker the chief's payload; that of others is ignored."""

    def gather(self, payload: bytes, phase: str) -> tuple[bytes, ...]:
        """Gives every worker the payloads of all, by rank."""

    def run_everywhere(self, phase: str, work: Callable[[], Result]) -> Result:
        """Runs `work` on every worker and returns this worker's result.

        Raises:
          WorkerError: on all workers, when `work` raised on any.
        """


class LocalCommunicator:
    """One process drives all replicas (default, Mirrored, TPU): there is nobody to talk to."""

    rank = 0
    world_size = 1

    def broadcast(self, payload: bytes, phase: str) -> bytes:
        """See `Communicator.broadcast`."""
        del phase
        return payload

    def gather(self, payload: bytes, phase: str) -> tuple[bytes, ...]:
        """See `Communicator.gather`."""
        del phase
        return (payload,)

    def run_everywhere(self, phase: str, work: Callable[[], Result]) -> Result:
        """Runs `work`; its own exception is the best message where there is one worker."""
        del phase
        return work()


def communicator_for(strategy: tf.distribute.Strategy) -> Communicator:
    """The communicator that a strategy needs.

    Raises:
      RestoreError: the strategy runs several workers, which this version does not restore into yet.
    """
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        if strategy.extended._num_workers > 1:
            raise RestoreError(
                "MultiWorkerMirroredStrategy with several workers is not supported by this version. Restore in a "
                "single worker, or convert the checkpoint first."
            )
    elif isinstance(strategy, tf.distribute.ParameterServerStrategy):
        raise RestoreError("ParameterServerStrategy is not supported by this version.")
    return LocalCommunicator()
