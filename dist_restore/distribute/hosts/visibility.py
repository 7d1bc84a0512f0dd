"""What hosts see under a checkpoint's path: the client's files, others, or none. Reads the index there, no weights."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import tensorflow as tf
from absl import logging

from dist_restore.core.errors import PlanMismatchError
from dist_restore.distribute.hosts.functions import Action, Kind, Placed
from dist_restore.distribute.hosts.lanes import Step, gist, run_on_hosts

_LOOK = Kind(Action.LOOK)
# What a host says that has no such file, or may not read it, or knows no such file system.
_BLIND = (
    tf.errors.NotFoundError,
    tf.errors.PermissionDeniedError,
    tf.errors.UnauthenticatedError,
    tf.errors.UnimplementedError,
)


def seeing_hosts(placed: Placed, prefix: str, hosts: Sequence[str], client: str, timeout: float) -> tuple[str, ...]:
    """The hosts that see the client's files under the path.

    The index holds the checksum of every tensor, so that equal indexes and checked reads are equal tensors. It is
    hashed on the host; 8 bytes come back.

    Raises:
      PlanMismatchError: a host sees other files there.
      WorkerError: a host is gone.
    """
    path, views = f"{prefix}.index", dict[str, bytes]()

    def look(host: str) -> None:
        try:
            views[host] = placed.call(host, _LOOK, tf.constant(path))[0]
        except _BLIND as error:
            logging.info("dist_restore: %s does not see %s (%s); the client sends its share", host, path, gist(error))

    run_on_hosts({h: [Step(0, functools.partial(look, h))] for h in {*hosts, client}}, "choose", timeout)
    others = sorted(host for host, seen in views.items() if client in views and seen != views[client])
    if others:
        raise PlanMismatchError(
            f"{path}: other files than the client's are under this path on {', '.join(others[:8])} (their index, which "
            "holds the checksums of all tensors, differs). Copy the client's files there, or remove them there.",
            names=(path,),
        )
    return tuple(sorted(views)) if client in views else ()
