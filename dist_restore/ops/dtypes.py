"""TensorFlow's dtype names as NumPy dtypes, and which casts can lose a value.

`numpy.can_cast` is no help: it calls casts between float8 formats, or from float8 to int4, safe.
"""

from __future__ import annotations

import difflib
import enum
from collections.abc import Mapping
from typing import NamedTuple

import ml_dtypes
import numpy as np

from dist_restore.core.dtypes import CODES, ITEM_SIZES
from dist_restore.core.errors import DtypeMismatchError
from dist_restore.core.tensors import TensorSpec
from dist_restore.ops.base import Array


class Kind(enum.Enum):
    """Families of dtypes; a cast from one to another changes what the values mean."""

    BOOL = "bool"
    INT = "int"
    FLOAT = "float"
    COMPLEX = "complex"
    STRING = "string"
    QUANTIZED = "quantized"


class _Float(NamedTuple):
    digits: int
    least: float
    greatest: float
    infinite: bool


# Significant bits, smallest subnormal, greatest finite value, and whether infinity exists.
_FLOATS: Mapping[str, _Float] = {
    "float64": _Float(53, 2.0**-1074, (2 - 2.0**-52) * 2.0**1023, True),
    "float32": _Float(24, 2.0**-149, (2 - 2.0**-23) * 2.0**127, True),
    "bfloat16": _Float(8, 2.0**-133, (2 - 2.0**-7) * 2.0**127, True),
    "float16": _Float(11, 2.0**-24, 65504.0, True),
    "float8_e5m2": _Float(3, 2.0**-16, 57344.0, True),
    "float8_e5m2fnuz": _Float(3, 2.0**-17, 57344.0, False),
    "float8_e4m3fn": _Float(4, 2.0**-9, 448.0, False),
    "float8_e4m3fnuz": _Float(4, 2.0**-10, 240.0, False),
    "float8_e4m3b11fnuz": _Float(4, 2.0**-13, 30.0, False),
    "float4_e2m1fn": _Float(2, 0.5, 6.0, False),
}


def _make_dtype(name: str) -> np.dtype[np.generic] | None:
    if name == "string":
        return np.dtype(object)
    if name.startswith("q"):
        return np.dtype([(name, name[1:])])  # TensorFlow's own: a structure of one field
    try:
        return np.dtype(getattr(ml_dtypes, name, name))
    except TypeError:
        return None  # an older ml_dtypes has fewer dtypes


_DTYPES: Mapping[str, np.dtype[np.generic]] = {n: d for n in ITEM_SIZES if (d := _make_dtype(n)) is not None}
_NAMES: Mapping[np.dtype[np.generic], str] = {dtype: name for name, dtype in _DTYPES.items()}


def numpy_dtype(name: str) -> np.dtype[np.generic]:
    """The NumPy dtype of a TensorFlow dtype name; strings are objects.

    Raises:
      DtypeMismatchError: there is no such dtype.
    """
    if name not in _DTYPES:
        raise DtypeMismatchError(unknown_dtype(name))
    return _DTYPES[name]


def unknown_dtype(name: str) -> str:
    """Says that there is no such dtype, and which is nearest; empty when there is one."""
    if name in _DTYPES:
        return ""
    near = difflib.get_close_matches(name[:40], list(_DTYPES), n=1, cutoff=0.3)
    hint = f" Did you mean {near[0]}?" if near else ""
    return f"dtype {name[:40]!r} is not known.{hint} Use one of {', '.join(_DTYPES)}."


def dtype_name(dtype: np.dtype[np.generic]) -> str:
    """TensorFlow's name of a NumPy dtype; objects, bytes and text are strings.

    Raises:
      DtypeMismatchError: TensorFlow has no such dtype.
    """
    if dtype.kind in "SU":
        return "string"
    name = _NAMES.get(dtype.newbyteorder("=") if dtype.kind in "iufc" else dtype)
    if name is None:
        raise DtypeMismatchError(f"NumPy dtype {dtype} has no TensorFlow name. Use one of {', '.join(_DTYPES)}.")
    return name


def spec_of(array: Array) -> TensorSpec:
    """Shape and dtype of an array."""
    return TensorSpec(array.shape, dtype_name(array.dtype))


def kind_of(name: str) -> Kind:
    """The family of a dtype."""
    if name in ("bool", "string"):
        return Kind(name)
    if name.startswith("q"):
        return Kind.QUANTIZED
    if name.startswith("complex"):
        return Kind.COMPLEX
    return Kind.FLOAT if "float" in name else Kind.INT


def int_bounds(name: str) -> tuple[int, int]:
    """Least and greatest value of an integer dtype; 0 and 1 for bool."""
    if name == "bool":
        return 0, 1
    bits = int(name[name.index("t") + 1 :])
    return (0, 2**bits - 1) if name.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def real_part(name: str) -> str:
    """The dtype of the parts of a complex dtype; other dtypes as they are."""
    return {"complex64": "float32", "complex128": "float64"}.get(name, name)


def is_safe_cast(src: str, dst: str) -> bool:
    """Whether every value of dtype `src` exists in dtype `dst`, so that a cast never needs a look at the values.

    Bool is no number: neither `bool` to a number nor a number to `bool` is safe.
    """
    numpy_dtype(src), numpy_dtype(dst)
    if src == dst:
        return True
    pair = kind_of(src), kind_of(dst)
    if pair == (Kind.INT, Kind.INT):
        (low, high), (least, greatest) = int_bounds(src), int_bounds(dst)
        return least <= low and high <= greatest
    if pair[0] is Kind.INT and pair[1] in (Kind.FLOAT, Kind.COMPLEX):
        return _int_fits(int_bounds(src)[1], _FLOATS[real_part(dst)])
    if pair[0] in (Kind.FLOAT, pair[1]) and pair[1] in (Kind.FLOAT, Kind.COMPLEX):
        return _float_fits(_FLOATS[real_part(src)], _FLOATS[real_part(dst)])
    return False


def is_narrowing_cast(src: str, dst: str) -> bool:
    """Whether a cast stays in its kind (float, int or complex) and may lose values, so that these must be checked."""
    kinds = {kind_of(src), kind_of(dst)}
    numeric = kinds <= {Kind.INT} or kinds <= {Kind.FLOAT} or kinds <= {Kind.COMPLEX}
    return numeric and not is_safe_cast(src, dst)


def holds_codes(src: str, dst: str) -> bool:
    """Whether integers of at most 8 bits would become the values of a float: they are codes of a quantization."""
    return src in CODES and kind_of(dst) in (Kind.FLOAT, Kind.COMPLEX)


def is_float_cast(src: str, dst: str) -> bool:
    """Whether a cast goes from one float to another."""
    return kind_of(src) is kind_of(dst) is Kind.FLOAT


def is_possible_cast(src: str, dst: str) -> bool:
    """Whether an explicit cast op may go from one dtype to the other at all: among numbers and bool."""
    apart = (Kind.STRING, Kind.QUANTIZED)
    return src == dst or (kind_of(src) not in apart and kind_of(dst) not in apart)


def _float_fits(src: _Float, dst: _Float) -> bool:
    # Subnormals count: a format with more digits but a shorter range of exponents does not hold them.
    in_range = dst.least <= src.least and src.greatest <= dst.greatest
    return src.digits <= dst.digits and in_range and src.infinite <= dst.infinite


def _int_fits(high: int, dst: _Float) -> bool:
    # The least value of a signed dtype is -(high + 1): a power of two, so only its size matters.
    return high.bit_length() <= dst.digits and high + 1 <= dst.greatest
