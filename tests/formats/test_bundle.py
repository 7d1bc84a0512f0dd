"""Values: what the bundle reader gives is what TensorFlow's own reader gives."""

from __future__ import annotations

import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import bundle_fixtures as fx
from dist_restore.checkpoints.tf.bundle import Bundle
from dist_restore.core.errors import (
    CheckpointCorruptError,
    CheckpointNotFoundError,
    RestoreError,
    UnsupportedFormatError,
)
from dist_restore.core.tensors import Box, TensorSpec


@pytest.fixture(scope="module")
def all_dtypes(tmp_path_factory):
    tensors = {d: fx.random_tensor(d, (3, 5), seed=i) for i, d in enumerate(fx.FIXED_DTYPES)}
    return fx.save(tmp_path_factory.mktemp("dtypes") / "ckpt", tensors)


@pytest.mark.parametrize("dtype", fx.FIXED_DTYPES)
def test_every_fixed_size_dtype_reads_as_tensorflow_reads_it(all_dtypes, dtype):
    bundle = Bundle.open(all_dtypes)
    expected = fx.tf_reads(all_dtypes, dtype)
    assert bundle.entries[dtype].spec == TensorSpec((3, 5), dtype)
    assert fx.same_bytes(bundle.read(dtype), expected)
    assert fx.same_bytes(bundle.read(dtype, Box((1, 2), (2, 2))), expected[1:3, 2:4])
    assert bundle.check(dtype) == expected.nbytes


def test_dtypes_that_only_newer_releases_have_read_too(tmp_path):
    for name in ("float4_e2m1fn", "int2", "uint2"):
        try:
            dtype = tf.dtypes.as_dtype(name)
        except TypeError:
            pytest.skip(f"this TensorFlow has no {name}")
        value = np.array([0, 1, 1, 0]).astype(dtype.as_numpy_dtype)
        prefix = fx.save(tmp_path / name, {"x": tf.constant(value, dtype)})
        assert fx.same_bytes(Bundle.open(prefix).read("x"), fx.tf_reads(prefix, "x"))


def test_a_check_and_a_read_into_given_memory_take_no_memory_of_their_own(tmp_path):
    value = np.zeros((10, 1 << 20), np.float32)
    bundle = Bundle.open(fx.save(tmp_path / "ckpt", {"x": value, "s": [b"y" * 20_000_000] * 2}))
    tracemalloc.start()
    bundle.check("x")
    bundle.check("s")
    bundle.read("x", out=value)
    bundle.read("x", Box((0, 5), (10, 1 << 19)), out=np.empty((10, 1 << 19), np.float32))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (10 << 21) + (3 << 20)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (1, 1, 1)])
def test_scalars_and_empty_tensors_keep_their_shapes(tmp_path, shape):
    prefix = fx.save(tmp_path / "ckpt", {"x": np.ones(shape, np.float32), "s": np.full(shape, b"text", object)})
    bundle = Bundle.open(prefix)
    for key in "xs":
        assert fx.same_bytes(bundle.read(key), fx.tf_reads(prefix, key))
        assert bundle.check(key) == bundle.entries[key].size


def test_strings_come_as_bytes_and_are_checked(tmp_path):
    prefix = fx.save(tmp_path / "ckpt", {"s": fx.STRINGS})
    bundle = Bundle.open(prefix)
    assert bundle.read("s").tolist() == fx.STRINGS
    assert bundle.read("s", Box((1, 0), (1, 1))).tolist() == [[fx.STRINGS[1][0]]]
    assert bundle.check("s") == bundle.entries["s"].size


def test_strings_long_enough_for_several_chunks_are_read_and_checked(tmp_path):
    words = [b"w%d" % i * (i % 7) for i in range(200_000)]
    prefix = fx.save(tmp_path / "ckpt", {"s": words, "long": b"z" * 3_000_001})
    bundle = Bundle.open(prefix)
    assert bundle.read("s").tolist() == words
    assert bundle.check("s") == bundle.entries["s"].size
    assert bundle.check("long") == bundle.entries["long"].size
    assert bundle.read_bytes_string("long") == b"z" * 3_000_001


def test_the_object_graph_of_a_real_checkpoint_is_read(tmp_path):
    prefix = tf.train.Checkpoint(a=tf.Variable([1.0, 2.0]), b=tf.Variable(3)).write(str(tmp_path / "ckpt"))
    bundle = Bundle.open(prefix)
    key = "_CHECKPOINTABLE_OBJECT_GRAPH"
    assert bundle.read_bytes_string(key) == fx.tf_reads(prefix, key)[()]
    reader = tf.train.load_checkpoint(prefix)
    assert {k: list(e.spec.shape) for k, e in bundle.entries.items()} == reader.get_variable_to_shape_map()


def test_a_tensor_that_is_no_scalar_string_is_no_object_graph(tmp_path):
    prefix = fx.save(tmp_path / "ckpt", {"x": [1.0], "s": [b"a", b"b"]})
    for key in "xs":
        with pytest.raises(CheckpointCorruptError, match="expected string"):
            Bundle.open(prefix).read_bytes_string(key)


def test_several_data_files_are_read(tmp_path):
    shards = [{f"v{i}_{j}": np.full((4, 4), 10 * i + j, np.int32) for j in range(3)} for i in range(3)]
    prefix = fx.save_sharded(tmp_path / "ckpt", shards)
    bundle = Bundle.open(prefix)
    assert bundle.num_shards == 3
    assert {e.shard for e in bundle.entries.values()} == {0, 1, 2}
    for shard in shards:
        for key, value in shard.items():
            np.testing.assert_array_equal(bundle.read(key), value)
            bundle.check(key)


def test_reads_go_into_given_memory(tmp_path):
    value = np.arange(12, dtype=np.float32).reshape(3, 4)
    bundle = Bundle.open(fx.save(tmp_path / "ckpt", {"x": value, "s": [b"a", b"b"]}))
    out = np.zeros((2, 4), np.float32)
    assert bundle.read("x", Box((1, 0), (2, 4)), out=out) is out
    np.testing.assert_array_equal(out, value[1:])
    strings = np.empty(2, object)
    assert bundle.read("s", out=strings) is strings
    assert strings.tolist() == [b"a", b"b"]


@pytest.mark.parametrize(
    "out", [np.zeros((3, 3), np.float32), np.zeros((3, 4), np.float64), np.zeros((4, 3), np.float32).T]
)
def test_memory_that_does_not_fit_is_refused(tmp_path, out):
    bundle = Bundle.open(fx.save(tmp_path / "ckpt", {"x": np.zeros((3, 4), np.float32)}))
    with pytest.raises(ValueError, match="C-contiguous"):
        bundle.read("x", out=out)


@pytest.mark.parametrize("box", [Box((0,), (3,)), Box((2, 0), (2, 4)), Box((-1, 0), (1, 4)), Box((0, 0), (1, -1))])
def test_a_box_outside_of_the_tensor_is_refused(tmp_path, box):
    bundle = Bundle.open(fx.save(tmp_path / "ckpt", {"x": np.zeros((3, 4), np.float32)}))
    with pytest.raises(ValueError, match="not inside"):
        bundle.read("x", box)


def test_opening_reads_no_tensor_data(tmp_path):
    bundle = Bundle.open(fx.save(tmp_path / "ckpt", {"x": np.zeros((3, 4), np.float32)}))
    assert bundle.bytes_read == 0
    bundle.read("x")
    assert bundle.bytes_read == 48


def test_threads_share_a_bundle_and_its_count_of_bytes(tmp_path):
    tensors = {f"v{i}": np.full((300, 1000), i, np.float32) for i in range(16)}
    bundle, wrong = Bundle.open(fx.save(tmp_path / "ckpt", tensors)), []

    def work(start: int) -> None:
        for key in list(tensors)[start:] + list(tensors)[:start]:
            if not np.array_equal(bundle.read(key), tensors[key]):
                wrong.append(key)

    threads = [threading.Thread(target=work, args=(4 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert bundle.bytes_read == 4 * 16 * 1_200_000


def test_names_with_odd_bytes_survive(tmp_path):
    index = {b"odd \xff\xfe": fx.entry(size=8, crc32c=0), "größe".encode(): fx.entry(size=8, crc32c=0)}
    bundle = Bundle.open(fx.hand_made(tmp_path / "ckpt", index))
    assert set(bundle.entries) == {"odd \udcff\udcfe", "größe"}
    bundle.read("größe", Box((0,), (1,)))


def test_paths_with_a_scheme_go_through_tensorflow(tmp_path):
    value = np.arange(600_000, dtype=np.float32).reshape(1000, 600)
    local = fx.save_sharded(tmp_path / "ckpt", [{"x": value}, {"s": fx.STRINGS}])
    bundle = Bundle.open(fx.on_ram(local, "remote/ckpt"))
    assert fx.same_bytes(bundle.read("x"), value)
    assert fx.same_bytes(bundle.read("x", Box((10, 5), (7, 9))), value[10:17, 5:14])
    assert bundle.read("s").tolist() == fx.STRINGS
    assert bundle.check("x") == value.nbytes
    bundle.close()
    with pytest.raises(RestoreError):
        bundle.read("x")


def test_a_missing_remote_data_file_is_found_at_opening(tmp_path):
    prefix = fx.on_ram(fx.save(tmp_path / "ckpt", {"x": [1.0]}), "lost/ckpt")
    tf.io.gfile.remove(fx.data_file(prefix))
    with pytest.raises(CheckpointNotFoundError, match="data-00000-of-00001"):
        Bundle.open(prefix)


def test_file_urls_read_local_files(tmp_path):
    prefix = fx.save(tmp_path / "ckpt", {"x": [1.0, 2.0]})
    assert Bundle.open(f"file://{prefix}").read("x").tolist() == [1.0, 2.0]


def test_variants_are_an_error_only_when_they_are_read(tmp_path):
    variant = tf.raw_ops.TensorListFromTensor(tensor=tf.ones([3, 2]), element_shape=tf.constant([2]))
    bundle = Bundle.open(fx.save(tmp_path / "ckpt", {"v": variant, "x": [1.0]}))
    assert bundle.entries["v"].spec.dtype == "variant"
    assert bundle.read("x").tolist() == [1.0]
    for read in (bundle.read, bundle.check):
        with pytest.raises(UnsupportedFormatError, match="'v'"):
            read("v")


def test_a_newer_format_version_is_left_to_tensorflow(tmp_path):
    prefix = fx.save(tmp_path / "ckpt", {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "s": b"text"})
    rows = [(k.encode(), e) for k, e in sorted(Bundle.open(prefix).entries.items())]
    newer = fx.tensor_bundle_pb2.BundleHeaderProto(num_shards=1)
    newer.version.producer = 2
    items = {k: fx.entry(e.spec.shape, _number(e.spec.dtype), **_place(e)) for k, e in rows}
    data = Path(fx.data_file(prefix)).read_bytes()
    bundle = Bundle.open(fx.hand_made(tmp_path / "ckpt", items, data, first=newer.SerializeToString()))
    assert bundle.entries["x"].spec == TensorSpec((2, 3), "float32")
    assert bundle.read("x", Box((1, 0), (1, 2))).tolist() == [[3.0, 4.0]]
    assert bundle.read_bytes_string("s") == b"text"
    assert bundle.check("x") == 24
    assert bundle.bytes_read > 0


def _number(dtype: str) -> int:
    return int(tf.dtypes.as_dtype(dtype).as_datatype_enum)


def _place(entry) -> dict[str, int]:
    return {"shard_id": entry.shard, "offset": entry.offset, "size": entry.size, "crc32c": entry.crc32c}
