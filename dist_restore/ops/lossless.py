"""Proof, value by value, that a cast loses nothing.

A round trip through NumPy is no proof: -1 survives int64 -> uint64 -> int64, and an out-of-range float becomes
whatever the processor makes of it. So ranges are compared first, in types that hold both sides exactly.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from dist_restore.core.dtypes import ITEM_SIZES
from dist_restore.core.errors import DtypeMismatchError
from dist_restore.core.tensors import Box
from dist_restore.ops.base import Array, at, blocks
from dist_restore.ops.dtypes import Kind, dtype_name, int_bounds, is_safe_cast, kind_of, numpy_dtype, real_part

# NumPy's arithmetic does not know these.
_TINY_INTS: Mapping[str, type[np.integer]] = {"int2": np.int8, "int4": np.int8, "uint2": np.uint8, "uint4": np.uint8}
_Mask = npt.NDArray[np.bool_]


def cast_values(array: Array, dtype: str) -> Array:
    """The array in another dtype, by value and without warnings; itself when it has that dtype."""
    source, wanted = dtype_name(array.dtype), numpy_dtype(dtype)
    if source == dtype:
        return array
    if kind_of(source) is Kind.COMPLEX and kind_of(dtype) in (Kind.INT, Kind.FLOAT):
        array = array.real
    if source in _TINY_INTS and dtype in ITEM_SIZES and ITEM_SIZES[dtype] == 1:
        array = array.astype(np.int8)  # ml_dtypes has no direct way between its small dtypes
    with np.errstate(all="ignore"):
        return array.astype(wanted)


def check_lossless(array: Array, dtype: str, name: str) -> None:
    """Raises unless every value of the array exists in the dtype; NaN counts as equal to NaN, -0.0 to 0.0.

    Works in blocks, so that its temporaries stay under 16 MB whatever the array's size.

    Args:
      array: the values, in any memory layout.
      dtype: TensorFlow's name of the dtype that they are to be cast to.
      name: the tensor, for the message.

    Raises:
      DtypeMismatchError: a value would change; the first one is shown.
    """
    source = dtype_name(array.dtype)
    if is_safe_cast(source, dtype):
        return
    for box in blocks(array):
        lost = ~_survives(array[at(box)], source, dtype)
        if lost.any():
            inside = np.unravel_index(int(np.argmax(lost)), lost.shape)
            index = tuple(int(b + i) for b, i in zip(box.begin, inside, strict=True))
            raise _lossy(array[at(Box(index, (1,) * len(index)))], index, source, dtype, name)


def require_finite(op: str, values: Array, results: Array, how: str = "") -> None:
    """Raises where arithmetic in a wide dtype gave a finite value that the result's dtype does not have.

    Args:
      op: name of the op, for the message.
      values: in the wide dtype: the inputs, or the results before they were rounded.
      results: what became of them, in the tensor's own dtype.
      how: what was done to the value, for the message.
    """
    lost = np.isfinite(values) & ~np.isfinite(results.astype(values.dtype))
    if lost.any():
        raise DtypeMismatchError(
            f"{op}: {values[lost].flat[0]!s} {how}does not exist in {dtype_name(results.dtype)}. "
            f"Cast to a wider dtype before {op}, or correct the {op} op."
        )


def _lossy(value: Array, index: tuple[int, ...], source: str, dtype: str, name: str) -> DtypeMismatchError:
    becomes = cast_values(value, dtype)
    message = (
        f"{name}: cast from {source} to {dtype} loses values: expected {value.flat[0].item()!r} at index "
        f"{list(index)}, and it would become {becomes.flat[0].item()!r}. To allow this, write "
        f'{{ cast = {{ dtype = "{dtype}", lossy = true }} }}; or give the target dtype {source}.'
    )
    return DtypeMismatchError(message, names=(name,))


def _survives(values: Array, source: str, dtype: str) -> _Mask:
    if kind_of(source) is Kind.COMPLEX:
        real, imag = values.real, values.imag
        part, wanted = real_part(source), real_part(dtype)
        whole = kind_of(dtype) is Kind.COMPLEX
        return _survives(real, part, wanted) & (_survives(imag, part, wanted) if whole else _zero(imag))
    wanted = real_part(dtype)
    if kind_of(source) in (Kind.INT, Kind.BOOL):
        wide = values.astype(_TINY_INTS[source]) if source in _TINY_INTS else values
        return _int_to_float(wide, wanted) if kind_of(wanted) is Kind.FLOAT else _inside(wide, source, wanted)
    return _float_to_float(values, wanted) if kind_of(wanted) is Kind.FLOAT else _float_to_int(values, wanted)


def _zero(values: Array) -> _Mask:
    return np.equal(values, 0)


def _inside(values: Array, source: str, dtype: str) -> _Mask:
    (low, high), (least, greatest) = int_bounds(source), int_bounds(dtype)
    fits = np.ones(values.shape, np.bool_)
    # Only bounds that the source dtype holds are compared, so that nothing is promoted to a float.
    if least > low:
        fits &= np.greater_equal(values, least)
    if greatest < high:
        fits &= np.less_equal(values, greatest)
    return fits


def _int_to_float(values: Array, dtype: str) -> _Mask:
    low, high = int_bounds(dtype_name(values.dtype))
    with np.errstate(all="ignore"):
        floats = values.astype(numpy_dtype(dtype)).astype(np.float64)
        # float(high + 1) is a power of two and exact; float(high) would round up to it.
        in_range = (floats >= float(low)) & (floats < float(high + 1))
        return in_range & np.equal(floats.astype(values.dtype), values)


def _float_to_int(values: Array, dtype: str) -> _Mask:
    least, greatest = int_bounds(dtype)
    with np.errstate(all="ignore"):
        floats = values.astype(np.float64)
        return (floats >= float(least)) & (floats < float(greatest + 1)) & np.equal(np.trunc(floats), floats)


def _float_to_float(values: Array, dtype: str) -> _Mask:
    wide = np.float64 if values.dtype == np.float64 or dtype == "float64" else np.float32
    with np.errstate(all="ignore"):
        there, here = values.astype(numpy_dtype(dtype)).astype(wide), values.astype(wide, copy=False)
        same: _Mask = np.equal(there, here)
        return same if same.all() else same | (np.isnan(there) & np.isnan(here))
