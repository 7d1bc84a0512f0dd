"""TensorFlow's dtypes, in one table: their names, their numbers in files, and the NumPy dtypes of the same bytes."""

from __future__ import annotations

import functools
from typing import NamedTuple

import ml_dtypes
import numpy as np


class Dtype(NamedTuple):
    """A dtype of TensorFlow's.

    Attributes:
      name: TensorFlow's.
      number: in files (tensorflow/core/framework/types.proto); numbers never change their meaning.
      size: bytes of an element in a checkpoint; 0 where only the file knows them.
      stored_as: name of the NumPy (or ml_dtypes) dtype of the same bytes; empty where there is none.
    """

    name: str
    number: int
    size: int
    stored_as: str


STRING = "string"
# What such a tensor holds only its own object can read.
OPAQUE = frozenset({"variant", "resource"})
# What the weights of a quantized layer are stored as.
CODES = frozenset({"int8", "uint8", "int4", "uint4", "int2", "uint2"})

# Narrow ones (int4) take a byte an element in a checkpoint (TF 2.21), as they do in NumPy. TensorFlow's own reader
# gives quantized values as the integers that they are stored as. Later dtypes are not known here.
DTYPES = (
    Dtype("bool", 10, 1, "bool"),
    Dtype("int8", 6, 1, "int8"),
    Dtype("uint8", 4, 1, "uint8"),
    Dtype("int16", 5, 2, "int16"),
    Dtype("uint16", 17, 2, "uint16"),
    Dtype("int32", 3, 4, "int32"),
    Dtype("uint32", 22, 4, "uint32"),
    Dtype("int64", 9, 8, "int64"),
    Dtype("uint64", 23, 8, "uint64"),
    Dtype("float16", 19, 2, "float16"),
    Dtype("bfloat16", 14, 2, "bfloat16"),
    Dtype("float32", 1, 4, "float32"),
    Dtype("float64", 2, 8, "float64"),
    Dtype("complex64", 8, 8, "complex64"),
    Dtype("complex128", 18, 16, "complex128"),
    Dtype("float8_e5m2", 24, 1, "float8_e5m2"),
    Dtype("float8_e4m3fn", 25, 1, "float8_e4m3fn"),
    Dtype("float8_e4m3fnuz", 26, 1, "float8_e4m3fnuz"),
    Dtype("float8_e4m3b11fnuz", 27, 1, "float8_e4m3b11fnuz"),
    Dtype("float8_e5m2fnuz", 28, 1, "float8_e5m2fnuz"),
    Dtype("int4", 29, 1, "int4"),
    Dtype("uint4", 30, 1, "uint4"),
    Dtype("int2", 31, 1, "int2"),
    Dtype("uint2", 32, 1, "uint2"),
    Dtype("float4_e2m1fn", 33, 1, "float4_e2m1fn"),
    Dtype("qint8", 11, 1, "int8"),
    Dtype("quint8", 12, 1, "uint8"),
    Dtype("qint16", 15, 2, "int16"),
    Dtype("quint16", 16, 2, "uint16"),
    Dtype("qint32", 13, 4, "int32"),
    Dtype(STRING, 7, 0, ""),
    Dtype("resource", 20, 0, ""),
    Dtype("variant", 21, 0, ""),
)
_BY_NAME = {dtype.name: dtype for dtype in DTYPES}
_BY_NUMBER = {dtype.number: dtype for dtype in DTYPES}
# Bytes per element of what a tensor's values can be.
ITEM_SIZES = {dtype.name: dtype.size for dtype in DTYPES if dtype.name not in OPAQUE}


def name_of(number: int) -> str:
    """TensorFlow's name of the dtype, or `dtype_<number>` for one that is not known here."""
    known = _BY_NUMBER.get(number)
    return known.name if known is not None else f"dtype_{number}"


def number_of(name: str) -> int:
    """The inverse of `name_of`; 0 for what is no such name."""
    known = _BY_NAME.get(name)
    digits = name.removeprefix("dtype_")
    return known.number if known is not None else int(digits) if digits.isdecimal() and int(digits) < 100 else 0


@functools.cache
def stored_dtype(name: str) -> np.dtype | None:
    """The NumPy dtype whose elements have the bytes that the file has; None where there is none."""
    known = _BY_NAME.get(name)
    if known is None or not known.stored_as:
        return None
    try:  # older releases of ml_dtypes lack the newest dtypes
        return np.dtype(getattr(ml_dtypes, known.stored_as, known.stored_as))
    except TypeError:
        return None
