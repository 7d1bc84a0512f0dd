"""CRC32C as TensorFlow uses it: the one place that names the library."""

from __future__ import annotations

import functools

import numpy as np
from fastcrc import crc32

_MASK_DELTA = 0xA282EAD8


def extend(crc: int, data: bytes | memoryview | np.ndarray) -> int:
    """The CRC32C of what `crc` is the checksum of, followed by `data` (contiguous bytes, of any size)."""
    # `data` is a buffer already; the library lets other threads run meanwhile, which google-crc32c does not.
    return crc32.iscsi(data.data if isinstance(data, np.ndarray) else data, crc)


class Running:
    """The CRC32C of all that it was shown, in order.

    Attributes:
      value: so far.
    """

    def __init__(self) -> None:
        self.value = 0

    def extend(self, data: memoryview) -> None:
        """Adds bytes."""
        self.value = crc32.iscsi(data, self.value)


def mask(crc: int) -> int:
    """The form in which files hold a checksum, so that a checksum over checksums is not degenerate."""
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def unmask(masked_crc: int) -> int:
    """Undoes `mask`."""
    rotated = (masked_crc - _MASK_DELTA) & 0xFFFFFFFF
    return ((rotated >> 17) | (rotated << 15)) & 0xFFFFFFFF


def masked(data: bytes | np.ndarray) -> int:
    """The masked CRC32C of `data`."""
    return mask(extend(0, data))


def combine(first: int, second: int, size: int) -> int:
    """The CRC32C of two stretches of bytes, from those of each, so that threads can share a tensor.

    Args:
      first: of the first stretch.
      second: of the second stretch.
      size: bytes of the second stretch.
    """
    return _times(_zeros(size), first) ^ second


_Matrix = tuple[int, ...]

# CRC32C's polynomial, bits reversed; appending one zero bit to the data is a linear map of the checksum.
_ONE_BIT: _Matrix = (0x82F63B78, *(1 << i for i in range(31)))


@functools.lru_cache(maxsize=256)
def _zeros(size: int) -> _Matrix:
    """What appending `size` zero bytes does to a checksum, as a matrix over bits, by squaring."""
    result: _Matrix = tuple(1 << i for i in range(32))
    power = _power(_power(_power(_ONE_BIT)))
    while size:
        if size & 1:
            result = tuple(_times(power, column) for column in result)
        power, size = _power(power), size >> 1
    return result


def _power(matrix: _Matrix) -> _Matrix:
    return tuple(_times(matrix, column) for column in matrix)


def _times(matrix: _Matrix, vector: int) -> int:
    total = 0
    while vector:
        low = vector & -vector
        total ^= matrix[low.bit_length() - 1]
        vector ^= low
    return total
