"""NumPy archives (`.npz`): a zip file with one `.npy` per array. Arrays of objects hold pickles and are refused."""

from __future__ import annotations

import dataclasses
import io
import zlib

import numpy as np

from dist_restore.checkpoints.files.array_reader import (
    DataFile,
    RawTensor,
    ReaderSource,
    TensorReader,
    native,
    require_fits,
    spec_of,
)
from dist_restore.checkpoints.files.zip_archive import Archive, Member
from dist_restore.checkpoints.flat.names import first_repeated, name_tensors
from dist_restore.core.arrays import bytes_of
from dist_restore.core.errors import CheckpointCorruptError
from dist_restore.core.index import CheckpointIndex
from dist_restore.core.tensors import Box, TensorSpec

# NumPy writes 128 bytes, and refuses to read more than 10,000.
_MAX_HEADER = 16 << 10
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def open_npz(path: str) -> ReaderSource:
    """Opens an archive.

    Raises:
      CheckpointNotFoundError: there is none.
      CheckpointCorruptError: it is damaged, or its sizes cannot be true.
      UnsupportedFormatError: it holds objects, or text.
    """
    file = DataFile(path)
    try:
        return _source(path, Archive(file))
    except BaseException:
        file.close()
        raise


def _source(path: str, archive: Archive) -> ReaderSource:
    keys = {member.name.removesuffix(".npy"): member for member in archive.members.values()}
    twice = first_repeated(name.removesuffix(".npy") for name in archive.members)
    if twice is not None:
        raise CheckpointCorruptError(f"{path}: two arrays are called {twice[:200]!r}", names=(twice,))
    readers: dict[str, TensorReader] = {}
    specs: dict[str, TensorSpec] = {}
    for key, member in keys.items():
        specs[key], readers[key] = _array(archive, member)
    tensors = name_tensors(specs)
    index = CheckpointIndex(path, "npz", tensors)
    return ReaderSource(index, {t.name: readers[t.key] for t in tensors}, [archive.file], archive.identity())


def _array(archive: Archive, member: Member) -> tuple[TensorSpec, TensorReader]:
    where = f"{archive.file.path}: {member.name[:200]!r}"
    header = io.BytesIO(_start(archive, member))
    try:
        version = np.lib.format.read_magic(header)
        shape, by_columns, dtype = _HEADERS[version](header)
    except (ValueError, KeyError, EOFError, RecursionError, MemoryError, TypeError) as error:
        raise CheckpointCorruptError(f"{where}: no NumPy array: {str(error)[:200]}") from error
    spec, begin = spec_of(where, dtype, shape), header.tell()
    require_fits(where, dtype, shape, member.size - begin)
    stored = shape[::-1] if by_columns else shape
    whole = _Packed(archive, member, begin, dtype, stored)
    if member.deflated:
        return spec, _ByColumns(whole) if by_columns else whole
    raw = _Checked(RawTensor(archive.file, member.offset + begin, dtype, stored), whole)
    return spec, _ByColumns(raw) if by_columns else raw


def _start(archive: Archive, member: Member) -> bytes:
    """The first bytes of a member: its header, and no more than a few."""
    start = archive.file.head(member.offset, min(_MAX_HEADER, member.stored))
    if not member.deflated:
        return start
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(start, _MAX_HEADER)
    except zlib.error as error:
        raise CheckpointCorruptError(f"{archive.file.path}: {member.name[:200]!r}: {error}") from error


@dataclasses.dataclass(frozen=True, slots=True)
class _Packed:
    """An array in a compressed member, which can only be read from its start on, and is checked as it is."""

    archive: Archive
    member: Member
    begin: int
    dtype: np.dtype
    shape: tuple[int, ...]

    def read(self, box: Box) -> np.ndarray:
        """Unpacks all of it."""
        out = np.empty(self.shape, self.dtype)
        data, position = bytes_of(out), -self.begin
        for chunk in self.archive.chunks(self.member):
            part = np.frombuffer(chunk, np.uint8)[max(0, -position) :]
            start = max(0, position)
            data[start : start + len(part)] = part
            position += len(chunk)
        return native(np.ascontiguousarray(out[box.slices()]))

    def check(self) -> int:
        """Compares the member's checksum."""
        return sum(len(chunk) for chunk in self.archive.chunks(self.member))


@dataclasses.dataclass(frozen=True, slots=True)
class _Checked:
    """An array in a member that is not compressed: boxes are read in place, and all of it is checked."""

    raw: RawTensor
    whole: _Packed

    def read(self, box: Box) -> np.ndarray:
        """Checks the checksum where all of it is read."""
        return self.whole.read(box) if box.covers(self.whole.shape) else self.raw.read(box)

    def check(self) -> int:
        """Compares the member's checksum."""
        return self.whole.check()


@dataclasses.dataclass(frozen=True, slots=True)
class _ByColumns:
    """An array that was stored in Fortran's order: its transpose is what the file has."""

    reader: TensorReader

    def read(self, box: Box) -> np.ndarray:
        """Reads the mirrored box."""
        return np.ascontiguousarray(self.reader.read(Box(box.begin[::-1], box.size[::-1])).T)

    def check(self) -> int:
        """As what it mirrors."""
        return self.reader.check()
