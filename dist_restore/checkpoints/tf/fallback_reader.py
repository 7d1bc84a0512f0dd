"""The fall-back: TensorFlow's own reader, for what is not recognised here.

That is: compressed index blocks, format versions and dtypes newer than this code. Variants too, so that they fail
with TensorFlow's own words.
"""

from __future__ import annotations

import threading
from typing import Protocol

import numpy as np

from dist_restore.checkpoints.tf.bundle_index import BundleEntry
from dist_restore.core import dtypes
from dist_restore.core.errors import (
    CheckpointCorruptError,
    CheckpointNotFoundError,
    RestoreError,
    UnsupportedFormatError,
)
from dist_restore.core.tensors import TensorSpec

# Marks an entry of which only TensorFlow's reader knows where it lies.
UNKNOWN_SHARD = -1


class TfReader:
    """Reads whole tensors through TensorFlow; one at a time, since its reader is not made for threads."""

    def __init__(self, prefix: str) -> None:
        """Opens a prefix.

        Raises:
          RestoreError: TensorFlow cannot read it either.
        """
        self._prefix = prefix
        self._lock = threading.Lock()
        try:
            self._reader = _open(prefix)
        except Exception as error:
            raise _translated(prefix, "", error) from error

    def entries(self) -> dict[str, BundleEntry]:
        """All tensors by key, with the sizes that their specs say.

        Raises:
          RestoreError: TensorFlow cannot list them.
        """
        try:
            dtypes = self._reader.get_variable_to_dtype_map()
            shapes = self._reader.get_variable_to_shape_map()
            specs = {key: TensorSpec(tuple(shape), dtypes[key].name) for key, shape in shapes.items()}
        except Exception as error:
            raise _translated(self._prefix, "", error) from error
        return {key: BundleEntry(key, spec, UNKNOWN_SHARD, 0, spec.nbytes, 0) for key, spec in specs.items()}

    def read(self, entry: BundleEntry) -> np.ndarray:
        """Reads a tensor; TensorFlow compares its checksum.

        Raises:
          CheckpointCorruptError: the checksum is another.
          UnsupportedFormatError: there is no such array in NumPy.
        """
        name = entry.key.encode("utf-8", "surrogateescape")
        try:
            _require_known(entry.spec.dtype)
            with self._lock:
                return np.asarray(self._reader.get_tensor(name))
        except Exception as error:
            raise _translated(self._prefix, entry.key, error) from error


class _DType(Protocol):
    name: str


class _Reader(Protocol):
    def get_variable_to_shape_map(self) -> dict[str, list[int]]: ...

    def get_variable_to_dtype_map(self) -> dict[str, _DType]: ...

    def get_tensor(self, tensor_str: bytes) -> object: ...


def _open(prefix: str) -> _Reader:
    import tensorflow as tf

    # Not tf.train.load_checkpoint, which takes a prefix for a directory where there is one of that name.
    reader: _Reader = tf.compat.v1.train.NewCheckpointReader(prefix)
    return reader


def _require_known(dtype: str) -> None:
    """Raises TypeError for a dtype that TensorFlow does not know: asked to read one, it ends the process."""
    import tensorflow as tf

    number = dtypes.number_of(dtype)
    if dtype == "resource" or not number or tf.dtypes.as_dtype(number).as_datatype_enum != number:
        raise TypeError(f"{dtype} is no dtype of a stored tensor")


def _translated(prefix: str, key: str, error: Exception) -> RestoreError:
    import tensorflow as tf

    where, names = (f"{prefix}: tensor {key!r}", (key,)) if key else (prefix, ())
    text = f"{where}: TensorFlow's own reader, which takes what is not recognised here, says: {error}"
    if isinstance(error, tf.errors.DataLossError):
        return CheckpointCorruptError(text, names=names)
    if isinstance(error, tf.errors.NotFoundError):
        return CheckpointNotFoundError(text, names=names)
    return UnsupportedFormatError(text, names=names)
