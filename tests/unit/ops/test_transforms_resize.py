"""Resize and mean: against TensorFlow's own image resize, published recipes, and what is refused."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_restore import ops as t
from dist_restore.core.errors import DtypeMismatchError, RestoreError, RuleError, ShapeMismatchError
from dist_restore.core.tensors import Box, TensorSpec
from dist_restore.ops import Mean, Method, Resize
from dist_restore.ops.dtypes import spec_of
from dist_restore.ops.interpolation import axis_taps

TF_METHOD = {Method.NEAREST: "nearest", Method.LINEAR: "bilinear", Method.CUBIC: "bicubic"}
SIZES = [(14, 24), (24, 14), (5, 13), (7, 16), (1, 4), (4, 1), (16, 16)]
RANDOM = np.random.default_rng(7)


def resized(x: np.ndarray, op: Resize, shape: tuple[int, ...]) -> np.ndarray:
    bound = t.bind((op,), (spec_of(x),), TensorSpec(shape, t.dtype_name(x.dtype)))
    result = t.apply(bound, [x])
    assert result.shape == shape and result.dtype == x.dtype
    return result


@pytest.mark.parametrize("method", TF_METHOD)
@pytest.mark.parametrize(("size", "new"), SIZES)
def test_resize_is_tensorflows_resize_with_half_pixel_centres(method: Method, size: int, new: int) -> None:
    x = RANDOM.normal(size=(size, size + 2, 3)).astype(np.float32)
    expected = tf.image.resize(x, (new, new + 1), method=TF_METHOD[method], antialias=False).numpy()
    result = resized(x, Resize(method, (0, 1)), expected.shape)
    # TensorFlow 2.21 rounds cubic positions to 1/1024 of a pixel: differences of 3e-3 were seen for values of size 3.
    np.testing.assert_allclose(result, expected, atol=6e-3 if method is Method.CUBIC else 1e-5)


def test_the_cubic_coefficient_is_tensorflows_and_not_pytorchs() -> None:
    """-0.5, and not -0.75: half way between two positions the outer weights are an eighth of it."""
    expected = [-0.5 / 8, 0.5 + 0.5 / 8, 0.5 + 0.5 / 8, -0.5 / 8]
    assert axis_taps(Method.CUBIC, 8, 4).weights[1].tolist() == expected
    rows = tf.image.resize(np.eye(8, dtype=np.float32)[..., None], (4, 8), method="bicubic").numpy()[..., 0]
    np.testing.assert_allclose(rows[1], [0, *expected, 0, 0, 0][:8], atol=1e-6)


@pytest.mark.parametrize("method", TF_METHOD)
def test_the_table_of_a_vit_is_resized_as_hf_transformers_does_in_tensorflow(method: Method) -> None:
    """`TFViTEmbeddings.interpolate_pos_encoding`: class token apart, the rest resized as an image."""
    table = RANDOM.normal(size=(1, 197, 8)).astype(np.float32)
    grid = tf.image.resize(table[:, 1:].reshape(1, 14, 14, 8), (24, 24), method=TF_METHOD[method]).numpy()
    expected = np.concatenate([table[:, :1], grid.reshape(1, 576, 8)], 1)
    result = resized(table, Resize(method, (1, 2), (14, 14), prefix=1), (1, 577, 8))
    np.testing.assert_array_equal(result[:, 0], table[:, 0])
    np.testing.assert_allclose(result, expected, atol=6e-3)


def test_a_table_of_positions_is_resized_along_its_rows() -> None:
    table = RANDOM.normal(size=(512, 4)).astype(np.float32)
    expected = tf.image.resize(table[:, None], (1024, 1), method="bilinear").numpy()[:, 0]
    for op in (Resize(Method.LINEAR, (0,)), Resize(Method.LINEAR, (0,), (512,)), Resize(Method.LINEAR, (-2,))):
        np.testing.assert_allclose(resized(table, op, (1024, 4)), expected, atol=1e-5)


def test_rows_before_the_positions_stay_as_they_are() -> None:
    """BART and RoBERTa: two rows of the table are no positions."""
    table = RANDOM.normal(size=(10, 4))
    result = resized(table, Resize(Method.LINEAR, (0,), prefix=2), (18, 4))
    np.testing.assert_array_equal(result[:2], table[:2])
    np.testing.assert_allclose(result[2:], resized(table[2:], Resize(Method.LINEAR, (0,)), (16, 4)), rtol=1e-14)


@pytest.mark.parametrize(
    ("grid", "rows", "sizes"),
    [
        ((14, 14), 577, (24, 24)),
        ((14, 28), 2 * 49 + 1, (7, 14)),
        ((2, 3), 1 + 600, (20, 30)),
        ((2, 2, 2), 28, (3, 3, 3)),
    ],
)
def test_a_new_grid_has_the_proportions_of_the_old_one(
    grid: tuple[int, ...], rows: int, sizes: tuple[int, ...]
) -> None:
    spec = TensorSpec((1 + int(np.prod(grid)), 2), "float32")
    op = Resize(Method.LINEAR, tuple(range(len(grid))), grid, 1)
    (bound,) = t.bind((op,), (spec,), TensorSpec((rows, 2), "float32"))
    assert bound.sizes == sizes  # type: ignore[attr-defined]
    text = "x".join(map(str, grid)) + "->" + "x".join(map(str, sizes))
    assert t.describe((bound,)) == f"resize linear {text} prefix=1"


def test_a_grid_of_other_proportions_must_be_written() -> None:
    spec, target = TensorSpec((196, 2), "float32"), TensorSpec((14 * 20, 2), "float32")
    with pytest.raises(ShapeMismatchError, match=r"proportions of \[14, 14\].*280 positions.*sizes = \[rows"):
        t.bind((Resize(Method.LINEAR, (0, 1), (14, 14)),), (spec,), target)
    table = RANDOM.normal(size=(196, 2)).astype(np.float32)
    expected = tf.image.resize(table.reshape(14, 14, 2), (14, 20)).numpy().reshape(280, 2)
    np.testing.assert_allclose(
        resized(table, Resize(Method.LINEAR, (0, 1), (14, 14), sizes=(14, 20)), (280, 2)), expected, atol=1e-5
    )


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(list(Method)), st.integers(1, 60), st.integers(1, 60))
def test_weights_add_up_to_one_and_positions_exist(method: Method, size: int, new: int) -> None:
    taps = axis_taps(method, size, new)
    assert taps.indexes.min() >= 0 and taps.indexes.max() < size and len(taps.indexes) == new
    np.testing.assert_allclose(taps.weights.sum(1), 1, rtol=1e-14)
    # Mirrored positions have mirrored weights; a tie of nearest goes to the later one, so not these.
    if method is not Method.NEAREST:
        full = np.zeros((new, size))
        np.add.at(full, (np.arange(new)[:, None], taps.indexes), taps.weights)
        np.testing.assert_allclose(full, full[::-1, ::-1], atol=1e-14)


def test_what_keeps_its_size_keeps_its_bits_and_infinities_stay_where_they_are() -> None:
    x = np.array([[1.0, np.inf, 3.0], [4.0, 5.0, np.nan]])
    np.testing.assert_array_equal(resized(x, Resize(Method.CUBIC, (0, 1)), (2, 3)), x)
    tripled = resized(x[:1].T.copy(), Resize(Method.LINEAR, (0,)), (9, 1))
    assert tripled[[1, 4, 7], 0].tolist() == [1, np.inf, 3]
    assert np.isfinite(tripled[[0, 1, 7, 8], 0]).all()


def test_a_large_tensor_is_resized_in_pieces_as_in_one() -> None:
    x = RANDOM.normal(size=(6, 70_000)).astype(np.float32)
    result = resized(x, Resize(Method.CUBIC, (0,)), (9, 70_000))
    for column in (0, 12_345, 69_999):
        one = resized(x[:, column : column + 1].copy(), Resize(Method.CUBIC, (0,)), (9, 1))
        np.testing.assert_array_equal(result[:, column : column + 1], one)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64", "complex64"])
def test_every_floating_dtype_is_rounded_once(dtype: str) -> None:
    x = np.array([1, 2, 4], np.float32).astype(t.numpy_dtype(dtype))
    result = resized(x, Resize(Method.LINEAR, (0,)), (6,))
    assert result.astype(np.complex128).real.tolist() == [1, 1.25, 1.75, 2.5, 3.5, 4]


def test_only_nearest_resizes_what_is_no_number() -> None:
    words = np.array([b"a", b"b"], object)
    assert resized(words, Resize(Method.NEAREST, (0,)), (4,)).tolist() == [b"a", b"a", b"b", b"b"]
    assert resized(np.array([1, 7]), Resize(Method.NEAREST, (0,)), (4,)).tolist() == [1, 1, 7, 7]
    with pytest.raises(RuleError, match=r"resize: linear needs floating numbers, found int64.*nearest"):
        resized(np.array([1, 7]), Resize(Method.LINEAR, (0,)), (4,))


def test_a_value_beyond_the_dtype_is_refused_and_this_is_known_to_be_possible() -> None:
    x = np.array([0, 65504, 65504, 0], np.float16)
    op = Resize(Method.CUBIC, (0,), sizes=(8,))
    assert t.may_refuse((op,), (spec_of(x),))
    assert not t.may_refuse((Resize(Method.LINEAR, (0,), sizes=(8,)),), (spec_of(x),))
    with pytest.raises(DtypeMismatchError, match=r"resize: .* does not exist in float16"):
        t.apply((op,), [x])


def test_only_a_table_reads_whole_rows_of_a_grid() -> None:
    spec = TensorSpec((1 + 16, 2), "float32")
    ops = (Resize(Method.LINEAR, (0, 1), (4, 4), 1, (8, 8)),)
    assert t.pull_back(ops, (spec,), Box((0, 0), (1, 2))) == (Box((0, 0), (1, 2)),)
    # Row 0 of the new grid lies beside row 0 of the old one.
    assert t.pull_back(ops, (spec,), Box((1, 1), (8, 1))) == (Box((1, 1), (4, 1)),)
    assert t.pull_back((Resize(Method.CUBIC, (0,), sizes=(34,)),), (spec,), Box((0, 0), (1, 1))) == (
        Box((0, 0), (2, 1)),
    )


T = TensorSpec((197, 8), "float32")


@pytest.mark.parametrize(
    ("op", "target", "error", "words"),
    [
        (lambda: Resize(Method.LINEAR, (0, 1), (14, 13), 1), (577, 8), ShapeMismatchError, "1 [+] 14 x 13 = 183"),
        (lambda: Resize(Method.LINEAR, (0, 1), (14, 14), 1), (578, 8), ShapeMismatchError, "577 positions in"),
        (lambda: Resize(Method.LINEAR, (0, 2), (14, 14), 1), (577, 8), RuleError, "do not follow one another"),
        (lambda: Resize(Method.LINEAR, (0, 1), prefix=1), (577, 8), RuleError, "prefix needs to know the grid"),
        (lambda: Resize(Method.LINEAR, (0,), (14, 14)), (577, 8), RuleError, "differ in length"),
        (lambda: Resize(Method.LINEAR, (0, -2)), (577, 8), RuleError, "one axis twice"),
        (lambda: Resize(Method.LINEAR, ()), (577, 8), RuleError, "axes"),
        (lambda: Resize(Method.LINEAR, (0,), sizes=(0,)), (577, 8), RuleError, "sizes holds 0"),
        (lambda: Resize(Method.LINEAR, (2,)), (577, 8), ShapeMismatchError, "an axis from -2 to 1"),
        (lambda: Resize(Method.LINEAR, (0,)), (577,), ShapeMismatchError, "as many axes"),
        (lambda: Resize(Method.LINEAR, (0,), prefix=197), (577, 8), ShapeMismatchError, "more than 197"),
    ],
)
def test_what_does_not_fit_is_named(op, target: tuple[int, ...], error: type[RestoreError], words: str) -> None:
    with pytest.raises(error, match=f"resize: .*{words}"):
        t.bind((op(),), (T,), TensorSpec(target, "float32"))


def test_an_axis_without_elements_cannot_grow() -> None:
    with pytest.raises(ShapeMismatchError, match=r"resize: .*empty axis"):
        t.bind((Resize(Method.NEAREST, (0,)),), (TensorSpec((0, 2), "float32"),), TensorSpec((3, 2), "float32"))


@pytest.mark.parametrize(
    "raw",
    [
        {"resize": {"method": "linear", "axes": [0], "prefix": 1, "sizes": [3]}},
        {"resize": {"method": "linear", "axes": [0]}},
    ],
)
def test_a_resize_in_a_plan_that_lacks_a_size_is_refused(raw: object) -> None:
    with pytest.raises(RuleError, match="resize: the sizes are not known"):
        t.infer((t.parse_op(raw, bound=True),), (TensorSpec((5,), "float32"),))


# ---- Mean -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_mean_is_rounded_once(dtype: str) -> None:
    found = [RANDOM.normal(size=(3, 50)).astype(t.numpy_dtype(dtype)) for _ in range(7)]
    weights = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0)
    wide = np.average([a.astype(np.float64) for a in found], axis=0, weights=weights)
    np.testing.assert_array_equal(t.apply((Mean(weights),), found), wide.astype(found[0].dtype))


def test_only_the_proportions_of_weights_count_and_large_values_do_not_overflow() -> None:
    found = [np.full(2, 3e38, np.float32), np.full(2, 1e38, np.float32)]
    assert t.apply((Mean((1.0, 3.0)),), found).tolist() == t.apply((Mean((1e300, 3e300)),), found).tolist()
    assert t.apply((Mean(),), [np.full(1, 65504, np.float16)] * 5).tolist() == [65504]


@pytest.mark.parametrize(
    "array", [np.arange(3), np.array([True, False]), np.array([b"a"], object), np.arange(2).astype(ml_dtypes.int4)]
)
def test_tensors_without_floating_numbers_have_a_mean_only_if_they_are_equal(array: np.ndarray) -> None:
    np.testing.assert_array_equal(t.apply((Mean(),), [array, array.copy()]), array)
    assert t.may_refuse((Mean(),), (spec_of(array),) * 2)
    with pytest.raises(DtypeMismatchError, match=r"mean: expected .* equal.*number 3"):
        t.apply((Mean(),), [array, array.copy(), array[::-1] if array.size > 1 else np.array([b"b"], object)])


def test_the_mean_of_tensors_that_differ_is_refused_when_bound() -> None:
    a, b = TensorSpec((2,), "float32"), TensorSpec((3,), "float32")
    for specs, error, words in [
        ((a, b), ShapeMismatchError, "equal shapes"),
        ((a, TensorSpec((2,), "float64")), DtypeMismatchError, "one dtype"),
        ((a, a, a), RuleError, "2 weights for 3"),
    ]:
        with pytest.raises(error, match=f"mean: .*{words}"):
            t.bind((Mean((1.0, 2.0)),), specs, a)


@pytest.mark.parametrize("weights", [[], [0.0], [1.0, -1.0], [1e308, 1e308]])
def test_weights_are_positive(weights: list[float]) -> None:
    with pytest.raises(RuleError, match="mean: weights must be positive"):
        t.parse_op({"mean": {"weights": weights}})
