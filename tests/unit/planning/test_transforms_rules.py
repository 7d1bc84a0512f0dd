"""Rule-file spelling, hostile input, and what ops say when they do not fit."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_restore import ops as t
from dist_restore.core.errors import DtypeMismatchError, RestoreError, RuleError, ShapeMismatchError
from dist_restore.core.tensors import Box, TensorSpec
from dist_restore.ops import (
    Cast,
    Concat,
    Fill,
    Fit,
    Op,
    Pad,
    Reshape,
    Scale,
    Slice,
    Split,
    Stack,
    Transpose,
    Unstack,
)

SPELLINGS: list[tuple[dict[str, object], Op]] = [
    ({"transpose": {"perm": [1, 0]}}, Transpose((1, 0))),
    ({"reshape": {"shape": [64, 4, -1]}}, Reshape((64, 4, -1))),
    ({"slice": {"begin": [0, 0], "size": [256, -1]}}, Slice((0, 0), (256, -1))),
    ({"pad": {"before": [0, 0], "after": [256, 0], "fill": "keep"}}, Pad((0, 0), (256, 0), Fill.KEEP)),
    ({"fit": {"fill": "keep"}}, Fit(Fill.KEEP)),
    ({"concat": {"axis": -1}}, Concat(-1)),
    ({"split": {"axis": -1, "sizes": [64, 32, 32]}}, Split(-1, (64, 32, 32))),
    ({"split": {"axis": 0}}, Split(0)),
    ({"stack": {"axis": 0}}, Stack(0)),
    ({"unstack": {"axis": 0}}, Unstack(0)),
    ({"cast": {"dtype": "float16", "lossy": False}}, Cast("float16")),
    ({"scale": {"by": 0.5}}, Scale(0.5)),
    ({"scale": {"by": 2}}, Scale(2.0)),
    ({"reshape": {"shape": "target"}}, Reshape("target")),
]
BOUND: list[Op] = [Split(0, (1, 2), 1), Unstack(0, 3), Fit(Fill.NORMAL, (2, 3), 9), Pad((1,), (0,), Fill.NORMAL, 9)]


def test_the_vocabulary_is_closed_and_named() -> None:
    names = (
        "transpose reshape slice pad fit concat split stack unstack "
        "resize tile repeat permute_heads remap_rows cast scale mean"
    )
    assert list(t.OPS) == names.split()
    with pytest.raises(TypeError):
        t.OPS["mine"] = Scale  # type: ignore[index]


@pytest.mark.parametrize(("raw", "op"), SPELLINGS)
def test_ops_are_read_as_rule_files_write_them(raw: dict[str, object], op: Op) -> None:
    assert t.parse_op(raw) == op
    assert t.parse_op(t.dump_op(op)) == op


@pytest.mark.parametrize("op", BOUND)
def test_bound_fields_go_through_json_and_are_refused_in_rule_files(op: Op) -> None:
    raw = json.loads(json.dumps(t.dump_op(op)))
    assert t.parse_op(raw, bound=True) == op
    with pytest.raises(RuleError, match=f"{op.NAME}: field .* is set by plans only"):
        t.parse_op(raw)


def test_unset_fields_are_not_dumped() -> None:
    assert t.dump_op(Split(0)) == {"split": {"axis": 0}}
    assert t.dump_op(Fit(Fill.ZEROS)) == {"fit": {"fill": "zeros"}}


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"concatt": {"axis": 0}}, ["concatt", "did you mean concat", "transpose"]),
        ({"concat": {"axes": 0}}, ["concat", "'axes'", "axis"]),
        ({"concat": {}}, ["concat", "axis is missing"]),
        ({"concat": {"axis": "0"}}, ["concat", "axis must be an integer", "'0'"]),
        ({"concat": {"axis": True}}, ["concat", "integer", "True"]),
        ({"concat": {"axis": 1.0}}, ["concat", "integer"]),
        ({"concat": {"axis": 10**30}}, ["concat", "integer", "64 bits"]),
        ({"concat": 3}, ["concat", "axis = ..."]),
        ({"concat": {"axis": 0}, "stack": {"axis": 0}}, ["2 keys", "concat = {"]),
        ({}, ["0 keys"]),
        ("concat", ["'concat'", "Write"]),
        (None, ["None"]),
        ({1: {}}, ["name of an op"]),
        ({"transpose": {"perm": "10"}}, ["transpose", "perm", "list of integers"]),
        ({"transpose": {"perm": [0] * 255}}, ["transpose", "at most 254"]),
        ({"reshape": {"shape": [-1, -1]}}, ["reshape", "more than one -1"]),
        ({"reshape": {"shape": [-2]}}, ["reshape", "-2"]),
        ({"slice": {"begin": [-1], "size": [1]}}, ["slice", "begin", "-1"]),
        ({"pad": {"before": [-1], "after": [0], "fill": "zeros"}}, ["pad", "before"]),
        ({"pad": {"before": [1], "after": [0]}}, ["pad", "fill is missing"]),
        ({"fit": {"fill": "ones"}}, ["fit", "keep, zeros, mean, normal", "'ones'"]),
        ({"fit": {"fill": ["keep"]}}, ["fit", "list"]),
        ({"fit": {"fill": "keep", "shape": [3]}}, ["fit", "'shape'", "plans only", "The fields are fill"]),
        ({"split": {"axis": 0, "sizes": []}}, ["split", "empty"]),
        ({"split": {"axis": 0, "sizes": [-1]}}, ["split", "-1"]),
        ({"split": {"axis": 0, "part": 1}}, ["split", "'part'", "plans only"]),
        ({"cast": {"dtype": "flaot16"}}, ["cast", "Did you mean float16"]),
        ({"cast": {"dtype": 16}}, ["cast", "string"]),
        ({"cast": {"dtype": "float16", "lossy": 1}}, ["cast", "true or false"]),
        ({"scale": {"by": float("nan")}}, ["scale", "finite"]),
        ({"scale": {"by": 10**400}}, ["scale", "finite"]),
        ({"scale": {"by": "1"}}, ["scale", "number"]),
    ],
)
def test_what_is_wrong_in_a_rule_file_is_named_with_the_fix(raw: object, words: list[str]) -> None:
    for bound in (False, True):
        if bound and "plans only" in words:
            continue
        with pytest.raises(RuleError) as info:
            t.parse_op(raw, bound=bound)
        assert all(word in str(info.value) for word in words), str(info.value)


def test_a_number_too_long_to_print_is_refused_in_words() -> None:
    for raw in ({"concat": {"axis": 10**5000}}, {"concat": {10**5000: 1}}, {"concat": 10**5000}, 10**5000):
        with pytest.raises(RuleError, match="beyond 64 bits"):
            t.parse_op(raw)


def test_a_list_of_ops_says_which_one_is_wrong() -> None:
    assert t.parse_ops([SPELLINGS[0][0], SPELLINGS[5][0]]) == (Transpose((1, 0)), Concat(-1))
    with pytest.raises(RuleError, match="op 2: concat"):
        t.parse_ops([SPELLINGS[0][0], {"concat": {}}])
    for raw in ({"concat": {"axis": 0}}, "concat", 3):
        with pytest.raises(RuleError, match=r"ops: expected a list.*Write ops = "):
            t.parse_ops(raw)


hostile = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from([2**62, 10**4000]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ["perm", "shape", "begin", "size", "before", "after", "fill", "seed", "axis", "sizes", "part", "dtype", "by"]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(list(t.OPS)), st.dictionaries(st.sampled_from(FIELDS), hostile, max_size=4), st.booleans())
def test_hostile_fields_raise_rule_errors_and_nothing_else(name: str, fields: dict[str, object], bound: bool) -> None:
    try:
        op = t.parse_op({name: fields}, bound=bound)
    except RuleError as error:
        assert len(str(error)) < 2000
    else:
        assert t.parse_op(t.dump_op(op), bound=True) == op


sizes = st.lists(st.sampled_from([-1, 0, 1, 2, 3, 4, 12, 2**40, 2**62]), max_size=4)
small = st.integers(-4, 4)
likely = st.one_of(
    st.builds(lambda v: {"transpose": {"perm": v}}, st.lists(small, max_size=4)),
    st.builds(lambda v: {"reshape": {"shape": v}}, sizes),
    st.builds(lambda a, b: {"slice": {"begin": a, "size": b}}, sizes, sizes),
    st.builds(lambda a, b, f: {"pad": {"before": a, "after": b, "fill": f}}, sizes, sizes, st.sampled_from(list(Fill))),
    st.builds(lambda s, f: {"fit": {"shape": s, "fill": f, "seed": 3}}, sizes, st.sampled_from(list(Fill))),
    st.builds(lambda k, a: {k: {"axis": a}}, st.sampled_from(["concat", "stack"]), small),
    st.builds(lambda a, s, p: {"split": {"axis": a, "sizes": s, "part": p}}, small, sizes, small),
    st.builds(lambda a, p: {"unstack": {"axis": a, "part": p}}, small, small),
    st.just({"split": {"axis": 0}}),
    st.just({"unstack": {"axis": 0}}),
    st.just({"fit": {"fill": "zeros"}}),
    st.builds(lambda d: {"cast": {"dtype": d}}, st.sampled_from(["int8", "float64", "string", "bool", "qint8"])),
    st.just({"scale": {"by": 0.5}}),
)


@settings(max_examples=500, deadline=None)
@given(
    st.lists(likely, max_size=4),
    st.lists(st.sampled_from([(3, 4), (4,), (), (0, 2), (12,)]), max_size=3),
    st.booleans(),
)
def test_a_hostile_plan_is_refused_before_anything_is_allocated(
    raw: list[object], shapes: list[tuple[int, ...]], same: bool
) -> None:
    shapes = shapes[:1] * len(shapes) if same else shapes
    arrays = [np.ones(s, np.float32) for s in shapes]
    specs = tuple(TensorSpec(s, "float32") for s in shapes)
    try:
        ops = t.parse_ops(raw, bound=True)
        spec = t.infer(ops, specs)
    except RestoreError:
        return
    if spec.elements > 1 << 20:
        return
    live = np.zeros(spec.shape, t.numpy_dtype(spec.dtype))
    result = t.apply(ops, arrays, live=lambda: live)
    assert (result.shape, t.dtype_name(result.dtype)) == (spec.shape, spec.dtype)
    boxes = t.source_boxes(ops, specs)
    parts = [None if b is None else a[(*b.slices(), ...)] for a, b in zip(arrays, boxes, strict=True)]
    np.testing.assert_array_equal(t.apply_boxed(ops, specs, boxes, parts, lambda: live), result)
    assert 0 <= t.filled_elements(ops, specs) <= spec.elements


@pytest.mark.parametrize(
    ("op", "fix"),
    [
        (Pad((2**41,), (0,), Fill.ZEROS), "pad: makes more than 1024 GiB. Correct"),
        (Fit(Fill.ZEROS, (2**62,)), "fit: makes more than 1024 GiB. Correct"),
        (Pad((0, 2**60), (0, 0), Fill.ZEROS), "pad: makes more than"),
        (Reshape((4, *(1,) * 100)), "reshape: makes 101 axes.*Correct"),
    ],
)
def test_results_beyond_any_variable_are_refused(op: Op, fix: str) -> None:
    shape = (0, 4) if isinstance(op, Pad) and len(op.before) == 2 else (4,)
    for call in (lambda: t.apply((op,), [np.ones(shape)]), lambda: t.infer((op,), (TensorSpec(shape, "string"),))):
        with pytest.raises(RuleError, match=fix):
            call()


F = "float32"
A = TensorSpec((4, 6), F)


@pytest.mark.parametrize(
    ("ops", "sources", "target", "parts", "error", "words"),
    [
        ([Transpose((0,))], [A], (6, 4), 1, ShapeMismatchError, ["transpose", "perm", "2 value"]),
        ([Transpose((0, 0))], [A], (6, 4), 1, ShapeMismatchError, ["transpose", "permutation", "once"]),
        ([Reshape((5, -1))], [A], (5, 5), 1, ShapeMismatchError, ["reshape", "24 elements", "Correct shape"]),
        ([Reshape("target")], [A], (5, 5), 1, ShapeMismatchError, ["reshape", "24 elements", "shape [5, 5]", "sizes"]),
        ([Slice((0,), (2,))], [A], (2, 6), 1, ShapeMismatchError, ["slice", "begin", "per axis"]),
        ([Slice((0, 3), (2, 4))], [A], (2, 4), 1, ShapeMismatchError, ["slice", "within shape [4, 6]", "Correct"]),
        ([Slice((5, 0), (-1, 1))], [A], (2, 4), 1, ShapeMismatchError, ["slice", "Correct"]),
        ([Pad((1,), (1,), Fill.ZEROS)], [A], (6, 6), 1, ShapeMismatchError, ["pad", "before"]),
        ([Fit(Fill.ZEROS)], [A], (24,), 1, ShapeMismatchError, ["fit", "[24]", "Reshape first"]),
        ([Concat(2)], [A, A], (8, 6), 1, ShapeMismatchError, ["concat", "axis 2", "Correct axis"]),
        ([Concat(0)], [A, TensorSpec((4, 5), F)], (8, 6), 1, ShapeMismatchError, ["concat", "equal", "axis"]),
        ([Concat(0)], [A, TensorSpec((4,), F)], (8, 6), 1, ShapeMismatchError, ["concat", "axes", "Reshape"]),
        ([Concat(0)], [A, TensorSpec((4, 6), "int8")], (8, 6), 1, DtypeMismatchError, ["concat", "cast ="]),
        ([Stack(0)], [A, TensorSpec((4, 5), F)], (2, 4, 6), 1, ShapeMismatchError, ["stack", "equal shapes"]),
        ([Split(1)], [A], (4, 2), 4, ShapeMismatchError, ["split", "4 equal pieces", "sizes = ["]),
        ([Split(1, (2, 2))], [A], (4, 2), 2, ShapeMismatchError, ["split", "add up to 6", "Correct sizes"]),
        ([Split(1, (2, 2, 2))], [A], (4, 2), 2, RuleError, ["split", "3 pieces", "2 target", "Name 3 targets"]),
        ([Split(1, (2, 2, 2))], [A], (4, 2), 1, RuleError, ["split", "3 pieces", "1 target"]),
        ([Unstack(0)], [A], (6,), 1, RuleError, ["unstack", "4 pieces", "1 target", "Name 4 targets"]),
        ([Unstack(0)], [TensorSpec((1, 6), F)], (6,), 2, RuleError, ["unstack", "1 piece", "Name one target"]),
        ([Split(0), Split(1)], [A], (2, 3), 2, RuleError, ["split", "two rules"]),
        ([], [A, A], (4, 6), 1, RuleError, ["2 tensors are left", "concat"]),
        ([], [], (4, 6), 1, RuleError, ["no sources", "from"]),
        ([Fit(Fill.KEEP), Scale(2.0)], [A], (4, 7), 1, RuleError, ["fit", "keep", "scale follows", "last"]),
        ([Fit(Fill.ZEROS), Transpose((1, 0))], [A], (7, 4), 1, RuleError, ["fit", "transpose follows", "last"]),
        (
            [Pad((1, 0), (0, 0), Fill.ZEROS), Slice((0, 0), (2, 6))],
            [A],
            (2, 6),
            1,
            RuleError,
            ["slice", "slice first, then pad"],
        ),
        (
            [Pad((1, 0), (0, 0), Fill.ZEROS), Unstack(0)],
            [A],
            (6,),
            5,
            RuleError,
            ["unstack", "slice first, then pad"],
        ),
        (
            [Pad((1, 0), (0, 0), Fill.ZEROS), Fit(Fill.ZEROS)],
            [A],
            (4, 6),
            1,
            RuleError,
            ["fit", "slice first, then pad"],
        ),
    ],
)
def test_ops_that_do_not_fit_say_which_what_and_how_to_mend_it(
    ops: list[Op],
    sources: list[TensorSpec],
    target: tuple[int, ...],
    parts: int,
    error: type[RestoreError],
    words: list[str],
) -> None:
    with pytest.raises(error) as info:
        t.bind(ops, tuple(sources), TensorSpec(target, F), parts=parts)
    assert all(word in str(info.value) for word in words), str(info.value)


def test_parts_must_be_counted_from_zero() -> None:
    with pytest.raises(RuleError, match="part 2 of 2"):
        t.bind((), (A,), A, part=2, parts=2)


@pytest.mark.parametrize("op", [Split(0), Unstack(0), Fit(Fill.ZEROS), Reshape("target")])
def test_ops_that_were_never_bound_are_not_applied(op: Op) -> None:
    with pytest.raises(RuleError, match=f"{op.NAME}: .*bind"):
        t.apply((op,), [np.ones((4, 6), np.float32)])


def test_several_targets_without_a_part_op_get_the_same() -> None:
    assert [t.bind((), (A,), A, part=p, parts=2) for p in (0, 1)] == [(), ()]


def test_binding_resolves_axes_sizes_parts_shape_and_seed() -> None:
    ops = (Concat(-1), Reshape((2, -1)), Slice((0, 4), (-1, -1)), Split(-1), Fit(Fill.NORMAL))
    target = TensorSpec((2, 30), F)
    assert t.bind(ops, (A, A), target, part=1, parts=2, seed=5) == (
        Concat(1),
        Reshape((2, 24)),
        Slice((0, 4), (2, 20)),
        Split(1, (10, 10), 1),
        Fit(Fill.NORMAL, (2, 30), 5),
    )


def test_each_target_of_a_rule_has_the_shape_that_its_piece_gets() -> None:
    """As fused attention is parted: the pieces, and the axes for their heads."""
    source = np.arange(48.0).reshape(4, 12)
    for part, shape in enumerate([(4, 2, 2), (2, 2, 4), (16,)]):
        ops = t.bind(
            (Split(1), Reshape("target")),
            (TensorSpec((4, 12), "float64"),),
            TensorSpec(shape, "float64"),
            part=part,
            parts=3,
        )
        assert ops == (Split(1, (4, 4, 4), part), Reshape(shape))
        np.testing.assert_array_equal(t.apply(ops, [source]), source[:, 4 * part : 4 * part + 4].reshape(shape))


def test_shards_are_split_alike_and_joined() -> None:
    arrays = [np.arange(12.0).reshape(2, 6), np.arange(12.0, 24.0).reshape(2, 6)]
    specs = (TensorSpec((2, 6), "float64"),) * 2
    ops = t.bind((Split(1), Concat(0)), specs, TensorSpec((4, 2), "float64"), part=2, parts=3)
    np.testing.assert_array_equal(t.apply(ops, arrays), np.concatenate([a[:, 4:] for a in arrays]))


def test_movement_makes_views() -> None:
    source = np.arange(24.0).reshape(4, 6)
    ops = (Transpose((1, 0)), Slice((1, 0), (4, -1)), Split(0, (2, 2), 1), Unstack(0, 1), Concat(0), Stack(0))
    assert np.shares_memory(t.apply(ops, [source]), source)
    assert t.apply((), [source]) is source


@pytest.mark.parametrize("dtype", ["string", "bool", "bfloat16", "float8_e4m3fn", "int4", "qint8", "complex64"])
def test_every_dtype_moves_merges_and_splits(dtype: str) -> None:
    values = (
        np.array([[b"a", b"bb"], [b"", b"d"]], object) if dtype == "string" else np.zeros((2, 2), t.numpy_dtype(dtype))
    )
    spec = TensorSpec((2, 2), dtype)
    rules: list[tuple[list[Op], tuple[int, ...]]] = [
        ([Concat(0), Transpose((1, 0)), Reshape((4, 2))], (4, 2)),
        ([Stack(-1), Slice((0, 0, 0), (1, -1, -1)), Fit(Fill.ZEROS)], (2, 2, 2)),
    ]
    for ops, shape in rules:
        bound = t.bind(ops, (spec, spec), TensorSpec(shape, dtype))
        assert t.apply(bound, [values, values]).shape == shape
    scalar = t.apply((Unstack(0, 0), Unstack(0, 1)), [values])
    assert isinstance(scalar, np.ndarray) and scalar.shape == () and scalar.dtype == values.dtype
    assert t.apply((Reshape((4,)), Unstack(0, 1), Stack(0)), [values]).tolist() == values[0, 1:].tolist()


def test_reading_less_than_is_needed_is_refused() -> None:
    ops, spec = (Slice((1, 0), (2, 6)),), A
    for boxes in ((None,), (Box((1, 0), (1, 6)),), (Box((2, 0), (2, 6)),)):
        with pytest.raises(RuleError, match=r"source 0: .* is needed"):
            t.narrow(ops, (spec,), boxes)
    with pytest.raises(RuleError, match="expected parts of shapes"):
        t.apply_boxed(ops, (spec,), (Box((1, 0), (2, 6)),), [np.ones((4, 6), np.float32)])
    with pytest.raises(RuleError, match="not inside shape"):
        t.pull_back(ops, (spec,), Box((1, 0), (2, 6)))


def test_sources_of_which_nothing_is_needed_are_not_read() -> None:
    ops = (Concat(0), Slice((4, 0), (3, 2)))
    boxes = t.source_boxes(ops, (A, A))
    assert boxes == (None, Box((0, 0), (3, 2)))
    second = np.arange(24, dtype=np.float32).reshape(4, 6)
    result = t.apply_boxed(ops, (A, A), boxes, [None, second[:3, :2]])
    np.testing.assert_array_equal(result, second[:3, :2])


@pytest.mark.parametrize(
    ("inner", "outer", "box", "needed"),
    [
        ((12, 5), (3, 4, 5), Box((1, 0, 2), (1, 4, 3)), Box((4, 2), (4, 3))),
        ((3, 4, 5), (12, 5), Box((4, 2), (4, 3)), Box((1, 0, 2), (1, 4, 3))),
        ((3, 4), (12,), Box((5,), (2,)), Box((1, 1), (1, 2))),
        ((12,), (3, 4), Box((0, 0), (2, 2)), Box((0,), (8,))),
        ((6, 2), (4, 3), Box((0, 0), (1, 3)), Box((0, 0), (2, 2))),
        ((1, 5), (5,), Box((2,), (2,)), Box((0, 2), (1, 2))),
        ((5,), (5, 1), Box((2, 0), (2, 1)), Box((2,), (2,))),
        ((1, 1), (), Box((), ()), Box((0, 0), (1, 1))),
    ],
)
def test_a_reshape_needs_only_the_rows_that_it_must(
    inner: tuple[int, ...], outer: tuple[int, ...], box: Box, needed: Box
) -> None:
    assert t.pull_back((Reshape(outer),), (TensorSpec(inner, F),), box) == (needed,)
