"""TF's coordination service as a `Store`: all that is used of TF's private coordination.

Tried on TF 2.21, where `MultiWorkerMirroredStrategy` always starts the service, in the chief's process. It stores
text without NUL and never overwrites (AlreadyExists); 256 MB in one value passed, at 40 to 100 MB/s; an
operation takes 0.3 ms. `set` and `delete` have no timeout and wait for ever for a chief that is stopped.
`Context.get_task_states` would name dead peers too, but drops a reference to each exception class that it returns:
the process segfaults after some twenty calls.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import tensorflow as tf
from tensorflow.python.eager import context  # private: see above, and tests/processes/test_coordination.py

from dist_restore.core.errors import RestoreError
from dist_restore.distribute.messaging.store import Answer, Unreachable


class CoordinationService:
    """The store of TF's coordination service.

    Args:
      tasks: device names of all workers, by rank, such as `/job:worker/replica:0/task:1`.

    Raises:
      RestoreError: this TensorFlow has no such service, or has not started it.
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        self._context = context.context()
        self._tasks = tuple(tasks)
        if "timeout_in_ms" not in inspect.signature(self._context.get_config_key_value).parameters:
            raise RestoreError(
                f"TensorFlow {tf.__version__} has no coordination service that waits with a timeout, and a restore on "
                "several workers needs one. Install TensorFlow 2.21 or later."
            )
        if self._context.coordination_service is None:
            raise RestoreError(
                "TensorFlow's coordination service was not started, so that workers cannot talk to each other. "
                "Create the strategy before anything else, and in jobs called 'chief' and 'worker' only."
            )

    def set(self, key: str, value: str) -> None:
        """See `Store.set`."""
        try:
            self._context.set_config_key_value(key, value)
        except tf.errors.AlreadyExistsError:
            pass  # A repeated request whose first answer was lost: every key has one writer.
        except tf.errors.OpError as error:
            raise Unreachable(error.message) from error

    def get(self, key: str, seconds: float) -> str | None:
        """See `Store.get`."""
        try:
            # 0 would mean for ever.
            return str(self._context.get_config_key_value(key, timeout_in_ms=max(1, round(1000 * seconds))))
        except tf.errors.DeadlineExceededError:
            return None
        except tf.errors.OpError as error:
            raise Unreachable(error.message) from error

    def delete(self, key: str) -> None:
        """See `Store.delete`."""
        try:
            self._context.delete_config_key_value(key)
        except tf.errors.OpError as error:
            raise Unreachable(error.message) from error

    def probe(self, rank: int, seconds: float) -> Answer:
        """See `Store.probe`."""
        try:
            self._context.check_collective_ops_peer_health(self._tasks[rank], max(1, round(1000 * seconds)))
        except tf.errors.DeadlineExceededError:
            return Answer.SILENT
        except tf.errors.FailedPreconditionError:
            return Answer.REPLACED
        except tf.errors.OpError:
            return Answer.GONE
        return Answer.ALIVE
