"""What the formats besides TensorFlow's own share: a `Source` over one reader per tensor, and raw bytes in a file.

A format's file says where tensors lie and what they are called; reading them is here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from dist_restore.checkpoints.files import files
from dist_restore.checkpoints.files.boxes import read_box
from dist_restore.checkpoints.reader import Stored
from dist_restore.core.arrays import bytes_of
from dist_restore.core.dtypes import stored_dtype
from dist_restore.core.errors import CheckpointCorruptError, RestoreError, UnsupportedFormatError
from dist_restore.core.index import CheckpointIndex
from dist_restore.core.tensors import Box, TensorSpec

# Where a format has no checksums, files up to this size are hashed whole for `identity`, and of larger ones samples.
_HASHED_WHOLE = 8 << 20
_SAMPLES, _SAMPLE = 128, 16 << 10
# NumPy before 2.0 holds no more axes; TensorFlow holds 254, of which nobody has used more than 8.
_MAX_RANK = 32


class TensorReader(Protocol):
    """Reads one tensor. Methods may be called by several threads at once."""

    def read(self, box: Box) -> np.ndarray:
        """The part inside a box, as a new array."""

    def check(self) -> int:
        """Compares the checksum that covers the tensor, where there is one; returns how many bytes were read."""


class DataFile:
    """A file that stays open, counts what it gives, and says so when it ends too early."""

    def __init__(self, path: str) -> None:
        """Opens the file.

        Raises:
          CheckpointNotFoundError: there is none.
        """
        self.path = path
        self.size = files.size_of(path) or 0
        self.bytes_read = 0
        self._lock = threading.Lock()
        self._file: files.File | None = files.open_file(path)
        self.gap = self._file.gap

    def fill(self, offset: int, out: np.ndarray) -> None:
        """Fills an array of bytes.

        Raises:
          CheckpointCorruptError: the file ends earlier.
        """
        self.fill_parts(offset, (out.data,), files.unseen)

    def fill_parts(self, offset: int, parts: Sequence[memoryview], seen: files.Seen) -> None:
        """See `DirectSource.read_parts`.

        Raises:
          CheckpointCorruptError: the file ends earlier.
        """
        if self._file is None:
            raise RestoreError(f"{self.path}: read after the checkpoint was closed")
        count, wanted = self._file.read_parts(offset, parts, seen), sum(map(len, parts))
        self.count(count)
        if count < wanted:
            raise CheckpointCorruptError(
                f"{self.path}: expected {wanted} bytes from byte {offset} on, found {count}: the file is truncated. "
                "Copy it again, or use another checkpoint."
            )

    def count(self, size: int) -> None:
        """Adds to `bytes_read`."""
        with self._lock:
            self.bytes_read += size

    def head(self, offset: int, size: int) -> bytes:
        """Some bytes that are no tensor data; the caller has checked `size`. Not counted."""
        out = np.empty(size, np.uint8)
        self.fill(offset, out)
        self.count(-size)
        return out.tobytes()

    def close(self) -> None:
        """Closes the file."""
        file, self._file = self._file, None
        if file is not None:
            file.close()


@dataclasses.dataclass(frozen=True, slots=True)
class RawTensor:
    """A tensor whose elements lie in a file in one piece, in row-major order.

    Attributes:
      file: where.
      offset: of the first byte.
      dtype: of the stored elements; may be big-endian.
      shape: of the stored array.
    """

    file: DataFile
    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]

    def read(self, box: Box) -> np.ndarray:
        """See `TensorReader.read`: reads only what the box needs, and small gaps."""
        out = np.empty(box.size, self.dtype)
        if box.covers(self.shape):
            self._fill(0, bytes_of(out))
        elif out.size:
            read_box(self._fill, self.shape, box, self.file.gap, out)
        if self.dtype == np.bool_ and (bytes_of(out) > 1).any():
            # A tensor of such bytes is true and casts to another number.
            raise CheckpointCorruptError(f"{self.file.path}: a boolean that is neither 0 nor 1. Use another file.")
        return native(out)

    def check(self) -> int:
        """Looks at booleans; else nothing to compare: no checksums, and sizes were checked when it was opened."""
        return self.read(Box.whole(self.shape)).nbytes if self.dtype == np.bool_ else 0

    def _fill(self, begin: int, part: np.ndarray) -> None:
        if part.size:
            self.file.fill(self.offset + begin, part)


class ReaderSource:
    """A `Source` over readers; a `DirectSource` for what lies in a file as it lies in memory."""

    def __init__(
        self,
        index: CheckpointIndex,
        readers: Mapping[str, TensorReader],
        data: Sequence[DataFile],
        identity: str,
        *,
        sampled: bool = False,
    ) -> None:
        """Takes over what a format has found.

        Args:
          index: names and specs.
          readers: by canonical name.
          data: the files, which are closed with this source.
          identity: see `Source.identity`.
          sampled: whether it covers samples only.
        """
        self._sampled = sampled
        self._index, self._readers, self._data, self._identity = index, readers, data, identity
        self._specs = {t.name: t.spec for t in index.tensors}

    @property
    def bytes_read(self) -> int:
        """See `Source.bytes_read`."""
        return sum(file.bytes_read for file in self._data)

    def index(self) -> CheckpointIndex:
        """See `Source.index`."""
        return self._index

    def forget_scene(self) -> None:
        """See `SceneSource.forget_scene`."""
        self._index = self._index.without_scene()

    def identity(self) -> str:
        """See `Source.identity`."""
        return self._identity

    def is_proof(self) -> bool:
        """See `Source.is_proof`."""
        return not self._sampled

    def read(self, name: str, box: Box | None = None) -> np.ndarray:
        """See `Source.read`."""
        spec = self._specs[name]
        box = box or Box.whole(spec.shape)
        _require_inside(name, spec, box)
        with _named(name):
            return self._readers[name].read(box)

    def check(self, name: str) -> int:
        """See `Source.check`."""
        with _named(name):
            return self._readers[name].check()

    def stored(self, name: str) -> Stored | None:
        """See `DirectSource.stored`."""
        reader = self._readers[name]
        if not isinstance(reader, RawTensor) or not reader.dtype.isnative or reader.dtype == np.bool_:
            return None
        return Stored(self._data.index(reader.file), reader.offset, self._specs[name].nbytes, None)

    def read_stored(self, name: str, begin: int, out: np.ndarray) -> None:
        """See `DirectSource.read_stored`."""
        reader = self._readers[name]
        assert isinstance(reader, RawTensor)
        with _named(name):
            reader.file.fill(reader.offset + begin, out)

    def read_parts(self, name: str, begin: int, parts: Sequence[memoryview], seen: files.Seen) -> None:
        """See `DirectSource.read_parts`."""
        reader = self._readers[name]
        assert isinstance(reader, RawTensor)
        with _named(name):
            reader.file.fill_parts(reader.offset + begin, parts, seen)

    def close(self) -> None:
        """See `Source.close`."""
        for file in self._data:
            file.close()


def _require_inside(name: str, spec: TensorSpec, box: Box) -> None:
    fits = len(box.begin) == len(box.size) == len(spec.shape)
    if not fits or any(b < 0 or n < 0 or b + n > s for b, n, s in zip(box.begin, box.size, spec.shape, strict=True)):
        raise ValueError(f"tensor {name!r} {spec}: {box} is not inside it")


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Adds a tensor's canonical name to errors."""
    try:
        yield
    except CheckpointCorruptError as error:
        raise CheckpointCorruptError(f"{name!r}: {error}", names=(name, *error.names)) from error


def native(array: np.ndarray) -> np.ndarray:
    """The array in this machine's byte order."""
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def require_fits(where: str, dtype: np.dtype, shape: Sequence[int], size: int) -> None:
    """Refuses a shape that does not fill just so many bytes; nothing is allocated before.

    Raises:
      CheckpointCorruptError: it does not.
    """
    if len(shape) > _MAX_RANK or any(n < 0 for n in shape):
        raise CheckpointCorruptError(f"{where}: the shape {list(shape)[:8]} of {len(shape)} axes is no tensor's")
    if math.prod(shape) * dtype.itemsize != size:
        raise CheckpointCorruptError(
            f"{where}: expected {math.prod(shape) * dtype.itemsize} bytes for {dtype}{list(shape)}, found {size}. "
            "The file is damaged; use another one."
        )


def spec_of(where: str, dtype: np.dtype, shape: Sequence[int]) -> TensorSpec:
    """The spec of a NumPy array.

    Raises:
      UnsupportedFormatError: TensorFlow has no such dtype (objects, text, dates, records).
    """
    name = dtype.newbyteorder("=").name
    if stored_dtype(name) is None or dtype.hasobject:
        raise UnsupportedFormatError(
            f"{where}: dtype {dtype} is none of a variable's. Arrays of objects hold pickles, which are never read; "
            "save plain numeric arrays."
        )
    return TensorSpec(tuple(int(n) for n in shape), name)


def is_sampled(file: DataFile) -> bool:
    """Whether `sampled_digest` leaves out some of a file."""
    return file.size > _HASHED_WHOLE


def sampled_digest(file: DataFile, head: bytes = b"") -> str:
    """SHA-256 of a file's size and content: of all of it where it is small, else of evenly spread samples."""
    digest = hashlib.sha256(head + file.size.to_bytes(8, "little"))
    step = _SAMPLE if not is_sampled(file) else (file.size - _SAMPLE) // (_SAMPLES - 1)
    for offset in range(0, file.size, step):
        digest.update(file.head(offset, min(_SAMPLE, file.size - offset)))
    return digest.hexdigest()
