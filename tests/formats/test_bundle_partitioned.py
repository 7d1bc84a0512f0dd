"""Partitioned (sliced) tensors: one tensor for the reader, several in the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorflow.core.protobuf import tensor_bundle_pb2

import bundle_fixtures as fx
from dist_restore.checkpoints.tf.bundle import Bundle, SliceEntry
from dist_restore.checkpoints.tf.ordered_code import slice_key
from dist_restore.core.errors import CheckpointCorruptError, RestoreError
from dist_restore.core.tensors import Box, TensorSpec


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A TF1 Saver's checkpoint, with one variable cut along rows, one along columns and one not at all."""
    tf1, prefix = tf.compat.v1, str(tmp_path_factory.mktemp("tf1") / "model.ckpt-1")
    with tf.Graph().as_default(), tf1.Session() as session:
        rng = tf1.random_normal_initializer(seed=1)
        for name, axis, parts in (("rows", 0, 3), ("columns", 1, 4)):
            cut = tf1.fixed_size_partitioner(parts, axis=axis)
            tf1.get_variable(name, (70, 9), initializer=rng, partitioner=cut, use_resource=True)
        tf1.get_variable("plain", (4,), initializer=rng, use_resource=True)
        session.run(tf1.global_variables_initializer())
        tf1.train.Saver(sharded=True).save(session, prefix)
    return f"{prefix}"


def test_partitioned_tensors_read_as_tensorflow_reads_them(saved):
    bundle = Bundle.open(saved)
    assert set(bundle.entries) == {"rows", "columns", "plain"}
    for key, entry in bundle.entries.items():
        assert fx.same_bytes(bundle.read(key), fx.tf_reads(saved, key))
        assert bundle.check(key) == entry.size == entry.spec.nbytes


def test_the_parts_are_listed(saved):
    bundle = Bundle.open(saved)
    assert bundle.entries["rows"].spec == TensorSpec((70, 9), "float32")
    assert [s.box.size for s in bundle.entries["rows"].slices] == [(24, 9), (23, 9), (23, 9)]
    assert bundle.entries["plain"].slices == ()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["rows", "columns"]), st.data())
def test_any_box_equals_the_slice_across_parts(saved, key, data):
    bundle = Bundle.open(saved)
    begin = tuple(data.draw(st.integers(0, n)) for n in (70, 9))
    box = Box(begin, tuple(data.draw(st.integers(0, n - b)) for b, n in zip(begin, (70, 9), strict=True)))
    out = np.full(box.size, np.nan, np.float32)
    assert bundle.read(key, box, out=out) is out
    np.testing.assert_array_equal(out, fx.tf_reads(saved, key)[box.slices()])


def test_only_the_parts_that_a_box_needs_are_read(saved):
    bundle = Bundle.open(saved)
    bundle.read("rows", Box((24, 0), (23, 9)))
    assert bundle.bytes_read == 23 * 9 * 4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int64", "bool"])
def test_parts_in_several_data_files_with_axes_that_are_not_cut(tmp_path, dtype):
    value = fx.random_tensor(dtype, (300, 4))
    odd = "odd \x01 ü"
    for i, (begin, size) in enumerate(((0, 100), (100, 200))):
        spec = f"300 4 {begin},{size}:-"
        fx.save(tmp_path / f"parts/p{i}", {odd: value[begin : begin + size]}, [spec])
    prefix = str(tmp_path / "ckpt")
    tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=[str(tmp_path / f"parts/p{i}") for i in range(2)], destination_prefix=prefix
    )
    bundle = Bundle.open(prefix)
    assert bundle.num_shards == 2
    assert fx.same_bytes(bundle.read(odd), value.numpy())
    assert fx.same_bytes(bundle.read(odd, Box((50, 1), (100, 2))), value.numpy()[50:150, 1:3])


def test_partitioned_strings_are_read(tmp_path):
    whole = np.array([b"a", b"bb", b"", b"dddd"], object)
    first = fx.save(tmp_path / "p/0", {"s": whole[:2]}, ["4 0,2"])
    second = fx.save(tmp_path / "p/1", {"s": whole[2:]}, ["4 2,2"])
    tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=[first, second], destination_prefix=str(tmp_path / "ckpt"))
    bundle = Bundle.open(str(tmp_path / "ckpt"))
    assert bundle.read("s").tolist() == whole.tolist()
    assert bundle.read("s", Box((1,), (2,))).tolist() == [b"bb", b""]


def test_a_damaged_part_is_found_and_named(saved, tmp_path):
    prefix = str(tmp_path / "ckpt")
    for suffix in (".index", ".data-00000-of-00001"):
        tf.io.gfile.copy(saved + suffix, prefix + suffix)
    bundle = Bundle.open(prefix)
    offset = bundle._parts[bundle.entries["columns"].slices[2].key].offset
    fx.flip_bit(fx.data_file(prefix), offset + 5)
    for read in (bundle.read, bundle.check):
        with pytest.raises(CheckpointCorruptError, match="columns"):
            read("columns")
    bundle.read("rows")


NUMBERS = [0, 1, 63, 64, 8191, 8192, 1 << 20, (1 << 20) - 1, 1 << 27, 1 << 34, 1 << 41, 1 << 48, 1 << 55, 1 << 62]


@pytest.mark.parametrize("begin", NUMBERS)
def test_keys_of_parts_are_those_that_tensorflow_writes(tmp_path, begin):
    """`begin` goes up to 2**62, which only an index can have; so the data are one element."""
    size = begin + 1
    prefix = fx.save(tmp_path / "ckpt", {"a\x01b": np.ones((1, 1), np.float32)}, [f"{size} 1 {begin},1:-"])
    raw = Path(f"{prefix}.index").read_bytes()
    if begin:  # a slice that is all of the tensor is stored as the tensor
        assert slice_key(b"a\x01b", [(begin, 1), (0, -1)]) in raw


def _index(tmp_path, parts: list[tuple[int, int]], stored: list[tuple[int, int]], dtype: int = 1) -> str:
    whole = tensor_bundle_pb2.BundleEntryProto(dtype=1)
    whole.shape.dim.add().size = 8
    for begin, size in parts:
        whole.slices.add().extent.add(start=begin, length=size)
    items = {b"x": whole.SerializeToString()}
    for begin, size in stored:
        items[slice_key(b"x", [(begin, size)])] = fx.entry((size,), dtype, size=4 * size)
    return fx.hand_made(tmp_path / "ckpt", items)


def test_parts_that_fit_are_accepted(tmp_path):
    bundle = Bundle.open(_index(tmp_path, [(0, 3), (3, 5)], [(0, 3), (3, 5)]))
    assert [type(s) for s in bundle.entries["x"].slices] == [SliceEntry, SliceEntry]


@pytest.mark.parametrize(
    "parts, stored",
    [
        ([(0, 3)], [(0, 3)]),
        ([(0, 3), (4, 4)], [(0, 3), (4, 4)]),
        ([(0, 5), (3, 5)], [(0, 5), (3, 5)]),
        ([(0, 3), (3, 5)], [(0, 3)]),
        ([(0, 3), (0, 3), (3, 5)], [(0, 3), (3, 5)]),
        ([(0, 9)], [(0, 9)]),
        ([(-1, 9)], [(-1, 9)]),
        ([(1 << 62, 1 << 62)], []),
    ],
    ids=["short", "gap", "overlap", "missing", "twice", "too long", "negative", "overflow"],
)
def test_parts_that_do_not_make_up_the_tensor_are_refused(tmp_path, parts, stored):
    with pytest.raises(CheckpointCorruptError, match="'x'"):
        Bundle.open(_index(tmp_path, parts, stored))


def test_parts_of_another_dtype_are_refused(tmp_path):
    with pytest.raises(RestoreError, match="'x'"):
        Bundle.open(_index(tmp_path, [(0, 3), (3, 5)], [(0, 3), (3, 5)], dtype=3))
