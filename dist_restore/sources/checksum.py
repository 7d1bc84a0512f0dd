"""CRC32C as TensorFlow uses it: the one place that names the library."""

from __future__ import annotations

import google_crc32c
import numpy as np

_MASK_DELTA = 0xA282EAD8


def extend(crc: int, data: bytes | np.ndarray) -> int:
    """The CRC32C of what `crc` is the checksum of, followed by `data` (contiguous bytes, of any size)."""
    return int(google_crc32c.extend(crc, data))


def mask(crc: int) -> int:
    """The form in which files hold a checksum, so that a checksum over checksums is not degenerate."""
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def masked(data: bytes | np.ndarray) -> int:
    """The masked CRC32C of `data`."""
    return mask(extend(0, data))
