"""Zip archives of others, read in place: members are never extracted by name, and sizes are checked before reading."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import zipfile
import zlib
from typing import TYPE_CHECKING

from dist_restore.checkpoints.files.array_reader import DataFile
from dist_restore.core.errors import CheckpointCorruptError, UnsupportedFormatError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Buffer

# Deflate makes at most 1,032 bytes of one; what says that it makes more lies.
MAX_EXPANSION = 1032
_MAX_MEMBERS = 1 << 20
_LOCAL_HEADER = 30
_CHUNK = 1 << 20


class Window(io.RawIOBase):
    """A part of a file as a file object, for libraries that want one."""

    def __init__(self, file: DataFile, offset: int, size: int) -> None:
        """Takes `size` bytes from `offset` on, which lie inside the file."""
        super().__init__()
        self._file, self._offset, self._size, self._position = file, offset, size, 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """The position in the window."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """See `io.RawIOBase.seek`."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError(f"seek to {start + offset}")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Buffer) -> int:
        """Fills a buffer; fewer bytes at the window's end."""
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._size - self._position))
        if count:
            view[:count] = self._file.head(self._offset + self._position, count)
        self._position += count
        return count


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
    """One file in an archive.

    Attributes:
      name: as the archive says it; never used as a path.
      offset: of its first stored byte in the archive.
      stored: bytes that it takes there.
      size: bytes that it has when unpacked.
      crc32: of these.
      deflated: whether it is compressed.
    """

    name: str
    offset: int
    stored: int
    size: int
    crc32: int
    deflated: bool


class Archive:
    """An opened zip file."""

    def __init__(self, file: DataFile) -> None:
        """Reads the directory.

        Raises:
          CheckpointCorruptError: it cannot be read, names a member twice, or its sizes cannot be true.
          UnsupportedFormatError: a member is encrypted, or compressed in another way than by deflate.
        """
        self.file = file
        try:
            with zipfile.ZipFile(io.BufferedReader(Window(file, 0, file.size))) as found:
                infos = found.infolist()
        except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError, OSError, zlib.error) as error:
            raise CheckpointCorruptError(f"{file.path}: cannot be read as a zip file: {error}") from error
        if len(infos) > _MAX_MEMBERS or len({i.filename for i in infos}) < len(infos):
            raise CheckpointCorruptError(f"{file.path}: {len(infos)} members, of which some have the same name")
        self.members = {info.filename: self._member(info) for info in infos if not info.is_dir()}

    def identity(self) -> str:
        """SHA-256 over names, sizes and checksums of all members."""
        rows = sorted((m.name, m.size, m.crc32) for m in self.members.values())
        return hashlib.sha256(repr(rows).encode("utf-8", "surrogatepass")).hexdigest()

    def chunks(self, member: Member) -> Iterator[bytes]:
        """A member's bytes, unpacked, in pieces of bounded size; its checksum is compared at the end.

        Raises:
          CheckpointCorruptError: they are not what was packed.
        """
        crc, count = 0, 0
        for chunk in self._unpacked(member):
            crc, count = zlib.crc32(chunk, crc), count + len(chunk)
            if count > member.size:
                break
            yield chunk
        if (crc, count) != (member.crc32, member.size):
            raise CheckpointCorruptError(
                f"{self.file.path}: member {member.name[:200]!r}: expected {member.size} bytes of checksum "
                f"{member.crc32:#010x}, found {count} of {crc:#010x}. The file is damaged; use another one."
            )

    def read(self, name: str, limit: int) -> bytes:
        """A small member whole.

        Raises:
          CheckpointCorruptError: it is missing, larger than `limit`, or damaged.
        """
        member = self.members.get(name)
        if member is None or member.size > limit:
            found = "none" if member is None else f"{member.size} bytes"
            raise CheckpointCorruptError(
                f"{self.file.path}: expected a member {name!r} of at most {limit}, found {found}"
            )
        before = self.file.bytes_read
        data = b"".join(self.chunks(member))
        self.file.count(before - self.file.bytes_read)  # no tensor data
        return data

    def _unpacked(self, member: Member) -> Iterator[bytes]:
        unpack = zlib.decompressobj(-zlib.MAX_WBITS) if member.deflated else None
        for begin in range(0, member.stored, _CHUNK):
            chunk = self.file.head(member.offset + begin, min(_CHUNK, member.stored - begin))
            self.file.count(len(chunk))
            if unpack is None:
                yield chunk
                continue
            try:
                while chunk:
                    yield unpack.decompress(chunk, _CHUNK)
                    chunk = unpack.unconsumed_tail
            except zlib.error as error:
                raise CheckpointCorruptError(f"{self.file.path}: member {member.name[:200]!r}: {error}") from error
        if unpack is not None:
            yield unpack.flush()

    def _member(self, info: zipfile.ZipInfo) -> Member:
        where = f"{self.file.path}: member {info.filename[:200]!r}"
        if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UnsupportedFormatError(f"{where}: is encrypted, or compressed by another method than deflate")
        deflated = info.compress_type == zipfile.ZIP_DEFLATED
        offset = self._data_offset(where, info)
        fits = (
            info.file_size <= info.compress_size * MAX_EXPANSION if deflated else info.file_size == info.compress_size
        )
        if not fits or offset + info.compress_size > self.file.size:
            raise CheckpointCorruptError(
                f"{where}: says that {info.compress_size} bytes from byte {offset} on unpack to {info.file_size}, in a "
                f"file of {self.file.size} bytes. The file is truncated or made to do harm."
            )
        return Member(info.filename, offset, info.compress_size, info.file_size, info.CRC, deflated)

    def _data_offset(self, where: str, info: zipfile.ZipInfo) -> int:
        start = info.header_offset
        if not 0 <= start <= self.file.size - _LOCAL_HEADER:
            raise CheckpointCorruptError(f"{where}: lies at byte {start} of {self.file.size}. The file is truncated.")
        header = self.file.head(start, _LOCAL_HEADER)
        if header[:4] != b"PK\x03\x04":
            raise CheckpointCorruptError(f"{where}: expected a member's header at byte {start}. The file is damaged.")
        name, extra = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
        return start + _LOCAL_HEADER + name + extra
