"""Damaged and hostile files: an error of this library's that names the file, or the right values; nothing else."""

from __future__ import annotations

import os
import shutil
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorflow.core.protobuf import tensor_bundle_pb2

import bundle_fixtures as fx
from dist_restore.checkpoints.tf.bundle import Bundle
from dist_restore.checkpoints.tf.sstable import CompressedTableError, read_table
from dist_restore.core.errors import (
    CheckpointCorruptError,
    CheckpointNotFoundError,
    RestoreError,
    UnsupportedFormatError,
)
from dist_restore.core.tensors import TensorSpec

TENSORS = {f"layer_{i}/kernel": np.full((8, 4), i, np.float32) for i in range(40)} | {"text": [b"some", b"words"]}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return fx.save(tmp_path_factory.mktemp("good") / "ckpt", TENSORS)


@pytest.fixture
def prefix(good, tmp_path):
    """A copy that a test may damage."""
    for suffix in (".index", ".data-00000-of-00001"):
        shutil.copy(good + suffix, tmp_path / f"ckpt{suffix}")
    return str(tmp_path / "ckpt")


def read_everything(prefix: str) -> dict[str, list]:
    bundle = Bundle.open(prefix)
    try:
        return {key: bundle.read(key).tolist() for key in bundle.entries}
    finally:
        bundle.close()


def test_any_flipped_bit_of_the_index_is_found_or_harmless(prefix, good):
    expected, size = read_everything(good), os.path.getsize(f"{prefix}.index")
    original = Path(f"{prefix}.index").read_bytes()
    harmless = 0
    for position in [*range(0, size - 400, 3), *range(size - 400, size)]:
        fx.flip_bit(f"{prefix}.index", position, position % 8)
        try:
            assert read_everything(prefix) == expected
            harmless += 1
        except RestoreError as error:
            assert "ckpt" in str(error)
        Path(f"{prefix}.index").write_bytes(original)
    assert harmless < 40  # the footer's padding


def test_any_flipped_bit_of_the_data_is_found_and_the_tensor_named(prefix):
    data = fx.data_file(prefix)
    for position in range(0, os.path.getsize(data), 61):
        fx.flip_bit(data, position, position % 8)
        bundle = Bundle.open(prefix)
        hit = next(e for e in bundle.entries.values() if e.offset <= position < e.offset + e.size)
        for read in (bundle.read, bundle.check):
            with pytest.raises(CheckpointCorruptError) as error:
                read(hit.key)
            assert error.value.names == (hit.key,)
            assert data in str(error.value) and f"offset {hit.offset}" in str(error.value)
        fx.flip_bit(data, position, position % 8)
    read_everything(prefix)


def test_every_bit_of_a_string_tensor_counts(prefix):
    entry = Bundle.open(prefix).entries["text"]
    for position in range(entry.offset, entry.offset + entry.size):
        for bit in range(8):
            fx.flip_bit(fx.data_file(prefix), position, bit)
            bundle = Bundle.open(prefix)
            for read in (bundle.read, bundle.check):
                with pytest.raises(CheckpointCorruptError, match="'text'"):
                    read("text")
            bundle.close()
            fx.flip_bit(fx.data_file(prefix), position, bit)


def test_an_index_cut_off_anywhere_is_refused(prefix):
    index = Path(f"{prefix}.index")
    data = index.read_bytes()
    for length in [*range(0, len(data) - 400, 7), *range(len(data) - 400, len(data))]:
        index.write_bytes(data[:length])
        with pytest.raises(CheckpointCorruptError, match=r"ckpt\.index"):
            Bundle.open(prefix)


def test_data_cut_off_anywhere_are_refused_at_opening(prefix):
    data = fx.data_file(prefix)
    for length in range(os.path.getsize(data) - 1, -1, -97):
        os.truncate(data, length)
        with pytest.raises(CheckpointCorruptError, match=f"has {length} bytes"):
            Bundle.open(prefix)


def test_data_that_become_shorter_after_opening_are_found(prefix):
    bundle = Bundle.open(prefix)
    os.truncate(fx.data_file(prefix), 10)
    for read in (bundle.read, bundle.check):
        for key in ("text", "layer_0/kernel"):
            with pytest.raises(CheckpointCorruptError, match=key):
                read(key)


def test_a_missing_data_file_is_found_at_opening_and_named(tmp_path):
    prefix = fx.save_sharded(tmp_path / "ckpt", [{"a": [1.0]}, {"b": [2.0]}, {"c": [3.0]}])
    os.remove(fx.data_file(prefix, 1, 3))
    with pytest.raises(CheckpointNotFoundError, match="data-00001-of-00003"):
        Bundle.open(prefix)


def test_a_missing_index_is_named(prefix):
    os.remove(f"{prefix}.index")
    with pytest.raises(CheckpointNotFoundError, match=r"ckpt\.index"):
        Bundle.open(prefix)


def test_exchanged_data_files_are_found_by_their_checksums(tmp_path):
    shards = [{f"v{i}": np.full((50,), i, np.float32)} for i in range(2)]
    prefix = fx.save_sharded(tmp_path / "ckpt", shards)
    first, second = fx.data_file(prefix, 0, 2), fx.data_file(prefix, 1, 2)
    os.rename(first, f"{first}.x")
    os.rename(second, first)
    os.rename(f"{first}.x", second)
    bundle = Bundle.open(prefix)
    for key in bundle.entries:
        with pytest.raises(CheckpointCorruptError, match=key):
            bundle.read(key)


def test_big_endian_tensors_are_refused(tmp_path):
    first = fx.header(endianness=tensor_bundle_pb2.BundleHeaderProto.BIG)
    with pytest.raises(UnsupportedFormatError, match="big-endian"):
        Bundle.open(fx.hand_made(tmp_path / "ckpt", {b"x": fx.entry(size=8)}, first=first))


def test_an_unreadable_file_is_an_error_of_this_library(tmp_path):
    os.mkdir(tmp_path / "ckpt.index")
    with pytest.raises(RestoreError, match=r"ckpt\.index"):
        Bundle.open(str(tmp_path / "ckpt"))


@pytest.mark.parametrize(
    "items",
    [
        {b"x": fx.entry(size=8, shard_id=1)},
        {b"x": fx.entry(size=8, shard_id=-1)},
        {b"x": fx.entry(size=8, offset=57)},
        {b"x": fx.entry(size=8, offset=-1)},
        {b"x": fx.entry(size=8, offset=(1 << 63) - 1)},
        {b"x": fx.entry(size=-8)},
        {b"x": fx.entry(size=12)},
        {b"x": fx.entry((1 << 40,), size=8)},
        {b"x": fx.entry((-2,), size=8)},
        {b"x": fx.entry((1 << 62, 1 << 62, 0), size=0)},
        {b"x": fx.entry((1 << 40,), dtype=7, size=60)},
        {b"x": fx.entry((2,), dtype=7, size=5)},
        {b"x": fx.entry((1 << 50,), dtype=21, size=60)},
        {b"x": fx.entry((2,), dtype=21, size=-60)},
        {b"x": b"\xff"},
        {b"x": b"\x12\x02\x18\x01"},
    ],
    ids=lambda items: repr(items[b"x"]),
)
def test_entries_that_cannot_be_true_are_refused_at_opening(tmp_path, items):
    with pytest.raises(CheckpointCorruptError, match="'x'"):
        Bundle.open(fx.hand_made(tmp_path / "ckpt", items))


def test_a_tensor_of_more_axes_than_numpy_has_is_refused(tmp_path):
    with pytest.raises(UnsupportedFormatError, match="33 axes"):
        Bundle.open(fx.hand_made(tmp_path / "ckpt", {b"x": fx.entry((1,) * 33, size=4)}))


@pytest.mark.parametrize("number", [0, 20, 77, 101])
def test_unknown_dtypes_are_errors_only_when_they_are_read(tmp_path, number):
    """TensorFlow's own reader ends the process for some of these."""
    items = {b"x": fx.entry((2,), number, size=8), b"y": fx.entry((2,), size=8)}
    bundle = Bundle.open(fx.hand_made(tmp_path / "ckpt", items))
    assert bundle.entries["y"].spec == TensorSpec((2,), "float32")
    for read in (bundle.read, bundle.check):
        with pytest.raises(UnsupportedFormatError, match="'x'"):
            read("x")


@pytest.mark.parametrize("count", [-1, 1 << 30])
def test_a_hostile_number_of_data_files_is_refused_at_once(tmp_path, count):
    with pytest.raises(RestoreError, match=r"data-0|number of data files"):
        Bundle.open(fx.hand_made(tmp_path / "ckpt", {}, first=fx.header(num_shards=count)))


@pytest.mark.parametrize("first", [b"\xff\xff", b"\x08"])
def test_a_header_that_cannot_be_parsed_is_refused(tmp_path, first):
    with pytest.raises(CheckpointCorruptError, match="header"):
        Bundle.open(fx.hand_made(tmp_path / "ckpt", {}, first=first))


def test_a_table_without_a_header_is_refused(tmp_path):
    (tmp_path / "ckpt.index").write_bytes(fx.table_of([fx.sealed(fx.block_entry(0, b"x", b""))]))
    with pytest.raises(CheckpointCorruptError, match="header"):
        Bundle.open(str(tmp_path / "ckpt"))


def test_an_index_larger_than_any_is_refused_before_it_is_read(tmp_path):
    with open(tmp_path / "ckpt.index", "wb") as file:
        os.truncate(file.fileno(), (2 << 30) + 1)
    with pytest.raises(RestoreError, match="at most"):
        Bundle.open(str(tmp_path / "ckpt"))


def rows(*entries: bytes) -> bytes:
    return fx.sealed(b"".join(entries))


A, B = fx.block_entry(0, b"a", b"1"), fx.block_entry(0, b"b", b"2")
HOSTILE_TABLES = {
    "keys that descend": fx.table_of([rows(B, A)]),
    "a key twice": fx.table_of([rows(A), rows(A)]),
    "a block twice": fx.table_of([rows(A)], [(0, len(rows(A)) - 5)] * 2),
    "a block beyond the file": fx.table_of([rows(A)], [(0, 1 << 40)]),
    "a block of 2**64 bytes": fx.table_of([rows(A)], [((1 << 64) - 1, (1 << 64) - 1)]),
    "a prefix longer than the key before": fx.table_of([rows(fx.block_entry(1, b"a", b""))]),
    "a key beyond the block": fx.table_of([rows(fx.varint(0) + fx.varint(99) + fx.varint(0))]),
    "a value beyond the block": fx.table_of([rows(fx.varint(0) + b"\x01" + fx.varint(1 << 60) + b"a")]),
    "lengths cut off": fx.table_of([rows(b"\x00\x80")]),
    "a length without an end": fx.table_of([rows(b"\xff" * 30)]),
    "a length of 65 bits": fx.table_of([rows(b"\x00" + b"\xff" * 9 + b"\x7f" + b"\x00")]),
    "a block too small for restarts": fx.table_of([fx.sealed(b"", restarts=b"\0\0\0")]),
    "more restarts than block": fx.table_of([fx.sealed(A, restarts=struct.pack("<I", 1 << 31))]),
    "one long key repeated": fx.table_of(
        [rows(fx.block_entry(0, b"k" * 100_000, b""), *(fx.block_entry(100_000, b"a", b"") for _ in range(100)))]
    ),
    "one long key growing": fx.table_of(
        [rows(fx.block_entry(0, b"k" * 9_000, b""), *(fx.block_entry(9_000 + i, b"a", b"") for i in range(9_000)))]
    ),
}


@pytest.mark.parametrize("name", HOSTILE_TABLES)
def test_tables_that_no_writer_writes_are_refused(name):
    with pytest.raises(CheckpointCorruptError, match=r"x\.index"):
        list(read_table(HOSTILE_TABLES[name], "x.index"))


def test_a_good_table_of_two_blocks_reads():
    assert list(read_table(fx.table_of([rows(A), rows(B)]), "x")) == [(b"a", b"1"), (b"b", b"2")]


def test_compressed_blocks_are_left_to_tensorflow_which_finds_them_bad(tmp_path):
    table = fx.table_of([fx.sealed(A, compression=1)])
    with pytest.raises(CompressedTableError):
        list(read_table(table, "x"))
    (tmp_path / "ckpt.index").write_bytes(table)
    with pytest.raises(RestoreError, match="TensorFlow's own reader"):
        Bundle.open(str(tmp_path / "ckpt"))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_random_damage_to_the_index_gives_the_right_values_or_an_error(good, tmp_path, data):
    index = bytearray(Path(f"{good}.index").read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        index[data.draw(st.integers(0, len(index) - 1))] = data.draw(st.integers(0, 255))
    prefix = str(tmp_path / "fuzz")
    Path(f"{prefix}.index").write_bytes(index)
    shutil.copy(fx.data_file(good), fx.data_file(prefix))
    try:
        values = read_everything(prefix)
    except RestoreError:
        return
    assert values == read_everything(good)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_random_damage_under_right_checksums_is_an_error_or_reads(tmp_path, data):
    """What a checksum cannot stop, for its author can compute one too."""
    items = {b"a": fx.entry((2, 2), size=16), b"b": fx.entry((3,), 7, size=9), b"c": fx.entry((4,), 10, size=4)}
    body = fx.block_entry(0, b"", fx.header()) + b"".join(fx.block_entry(0, k, v) for k, v in items.items())
    changed = bytearray(body)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    Path(tmp_path / "ckpt.index").write_bytes(fx.table_of([fx.sealed(bytes(changed))]))
    Path(fx.data_file(str(tmp_path / "ckpt"))).write_bytes(bytes(range(64)))
    tracemalloc.start()
    try:
        bundle = Bundle.open(str(tmp_path / "ckpt"))
        for key in bundle.entries:
            bundle.read(key)
    except RestoreError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 20 << 20
