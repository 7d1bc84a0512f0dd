"""TensorFlow's dtypes as files number them, and the NumPy dtypes that hold the same bytes."""

from __future__ import annotations

import functools

import ml_dtypes
import numpy as np

STRING = "string"

# tensorflow/core/framework/types.proto. Numbers never change their meaning; later ones are not known here.
NAMES: dict[int, str] = {
    1: "float32",
    2: "float64",
    3: "int32",
    4: "uint8",
    5: "int16",
    6: "int8",
    7: STRING,
    8: "complex64",
    9: "int64",
    10: "bool",
    11: "qint8",
    12: "quint8",
    13: "qint32",
    14: "bfloat16",
    15: "qint16",
    16: "quint16",
    17: "uint16",
    18: "complex128",
    19: "float16",
    20: "resource",
    21: "variant",
    22: "uint32",
    23: "uint64",
    24: "float8_e5m2",
    25: "float8_e4m3fn",
    26: "float8_e4m3fnuz",
    27: "float8_e4m3b11fnuz",
    28: "float8_e5m2fnuz",
    29: "int4",
    30: "uint4",
    31: "int2",
    32: "uint2",
    33: "float4_e2m1fn",
}

# TensorFlow's own reader gives quantized values as the integers that they are stored as.
_QUANTIZED = {"qint8": "int8", "quint8": "uint8", "qint16": "int16", "quint16": "uint16", "qint32": "int32"}
_WITHOUT_FIXED_SIZE = frozenset({STRING, "resource", "variant"})


def name_of(number: int) -> str:
    """TensorFlow's name of the dtype, or `dtype_<number>` for one that is not known here."""
    return NAMES.get(number, f"dtype_{number}")


def number_of(name: str) -> int:
    """The inverse of `name_of`; 0 for what is no such name."""
    known = next((number for number, other in NAMES.items() if other == name), None)
    digits = name.removeprefix("dtype_")
    return known if known is not None else int(digits) if digits.isdecimal() and int(digits) < 100 else 0


@functools.cache
def numpy_dtype(name: str) -> np.dtype | None:
    """The NumPy dtype whose elements have the bytes that the file has; None where there is none.

    Narrow ones (int4) take a byte an element in a checkpoint (TF 2.21), as they do in NumPy.
    """
    if name in _WITHOUT_FIXED_SIZE or name not in NAMES.values():
        return None
    name = _QUANTIZED.get(name, name)
    narrow = getattr(ml_dtypes, name, None)  # older releases of ml_dtypes lack the newest dtypes
    try:
        return np.dtype(narrow if narrow is not None else name)
    except TypeError:
        return None
