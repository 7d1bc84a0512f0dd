"""The hidden key of one part of a partitioned tensor, in TensorFlow's order-preserving encoding."""

from __future__ import annotations

import re
from collections.abc import Sequence

_SPECIAL = re.compile(rb"[\x00\xff]")
_ESCAPES = {b"\x00": b"\x00\xff", b"\xff": b"\xff\x00"}


def slice_key(name: bytes, extents: Sequence[tuple[int, int]]) -> bytes:
    """The key under which a part is stored: a zero, the name, the number of axes, begin and length per axis.

    Args:
      name: the partitioned tensor's key.
      extents: begin and length per axis; an axis that is not cut is (0, -1).
    """
    numbers = (n for extent in extents for n in extent)
    return _unsigned(0) + _string(name) + _unsigned(len(extents)) + b"".join(map(_signed, numbers))


def _string(value: bytes) -> bytes:
    return _SPECIAL.sub(lambda found: _ESCAPES[found[0]], value) + b"\x00\x01"


def _unsigned(value: int) -> bytes:
    size = (value.bit_length() + 7) // 8
    return bytes([size]) + value.to_bytes(size, "big")


def _signed(value: int) -> bytes:
    """As many leading bits as bytes tell the length; they are ones for numbers from 0 on, zeros below."""
    size = 1
    while not -(1 << (7 * size - 1)) <= value < 1 << (7 * size - 1):
        size += 1
    header = ((1 << size) - 1) << (7 * size)
    return ((value & ((1 << 8 * size) - 1)) ^ header).to_bytes(size, "big")
