"""Bytes out of files: local ones by `preadv`, those with a scheme (`gs://`) through `tf.io.gfile`.

The only place under `sources` that touches a file system. Knows nothing of what the bytes mean.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias, TypeVar

from dist_restore.core.errors import CheckpointNotFoundError, RestoreError

_T = TypeVar("_T")
# Looks at bytes that have just been read, and are in the cache still.
Seen: TypeAlias = Callable[[memoryview], None]


def unseen(part: memoryview) -> None:
    """For `read_parts`, where nobody looks."""


class File(Protocol):
    """A file opened for reading. All methods may be called by several threads at once."""

    path: str
    # Bytes between two wanted stretches up to which reading them too is faster than a second request.
    gap: int

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fills the buffer from `offset` on; returns how many bytes there were, fewer only at the file's end."""

    def read_parts(self, offset: int, parts: Sequence[memoryview], seen: Seen) -> int:
        """Fills the parts with what lies one behind the other from `offset` on, and shows each to `seen` at once.

        Returns:
          How many bytes there were, fewer only at the file's end.
        """

    def close(self) -> None:
        """Gives back the handles."""


def is_remote(path: str) -> bool:
    """Whether the path has a scheme, and goes through TensorFlow's file systems."""
    return "://" in path


def open_file(path: str) -> File:
    """Opens a file for reading.

    Raises:
      CheckpointNotFoundError: there is no such file.
      RestoreError: the file system refuses.
    """
    return _RemoteFile(path) if is_remote(path) else _LocalFile(path)


def size_of(path: str) -> int | None:
    """The file's size in bytes; None when there is no such file.

    Raises:
      RestoreError: the file system refuses.
    """
    try:
        return _call(path, lambda: int(_file_system().stat(path).length) if is_remote(path) else os.stat(path).st_size)
    except CheckpointNotFoundError:
        return None


def is_directory(path: str) -> bool:
    """Whether the path is a directory."""
    return bool(_call(path, lambda: _file_system().isdir(path) if is_remote(path) else os.path.isdir(path)))


def list_directory(path: str) -> tuple[str, ...]:
    """Names in a directory, sorted; none when it does not exist."""
    try:
        names = _call(path, lambda: _file_system().listdir(path) if is_remote(path) else os.listdir(path or "."))
    except CheckpointNotFoundError:
        return ()
    return tuple(sorted(str(name).rstrip("/") for name in names))


def read_all(path: str, limit: int) -> bytes:
    """All bytes of a file of at most `limit` bytes.

    Raises:
      CheckpointNotFoundError: there is no such file.
      RestoreError: the file is larger, or the file system refuses.
    """
    size = size_of(path)
    if size is None:
        raise CheckpointNotFoundError(f"{path}: no such file")
    if size > limit:
        raise RestoreError(f"{path}: {size} bytes, and a file of this kind has at most {limit}")
    file, data = open_file(path), bytearray(size)
    try:
        count = file.read_into(memoryview(data), 0)
    finally:
        file.close()
    return bytes(data[:count])


class _LocalFile:
    """A local file; one handle serves all threads, because `preadv` has no position to share."""

    # A request costs about 5 us here, in which 48 KB come out of the page cache: a quarter of each row of 16 KB
    # takes 3 ms per 32 MB with the gaps read over and 9 ms without, of rows of 64 KB 3 ms either way.
    gap = 32 << 10

    def __init__(self, path: str) -> None:
        self.path = path
        self._handle = _call(path, lambda: os.open(path, os.O_RDONLY | os.O_CLOEXEC))

    def read_into(self, buffer: memoryview, offset: int) -> int:
        return _call(self.path, lambda: _read_fully(self._handle, buffer, offset))

    def read_parts(self, offset: int, parts: Sequence[memoryview], seen: Seen) -> int:
        return _call(self.path, lambda: _read_parts(functools.partial(_read_fully, self._handle), offset, parts, seen))

    def close(self) -> None:
        handle, self._handle = self._handle, -1
        if handle >= 0:
            os.close(handle)


def _read_parts(read: Callable[[memoryview, int], int], offset: int, parts: Sequence[memoryview], seen: Seen) -> int:
    done = 0
    for part in parts:
        count = read(part, offset + done)
        done += count
        if count < len(part):
            break
        seen(part)
    return done


def _read_fully(handle: int, buffer: memoryview, offset: int) -> int:
    done = 0
    while done < len(buffer):  # a read may be short: Linux moves at most 2 GB at once
        count = os.preadv(handle, [buffer[done:]], offset + done)
        if count == 0:
            break
        done += count
    return done


class _RemoteFile:
    """A file behind TensorFlow's file systems. Its handles have a position, so each serves one read at a time."""

    # A ranged request to object storage takes 20 ms and more, in which 1 MB passes at 50 MB/s.
    gap = 1 << 20

    def __init__(self, path: str) -> None:
        self.path = path
        self._idle: list[_Handle] | None = []
        self._lock = threading.Lock()

    def read_into(self, buffer: memoryview, offset: int) -> int:
        handle = self._take()
        data = _call(self.path, lambda: _read_at(handle, offset, len(buffer)))
        buffer[: len(data)] = data
        self._put_back(handle)
        return len(data)

    def read_parts(self, offset: int, parts: Sequence[memoryview], seen: Seen) -> int:
        return _read_parts(self.read_into, offset, parts, seen)

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle or [], None
        for handle in idle:
            handle.close()

    def _take(self) -> _Handle:
        with self._lock:
            if self._idle is None:
                raise RestoreError(f"{self.path}: read after the checkpoint was closed")
            if self._idle:
                return self._idle.pop()
        return _call(self.path, lambda: _file_system().GFile(self.path, "rb"))

    def _put_back(self, handle: _Handle) -> None:
        with self._lock:
            if self._idle is not None:
                self._idle.append(handle)
                return
        handle.close()


def _read_at(handle: _Handle, offset: int, size: int) -> bytes:
    handle.seek(offset)
    return handle.read(size)


class _Handle(Protocol):
    def seek(self, offset: int) -> None: ...

    def read(self, n: int) -> bytes: ...

    def close(self) -> None: ...


class _Stat(Protocol):
    length: int


class _FileSystem(Protocol):
    """What is used of `tf.io.gfile`, which has no types of its own."""

    def GFile(self, name: str, mode: str) -> _Handle: ...

    def stat(self, path: str) -> _Stat: ...

    def isdir(self, path: str) -> bool: ...

    def listdir(self, path: str) -> list[str]: ...


def _file_system() -> _FileSystem:
    import tensorflow as tf

    system: _FileSystem = tf.io.gfile
    return system


def _call(path: str, operation: Callable[[], _T]) -> _T:
    """Runs one file operation; what file systems raise becomes an error of this library's."""
    try:
        return operation()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointNotFoundError(f"{path}: no such file") from error
    except OSError as error:
        raise RestoreError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:
        translated = _translated(path, error)
        if translated is None:
            raise
        raise translated from error


def _translated(path: str, error: Exception) -> RestoreError | None:
    import tensorflow as tf

    if isinstance(error, tf.errors.NotFoundError):
        return CheckpointNotFoundError(f"{path}: no such file")
    if isinstance(error, tf.errors.OpError):
        return RestoreError(f"{path}: cannot be read: {error.message}")
    return None
