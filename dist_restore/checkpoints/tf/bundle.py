"""TensorFlow's checkpoint bundles (`prefix.index`, `prefix.data-00000-of-00001`), read without TensorFlow's reader.

That reader gives only whole tensors, copies them, and finds a short data file only once it is half way through. This
one decides from the index and the files' sizes what can be decided, reads boxes, and reads into given memory.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from dist_restore.checkpoints.files import byte_regions as regions
from dist_restore.checkpoints.files.files import Seen, read_all
from dist_restore.checkpoints.reader import Stored
from dist_restore.checkpoints.tf import tensor_io as stored
from dist_restore.checkpoints.tf.bundle_index import (
    BundleEntry,
    SliceEntry,
    check_entries,
    join_slices,
    parse_entries,
    parse_header,
)
from dist_restore.checkpoints.tf.fallback_reader import UNKNOWN_SHARD, TfReader
from dist_restore.checkpoints.tf.shards import Shards
from dist_restore.checkpoints.tf.sstable import CompressedTableError, read_table
from dist_restore.core import crc32c as checksum
from dist_restore.core import dtypes
from dist_restore.core.errors import CheckpointCorruptError
from dist_restore.core.tensors import Box, TensorSpec

__all__ = ["Bundle", "BundleEntry", "SliceEntry"]

_MAX_INDEX_SIZE = 2 << 30


class Bundle:
    """An opened checkpoint bundle. All methods may be called by several threads at once.

    Attributes:
      entries: by key.
      identity: SHA-256 (hex) of the index, which holds the checksum of every tensor, and of the files' sizes.
    """

    def __init__(
        self, entries: Mapping[str, BundleEntry], parts: Mapping[str, BundleEntry], shards: Shards, identity: str
    ) -> None:
        self.entries, self.identity = entries, identity
        self._parts = parts
        self._shards = shards
        self._tf_reader: TfReader | None = None
        self._lock = threading.Lock()

    @classmethod
    def open(cls, prefix: str) -> Bundle:
        """Parses the index, and checks that all data files exist and hold every tensor; reads none of them.

        Raises:
          CheckpointNotFoundError: the index or a data file is missing.
          CheckpointCorruptError: the index is damaged, or a data file is too short for it.
          UnsupportedFormatError: big-endian tensors, or a format that TensorFlow's reader does not know either.
        """
        path = f"{prefix}.index"
        data = read_all(path, _MAX_INDEX_SIZE)
        try:
            return cls._parse(prefix, path, data)
        except CompressedTableError:
            return cls(TfReader(prefix).entries(), {}, Shards(prefix, 0), _identity(data, ()))

    @classmethod
    def _parse(cls, prefix: str, path: str, data: bytes) -> Bundle:
        items = read_table(data, path)
        key, header = next(items, (None, b""))
        if key != b"":
            raise CheckpointCorruptError(f"{path}: expected a header under the empty key, found {key!r}")
        num_shards, known = parse_header(header, path)
        shards = Shards(prefix, num_shards)
        entries = parse_entries(items, path)
        check_entries(entries, shards.sizes, path)
        parts = join_slices(entries, path)
        # A newer format is checked like this one first: on a shape that overflows TensorFlow ends the process.
        own = entries if known else TfReader(prefix).entries()
        return cls(own, parts if known else {}, shards, _identity(data, shards.sizes))

    @property
    def num_shards(self) -> int:
        """How many data files there are; 0 where only TensorFlow's own reader knows."""
        return len(self._shards.sizes)

    @property
    def bytes_read(self) -> int:
        """Bytes of the data files read so far, by all threads."""
        return self._shards.bytes_read

    def read(self, key: str, box: Box | None = None, *, out: np.ndarray | None = None) -> np.ndarray:
        """Reads a tensor, or the part inside `box`.

        A whole tensor is checked against its checksum as its bytes pass. So is every stored part of a partitioned
        tensor that is needed whole. Other parts cannot be checked without reading the rest.

        Args:
          key: one of `entries`.
          box: the part to read; all of the tensor when None.
          out: a C-contiguous array of the box's size and the tensor's dtype to read into.

        Returns:
          `out`, or a new array. Strings are an object array of `bytes`.

        Raises:
          CheckpointCorruptError: the bytes are not those that were written, or end too early.
          UnsupportedFormatError: a dtype that NumPy does not have.
        """
        entry = self.entries[key]
        box = Box.whole(entry.spec.shape) if box is None else box
        _require_inside(entry, box)
        dtype = self._native_dtype(entry)
        if dtype is None:
            value = self._read_by_tensorflow(entry)[box.slices()]
            out = _array(key, value.dtype, box.size, out)
            out[...] = value
            return out
        out = _array(key, dtype, box.size, out)
        for part, wanted, target in self._stored(entry, box):
            stored.read_into(self._shards, part, wanted, out[target.slices()] if entry.slices else out)
        return out

    def check(self, key: str) -> int:
        """Reads all bytes of a tensor in bounded memory and compares its checksum.

        Of a string tensor the lengths are held, not the strings.

        Returns:
          How many bytes were read.

        Raises:
          CheckpointCorruptError: the bytes are not those that were written, or end too early.
        """
        entry = self.entries[key]
        if self._native_dtype(entry) is None:
            self._read_by_tensorflow(entry)
            return entry.size
        parts = [self._parts[piece.key] for piece in entry.slices] or [entry]
        for part in parts:
            stored.check(self._shards, part)
        return entry.size

    def stored(self, key: str) -> Stored | None:
        """See `DirectSource.stored`."""
        entry = self.entries[key]
        if entry.slices or entry.shard == UNKNOWN_SHARD or dtypes.stored_dtype(entry.spec.dtype) is None:
            return None  # of strings too there is no such dtype
        return Stored(entry.shard, entry.offset, entry.size, checksum.unmask(entry.crc32c))

    def read_stored(self, key: str, begin: int, out: np.ndarray) -> None:
        """See `DirectSource.read_stored`."""
        self._shards.read(self.entries[key], begin, out)

    def read_parts(self, key: str, begin: int, parts: Sequence[memoryview], seen: Seen) -> None:
        """See `DirectSource.read_parts`."""
        self._shards.read_parts(self.entries[key], begin, parts, seen)

    def read_bytes_string(self, key: str) -> bytes:
        """Reads a scalar string tensor, such as the object graph.

        Raises:
          CheckpointCorruptError: it is no scalar string, or its bytes are not those that were written.
        """
        entry = self.entries[key]
        if entry.spec != TensorSpec((), dtypes.STRING):
            raise CheckpointCorruptError(
                f"{self._shards.prefix}: tensor {key!r}: expected string[], found {entry.spec}", names=(key,)
            )
        return bytes(self.read(key).item())

    def close(self) -> None:
        """Closes the data files. Reading afterwards is an error."""
        self._shards.close()

    def _native_dtype(self, entry: BundleEntry) -> np.dtype | None:
        """The dtype of the array that holds the tensor; None for what is left to TensorFlow's own reader."""
        if entry.shard == UNKNOWN_SHARD:
            return None
        return np.dtype(object) if entry.spec.dtype == dtypes.STRING else dtypes.stored_dtype(entry.spec.dtype)

    def _read_by_tensorflow(self, entry: BundleEntry) -> np.ndarray:
        with self._lock:
            self._tf_reader = reader = self._tf_reader or TfReader(self._shards.prefix)
        value = reader.read(entry)
        self._shards.count(entry.size)
        return value

    def _stored(self, entry: BundleEntry, box: Box) -> Iterator[tuple[BundleEntry, Box, Box]]:
        """The stored parts that `box` needs: the part, what of it is needed, and where that is in `box`."""
        if not entry.slices:
            yield entry, box, Box.whole(box.size)
        for piece in entry.slices:
            shared = regions.intersection(box, piece.box)
            if shared is not None:
                wanted, target = regions.relative(shared, piece.box.begin), regions.relative(shared, box.begin)
                yield self._parts[piece.key], wanted, target


def _identity(index: bytes, sizes: Sequence[int]) -> str:
    digest = hashlib.sha256(index)
    digest.update(repr(tuple(sizes)).encode())
    return digest.hexdigest()


def _require_inside(entry: BundleEntry, box: Box) -> None:
    shape = entry.spec.shape
    fits = len(box.begin) == len(box.size) == len(shape)
    if not fits or any(b < 0 or n < 0 or b + n > limit for b, n, limit in zip(box.begin, box.size, shape, strict=True)):
        raise ValueError(f"tensor {entry.key!r} {entry.spec}: {box} is not inside it")


def _array(key: str, dtype: np.dtype, shape: tuple[int, ...], out: np.ndarray | None) -> np.ndarray:
    if out is None:
        return np.empty(shape, dtype)
    if out.shape != shape or out.dtype != dtype or not (out.flags.c_contiguous and out.flags.writeable):
        raise ValueError(f"tensor {key!r}: `out` must be writable, C-contiguous, {dtype}{list(shape)}")
    return out
