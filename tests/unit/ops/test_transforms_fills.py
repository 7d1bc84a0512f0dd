"""Pad and fit: what new elements are."""

from __future__ import annotations

import numpy as np
import pytest

from dist_restore import ops as t
from dist_restore.core.errors import DtypeMismatchError, RestoreError, RuleError, ShapeMismatchError
from dist_restore.core.tensors import Box, TensorSpec
from dist_restore.ops import Cast, Concat, Fill, Fit, Pad, Reshape, Scale, Transpose

X = np.arange(12, dtype=np.float32).reshape(3, 4)


def fail() -> np.ndarray:
    raise AssertionError("the present value was asked for")


def test_the_present_value_is_asked_for_only_by_keep_and_only_once() -> None:
    asked = []
    t.apply((Fit(Fill.ZEROS, (5, 4)),), [X], live=fail)
    t.apply((Fit(Fill.KEEP, (3, 4)),), [X], live=fail)
    t.apply((Fit(Fill.KEEP, (5, 4)),), [X], live=lambda: asked.append(1) or np.ones((5, 4), np.float32))
    assert asked == [1]


def test_keep_leaves_the_present_value_itself_alone() -> None:
    live = np.ones((5, 4), np.float32)
    live.flags.writeable = False
    result = t.apply((Pad((1, 0), (1, 0), Fill.KEEP),), [X], live=lambda: live)
    np.testing.assert_array_equal(result[1:4], X)
    assert (result[[0, 4]] == 1).all() and (live == 1).all()


def test_kept_values_are_never_cast() -> None:
    live = np.full((4,), 0.1, np.float32)
    source = np.ones(2, np.float32).astype(t.numpy_dtype("bfloat16"))
    ops = (Fit(Fill.KEEP), Cast("float32"))
    bound = t.bind(ops, (TensorSpec((2,), "bfloat16"),), TensorSpec((4,), "float32"))
    assert bound == (Cast("float32"), Fit(Fill.KEEP, (4,)))
    for chain in (bound, bound[::-1]):
        assert t.apply(chain, [source], live=lambda: live).tolist() == [1, 1, live[2], live[3]]


@pytest.mark.parametrize(
    ("live", "error"),
    [
        (lambda: np.ones((5, 5), np.float32), ShapeMismatchError),
        (lambda: np.ones((5, 4), np.float64), DtypeMismatchError),
        (None, RuleError),
    ],
)
def test_keep_needs_a_present_value_of_the_same_shape_and_dtype(live: t.Live | None, error: type[RestoreError]) -> None:
    with pytest.raises(error, match="fit: "):
        t.apply((Fit(Fill.KEEP, (5, 4)),), [X], live=live)


def test_mean_fills_with_the_mean_of_the_source() -> None:
    result = t.apply((Pad((0, 1), (2, 0), Fill.MEAN),), [X])
    expected = np.full((5, 5), X.mean())
    expected[:3, 1:] = X
    np.testing.assert_array_equal(result, expected)
    assert result.dtype == np.float32


def test_normal_fills_with_mean_and_deviation_of_the_source_and_is_seeded() -> None:
    source = np.random.default_rng(0).normal(3.0, 0.5, (50, 40)).astype(np.float32)
    fills = [t.apply((Fit(Fill.NORMAL, (150, 40), seed),), [source])[50:] for seed in (1, 1, 2, 2**40)]
    np.testing.assert_array_equal(fills[0], fills[1])
    assert not np.array_equal(fills[0], fills[2]) and not np.array_equal(fills[0], fills[3])
    assert abs(fills[0].mean() - 3.0) < 0.05 and abs(fills[0].std() - 0.5) < 0.05


def test_normal_draws_the_same_numbers_for_ever() -> None:
    result = t.apply((Pad((0,), (3,), Fill.NORMAL, 7),), [np.array([-1.0, 1.0])])
    np.testing.assert_allclose(result, [-1, 1, *np.random.RandomState([7, 0]).standard_normal(3)])
    np.testing.assert_allclose(result[2:], [-0.1000841, 0.2541996, -1.1552522], rtol=1e-6)


def test_zeros_of_strings_are_empty_strings_and_long_kept_strings_stay_whole() -> None:
    source = np.array([b"a", b"bc"])
    assert t.apply((Fit(Fill.ZEROS, (3,)),), [source.astype(object)]).tolist() == [b"a", b"bc", b""]
    live = np.array([b"", b"", b"longer"], object)
    assert t.apply((Fit(Fill.KEEP, (3,)),), [source], live=lambda: live).tolist() == [b"a", b"bc", b"longer"]


@pytest.mark.parametrize("dtype", ["bfloat16", "bool", "int4", "qint8", "complex64", "float8_e5m2"])
def test_every_dtype_pads_with_zeros(dtype: str) -> None:
    source = (
        np.ones((2,), np.int8).astype(t.numpy_dtype(dtype)) if dtype != "qint8" else np.ones(2, t.numpy_dtype(dtype))
    )
    result = t.apply((Pad((1,), (1,), Fill.ZEROS),), [source])
    assert result.dtype == source.dtype and result.tolist()[1:3] == source.tolist()
    assert result[0] == result[3] == np.zeros((), source.dtype)


@pytest.mark.parametrize("fill", [Fill.MEAN, Fill.NORMAL])
@pytest.mark.parametrize("dtype", ["int32", "string", "bool", "complex64"])
def test_measured_fills_need_floating_numbers_when_bound(fill: Fill, dtype: str) -> None:
    with pytest.raises(RuleError, match=f"fit: fill {fill.value} needs floating numbers.*Use fill"):
        t.bind((Fit(fill),), (TensorSpec((2,), dtype),), TensorSpec((3,), dtype))


def test_measured_fills_need_a_source_with_elements() -> None:
    with pytest.raises(RuleError, match=r"pad: fill mean.*no elements.*Use fill"):
        t.bind((Pad((1,), (0,), Fill.MEAN),), (TensorSpec((0,), "float32"),), TensorSpec((1,), "float32"))


def test_measured_fills_need_the_whole_source_only_where_something_is_filled() -> None:
    spec = TensorSpec((4, 4), "float32")
    ops = (Fit(Fill.MEAN, (6, 2)),)
    assert t.source_boxes(ops, (spec,)) == (Box((0, 0), (4, 4)),)
    assert t.pull_back(ops, (spec,), Box((1, 0), (2, 1))) == (Box((1, 0), (2, 1)),)
    result = t.apply_boxed(ops, (spec,), (Box((0, 0), (4, 4)),), [np.arange(16, dtype=np.float32).reshape(4, 4)])
    assert result[4:].tolist() == [[7.5, 7.5], [7.5, 7.5]]


def test_parts_that_hold_only_filled_elements_need_nothing() -> None:
    spec = TensorSpec((4, 4), "float32")
    assert t.pull_back((Pad((0, 0), (2, 0), Fill.KEEP),), (spec,), Box((4, 0), (2, 4))) == (None,)


def test_a_target_grown_from_nothing_is_all_fill() -> None:
    spec = TensorSpec((0, 4), "float32")
    ops = (Fit(Fill.ZEROS, (2, 4)),)
    boxes = t.source_boxes(ops, (spec,))
    result = t.apply_boxed(ops, (spec,), boxes, [np.zeros((0, 4), np.float32)])
    assert result.tolist() == [[0.0] * 4] * 2
    assert t.filled_elements(ops, (spec,)) == 0


def test_an_empty_target_needs_nothing() -> None:
    spec = TensorSpec((3, 4), "float32")
    ops = (Fit(Fill.ZEROS, (0, 4)),)
    assert t.source_boxes(ops, (spec,)) == (None,)
    assert t.apply_boxed(ops, (spec,), (None,), [None]).shape == (0, 4)


def test_a_pad_that_adds_nothing_is_no_copy() -> None:
    assert np.shares_memory(t.apply((Pad((0, 0), (0, 0), Fill.KEEP),), [X]), X)


def test_what_is_padded_before_a_merge_is_counted_and_read_rightly() -> None:
    ops = (Pad((1, 0), (0, 0), Fill.ZEROS), Concat(0), Transpose((1, 0)), Reshape((2, 2, 10)), Scale(2.0))
    arrays = [X, X[:2] + 20, X[:2] + 40]
    specs = tuple(TensorSpec(a.shape, "float32") for a in arrays)
    padded = [np.pad(a, ((1, 0), (0, 0))) for a in arrays]
    expected = 2 * np.concatenate(padded).T.reshape(2, 2, 10)
    np.testing.assert_array_equal(t.apply(ops, arrays), expected)
    assert t.filled_elements(ops, specs) == 12 + 8 + 8
    boxes = t.source_boxes(ops, specs)
    assert boxes == tuple(Box.whole(a.shape) for a in arrays)
    np.testing.assert_array_equal(t.apply_boxed(ops, specs, boxes, arrays), expected)
    assert t.pull_back(ops, specs, Box((0, 1, 5), (1, 1, 3))) == (None, Box((0, 1), (2, 1)), None)
