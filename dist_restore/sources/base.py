"""The contract of a checkpoint format.

Knows files and bytes; knows no models. One file in this folder is one format, and `open.py` is the only place
that tells formats apart.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from dist_restore.specs import Box, CheckpointIndex


class Source(Protocol):
    """An opened checkpoint. Opening reads names, shapes and dtypes, and no tensor data."""

    @property
    def bytes_read(self) -> int:
        """Bytes of tensor data that this process has read through this source so far."""

    def index(self) -> CheckpointIndex:
        """Names, shapes and dtypes of everything that is stored."""

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
