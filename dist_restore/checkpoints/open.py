"""Which format is it? The only place that tells formats apart."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TypeAlias, overload

from dist_restore.checkpoints.combined import open_each, resolve_each
from dist_restore.checkpoints.files.files import size_of
from dist_restore.checkpoints.find import is_saved_model, resolve_prefix
from dist_restore.checkpoints.flat.npz import open_npz
from dist_restore.checkpoints.flat.safetensors import open_safetensors
from dist_restore.checkpoints.keras.files import open_hdf5, open_keras
from dist_restore.checkpoints.reader import Source
from dist_restore.checkpoints.tf.checkpoint import TfCheckpoint
from dist_restore.checkpoints.tf.saved_model import open_saved_model

PathLike: TypeAlias = str | os.PathLike[str]
Paths: TypeAlias = PathLike | Mapping[str, PathLike]
Resolved: TypeAlias = str | Mapping[str, str]


@overload
def resolve_path(path: PathLike) -> str: ...
@overload
def resolve_path(path: Paths) -> Resolved: ...
def resolve_path(path: Paths) -> Resolved:
    """The checkpoint that a path means: a prefix or file as it is, a directory's latest checkpoint.

    Called by the chief alone; the answer is broadcast, so that all workers open the same one.

    Args:
      path: a path, or a mapping of such by name.

    Raises:
      CheckpointNotFoundError: nothing is there, or several are and nothing decides.
      UnsupportedFormatError: a file of a kind that is not read.
      RuleError: a name in a mapping that rules could not write.
    """
    if isinstance(path, Mapping):
        return resolve_each({name: os.fspath(one) for name, one in path.items()}, resolve_prefix)
    return resolve_prefix(os.fspath(path))


def open_checkpoint(path: Paths) -> Source:
    """Opens a checkpoint for reading its index and its tensors; never writes to it.

    Args:
      path: a checkpoint prefix; a `.safetensors` (or its `.index.json`), `.npz`, `.weights.h5`, `.h5` or `.keras` file;
        or a directory: its latest checkpoint, its SavedModel, or its safetensors files. Or a mapping of such by name:
        then all are opened, and the tensors of `{"encoder": ...}` are called `encoder:...`.

    Returns:
      The opened source; close it when done.

    Raises:
      CheckpointNotFoundError: nothing is there, or a data file is missing.
      CheckpointCorruptError: the index or the object graph cannot be read.
      UnsupportedFormatError: a file of a kind that is not read.
      RuleError: a name in a mapping that rules could not write.
    """
    if isinstance(path, Mapping):
        paths = {name: os.fspath(one) for name, one in path.items()}
        return open_each(resolve_each(paths, resolve_prefix), open_checkpoint)
    found = resolve_path(path)
    lower = found.lower()
    if size_of(found) is None or size_of(f"{found}.index") is not None:
        return open_saved_model(found) if is_saved_model(found) else TfCheckpoint(found)
    if lower.endswith((".safetensors", ".safetensors.index.json")):
        return open_safetensors(found)
    if lower.endswith(".npz"):
        return open_npz(found)
    return open_keras(found) if lower.endswith(".keras") else open_hdf5(found)
