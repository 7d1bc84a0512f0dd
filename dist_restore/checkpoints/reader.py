"""The contract of a checkpoint format.

Knows files and bytes; knows no models. One file in this folder is one format, and `open.py` is the only place
that tells formats apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import msgspec
import numpy as np

from dist_restore.checkpoints.files.files import Seen
from dist_restore.core.index import CheckpointIndex
from dist_restore.core.tensors import Box


class Source(Protocol):
    """An opened checkpoint. Opening reads names, shapes and dtypes, and no tensor data."""

    @property
    def bytes_read(self) -> int:
        """Bytes of tensor data that this process has read through this source so far."""

    def index(self) -> CheckpointIndex:
        """Names, shapes and dtypes of everything that is stored."""

    def identity(self) -> str:
        """A hex digest that differs when the bytes of any tensor do: workers compare it, to see that all have one file.

        Made of what opening has read (checksums, offsets, sizes), without reading tensor data.
        """

    def is_proof(self) -> bool:
        """Whether `identity` covers every byte; formats without checksums have samples of large files only."""

    def read(self, name: str, box: Box | None = None) -> np.ndarray:
        """Reads one tensor, or the part inside `box`.

        Args:
          name: a canonical name out of `index()`.
          box: the part to read, in elements of the stored shape; all of it when None.

        Returns:
          An array of the box's size and the stored dtype. A whole tensor is checked against its checksum as
          its bytes pass, where the format has one; a part cannot be.

        Raises:
          CheckpointCorruptError: the bytes are not what was written, or end too early.
        """

    def check(self, name: str) -> int:
        """Reads all bytes of a tensor in bounded memory, compares its checksum, returns how many were read.

        Raises:
          CheckpointCorruptError: as `read`.
        """

    def close(self) -> None:
        """Gives back file handles. Reading afterwards is an error."""


class Stored(msgspec.Struct, frozen=True):
    """Where a tensor's bytes lie, in one piece and in the form that memory has.

    Attributes:
      file: number of the data file.
      offset: first byte in that file.
      size: how many bytes.
      crc32c: their checksum, not masked; None where the format has none.
    """

    file: int
    offset: int
    size: int
    crc32c: int | None


@runtime_checkable
class DirectSource(Source, Protocol):
    """A `Source` that can also say where bytes lie, so that neighbours are read at once, and large tensors by parts."""

    def stored(self, name: str) -> Stored | None:
        """Where a tensor's bytes lie; None for what only `Source.read` gives (strings, partitioned tensors)."""

    def read_stored(self, name: str, begin: int, out: np.ndarray) -> None:
        """Fills an array of bytes from byte `begin` of a stored tensor on, into its neighbours if it is longer.

        Compares no checksum. May be called by several threads at once.

        Raises:
          CheckpointCorruptError: the file ends too early.
        """

    def read_parts(self, name: str, begin: int, parts: Sequence[memoryview], seen: Seen) -> None:
        """As `read_stored` for parts of bytes that lie one behind the other; each is shown to `seen` once it is filled.

        One call for many parts: a call for each costs 7 us of its thread's time, among threads that empty the caches.
        """


@runtime_checkable
class SceneSource(Source, Protocol):
    """A `Source` with an object graph."""

    def forget_scene(self) -> None:
        """Gives back the memory of the object graph, which only planning looks at; `index()` is without it then."""


@runtime_checkable
class ObjectSource(Source, Protocol):
    """A `Source` that also has objects whose state is no tensor, for `tf.train.Checkpoint` to restore."""

    def object_place(self, name: str) -> tuple[str, tuple[str, ...]]:
        """The prefix that holds an object's state, and the names of the edges from its root to the object."""


@runtime_checkable
class BundleSource(DirectSource, Protocol):
    """A `DirectSource` that TensorFlow's own restore op reads too, on whatever host that op is placed."""

    @property
    def bundle_prefix(self) -> str:
        """The prefix, as the op wants it."""

    def bundle_key(self, name: str) -> bytes | None:
        """The key of a tensor that is stored in one piece; None for others."""
