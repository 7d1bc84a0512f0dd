"""Boxes: the same elements as NumPy's slices, for few bytes read."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import bundle_fixtures as fx
from dist_restore.checkpoints.files import byte_regions as regions
from dist_restore.checkpoints.tf.bundle import Bundle
from dist_restore.core.tensors import Box

SHAPES = [(7,), (5, 6), (4, 3, 5), (2, 3, 4, 5), (1, 8, 1, 3), (3, 1)]


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    tensors = {str(s): np.arange(math.prod(s), dtype=np.int16).reshape(s) for s in SHAPES}
    tensors["matrix"] = np.arange(3_000_000, dtype=np.float32).reshape(3000, 1000)
    tensors["cube"] = np.arange(2_400_000, dtype=np.float32).reshape(60, 200, 200)
    return fx.save(tmp_path_factory.mktemp("boxes") / "ckpt", tensors)


@st.composite
def boxes(draw, shapes):
    shape = draw(st.sampled_from(shapes))
    begin = tuple(draw(st.integers(0, n)) for n in shape)
    return shape, Box(begin, tuple(draw(st.integers(0, n - b)) for b, n in zip(begin, shape, strict=True)))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(boxes(SHAPES), st.sampled_from([0, 8, 20, 1 << 20]))
def test_any_box_equals_the_slice_whatever_gaps_are_read_over(prefix, case, gap):
    shape, box = case
    bundle = Bundle.open(prefix)
    bundle._shards.gap = lambda shard: gap
    expected = np.arange(math.prod(shape), dtype=np.int16).reshape(shape)[box.slices()]
    assert fx.same_bytes(bundle.read(str(shape), box), np.ascontiguousarray(expected))


@pytest.mark.parametrize(
    "key, box",
    [
        ("matrix", Box((17, 0), (30, 1000))),
        ("matrix", Box((0, 990), (3000, 10))),
        ("matrix", Box((5, 5), (2000, 400))),
        ("cube", Box((0, 199, 199), (60, 1, 1))),
        ("cube", Box((3, 0, 7), (20, 200, 100))),
        ("cube", Box((3, 50, 0), (57, 100, 200))),
    ],
)
def test_large_boxes_equal_the_slices(prefix, key, box):
    bundle = Bundle.open(prefix)
    whole = bundle.read(key)
    assert np.array_equal(bundle.read(key, box), whole[box.slices()])


def test_a_hundredth_of_the_rows_costs_a_hundredth_of_the_bytes(prefix):
    bundle = Bundle.open(prefix)
    bundle.read("matrix", Box((1500, 0), (30, 1000)))
    assert bundle.bytes_read <= 1.05 * bundle.entries["matrix"].size / 100


def test_rows_that_lie_far_apart_are_read_one_by_one(prefix):
    bundle = Bundle.open(prefix)
    bundle.read("cube", Box((0, 0, 0), (60, 2, 200)))  # 1,600 bytes out of every 160,000
    assert bundle.bytes_read == 60 * 1600


def test_small_gaps_are_read_over_within_the_bounds_of_the_box(prefix):
    bundle = Bundle.open(prefix)
    bundle.read("matrix", Box((100, 10), (50, 20)))
    assert bundle.bytes_read == 49 * 4000 + 80


def test_a_box_without_elements_reads_nothing(prefix):
    bundle = Bundle.open(prefix)
    assert bundle.read("matrix", Box((3000, 0), (0, 1000))).shape == (0, 1000)
    assert bundle.bytes_read == 0


def test_memory_for_gaps_is_bounded_where_a_row_is_large():
    plan = regions.plan_reads((10, 1_000_000, 100), Box((0, 0, 0), (10, 1_000_000, 99)), 4, 64 << 10)
    assert plan.row_bytes <= regions.MAX_ROW


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_tiling_is_told_from_gaps_and_overlaps(data):
    shape = data.draw(st.sampled_from([(6,), (4, 5), (3, 4, 2)]))
    tiling = [Box.whole(shape)]
    for _ in range(data.draw(st.integers(0, 5))):
        box = tiling.pop(data.draw(st.integers(0, len(tiling) - 1)))
        axis = data.draw(st.integers(0, len(shape) - 1))
        cut = data.draw(st.integers(0, box.size[axis]))
        tiling += [_part(box, axis, 0, cut), _part(box, axis, cut, box.size[axis] - cut)]
    moved = data.draw(boxes([shape]))[1]
    changed = [*tiling[1:], moved]
    for candidate in (tiling, changed):
        times = np.zeros(shape, int)
        for box in candidate:
            times[box.slices()] += 1
        assert regions.tiles(tuple(candidate), shape) == bool((times == 1).all())


def _part(box: Box, axis: int, begin: int, size: int) -> Box:
    begins, sizes = list(box.begin), list(box.size)
    begins[axis] += begin
    sizes[axis] = size
    return Box(tuple(begins), tuple(sizes))
