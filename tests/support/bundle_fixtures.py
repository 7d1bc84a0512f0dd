"""Makes checkpoints with TensorFlow, and hostile indexes by hand, for the tests of the bundle reader."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import tensor_bundle_pb2

from dist_restore.checkpoints.tf.sstable import MAGIC
from dist_restore.core import crc32c as checksum

FIXED_DTYPES = (
    "bool int8 uint8 int16 uint16 int32 uint32 int64 uint64 float16 bfloat16 float32 float64 complex64 complex128 "
    "float8_e5m2 float8_e4m3fn float8_e4m3fnuz float8_e4m3b11fnuz float8_e5m2fnuz int4 uint4 "
    "qint8 quint8 qint16 quint16 qint32"
).split()
STRINGS = [[b"", b"a"], [b"\x00\xff" * 70, b"x" * 40_000]]


def save(prefix: str | Path, tensors: Mapping[str, object], slices: Sequence[str] | None = None) -> str:
    """Writes one bundle with one data file."""
    values = [v if tf.is_tensor(v) else tf.constant(v) for v in tensors.values()]
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=list(tensors),
        shape_and_slices=slices or [""] * len(values),
        tensors=values,
    )
    return str(prefix)


def save_sharded(prefix: str | Path, shards: Sequence[Mapping[str, object]]) -> str:
    """Writes one bundle with one data file per mapping."""
    parts = [save(f"{prefix}_temp/part-{i}", tensors) for i, tensors in enumerate(shards)]
    tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=parts, destination_prefix=str(prefix), delete_old_dirs=True, allow_missing_files=False
    )
    return str(prefix)


def random_tensor(dtype: str, shape: tuple[int, ...], seed: int = 0) -> tf.Tensor:
    """Random bits as a tensor of any fixed-size dtype (valid ones: 0 and 1 for bool, 4 bits for int4)."""
    kind, rng = tf.dtypes.as_dtype(dtype), np.random.default_rng(seed)
    if dtype == "bool":
        return tf.constant(rng.integers(0, 2, shape).astype(bool))
    if dtype in ("int4", "uint4"):
        return tf.constant((rng.integers(0, 16, shape) - 8 * (dtype == "int4")).astype(kind.as_numpy_dtype))
    raw = rng.integers(0, 256, (*shape, kind.size), dtype=np.uint8)
    if "q" in dtype:
        return tf.bitcast(tf.constant(raw if kind.size > 1 else raw[..., 0]), kind)
    return tf.constant(raw.view(kind.as_numpy_dtype)[..., 0], kind)


def tf_reads(prefix: str, key: str) -> np.ndarray:
    return np.asarray(tf.train.load_checkpoint(prefix).get_tensor(key))


def same_bytes(a: np.ndarray, b: np.ndarray) -> bool:
    if a.dtype == object:
        return a.shape == b.shape and a.tolist() == b.tolist()
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def data_file(prefix: str, shard: int = 0, count: int = 1) -> str:
    return f"{prefix}.data-{shard:05d}-of-{count:05d}"


def flip_bit(path: str, position: int, bit: int = 0) -> None:
    with open(path, "r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ (1 << bit)]))


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def block_entry(shared: int, key: bytes, value: bytes) -> bytes:
    return varint(shared) + varint(len(key)) + varint(len(value)) + key + value


def sealed(entries: bytes, compression: int = 0, restarts: bytes = b"\0\0\0\0\1\0\0\0") -> bytes:
    """A block with a right checksum, whatever is in it."""
    body = entries + restarts + bytes([compression])
    return body + checksum.masked(body).to_bytes(4, "little")


def table_of(blocks: Sequence[bytes], handles: Sequence[tuple[int, int]] | None = None) -> bytes:
    """A table of sealed blocks; `handles` lie about where the blocks are."""
    data, true_handles = b"", []
    for block in blocks:
        true_handles.append((len(data), len(block) - 5))
        data += block
    rows = b"".join(
        block_entry(0, b"\xff%08d" % i, varint(o) + varint(n)) for i, (o, n) in enumerate(handles or true_handles)
    )
    meta, index = sealed(b""), sealed(rows)
    footer = b"".join(varint(n) for n in (len(data), len(meta) - 5, len(data) + len(meta), len(index) - 5))
    return data + meta + index + footer.ljust(40, b"\0") + MAGIC.to_bytes(8, "little")


def header(**fields: object) -> bytes:
    proto = tensor_bundle_pb2.BundleHeaderProto(num_shards=1)
    proto.version.producer = 1
    for name, value in fields.items():
        setattr(proto, name, value)
    return proto.SerializeToString()


def entry(shape: Sequence[int] = (2,), dtype: int = 1, **fields: int) -> bytes:
    proto = tensor_bundle_pb2.BundleEntryProto(dtype=dtype, **fields)
    for size in shape:
        proto.shape.dim.add().size = size
    return proto.SerializeToString()


def hand_made(prefix: Path, items: Mapping[bytes, bytes], data: bytes = b"\0" * 64, first: bytes | None = None) -> str:
    """A checkpoint whose index says `items`, with right checksums in the index."""
    rows = [block_entry(0, b"", header() if first is None else first)]
    rows += [block_entry(0, key, value) for key, value in sorted(items.items())]
    Path(f"{prefix}.index").write_bytes(table_of([sealed(b"".join(rows))]))
    Path(data_file(str(prefix))).write_bytes(data)
    return str(prefix)


def on_ram(prefix: str, name: str) -> str:
    """Copies a checkpoint to a file system that only TensorFlow knows."""
    for path in Path(prefix).parent.glob(f"{os.path.basename(prefix)}.*"):
        suffix = path.name.removeprefix(os.path.basename(prefix))
        tf.io.gfile.copy(str(path), f"ram://{name}{suffix}", overwrite=True)
    return f"ram://{name}"
