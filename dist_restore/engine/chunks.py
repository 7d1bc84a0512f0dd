"""Parts of stored tensors, read and hashed while they are in the cache; and the buffers of the threads that do it.

Knows sources and bytes; knows neither units nor variables.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from dist_restore.checkpoints.reader import DirectSource, Source, Stored
from dist_restore.core import crc32c as checksum
from dist_restore.core.errors import CheckpointCorruptError

# What is read before its checksum is computed: stays in the cache. Two bare threads read and check 1.3 GB in 0.087 s
# so, and in 0.101 with 2 MB, which fill a core's second-level cache (Sapphire Rapids); 512 KB are as good as 1 MB.
SCRATCH = 1 << 20
# What one task reads of a large tensor; the threads share each tensor. A restore of 1.3 GB took 0.364 s with 8 MB,
# 0.385 with 4, and 0.445 with 16, of which two in flight leave the threads without work.
PIECE = 8 << 20
# What is read, hashed or transformed within a few milliseconds, so that whoever assigns may do it too.
BRIEF = 2 * PIECE
_PAGE = 4096

_buffers = threading.local()


def scratch(offset: int) -> np.ndarray:
    """This thread's buffer of `SCRATCH` bytes, which stays in its core's cache, for bytes that begin there in a file.

    It begins as far into a page as they do. On Zen 3 the kernel copies into memory that begins 4 to 60 bytes further
    into its page at a third of the speed (1.5 for 5 GB/s), and what NumPy allocates begins 16 bytes into one; Linux's
    and glibc's `rep movsb` are known for it (glibc bug 30994).
    """
    if not hasattr(_buffers, "array"):
        _buffers.array = np.empty(SCRATCH + _PAGE, np.uint8)
    array: np.ndarray = _buffers.array
    begin = (offset - array.ctypes.data) % _PAGE
    return array[begin : begin + SCRATCH]


def release_scratch() -> None:
    """Gives this thread's buffer back."""
    vars(_buffers).clear()


def read_checked(source: DirectSource, name: str, begin: int, size: int, out: np.ndarray) -> int:
    """Reads a part of a stored tensor and returns its CRC32C, computed while the bytes are in the cache.

    Args:
      source: the opened checkpoint.
      name: of the tensor.
      begin: first byte in the tensor.
      size: how many bytes.
      out: an array of so many bytes; or of `SCRATCH` bytes, which are overwritten again and again.
    """
    crc = checksum.Running()
    source.read_parts(name, begin, _parts(size, out.data), crc.extend)
    return crc.value


def _parts(size: int, view: memoryview) -> list[memoryview]:
    starts = range(0, size, SCRATCH)
    if len(view) >= size:
        return [view[start : min(start + SCRATCH, size)] for start in starts]
    return [view[: min(SCRATCH, size - start)] for start in starts]


def require_checksum(source: Source, name: str, stored: Stored, crc: int) -> None:
    """Raises `CheckpointCorruptError` unless the checksum is the stored one, if there is one."""
    if stored.crc32c is None or crc == stored.crc32c:
        return
    source.check(name)  # says where and what, if the bytes are still wrong
    raise CheckpointCorruptError(
        f"tensor {name!r}: its bytes did not have their checksum when they were read, and have it now. "
        "Something writes to the checkpoint, or the memory is faulty. Restore again with nothing else running.",
        names=(name,),
    )


def in_pieces(
    source: DirectSource, name: str, stored: Stored, data: np.ndarray | None
) -> tuple[tuple[Callable[[], None], ...], Callable[[], int]]:
    """Reads a tensor piece by piece.

    Args:
      source: the opened checkpoint.
      name: of the tensor.
      stored: its place.
      data: takes its bytes; None to drop them.

    Returns:
      What threads do, in any order; and what compares the checksum once all of it is done, and returns it.
    """
    pieces = pieces_of(stored.size)
    crcs = [0] * len(pieces)

    def read(number: int) -> None:
        begin, size = pieces[number]
        out = scratch(stored.offset) if data is None else data[begin : begin + size]
        crcs[number] = read_checked(source, name, begin, size, out)

    def finish() -> int:
        crc = joined_pieces(crcs, stored.size)
        require_checksum(source, name, stored, crc)
        return crc

    return tuple(functools.partial(read, number) for number in range(len(pieces))), finish


def pieces_of(size: int) -> list[tuple[int, int]]:
    """`(begin, size)` of the parts of a tensor that threads read."""
    return [(begin, min(PIECE, size - begin)) for begin in range(0, size, PIECE)]


def joined(parts: Iterable[tuple[int, int]]) -> int:
    """The checksum of bytes from those of their parts: `(checksum, size)` pairs, in order."""
    total = 0
    for crc, size in parts:
        total = checksum.combine(total, crc, size) if total else crc  # nothing before: no table is made for the size
    return total


def joined_pieces(crcs: Sequence[int], size: int) -> int:
    """The checksum of so many bytes from those of their `pieces_of`."""
    return joined(zip(crcs, (count for _, count in pieces_of(size)), strict=True))
