"""Each op by itself on random shapes, against NumPy in float64: results, shapes, parts of inputs, inverses, plans."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dist_restore import ops as t
from dist_restore.core.errors import RuleError
from dist_restore.core.tensors import Box, TensorSpec
from dist_restore.ops import Fill, HeadLayout, Method, RemapRows, Resize, RowMap
from dist_restore.ops.dtypes import spec_of

quick = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
Draw = st.DrawFn
KEPT = -7.0


@dataclasses.dataclass
class Case:
    """One op, its inputs, and what NumPy makes of them.

    Attributes:
      op: as a rule file has it.
      sources: the inputs; every element has a value of its own.
      expected: the result.
      parts: how many targets a rule with this op has; the expected one is that of the first.
      minimal: whether every element that is asked for matters, not only the outermost ones.
      exact: whether the result is made of the inputs' own values.
    """

    op: t.Op
    sources: list[np.ndarray]
    expected: np.ndarray
    parts: int = 1
    minimal: bool = True
    exact: bool = True

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        return tuple(map(spec_of, self.sources))

    def bound(self) -> tuple[t.Op, ...]:
        return t.bind((self.op,), self.specs, spec_of(self.expected), parts=self.parts, seed=5)

    def live(self) -> np.ndarray:
        return np.full(self.expected.shape, KEPT)

    def apply(self, sources: list[np.ndarray]) -> np.ndarray:
        return t.apply(self.bound(), sources, live=self.live)


def table(*shape: int, start: int = 1) -> np.ndarray:
    return np.arange(start, start + math.prod(shape), dtype=np.float64).reshape(shape)


def shapes(draw: Draw, rank: int = 1, most: int = 5) -> tuple[int, ...]:
    return tuple(draw(st.lists(st.integers(1, most), min_size=rank, max_size=3)))


def axis_of(draw: Draw, x: np.ndarray) -> int:
    return draw(st.integers(-x.ndim, x.ndim - 1))


# ---- One case of each op ---------------------------------------------------------------------------------


def transpose(draw: Draw) -> Case:
    x = table(*shapes(draw))
    perm = tuple(draw(st.permutations(range(x.ndim))))
    return Case(t.Transpose(perm), [x], np.transpose(x, perm))


def reshape(draw: Draw) -> Case:
    x = table(*shapes(draw, 2))
    shape = draw(st.sampled_from([(-1,), (x.shape[0], -1), (-1, x.shape[-1])]))
    return Case(t.Reshape(shape), [x], x.reshape(shape), minimal=False)


def reshape_to_target(draw: Draw) -> Case:
    """As a rule for models of every size has it."""
    x = table(*shapes(draw, 2))
    shape = draw(st.sampled_from([(x.size,), x.shape[::-1], (1, *x.shape), (x.shape[0], x.size // x.shape[0])]))
    return Case(t.Reshape("target"), [x], x.reshape(shape), minimal=False)


def slice_(draw: Draw) -> Case:
    x = table(*shapes(draw))
    begin = tuple(draw(st.integers(0, n - 1)) for n in x.shape)
    size = tuple(draw(st.integers(1, n - b)) for n, b in zip(x.shape, begin, strict=True))
    return Case(t.Slice(begin, size), [x], x[Box(begin, size).slices()])


def pad(draw: Draw) -> Case:
    x = table(*shapes(draw))
    widths = [(draw(st.integers(0, 2)), draw(st.integers(0, 2))) for _ in x.shape]
    fill = draw(st.sampled_from([Fill.ZEROS, Fill.KEEP]))
    op = t.Pad(tuple(a for a, _ in widths), tuple(b for _, b in widths), fill)
    return Case(op, [x], np.pad(x, widths, constant_values=KEPT if fill is Fill.KEEP else 0))


def fit(draw: Draw) -> Case:
    x = table(*shapes(draw))
    shape = tuple(draw(st.integers(1, 6)) for _ in x.shape)
    expected = np.full(shape, KEPT)
    inner = tuple(slice(0, min(a, b)) for a, b in zip(shape, x.shape, strict=True))
    expected[inner] = x[inner]
    return Case(t.Fit(Fill.KEEP), [x], expected)


def concat(draw: Draw) -> Case:
    shape, count = shapes(draw), draw(st.integers(1, 3))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    found, start = [], 1
    for _ in range(count):
        size = list(shape)
        size[axis] = draw(st.integers(1, 4))
        found.append(table(*size, start=start))
        start += found[-1].size
    return Case(t.Concat(axis), found, np.concatenate(found, axis))


def stack(draw: Draw) -> Case:
    shape, count = shapes(draw), draw(st.integers(1, 3))
    found = [table(*shape, start=1 + i * math.prod(shape)) for i in range(count)]
    axis = draw(st.integers(-len(shape) - 1, len(shape)))
    return Case(t.Stack(axis), found, np.stack(found, axis))


def split(draw: Draw) -> Case:
    x = table(*shapes(draw))
    axis = axis_of(draw, x)
    first = draw(st.integers(1, x.shape[axis]))
    sizes = (first, x.shape[axis] - first)
    return Case(t.Split(axis, sizes), [x], np.split(x, [first], axis)[0], parts=2)


def unstack(draw: Draw) -> Case:
    x = table(*shapes(draw))
    axis = axis_of(draw, x)
    return Case(t.Unstack(axis), [x], np.take(x, 0, axis), parts=x.shape[axis])


def cast(draw: Draw) -> Case:
    x = table(*shapes(draw))
    return Case(t.Cast("float32"), [x], x.astype(np.float32))


def scale(draw: Draw) -> Case:
    x = table(*shapes(draw))
    by = draw(st.sampled_from([0.5, -2.0, 3.0]))
    return Case(t.Scale(by), [x], x * by, exact=False)


def tile(draw: Draw) -> Case:
    x = table(*shapes(draw))
    multiples = tuple(draw(st.integers(1, 3)) for _ in x.shape)
    return Case(t.Tile(multiples), [x], np.tile(x, multiples), minimal=False)


def repeat(draw: Draw) -> Case:
    x = table(*shapes(draw))
    axis, times = axis_of(draw, x), draw(st.integers(1, 4))
    return Case(t.Repeat(axis, times), [x], np.repeat(x, times, axis))


def permute_heads(draw: Draw) -> Case:
    heads, half, rest = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(0, 2))
    x = table(draw(st.integers(1, 3)), heads * (2 * half + rest))
    layout = draw(st.sampled_from(list(HeadLayout)))
    by_head = x.reshape(len(x), heads, -1)
    pairs = (half, 2) if layout is HeadLayout.INTERLEAVED_TO_HALF else (2, half)
    turned = by_head[..., : 2 * half].reshape(len(x), heads, *pairs).swapaxes(2, 3).reshape(len(x), heads, -1)
    expected = np.concatenate([turned, by_head[..., 2 * half :]], 2).reshape(x.shape)
    axis = draw(st.sampled_from([0, 1, -1]))
    op = t.PermuteHeads(heads, layout, axis, 2 * half if rest or draw(st.booleans()) else None)
    swap = axis == 0
    return Case(op, [x.T.copy() if swap else x], expected.T if swap else expected, minimal=False)


def remap_rows(draw: Draw) -> Case:
    x = table(*shapes(draw))
    axis = axis_of(draw, x)
    old = [f"t{i}" for i in range(x.shape[axis])]
    count = draw(st.integers(0, 3))
    # Whole permutations, cut off: lists of single tokens are mostly short, and begin with the first token.
    kept = draw(st.permutations(old))[: draw(st.integers(1, len(old)))]
    new = draw(st.permutations(kept + [f"n{i}" for i in range(count)]))
    fill = draw(st.sampled_from([Fill.ZEROS, Fill.KEEP]))
    ground = KEPT if fill is Fill.KEEP else 0.0
    rows = [np.take(x, old.index(k), axis) if k in old else np.full_like(np.take(x, 0, axis), ground) for k in new]
    op = RemapRows(new_rows=fill, old_vocab=old, new_vocab=new, axis=axis)
    return Case(op, [x], np.stack(rows, axis if axis >= 0 else axis + x.ndim), minimal=False)


def mean(draw: Draw) -> Case:
    shape, count = shapes(draw), draw(st.integers(1, 4))
    found = [table(*shape, start=1 + i * math.prod(shape)) for i in range(count)]
    weights = draw(st.one_of(st.none(), st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=count, max_size=count)))
    op = t.Mean(None if weights is None else tuple(weights))
    return Case(op, found, np.average(found, axis=0, weights=weights), exact=False)


def keys(d: float, a: float) -> float:
    near, far = (a + 2) * d**3 - (a + 3) * d**2 + 1, a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return near if d <= 1 else far if d < 2 else 0.0


def matrix(method: Method, size: int, new: int) -> np.ndarray:
    """The weights as a full matrix, written down once more: one position and one weight at a time."""
    found = np.zeros((new, size))
    for i in range(new):
        at = (i + 0.5) * size / new - 0.5
        for j in range(size):
            if method is Method.NEAREST:
                found[i, j] = ((2 * i + 1) * size) // (2 * new) == j
            elif method is Method.LINEAR:
                found[i, j] = max(0.0, 1 - abs(at - j))
            elif method is Method.CUBIC_TORCH:  # what lies outside has the value of the border
                found[i, j] = sum(
                    keys(abs(at - k), -0.75) for k in range(-4, size + 4) if min(max(k, 0), size - 1) == j
                )
            else:
                found[i, j] = keys(abs(at - j), -0.5)
        found[i] /= found[i].sum()
    return found


def resize(draw: Draw) -> Case:
    x = table(*shapes(draw, most=6))
    method = draw(st.sampled_from(list(Method)))
    axes = tuple(draw(st.lists(st.integers(0, x.ndim - 1), min_size=1, unique=True)))
    expected = x
    for axis in axes:
        weights = matrix(method, x.shape[axis], draw(st.integers(1, 7)))
        expected = np.moveaxis(np.tensordot(weights, expected, (1, axis)), 0, axis)
    return Case(Resize(method, axes), [x], expected, minimal=False, exact=False)


def resize_grid(draw: Draw) -> Case:
    method, rank = draw(st.sampled_from(list(Method))), draw(st.integers(1, 2))
    grid = tuple(draw(st.integers(1, 4)) for _ in range(rank))
    sizes = tuple(draw(st.integers(1, 5)) for _ in range(rank))
    prefix, lead = draw(st.integers(0, 2)), draw(st.booleans())
    x = table(prefix + math.prod(grid), 2)
    expected = x[prefix:].reshape(*grid, 2)
    for axis, (old, new) in enumerate(zip(grid, sizes, strict=True)):
        expected = np.moveaxis(np.tensordot(matrix(method, old, new), expected, (1, axis)), 0, axis)
    expected = np.concatenate([x[:prefix], expected.reshape(-1, 2)])
    op = Resize(method, tuple(range(lead, rank + lead)), grid, prefix, sizes)
    return Case(op, [x[None] if lead else x], expected[None] if lead else expected, minimal=False, exact=False)


MAKERS: tuple[Callable[[Draw], Case], ...] = (
    transpose,
    reshape,
    reshape_to_target,
    slice_,
    pad,
    fit,
    concat,
    stack,
    split,
    unstack,
    cast,
    scale,
    tile,
    repeat,
    permute_heads,
    remap_rows,
    mean,
    resize,
    resize_grid,
)
every_op = pytest.mark.parametrize("maker", MAKERS, ids=lambda m: m.__name__.strip("_"))


def test_every_op_of_the_vocabulary_is_tried_here() -> None:
    assert {m.__name__.strip("_") for m in MAKERS} - {"resize_grid", "reshape_to_target"} == set(t.OPS)


def draw_box(data: st.DataObject, shape: tuple[int, ...]) -> Box:
    begin = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    return Box(begin, tuple(data.draw(st.integers(1, n - b)) for n, b in zip(shape, begin, strict=True)))


@every_op
@quick
@given(data=st.data())
def test_an_op_does_what_numpy_does(maker: Callable[[Draw], Case], data: st.DataObject) -> None:
    case = data.draw(st.composite(maker)())
    result = case.apply(case.sources)
    (np.testing.assert_array_equal if case.exact else np.testing.assert_allclose)(result, case.expected)
    assert t.infer(case.bound(), case.specs) == spec_of(result) == spec_of(np.asarray(case.expected))


@every_op
@quick
@given(data=st.data())
def test_an_op_survives_the_way_through_a_plan(maker: Callable[[Draw], Case], data: st.DataObject) -> None:
    case = data.draw(st.composite(maker)())
    for ops in (case.bound(), (case.op,)):
        raw = json.loads(json.dumps([t.dump_op(op) for op in ops]))
        assert t.parse_ops(raw, bound=True) == ops
    assert t.bind(case.bound(), case.specs, spec_of(case.expected), seed=5) == case.bound()
    assert t.describe(case.bound()).startswith(case.op.NAME) and len(t.describe(case.bound())) < 120


@every_op
@quick
@given(data=st.data())
def test_elements_that_are_not_asked_for_do_not_matter(maker: Callable[[Draw], Case], data: st.DataObject) -> None:
    case = data.draw(st.composite(maker)())
    box = draw_box(data, case.expected.shape)
    spoiled = [np.full_like(a, np.nan) for a in case.sources]
    for bad, good, needed in zip(spoiled, case.sources, t.pull_back(case.bound(), case.specs, box), strict=True):
        if needed is not None:
            bad[(*needed.slices(), ...)] = good[(*needed.slices(), ...)]
    at = (*box.slices(), ...)
    np.testing.assert_array_equal(case.apply(spoiled)[at], case.apply(case.sources)[at])


@every_op
@quick
@given(data=st.data())
def test_no_side_of_a_part_that_is_asked_for_can_be_left_out(
    maker: Callable[[Draw], Case], data: st.DataObject
) -> None:
    case = data.draw(st.composite(maker)())
    box = draw_box(data, case.expected.shape)
    at = (*box.slices(), ...)
    good = case.apply(case.sources)[at]
    for number, needed in enumerate(t.pull_back(case.bound(), case.specs, box)):
        # A reshape asks for whole rows, a tile for a whole copy: both may be more than the least.
        if needed is None or isinstance(case.op, t.Reshape):
            continue
        for axis, size in enumerate(needed.size):
            for side in (0, size - 1):
                spoiled = [a.copy() for a in case.sources]
                index = list(needed.slices())
                index[axis] = slice(needed.begin[axis] + side, needed.begin[axis] + side + 1)
                spoiled[number][tuple(index)] += 1000.0
                assert not np.array_equal(case.apply(spoiled)[at], good), (axis, side, needed)
    if case.minimal and case.exact:
        asked = sum(b.elements for b in t.pull_back(case.bound(), case.specs, box) if b is not None)
        assert asked == len(set(good.ravel().tolist()) - {0.0, KEPT})


@every_op
@quick
@given(data=st.data())
def test_a_part_of_the_result_is_made_of_a_part_of_the_source(
    maker: Callable[[Draw], Case], data: st.DataObject
) -> None:
    """Behind the op a slice, so that the op itself is narrowed; what is kept can only be the last op."""
    case = data.draw(st.composite(maker)())
    if case.bound()[-1].FILLS:
        return
    box = draw_box(data, case.expected.shape)
    ops = (*case.bound(), t.Slice(box.begin, box.size))
    boxes = t.source_boxes(ops, case.specs)
    arrays = [None if b is None else a[(*b.slices(), ...)] for a, b in zip(case.sources, boxes, strict=True)]
    result = t.apply_boxed(ops, case.specs, boxes, arrays)
    np.testing.assert_array_equal(result, case.apply(case.sources)[(*box.slices(), ...)])
    narrowed, specs = t.narrow(ops, case.specs, boxes)
    assert t.infer(narrowed, specs) == spec_of(result)


@every_op
@quick
@given(data=st.data())
def test_a_target_is_made_of_the_parts_that_were_asked_for(maker: Callable[[Draw], Case], data: st.DataObject) -> None:
    case = data.draw(st.composite(maker)())
    boxes = t.source_boxes(case.bound(), case.specs)
    arrays = [None if b is None else a[(*b.slices(), ...)] for a, b in zip(case.sources, boxes, strict=True)]
    result = t.apply_boxed(case.bound(), case.specs, boxes, arrays, case.live)
    np.testing.assert_array_equal(result, case.apply(case.sources))


@every_op
@quick
@given(data=st.data())
def test_the_inverse_of_an_op_gives_its_sources_back(maker: Callable[[Draw], Case], data: st.DataObject) -> None:
    case = data.draw(st.composite(maker)())
    back = t.inverse(case.bound(), case.specs)
    if back is None or case.parts > 1:
        return
    result = case.apply(case.sources)
    for part, source in enumerate(case.sources):
        ops = t.bind(back, (spec_of(result),), spec_of(source), part=part, parts=len(case.sources))
        np.testing.assert_allclose(t.apply(ops, [result]), source, rtol=1e-15)


@every_op
@quick
@given(data=st.data())
def test_a_momentum_gets_what_its_owner_gets(maker: Callable[[Draw], Case], data: st.DataObject) -> None:
    case = data.draw(st.composite(maker)())
    expected = np.where(case.expected == KEPT, 0.0, case.expected)
    if isinstance(case.op, t.Scale):
        expected = expected / case.op.by**2
    result = t.apply(t.for_slot(case.bound(), 1), case.sources)
    (np.testing.assert_array_equal if case.exact else np.testing.assert_allclose)(result, expected)


@every_op
@quick
@given(data=st.data())
def test_squares_of_gradients_are_moved_and_never_mixed(maker: Callable[[Draw], Case], data: st.DataObject) -> None:
    case = data.draw(st.composite(maker)())
    mixes = isinstance(case.op, Resize | t.Mean)
    assert bool(t.refuses_slot(case.bound(), 2)) == mixes
    assert bool(t.refuses_slot(case.bound(), None)) == (mixes or isinstance(case.op, t.Scale))
    assert t.refuses_slot(case.bound(), 1) == t.refuses_slot(case.bound(), -1) == ""


@every_op
@quick
@given(data=st.data())
def test_filled_elements_are_those_that_change_with_the_source(
    maker: Callable[[Draw], Case], data: st.DataObject
) -> None:
    case = data.draw(st.composite(maker)())
    made = case.apply([np.ones_like(a) for a in case.sources])
    assert t.filled_elements(case.bound(), case.specs) == np.count_nonzero((made != 0) & (made != KEPT))


# ---- What has an inverse, and what has none ---------------------------------------------------------------

W = TensorSpec((8, 4), "float32")
HALF = t.PermuteHeads(2, HeadLayout.INTERLEAVED_TO_HALF, 1)


@pytest.mark.parametrize(
    ("op", "inverse"),
    [
        (HALF, t.PermuteHeads(2, HeadLayout.HALF_TO_INTERLEAVED, 1)),
        (t.Tile((2, 1)), None),
        (t.Tile((1, 1)), t.Tile((1, 1))),
        (t.Repeat(0, 2), None),
        (Resize(Method.LINEAR, (0,), sizes=(4,)), None),
        (Resize(Method.CUBIC, (0,), sizes=(8,)), Resize(Method.CUBIC, (0,), sizes=(8,))),
        (
            RemapRows(new_rows=Fill.KEEP, rows=RowMap.of((1, 2, 0, 3), 4), axis=1),
            RemapRows(new_rows=Fill.ZEROS, rows=RowMap.of((2, 0, 1, 3), 4), axis=1),
        ),
        (
            RemapRows(new_rows=Fill.KEEP, rows=RowMap.of((-1, 0, 1, 2, 3), 4), axis=1),
            RemapRows(new_rows=Fill.ZEROS, rows=RowMap.of((1, 2, 3, 4), 5), axis=1),
        ),
        (RemapRows(new_rows=Fill.KEEP, rows=RowMap.of((1, 2, 0), 4), axis=1), None),
        (RemapRows(new_rows=Fill.KEEP, rows=RowMap.of((0, 1, 1, 2, 3), 4), axis=1), None),
        (t.Mean(), t.Mean()),
    ],
)
def test_only_what_loses_nothing_has_an_inverse(op: t.Op, inverse: t.Op | None) -> None:
    assert t.inverse((op,), (W,)) == (None if inverse is None else (inverse,))


def test_a_mean_of_several_has_no_inverse() -> None:
    assert t.inverse((t.Mean(),), (W, W)) is None


# ---- Chains with fills ------------------------------------------------------------------------------------


def test_what_loses_rows_is_not_put_behind_a_fill() -> None:
    drop = RemapRows(new_rows=Fill.ZEROS, rows=RowMap.of((1, 0), 3))
    padded = t.Pad((0,), (1,), Fill.ZEROS)
    with pytest.raises(RuleError, match="cuts away"):
        t.bind((padded, drop), (TensorSpec((2,), "float32"),), TensorSpec((2,), "float32"))


def test_a_cast_behind_kept_rows_is_moved_before_them() -> None:
    grow = RemapRows(new_rows=Fill.KEEP, rows=RowMap.of((0, -1), 1))
    source = np.ones(1, np.float32).astype(t.numpy_dtype("bfloat16"))
    ops = t.bind((grow, t.Cast("float32")), (spec_of(source),), TensorSpec((2,), "float32"))
    assert [op.NAME for op in ops] == ["cast", "remap_rows"]
    assert t.apply(ops, [source], live=lambda: np.array([5, 0.1], np.float32)).tolist() == [1, np.float32(0.1)]


def test_shapes_may_change_behind_zeros() -> None:
    spec = TensorSpec((1, 2), "float64")
    ops = (
        t.Pad((0, 0), (1, 0), Fill.ZEROS),
        t.Tile((1, 2)),
        t.Repeat(1, 2),
        t.PermuteHeads(2, HeadLayout.HALF_TO_INTERLEAVED),
    )
    bound = t.bind(ops, (spec,), TensorSpec((2, 8), "float64"))
    result = t.apply(bound, [np.array([[1.0, 2.0]])])
    assert result.tolist() == [[1, 2, 1, 2, 1, 2, 1, 2], [0] * 8]
    assert t.filled_elements(bound, (spec,)) == 8
    assert t.source_boxes(bound, (spec,)) == (Box((0, 0), (1, 2)),)
