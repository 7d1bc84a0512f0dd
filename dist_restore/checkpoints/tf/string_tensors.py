"""How a string tensor lies in a file: varint64 lengths, their masked CRC32C, then the bytes of all strings.

The entry's checksum is over the lengths as uint32 (uint64 from 4 GiB on), not as the varints in the file, then
over the rest as it lies in the file.
"""

from __future__ import annotations

import numpy as np

from dist_restore.core import crc32c as checksum

LENGTHS_CHECKSUM_SIZE = 4
MAX_VARINT_SIZE = 10


def decode_lengths(data: np.ndarray, count: int) -> tuple[np.ndarray, int]:
    """Decodes the first `count` varints.

    Args:
      data: bytes that begin with the varints; more may follow.
      count: how many strings there are.

    Returns:
      The lengths as uint64, and how many bytes the varints take.

    Raises:
      ValueError: the bytes are not that many varints.
    """
    # They end long before the data do, where one string is the graph of many objects.
    ends = np.flatnonzero(data[: count * MAX_VARINT_SIZE] < 0x80)[:count] + 1
    if len(ends) < count:
        raise ValueError(f"{count} lengths of strings, and only {len(ends)} of them")
    if count == 0:
        return np.zeros(0, np.uint64), 0
    starts = np.concatenate(([0], ends[:-1]))
    widths = ends - starts
    if widths.max() > MAX_VARINT_SIZE:
        raise ValueError("lengths of strings of at most 64 bits, and a longer one")
    values = np.zeros(count, np.uint64)
    for k in range(int(widths.max())):
        part = widths > k
        values[part] |= (data[starts[part] + k] & 0x7F).astype(np.uint64) << np.uint64(7 * k)
    return values, int(ends[-1])


def lengths_checksum(lengths: np.ndarray) -> int:
    """The CRC32C of the lengths, not masked."""
    if not len(lengths) or lengths.max() <= 0xFFFFFFFF:
        return checksum.extend(0, lengths.astype("<u4").tobytes())
    parts = (int(n).to_bytes(4 if n <= 0xFFFFFFFF else 8, "little") for n in lengths)
    return checksum.extend(0, b"".join(parts))


def split(data: memoryview, lengths: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Cuts the strings' bytes apart into an object array of `bytes`."""
    values = np.empty(len(lengths), object)
    position = 0
    for i, length in enumerate(lengths.tolist()):
        values[i] = bytes(data[position : position + length])
        position += length
    return values.reshape(shape)
