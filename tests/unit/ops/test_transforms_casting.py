"""Casts: which can lose a value, and the proof value by value that none was lost."""

from __future__ import annotations

import itertools
import tracemalloc
import warnings

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_restore import ops as t
from dist_restore.core.dtypes import ITEM_SIZES
from dist_restore.core.errors import DtypeMismatchError, RuleError
from dist_restore.core.tensors import TensorSpec
from dist_restore.ops import Cast, Scale

NUMBERS = [n for n in ITEM_SIZES if not n.startswith("q") and n not in ("string", "bool")]
SHORT = [n for n in NUMBERS if ITEM_SIZES[n] <= 2]
FLOATS = [n for n in NUMBERS if "float" in n]
INTS = [n for n in NUMBERS if "int" in n]


def every_value(name: str) -> np.ndarray:
    """All values of a dtype of one or two bytes."""
    if name in ("int2", "uint2", "int4", "uint4"):
        size = 2 ** int(name[-1])
        return np.arange(size).astype(np.int8).astype(t.numpy_dtype(name)) if name[0] == "u" else _signed(name, size)
    if name == "float4_e2m1fn":
        return np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.5, -6], np.float32).astype(t.numpy_dtype(name))
    bits = np.arange(256, dtype=np.uint8) if ITEM_SIZES[name] == 1 else np.arange(65536, dtype=np.uint16)
    return bits.view(t.numpy_dtype(name))


def _signed(name: str, size: int) -> np.ndarray:
    return np.arange(-size // 2, size // 2).astype(np.int8).astype(t.numpy_dtype(name))


def exact(array: np.ndarray) -> list[complex | None]:
    """The values as Python numbers, which compare exactly; None for NaN."""
    dtype = t.dtype_name(array.dtype)
    integers = np.uint64 if dtype == "uint64" else np.int64
    with np.errstate(all="ignore"):
        values = array.astype(integers if "int" in dtype else complex)
    listed = values.ravel().tolist()
    return [None if v != v else v.real if isinstance(v, complex) and v.imag == 0 else v for v in listed]


@pytest.mark.parametrize("name", [n for n in ITEM_SIZES])
def test_every_dtype_name_has_a_numpy_dtype_and_back(name: str) -> None:
    assert t.dtype_name(t.numpy_dtype(name)) == name
    assert np.zeros(1, t.numpy_dtype(name)).size == 1


def test_dtype_names_follow_byte_order_and_strings() -> None:
    assert t.dtype_name(np.dtype(">f4")) == "float32"
    assert t.dtype_name(np.dtype("S5")) == t.dtype_name(np.dtype(object)) == "string"
    assert t.numpy_dtype("bfloat16") == ml_dtypes.bfloat16


def test_an_unknown_dtype_is_named_with_the_nearest() -> None:
    with pytest.raises(DtypeMismatchError, match=r"'flaot16' is not known. Did you mean float16"):
        t.numpy_dtype("flaot16")
    with pytest.raises(DtypeMismatchError, match="no TensorFlow name"):
        t.dtype_name(np.dtype("datetime64[s]"))


@pytest.mark.parametrize(("src", "dst"), [*itertools.product(SHORT, NUMBERS)])
def test_a_safe_cast_is_one_that_keeps_every_value(src: str, dst: str) -> None:
    values = every_value(src)
    # What is exact for all values of the source is found by trying all of them.
    assert t.is_safe_cast(src, dst) == _all_survive(values, dst)


def _all_survive(values: np.ndarray, dst: str) -> bool:
    if dst in INTS and t.dtype_name(values.dtype) not in INTS:
        return False
    return exact(values) == exact(t.cast_values(values, dst))


@pytest.mark.parametrize(
    ("src", "dst", "safe"),
    [
        ("int32", "float32", False),
        ("int32", "float64", True),
        ("int64", "float64", False),
        ("uint32", "int64", True),
        ("uint64", "int64", False),
        ("int64", "uint64", False),
        ("float32", "float64", True),
        ("float64", "float32", False),
        ("float64", "complex64", False),
        ("float32", "complex64", True),
        ("complex64", "float32", False),
        ("bool", "int8", False),
        ("int8", "bool", False),
        ("bool", "bool", True),
        ("string", "string", True),
        ("string", "int8", False),
        ("qint8", "int8", False),
    ],
)
def test_safe_casts_of_wider_dtypes(src: str, dst: str, safe: bool) -> None:
    assert t.is_safe_cast(src, dst) is safe


@pytest.mark.parametrize(
    ("src", "dst", "narrowing"),
    [
        ("float32", "float16", True),
        ("float16", "bfloat16", True),
        ("bfloat16", "float16", True),
        ("float16", "float32", False),
        ("int64", "int32", True),
        ("int8", "uint8", True),
        ("complex128", "complex64", True),
        ("float32", "int32", False),
        ("int64", "float32", False),
        ("complex64", "float32", False),
        ("bool", "int8", False),
        ("string", "bool", False),
        ("qint8", "quint8", False),
    ],
)
def test_a_narrowing_cast_stays_in_its_kind_and_may_lose(src: str, dst: str, narrowing: bool) -> None:
    assert t.is_narrowing_cast(src, dst) is narrowing


@pytest.mark.parametrize(("src", "dst"), [*itertools.product([*SHORT, "bool"], [*NUMBERS, "bool"])])
def test_the_check_finds_exactly_the_short_values_that_change(src: str, dst: str) -> None:
    values = np.array([False, True]) if src == "bool" else every_value(src)
    picked = values[:: 97 if values.size > 1000 else 1]
    for value in picked:
        assert _passes(np.array([value], values.dtype), dst) == _exists(value, dst)


def _passes(array: np.ndarray, dst: str) -> bool:
    try:
        t.check_lossless(array, dst, "w")
    except DtypeMismatchError:
        return False
    return True


def _exists(value: np.generic, dst: str) -> bool:
    """Whether the dtype has this value, by Python's exact numbers."""
    number = complex(value) if "complex" in str(value.dtype) else float(value)
    if dst == "bool":
        return number in (0, 1)
    if dst in INTS:
        low, high = (int(getattr(ml_dtypes.iinfo(t.numpy_dtype(dst)), k)) for k in ("min", "max"))
        return number == number and abs(number) != float("inf") and number == int(number) and low <= number <= high
    with np.errstate(all="ignore"):
        there = complex(np.array(number).astype(t.numpy_dtype(dst)).astype(complex))
    return there == number or (there != there and number != number)


@settings(max_examples=200, deadline=None)
@given(st.data(), st.sampled_from(INTS), st.sampled_from(NUMBERS))
def test_an_integer_passes_only_where_it_exists(data: st.DataObject, src: str, dst: str) -> None:
    info = ml_dtypes.iinfo(t.numpy_dtype(src))
    edges = {s * 2**k + d for k in range(64) for s in (1, -1) for d in (-1, 0, 1)}
    inside = [v for v in sorted(edges) if int(info.min) <= v <= int(info.max)]
    value = data.draw(st.one_of(st.sampled_from(inside), st.integers(int(info.min), int(info.max))))
    array = np.array([value]).astype(t.numpy_dtype(src)) if value < 2**63 else np.array([value], np.uint64)
    if dst in INTS:
        bounds = ml_dtypes.iinfo(t.numpy_dtype(dst))
        expected = int(bounds.min) <= value <= int(bounds.max)
    else:
        expected = exact(t.cast_values(array, dst)) == [value]
    assert _passes(array, dst) is expected


@pytest.mark.parametrize(
    ("value", "src", "dst"),
    [
        (70000.0, "float32", "float16"),
        (0.1, "float32", "float16"),
        (1e-30, "float32", "float16"),
        (float("nan"), "float32", "int32"),
        (float("inf"), "float32", "float8_e4m3fn"),
        (float("-inf"), "float16", "int64"),
        (2.0**63, "float64", "int64"),
        (2**63 - 1, "int64", "float64"),
        (-1, "int64", "uint64"),
        (2**63, "uint64", "int64"),
        (2.5, "float32", "int32"),
        (2, "int32", "bool"),
        (1 + 2j, "complex64", "float32"),
        (1 + 1e-20j, "complex128", "complex64"),
    ],
)
def test_a_value_that_would_change_is_refused(value: complex, src: str, dst: str) -> None:
    with pytest.raises(DtypeMismatchError):
        t.check_lossless(np.array([value], t.numpy_dtype(src)), dst, "w")


@pytest.mark.parametrize(
    ("value", "src", "dst"),
    [
        (float("nan"), "float32", "float16"),
        (float("inf"), "float32", "float16"),
        (float("-inf"), "float64", "bfloat16"),
        (-0.0, "float32", "float8_e4m3fnuz"),
        (-0.0, "float32", "int32"),
        (0.5, "float32", "float16"),
        (3.0, "float32", "int8"),
        (-(2**63), "int64", "float32"),
        (1, "int64", "bool"),
        (True, "bool", "float16"),
        (2 + 0j, "complex64", "bfloat16"),
        (complex(float("nan"), 1), "complex128", "complex64"),
    ],
)
def test_a_value_that_exists_in_both_passes(value: complex, src: str, dst: str) -> None:
    t.check_lossless(np.array([value], t.numpy_dtype(src)), dst, "w")


def test_the_message_shows_the_first_value_its_index_what_it_becomes_and_the_way_out() -> None:
    array = np.zeros((3, 4), np.float32)
    array[1, 2], array[2, 0] = 70000, 80000
    with pytest.raises(DtypeMismatchError) as info:
        t.check_lossless(array, "float16", "model/dense/kernel")
    text = str(info.value)
    assert "model/dense/kernel: cast" in text and "70000.0 at index [1, 2]" in text and "become inf" in text
    assert '{ cast = { dtype = "float16", lossy = true } }' in text
    assert info.value.names == ("model/dense/kernel",)


@pytest.mark.parametrize("index", [(0, 0, 0), (2, 299, 699), (1, 7, 3)])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_a_lossy_value_is_found_in_any_block_and_layout(index: tuple[int, ...], order: tuple[int, ...]) -> None:
    array = np.zeros((3, 300, 700), np.float32)
    array[index] = 0.1
    moved = tuple(index[i] for i in order)
    with pytest.raises(DtypeMismatchError) as info:
        t.check_lossless(array.transpose(order), "bfloat16", "w")
    assert f"index {list(moved)}" in str(info.value)


@pytest.mark.parametrize("shape", [(), (0,), (0, 5), (5, 0)])
def test_scalars_and_empty_tensors_are_checked_too(shape: tuple[int, ...]) -> None:
    t.check_lossless(np.full(shape, 0.5, np.float32), "float16", "w")
    assert t.apply((Cast("float16"),), [np.full(shape, 0.5, np.float32)]).shape == shape
    if not shape:
        with pytest.raises(DtypeMismatchError, match=r"index \[\]"):
            t.check_lossless(np.array(0.1, np.float32), "float16", "w")


@pytest.mark.parametrize("dst", ["float32", "int64", "complex64", "bfloat16"])
def test_the_check_needs_little_memory(dst: str) -> None:
    array = np.zeros((1 << 12, 1 << 10), np.float64).T
    tracemalloc.start()
    t.check_lossless(array, dst, "w")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


def test_a_lossy_cast_goes_by_value_without_warnings() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = t.apply((Cast("float16", True),), [np.array([70000, 0.1, np.nan], np.float32)])
        np.testing.assert_array_equal(result, np.array([np.inf, 0.1, np.nan], np.float16))
        assert t.apply((Cast("float32", True),), [np.array([1 + 2j])]).tolist() == [1.0]
        assert t.apply((Cast("bfloat16", True),), [np.array([1 + 2j])]).astype(float).tolist() == [1.0]
        assert t.apply((Cast("int8", True),), [np.array([np.nan, 1.5])])[1] == 1
        assert t.apply((Cast("bool", True),), [np.array([2j, 0])]).tolist() == [True, False]


@pytest.mark.parametrize(("src", "dst"), [*itertools.product([*NUMBERS, "bool"], repeat=2)])
def test_any_number_casts_to_any_other_when_the_values_allow(src: str, dst: str) -> None:
    array = np.array([[0, 1], [1, 0]]).astype(t.numpy_dtype(src))
    result = t.apply((Cast(dst),), [array])
    assert result.dtype == t.numpy_dtype(dst)
    assert t.infer((Cast(dst),), (TensorSpec((2, 2), src),)) == TensorSpec((2, 2), dst)
    np.testing.assert_array_equal(result.astype(np.float64 if "complex" not in dst else complex), [[0, 1], [1, 0]])


def test_a_cast_to_the_same_dtype_is_no_copy() -> None:
    array = np.ones(3, np.float32)
    assert t.apply((Cast("float32"),), [array]) is array


@pytest.mark.parametrize(("src", "dst"), [("string", "int32"), ("float32", "string"), ("qint8", "int8")])
def test_strings_and_quantized_numbers_are_not_cast(src: str, dst: str) -> None:
    spec = TensorSpec((2,), src)
    with pytest.raises(DtypeMismatchError, match=r"cast: expected numbers.*Drop the cast"):
        t.bind((Cast(dst),), (spec,), TensorSpec((2,), dst))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(FLOATS), st.sampled_from([0.5, -2.0, 0.3, 1.0]))
def test_scale_multiplies_and_rounds_once(name: str, by: float) -> None:
    array = np.array([[1.5, -2, 0.25], [0, 3, 1]]).astype(t.numpy_dtype(name))
    expected = (array.astype(complex) * by).astype(complex)
    result = t.apply((Scale(by),), [array.T])
    assert result.dtype == array.dtype
    rounded = (expected if "complex" in name else expected.real).astype(array.dtype)
    np.testing.assert_array_equal(result.astype(complex), rounded.T.astype(complex))


def test_scale_refuses_an_overflow_and_keeps_infinity() -> None:
    with pytest.raises(DtypeMismatchError, match=r"scale: 60000.0 times 2.0 does not exist in float16. Cast"):
        t.apply((Scale(2.0),), [np.array([1, 60000], np.float16)])
    assert t.apply((Scale(2.0),), [np.array([np.inf], np.float16)]).tolist() == [np.inf]


@pytest.mark.parametrize("dtype", ["int32", "bool", "string", "qint8"])
def test_scale_needs_floating_numbers_when_it_is_bound(dtype: str) -> None:
    with pytest.raises(RuleError, match=r"scale: needs floating numbers.*Cast"):
        t.bind((Scale(2.0),), (TensorSpec((2,), dtype),), TensorSpec((2,), dtype))
