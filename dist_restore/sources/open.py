"""Which format is it? The only place that tells formats apart."""

from __future__ import annotations

import os

from dist_restore.sources.base import Source
from dist_restore.sources.files import size_of
from dist_restore.sources.hdf5_files import open_hdf5, open_keras
from dist_restore.sources.locate import is_saved_model, resolve_prefix
from dist_restore.sources.npz import open_npz
from dist_restore.sources.safetensors_file import open_safetensors
from dist_restore.sources.saved_model import open_saved_model
from dist_restore.sources.tf_checkpoint import TfCheckpoint


def resolve_path(path: str | os.PathLike[str]) -> str:
    """The checkpoint that a path means: a prefix or file as it is, a directory's latest checkpoint.

    Called by the chief alone; the answer is broadcast, so that all workers open the same one.

    Raises:
      CheckpointNotFoundError: nothing is there, or several are and nothing decides.
      UnsupportedFormatError: a file of a kind that is not read.
    """
    return resolve_prefix(os.fspath(path))


def open_checkpoint(path: str | os.PathLike[str]) -> Source:
    """Opens a checkpoint for reading its index and its tensors; never writes to it.

    Args:
      path: a checkpoint prefix; a `.safetensors` (or its `.index.json`), `.npz`, `.weights.h5`, `.h5` or `.keras` file;
        or a directory: its latest checkpoint, its SavedModel, or its safetensors files.

    Returns:
      The opened source; close it when done.

    Raises:
      CheckpointNotFoundError: nothing is there, or a data file is missing.
      CheckpointCorruptError: the index or the object graph cannot be read.
      UnsupportedFormatError: a file of a kind that is not read.
    """
    found = resolve_path(path)
    lower = found.lower()
    if size_of(found) is None or size_of(f"{found}.index") is not None:
        return open_saved_model(found) if is_saved_model(found) else TfCheckpoint(found)
    if lower.endswith((".safetensors", ".safetensors.index.json")):
        return open_safetensors(found)
    if lower.endswith(".npz"):
        return open_npz(found)
    return open_keras(found) if lower.endswith(".keras") else open_hdf5(found)
