"""The data files of a bundle: that they exist, how long they are, and bytes out of them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dist_restore.checkpoints.files import files
from dist_restore.checkpoints.tf.bundle_index import BundleEntry
from dist_restore.core import crc32c as checksum
from dist_restore.core.errors import CheckpointCorruptError, CheckpointNotFoundError, RestoreError

# Object stores take 20 ms and more to say a file's size; one after the other, 1,000 files would take a minute.
_REMOTE_REQUESTS = 16


class Shards:
    """All data files of one prefix. Methods may be called by several threads at once."""

    def __init__(self, prefix: str, count: int) -> None:
        """Looks up the files' sizes; opens none yet.

        Raises:
          CheckpointNotFoundError: one of them does not exist.
        """
        self.prefix = prefix
        self._count = count
        self._lock = threading.Lock()
        self._open: dict[int, files.File] | None = {}
        self._bytes_read = 0
        self.sizes = self._find_sizes()

    @property
    def bytes_read(self) -> int:
        """Bytes read so far."""
        return self._bytes_read

    def count(self, size: int) -> None:
        """Adds to `bytes_read`."""
        with self._lock:
            self._bytes_read += size

    def path(self, shard: int) -> str:
        """Name of a data file."""
        return f"{self.prefix}.data-{shard:05d}-of-{self._count:05d}"

    def read(self, entry: BundleEntry, begin: int, buffer: np.ndarray) -> None:
        """Fills a buffer of bytes from byte `begin` of a stored tensor on.

        Raises:
          CheckpointCorruptError: the file ends earlier; it has become shorter since its size was checked.
        """
        self.read_parts(entry, begin, (buffer.data,), files.unseen)

    def read_parts(self, entry: BundleEntry, begin: int, parts: Sequence[memoryview], seen: files.Seen) -> None:
        """See `DirectSource.read_parts`.

        Raises:
          CheckpointCorruptError: as `read`.
        """
        count, wanted = self._file(entry.shard).read_parts(entry.offset + begin, parts, seen), sum(map(len, parts))
        self.count(count)
        if count < wanted:
            raise self.corrupt(entry, f"{wanted} bytes from byte {entry.offset + begin} on", f"{count} bytes")

    def gap(self, shard: int) -> int:
        """Unwanted bytes up to which reading on is faster than another request."""
        return self._file(shard).gap

    def compare(self, entry: BundleEntry, crc: int) -> None:
        """Compares the checksum of a stored tensor's bytes with the index.

        Raises:
          CheckpointCorruptError: they differ.
        """
        actual = checksum.mask(crc)
        if actual != entry.crc32c:
            raise self.corrupt(entry, f"the checksum {entry.crc32c:#010x}", f"{actual:#010x}")

    def corrupt(self, entry: BundleEntry, expected: str, found: str) -> CheckpointCorruptError:
        """An error about a stored tensor's bytes, with the names of tensor and file and the offset."""
        return CheckpointCorruptError(
            f"{self.path(entry.shard)}: tensor {entry.key!r} {entry.spec}, {entry.size} bytes at offset "
            f"{entry.offset}: expected {expected}, found {found}. The data file is damaged or of another save; "
            "use another checkpoint.",
            names=(entry.key,),
        )

    def close(self) -> None:
        """Closes the files."""
        with self._lock:
            handles, self._open = self._open or {}, None
        for handle in handles.values():
            handle.close()

    def _file(self, shard: int) -> files.File:
        with self._lock:
            if self._open is None:
                raise RestoreError(f"{self.prefix}: read after the checkpoint was closed")
            if shard not in self._open:
                self._open[shard] = files.open_file(self.path(shard))
            return self._open[shard]

    def _find_sizes(self) -> tuple[int, ...]:
        """Stops at the first missing file: a hostile index may speak of two billion of them."""
        sizes: list[int] = []
        with ThreadPoolExecutor(_REMOTE_REQUESTS) as pool:
            run = pool.map if files.is_remote(self.prefix) else map
            for start in range(0, self._count, _REMOTE_REQUESTS):
                paths = [self.path(i) for i in range(start, min(start + _REMOTE_REQUESTS, self._count))]
                for path, size in zip(paths, run(files.size_of, paths), strict=True):
                    if size is None:
                        raise CheckpointNotFoundError(
                            f"{path}: no such file. {self.prefix}.index says that there are {self._count} data files; "
                            "copy what is missing, or use another checkpoint."
                        )
                    sizes.append(size)
        return tuple(sizes)
