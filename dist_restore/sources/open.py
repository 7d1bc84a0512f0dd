"""Which format is it? The only place that tells formats apart."""

from __future__ import annotations

import os

from dist_restore.sources.base import Source
from dist_restore.sources.locate import resolve_prefix
from dist_restore.sources.tf_checkpoint import TfCheckpoint


def resolve_path(path: str | os.PathLike[str]) -> str:
    """The checkpoint that a path means: a prefix as it is, a directory's latest checkpoint.

    Called by the chief alone; the answer is broadcast, so that all workers open the same one.

    Raises:
      CheckpointNotFoundError: nothing is there.
      UnsupportedFormatError: a file of a kind that is not read.
    """
    return resolve_prefix(os.fspath(path))


def open_checkpoint(path: str | os.PathLike[str]) -> Source:
    """Opens a checkpoint for reading its index and its tensors; never writes to it.

    Args:
      path: a checkpoint prefix, or a directory (its latest checkpoint).

    Returns:
      The opened source; close it when done.

    Raises:
      CheckpointNotFoundError: nothing is there, or a data file is missing.
      CheckpointCorruptError: the index or the object graph cannot be read.
      UnsupportedFormatError: a file of a kind that is not read.
    """
    return TfCheckpoint(resolve_path(path))
