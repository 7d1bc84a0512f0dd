"""Buckets of bytes that go from workers to workers, by TensorFlow's own collectives. Knows ranks; knows no tensors.

An all-gather passes data twice to three times as fast as broadcasts of the same size in turn (2 cores, localhost, 200
MB in pieces of 8 MB: 0.5 s against 0.8 s with 2 workers, 0.9 s against 3.5 s with 4), because every worker sends and
receives all the time. Where one worker alone has data, a broadcast does (0.4 s and 1.1 s).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from dist_restore.distribute.messaging.liveness import BrokenExchangeError, in_thread

# Keys of collectives count from 1 in TensorFlow, so nobody else gets here ("dr").
_GROUP_KEY = 0x6472_0000
# Sessions before keys of collectives come again, and collectives in one session: 10 TB in buckets of 4 MB on 4 workers.
_SESSIONS, _KEYS_PER_SESSION = 1 << 10, 1 << 20


class Round(NamedTuple):
    """What one round brought, the same on all workers.

    Attributes:
      failed: ranks that said they cannot go on.
      buckets: bytes by rank, for those that send any.
    """

    failed: tuple[int, ...]
    buckets: Mapping[int, np.ndarray]


class Exchange(Protocol):
    """Rounds of buckets. All workers start the same rounds, in the same order."""

    def start(self, *, failed: bool, bucket: np.ndarray) -> Future[Round]:
        """Begins the next round, and comes back at once; may be called again before the round is over.

        Args:
          failed: whether this worker cannot go on; the others hear of it in this round.
          bucket: the bytes that this worker sends (uint8); as long in every round and on every worker. Not to be
            changed before the round is over.

        Returns:
          What comes of the round; raises `RestoreError` where a collective breaks, because a worker is gone.
        """


class LocalExchange:
    """See `Exchange`; one worker hears itself."""

    def start(self, *, failed: bool, bucket: np.ndarray) -> Future[Round]:
        """See `Exchange.start`."""
        future: Future[Round] = Future()
        future.set_result(Round((0,) if failed else (), {0: bucket}))
        return future


def keys_of(session: int) -> Iterator[int]:
    """Keys for the collectives of a session, two for each round; of its number, which is the same on all workers."""
    return itertools.count(session % _SESSIONS * _KEYS_PER_SESSION, 2)


class CollectiveExchange:
    """See `Exchange`.

    Collectives are of int32, which stays in host memory under every strategy. One that waits for a worker that never
    comes waits for ever, in a thread that keeps no process alive: for how long, is for the caller to say.

    Args:
      tasks: device names of all workers, by rank, such as `/job:worker/replica:0/task:1`.
      rank: this worker.
      senders: ranks that send bytes.
      keys: of this session (`keys_of`), from which all its exchanges take: TensorFlow remembers under each key the
        shape that it was first used with, and another shape is an error.
    """

    def __init__(self, tasks: Sequence[str], rank: int, senders: Sequence[int], keys: Iterator[int]) -> None:
        self._device = f"{tasks[rank]}/device:CPU:0"
        self._world_size, self._rank = len(tasks), rank
        self._senders = tuple(senders)
        self._keys = keys

    def start(self, *, failed: bool, bucket: np.ndarray) -> Future[Round]:
        """See `Exchange.start`."""
        key = next(self._keys)
        run = self._from_one if len(self._senders) == 1 else self._from_all
        return in_thread(lambda: self._translated(lambda: run(key, failed, bucket)))

    def _from_all(self, key: int, failed: bool, bucket: np.ndarray) -> Round:
        mine = np.empty(1 + len(bucket) // 4, np.int32)
        mine[0] = failed
        mine[1:] = bucket.view(np.int32)
        rows = _array(self._gather(key, mine)).reshape(self._world_size, -1)
        return Round(_ranks(rows[:, 0]), {rank: rows[rank, 1:].view(np.uint8) for rank in self._senders})

    def _from_one(self, key: int, failed: bool, bucket: np.ndarray) -> Round:
        (sender,) = self._senders
        data = bucket if sender == self._rank else None
        received = self._broadcast(key, data, len(bucket))
        # The sender hears in this way that another worker cannot go on, and nobody runs ahead of the others.
        states = _array(self._gather(key + 1, np.array([failed], np.int32)))
        return Round(_ranks(states), {sender: received})

    def _gather(self, key: int, mine: np.ndarray) -> tf.Tensor:
        with tf.device(self._device):
            return tf.raw_ops.CollectiveGatherV2(
                input=mine, group_size=self._world_size, group_key=_GROUP_KEY, instance_key=key, ordering_token=[]
            )

    def _broadcast(self, key: int, data: np.ndarray | None, size: int) -> np.ndarray:
        group = {"group_size": self._world_size, "group_key": _GROUP_KEY, "instance_key": key}
        with tf.device(self._device):
            if data is not None:
                tf.raw_ops.CollectiveBcastSendV2(input=data.view(np.int32), **group)
                return data
            return _array(tf.raw_ops.CollectiveBcastRecvV2(shape=[size // 4], T=tf.int32, **group)).view(np.uint8)

    def _translated(self, run: Callable[[], Round]) -> Round:
        try:
            return run()
        except tf.errors.OpError as error:
            raise BrokenExchangeError(
                f"the exchange of tensors with the other workers broke off: {error.message}"
            ) from error


def _array(tensor: tf.Tensor) -> np.ndarray:
    # The buffer protocol gives the tensor's own memory; `numpy()` would copy it.
    return np.frombuffer(memoryview(tensor), np.int32)


def _ranks(states: np.ndarray) -> tuple[int, ...]:
    return tuple(int(rank) for rank in np.flatnonzero(states))
