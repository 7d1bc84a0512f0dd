"""Whose error it is: what knows no files raises without them, and who opened the file adds its name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from dist_restore.core.errors import CheckpointCorruptError


@contextlib.contextmanager
def of_file(path: str) -> Iterator[None]:
    """Adds the path to errors that do not name it."""
    try:
        yield
    except CheckpointCorruptError as error:
        if path in str(error):
            raise
        raise CheckpointCorruptError(f"{path}: {error}", names=error.names) from error
