"""Random chains of ops against plain NumPy: results, shapes, parts of sources, inverses, slots, spelling."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dist_restore import ops as t
from dist_restore.core.errors import RuleError
from dist_restore.core.tensors import Box, TensorSpec
from dist_restore.ops import Concat, Fill, Fit, Pad, Reshape, Scale, Slice, Split, Stack, Transpose, Unstack
from dist_restore.ops.dtypes import spec_of

Arrays = list[np.ndarray]
quick = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))


@dataclasses.dataclass
class Case:
    """A rule's ops, its sources, and what plain NumPy makes of them for each target."""

    ops: list[t.Op]
    sources: Arrays
    results: Arrays
    filling: t.Op | None = None

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        return tuple(map(spec_of, self.sources))

    def bound(self, part: int = 0) -> tuple[t.Op, ...]:
        target = spec_of(self.results[part])
        return t.bind(self.ops, self.specs, target, part=part, parts=len(self.results), seed=3)

    def live(self, part: int = 0) -> np.ndarray:
        return np.full(self.results[part].shape, -7.0)


@st.composite
def cases(draw: st.DrawFn, reshapes: bool = True, fills: bool = True) -> Case:
    case = Case([], *(_sources(draw),) * 2)
    _moves(draw, case, reshapes)
    _merge(draw, case)
    _moves(draw, case, reshapes)
    if draw(st.booleans()):
        _part(draw, case)
        _moves(draw, case, reshapes, cut=False)
    if draw(st.booleans()):
        _step(case, Scale(-0.5), lambda a: a * -0.5)
    if fills and len({r.shape for r in case.results}) == 1 and draw(st.booleans()):
        _fill(draw, case)
    case.results = list(case.results)
    return case


def _sources(draw: st.DrawFn) -> Arrays:
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    axis, count = draw(st.integers(0, len(shape) - 1)), draw(st.integers(1, 3))
    vary = draw(st.booleans())
    shapes = [[draw(st.integers(1, 4)) if vary and i == axis else n for i, n in enumerate(shape)] for _ in range(count)]
    starts = np.cumsum([0] + [math.prod(s) for s in shapes])
    return [
        np.arange(a, a + math.prod(s), dtype=np.float64).reshape(s) + 1 for a, s in zip(starts, shapes, strict=False)
    ]


def _step(case: Case, op: t.Op, act: Callable[[np.ndarray], np.ndarray]) -> None:
    case.ops.append(op)
    case.results = [act(a) for a in case.results]


def _moves(draw: st.DrawFn, case: Case, reshapes: bool, cut: bool = True) -> None:
    kinds = ["transpose"] + ["slice"] * cut + ["reshape"] * reshapes
    for kind in draw(st.lists(st.sampled_from(kinds), max_size=2)):
        rank = case.results[0].ndim
        if kind == "transpose":
            perm = tuple(draw(st.permutations(range(rank))))
            _step(case, Transpose(tuple(a - rank for a in perm)), lambda a, perm=perm: np.transpose(a, perm))
        elif kind == "slice":
            _slice(draw, case)
        else:
            shape = _shape(draw, case.results)
            _step(case, Reshape(shape), lambda a, shape=shape: np.reshape(a, shape))


def _slice(draw: st.DrawFn, case: Case) -> None:
    least = [min(sizes) for sizes in zip(*(a.shape for a in case.results), strict=True)]
    begin = tuple(draw(st.integers(0, n - 1)) for n in least)
    size = tuple(draw(st.one_of(st.just(-1), st.integers(1, n - b))) for n, b in zip(least, begin, strict=True))
    index = tuple(slice(b, None if s < 0 else b + s) for b, s in zip(begin, size, strict=True))
    _step(case, Slice(begin, size), lambda a: a[(*index, ...)])


def _shape(draw: st.DrawFn, arrays: Arrays) -> tuple[int, ...]:
    shape = arrays[0].shape
    if len({a.shape for a in arrays}) > 1 or not shape or draw(st.booleans()):
        return draw(st.sampled_from([(-1,), (-1, 1), (1, -1)]))
    axis = draw(st.integers(0, len(shape) - 1))
    divisor = draw(st.sampled_from([d for d in range(1, shape[axis] + 1) if shape[axis] % d == 0]))
    merged = (*shape[: axis - 1], shape[axis - 1] * shape[axis], *shape[axis + 1 :]) if axis else shape
    return draw(st.sampled_from([merged, (*shape[:axis], divisor, shape[axis] // divisor, *shape[axis + 1 :])]))


def _merge(draw: st.DrawFn, case: Case) -> None:
    arrays, rank = case.results, case.results[0].ndim
    options: list[t.Op] = [] if len(arrays) > 1 else [Concat(0)] * (rank > 0)
    for axis in range(rank):
        if len({(*a.shape[:axis], *a.shape[axis + 1 :]) for a in arrays}) == 1:
            options += [Concat(axis), Concat(axis - rank)]
    if len({a.shape for a in arrays}) == 1:
        options += [Stack(draw(st.integers(-rank - 1, rank)))]
    op = draw(st.sampled_from(options))
    join = np.concatenate if isinstance(op, Concat) else np.stack
    case.ops.append(op)
    case.results = [join(arrays, op.axis)]


def _part(draw: st.DrawFn, case: Case) -> None:
    (array,) = case.results
    if not array.ndim:
        return
    axis = draw(st.integers(-array.ndim, array.ndim - 1))
    size = array.shape[axis]
    if draw(st.booleans()):
        case.ops.append(Unstack(axis))
        case.results = [np.take(array, i, axis) for i in range(size)]
    else:
        cuts = sorted(draw(st.sets(st.integers(1, size - 1), max_size=3))) if size > 1 else []
        sizes = tuple(b - a for a, b in zip([0, *cuts], [*cuts, size], strict=True))
        case.ops.append(Split(axis, None if len(set(sizes)) == 1 and draw(st.booleans()) else sizes))
        case.results = np.split(array, cuts, axis)


def _fill(draw: st.DrawFn, case: Case) -> None:
    shape, fill = case.results[0].shape, draw(st.sampled_from([Fill.KEEP, Fill.ZEROS]))
    value = -7.0 if fill is Fill.KEEP else 0.0
    before = tuple(draw(st.integers(0, 2)) for _ in shape)
    after = tuple(draw(st.integers(0, 2)) for _ in shape)
    if draw(st.booleans()):
        case.filling = Pad(before, after, fill)
        pad = list(zip(before, after, strict=True))
        _step(case, case.filling, lambda a: np.pad(a, pad, constant_values=value) if pad else a)
    else:
        case.filling = Fit(fill)
        fitted = tuple(max(1, n + draw(st.integers(-1, 2))) for n in shape)
        inner = tuple(slice(0, min(a, b)) for a, b in zip(shape, fitted, strict=True))
        _step(case, case.filling, lambda a: _placed(a, np.full(fitted, value), inner))


def _placed(array: np.ndarray, ground: np.ndarray, inner: tuple[slice, ...]) -> np.ndarray:
    ground[(*inner, ...)] = array[(*inner, ...)]
    return ground


@quick
@given(cases())
def test_every_target_gets_what_numpy_makes(case: Case) -> None:
    for part, expected in enumerate(case.results):
        bound = case.bound(part)
        result = t.apply(bound, case.sources, live=lambda part=part: case.live(part))
        np.testing.assert_array_equal(result, expected)
        assert t.infer(bound, case.specs) == spec_of(result)


@quick
@given(cases())
def test_binding_twice_changes_nothing(case: Case) -> None:
    for part, result in enumerate(case.results):
        bound = case.bound(part)
        assert t.bind(bound, case.specs, spec_of(result), seed=3) == bound


@quick
@given(cases())
def test_bound_ops_survive_the_way_through_plain_data(case: Case) -> None:
    for part in range(len(case.results)):
        bound = case.bound(part)
        assert t.parse_ops([t.dump_op(op) for op in bound], bound=True) == bound
    assert t.parse_ops([t.dump_op(op) for op in case.ops]) == tuple(case.ops)


@quick
@given(cases(), st.data())
def test_the_parts_that_were_asked_for_are_enough_for_the_whole_target(case: Case, data: st.DataObject) -> None:
    part = data.draw(st.integers(0, len(case.results) - 1))
    bound = case.bound(part)
    needed = t.source_boxes(bound, case.specs)
    grow = data.draw(st.integers(0, 1))
    boxes = tuple(b and _grown(b, a.shape, grow) for b, a in zip(needed, case.sources, strict=True))
    arrays = [None if b is None else a[(*b.slices(), ...)] for a, b in zip(case.sources, boxes, strict=True)]
    result = t.apply_boxed(bound, case.specs, boxes, arrays, lambda: case.live(part))
    np.testing.assert_array_equal(result, case.results[part])
    ops, specs = t.narrow(bound, case.specs, boxes)
    assert t.infer(ops, specs) == spec_of(result)


def _grown(box: Box, shape: tuple[int, ...], by: int) -> Box:
    begin = tuple(max(0, b - by) for b in box.begin)
    ends = (min(n, b + s + by) for b, s, n in zip(box.begin, box.size, shape, strict=True))
    return Box(begin, tuple(e - b for e, b in zip(ends, begin, strict=True)))


@quick
@given(cases(), st.data())
def test_elements_outside_the_needed_parts_do_not_matter(case: Case, data: st.DataObject) -> None:
    part, box = _target_box(case, data)
    bound = case.bound(part)
    boxes = t.pull_back(bound, case.specs, box)
    spoiled = [np.full_like(a, np.nan) for a in case.sources]
    for bad, good, needed in zip(spoiled, case.sources, boxes, strict=True):
        if needed is not None:
            bad[(*needed.slices(), ...)] = good[(*needed.slices(), ...)]
    result = t.apply(bound, spoiled, live=lambda: case.live(part))
    np.testing.assert_array_equal(result[(*box.slices(), ...)], case.results[part][(*box.slices(), ...)])


@quick
@given(cases(reshapes=False), st.data())
def test_every_element_of_the_needed_parts_matters(case: Case, data: st.DataObject) -> None:
    part, box = _target_box(case, data)
    bound = case.bound(part)
    boxes = t.pull_back(bound, case.specs, box)
    result = case.results[part][(*box.slices(), ...)]
    used = {abs(v) for v in result.ravel().tolist()} - {0.0, 7.0}
    scale = 0.5 if any(isinstance(op, Scale) for op in case.ops) else 1.0
    asked = [a[(*b.slices(), ...)].ravel() for a, b in zip(case.sources, boxes, strict=True) if b is not None]
    # Every source element has a value of its own, so the values tell which elements arrived.
    assert {v * scale for part_values in asked for v in part_values.tolist()} - {0.0, 7.0} == used


def _target_box(case: Case, data: st.DataObject) -> tuple[int, Box]:
    part = data.draw(st.integers(0, len(case.results) - 1))
    shape = case.results[part].shape
    begin = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    return part, Box(begin, tuple(data.draw(st.integers(1, n - b)) for n, b in zip(shape, begin, strict=True)))


@quick
@given(cases())
def test_filled_elements_counts_what_comes_from_sources(case: Case) -> None:
    ones = [np.ones_like(a) for a in case.sources]
    for part, result in enumerate(case.results):
        made = t.apply(case.bound(part), ones, live=lambda shape=result.shape: np.zeros(shape))
        assert t.filled_elements(case.bound(part), case.specs) == np.count_nonzero(made)


@quick
@given(cases())
def test_the_inverse_gives_the_sources_back(case: Case) -> None:
    back = t.inverse(case.bound(), case.specs)
    if back is None:
        return
    specs = tuple(map(spec_of, case.results))
    for part, source in enumerate(case.sources):
        ops = t.bind(back, specs, spec_of(source), part=part, parts=len(case.sources))
        np.testing.assert_array_equal(t.apply(ops, case.results), source)


@quick
@given(cases(), st.sampled_from([1, 2]))
def test_a_slot_moves_as_its_owner_does_and_new_elements_are_zero(case: Case, degree: int) -> None:
    for part, expected in enumerate(case.results):
        moved = np.where(expected == -7.0, 0.0, expected) if case.filling is not None else expected
        scaled = moved / -0.5 * (-2.0) ** degree if any(isinstance(op, Scale) for op in case.ops) else moved
        if case.filling is not None and 14.0 in [v for a in case.sources for v in a.ravel()] and scaled is not moved:
            return  # 14 * -0.5 is the mark of a kept element
        np.testing.assert_array_equal(t.apply(t.for_slot(case.bound(part), degree), case.sources), scaled)


W = TensorSpec((8, 4), "float32")


@pytest.mark.parametrize(
    ("ops", "inverse"),
    [
        ((Transpose((1, 0)),), (Transpose((1, 0)),)),
        ((Reshape((4, 8)),), (Reshape((8, 4)),)),
        ((Pad((1, 0), (2, 0), Fill.ZEROS),), (Slice((1, 0), (8, 4)),)),
        ((Fit(Fill.KEEP, (9, 4)),), (Slice((0, 0), (8, 4)),)),
        ((Fit(Fill.KEEP, (7, 4)),), None),
        ((Slice((0, 0), (4, 4)),), None),
        ((Scale(0.5),), (Scale(2.0),)),
        ((Scale(0.0),), None),
        ((t.Cast("float32"),), (t.Cast("float32"),)),
        ((t.Cast("float64"),), None),
        ((t.Cast("float16"),), None),
        ((Split(0, (4, 4), 1),), (Concat(0),)),
        ((Unstack(1, 0),), (Stack(1),)),
    ],
)
def test_each_op_has_its_inverse_or_none(ops: tuple[t.Op, ...], inverse: tuple[t.Op, ...] | None) -> None:
    assert t.inverse(ops, (W,)) == inverse


def test_a_chain_that_each_piece_undoes_in_its_own_way_has_no_inverse() -> None:
    assert t.inverse((Split(0, (2, 6), 1), Reshape((24,))), (W,)) is None
    assert t.inverse((Split(0, (4, 4), 1), Reshape((16,))), (W,)) == (Reshape((4, 4)), Concat(0))


def test_concat_and_stack_invert_to_one_part_for_each_source() -> None:
    assert Concat(-1).inverse((W, TensorSpec((8, 2), "float32"))) == (Split(1, (4, 2), 0), Split(1, (4, 2), 1))
    assert Stack(0).inverse((W, W)) == (Unstack(0, 0), Unstack(0, 1))
    assert t.inverse((Concat(1),), (W, W)) == (Split(1, (4, 4)),)


@pytest.mark.parametrize(("degree", "factor"), [(1, 2.0), (2, 4.0), (-1, 0.5)])
def test_a_scaled_weight_scales_its_slots_by_the_chain_rule(degree: int, factor: float) -> None:
    assert t.for_slot((Scale(0.5),), degree) == (Scale(factor),)


def test_a_slot_of_degree_zero_is_not_scaled() -> None:
    assert t.for_slot((Scale(0.5),), 0) == ()


def test_slots_drop_casts_and_fill_with_zeros_but_averages_fill_as_their_owner() -> None:
    ops = (t.Cast("float16", True), Fit(Fill.NORMAL, (9, 4), 5))
    assert t.for_slot(ops, 1) == (Fit(Fill.ZEROS, (9, 4)),)
    assert t.for_slot(ops, -1) == ops[1:]
    assert t.for_slot((Pad((0,), (1,), Fill.KEEP),), 2) == (Pad((0,), (1,), Fill.ZEROS),)
    assert t.for_slot((Pad((0,), (1,), Fill.KEEP),), -1) == (Pad((0,), (1,), Fill.KEEP),)


@pytest.mark.parametrize(("by", "degree"), [(0.0, 1), (1e-200, 2)])
def test_a_scale_without_a_slot_is_refused(by: float, degree: int) -> None:
    with pytest.raises(RuleError, match=r"scale.*slots"):
        t.for_slot((Scale(by),), degree)


def test_describe_is_short_and_stable() -> None:
    ops = (Concat(-1), Slice((0, 2), (12, -1)), Split(1, (4, 8), 1), t.Cast("float16", True), Scale(0.5))
    text = "concat axis=-1 + slice [0:12, 2:] + split axis=1[4:12] + cast dtype=float16 lossy=true + scale by=0.5"
    assert t.describe(ops) == text
    assert t.describe((Pad((0, 1), (2, 0), Fill.KEEP), Fit(Fill.ZEROS, (3, 3)), Unstack(0, 2))) == (
        "pad before=[0, 1] after=[2, 0] fill=keep + fit fill=zeros + unstack axis=0[2]"
    )
    assert t.describe((Transpose((1, 0)), Reshape((2, -1)), Stack(0), Split(0), Split(0, (1, 2)))) == (
        "transpose perm=[1, 0] + reshape shape=[2, -1] + stack axis=0 + split axis=0 + split axis=0 sizes=[1, 2]"
    )
    assert t.describe(()) == ""
