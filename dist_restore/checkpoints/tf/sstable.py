"""The sorted table of keys and values that a bundle's `.index` file is (LevelDB's table format).

Knows blocks, checksums and prefix-compressed keys; knows nothing of tensors. The bytes come from elsewhere, so
every length and offset is checked, blocks may not overlap and keys must ascend: the work is linear in the
file's size whatever it says.
"""

from __future__ import annotations

from collections.abc import Iterator

from dist_restore.core import crc32c as checksum
from dist_restore.core.errors import CheckpointCorruptError

MAGIC = 0xDB4775248B80FB57
FOOTER_SIZE = 48
_TRAILER_SIZE = 5  # compression type, masked CRC32C of block and type
# TensorFlow writes every 16th key in full, so keys decode to at most 16 times their file. A hostile block would
# repeat one long key for 4 bytes apiece: 1 MB of file for 60 GB of keys.
_MAX_KEY_EXPANSION = 64


class CompressedTableError(Exception):
    """A block is compressed: not written by any TensorFlow since 1.2, and left to TensorFlow's own reader."""


def read_table(data: bytes, path: str) -> Iterator[tuple[bytes, bytes]]:
    """Yields all keys and values, in ascending order of keys.

    Args:
      data: the whole file.
      path: the file's name, for messages.

    Raises:
      CheckpointCorruptError: the bytes are not what a writer of this format wrote.
      CompressedTableError: a block is compressed.
    """
    metaindex, index = _read_footer(data, path)
    _read_block(data, *metaindex, path)
    end, last_key, budget = 0, None, _MAX_KEY_EXPANSION * len(data)
    for _, value in _entries(_read_block(data, *index, path), path):
        offset, size = _read_handle(value, 0, path)[0]
        if offset < end:
            raise _corrupt(path, f"blocks one after the other, the next one from byte {end} on", f"one at {offset}")
        end = offset + size
        for key, item in _entries(_read_block(data, offset, size, path), path):
            if last_key is not None and key <= last_key:
                raise _corrupt(path, "keys in ascending order", f"{key!r} after {last_key!r}")
            last_key, budget = key, budget - len(key)
            if budget < 0:
                raise _corrupt(path, f"keys that add up to {_MAX_KEY_EXPANSION} times the file at most", "more")
            yield key, item


def _corrupt(path: str, expected: str, found: str) -> CheckpointCorruptError:
    return CheckpointCorruptError(
        f"{path}: not a readable checkpoint index: expected {expected}, found {found}. The file is truncated or "
        "damaged; use another checkpoint."
    )


def _read_footer(data: bytes, path: str) -> tuple[tuple[int, int], tuple[int, int]]:
    if len(data) < FOOTER_SIZE:
        raise _corrupt(path, f"at least {FOOTER_SIZE} bytes", f"{len(data)}")
    footer = data[-FOOTER_SIZE:]
    magic = int.from_bytes(footer[-8:], "little")
    if magic != MAGIC:
        raise _corrupt(path, f"the magic number {MAGIC:#x} in the last 8 bytes", f"{magic:#x}")
    metaindex, position = _read_handle(footer, 0, path)
    return metaindex, _read_handle(footer, position, path)[0]


def _read_handle(data: bytes, position: int, path: str) -> tuple[tuple[int, int], int]:
    try:
        offset, position = read_varint(data, position)
        size, position = read_varint(data, position)
    except ValueError as error:
        raise _corrupt(path, "a block's offset and size", str(error)) from error
    return (offset, size), position


def _read_block(data: bytes, offset: int, size: int, path: str) -> bytes:
    """A block's entries, without its array of restart points, which only serves to search in it."""
    end = offset + size
    if end + _TRAILER_SIZE > len(data) - FOOTER_SIZE:
        raise _corrupt(path, f"a block that ends before the footer of a file of {len(data)} bytes", f"end {end}")
    stored = int.from_bytes(data[end + 1 : end + _TRAILER_SIZE], "little")
    actual = checksum.masked(data[offset : end + 1])
    if stored != actual:
        raise _corrupt(path, f"the checksum {stored:#010x} for the block at byte {offset}", f"{actual:#010x}")
    if data[end] != 0:
        raise CompressedTableError(f"{path}: the block at byte {offset} is compressed (type {data[end]})")
    restarts = 4 * int.from_bytes(data[end - 4 : end], "little") + 4 if size >= 4 else size + 1
    if restarts > size:
        raise _corrupt(path, f"restart points inside the block of {size} bytes at byte {offset}", f"{restarts} bytes")
    return data[offset : end - restarts]


def _entries(block: bytes, path: str) -> Iterator[tuple[bytes, bytes]]:
    position, limit, key = 0, len(block), b""
    while position < limit:
        try:
            shared, fresh, length = block[position], block[position + 1], block[position + 2]
            if shared | fresh | length < 128:  # nearly always: 100,000 entries parse in half of the time
                position += 3
            else:
                shared, position = read_varint(block, position)
                fresh, position = read_varint(block, position)
                length, position = read_varint(block, position)
        except (IndexError, ValueError) as error:
            raise _corrupt(path, "an entry's three lengths", f"the block's end ({error})") from error
        middle = position + fresh
        end = middle + length
        if shared > len(key) or end > limit:
            raise _corrupt(path, f"an entry inside its block of {limit} bytes", f"one up to byte {end}")
        key = key[:shared] + block[position:middle]
        yield key, block[middle:end]
        position = end


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    """Decodes a varint64.

    Returns:
      The number, and the position behind it.

    Raises:
      ValueError: the data end inside it, or it does not fit into 64 bits.
    """
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise ValueError("a varint that the data's end cuts off")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 64:
                break
            return value, position
    raise ValueError("a varint of more than 64 bits")
