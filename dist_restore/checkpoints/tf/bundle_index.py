"""What a bundle's index says of its tensors: where each one's bytes are, and whether that can be true.

Decides from the index and the sizes of the data files alone; reads no tensor data.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping

import msgspec
from google.protobuf.message import DecodeError
from tensorflow.core.framework import tensor_slice_pb2
from tensorflow.core.protobuf import tensor_bundle_pb2

from dist_restore.checkpoints.files import byte_regions as regions
from dist_restore.checkpoints.tf import ordered_code, string_tensors
from dist_restore.core import dtypes
from dist_restore.core.errors import CheckpointCorruptError, UnsupportedFormatError
from dist_restore.core.tensors import Box, TensorSpec

# The newest version that is known here; TensorFlow has written it since 2016.
_VERSION = 1
# NumPy 1.x's limit; NumPy 2 has 64 and TensorFlow 254.
_MAX_RANK = 32


@dataclasses.dataclass(frozen=True, slots=True)
class SliceEntry:
    """One stored part of a partitioned tensor.

    Attributes:
      box: the part of the tensor.
      key: the hidden key under which the part is stored.
    """

    box: Box
    key: str


class BundleEntry(msgspec.Struct, frozen=True, gc=False):
    """Where one tensor lies.

    Attributes:
      key: the name under which the file stores it; odd bytes are kept as surrogate escapes.
      spec: shape and dtype.
      shard: number of the data file.
      offset: first byte in that file.
      size: bytes; of all parts together for a partitioned tensor.
      crc32c: the checksum in the masked form that the file has.
      slices: the parts of a partitioned tensor, for which `shard`, `offset` and `crc32c` mean nothing.
    """

    key: str
    spec: TensorSpec
    shard: int
    offset: int
    size: int
    crc32c: int
    slices: tuple[SliceEntry, ...] = ()


def decode_key(key: bytes) -> str:
    """A key as text, whatever its bytes are."""
    return key.decode("utf-8", "surrogateescape")


def parse_header(value: bytes, path: str) -> tuple[int, bool]:
    """The number of data files, and whether the version of the format is one that is known here.

    Raises:
      CheckpointCorruptError: the header cannot be parsed.
      UnsupportedFormatError: big-endian tensors.
    """
    try:
        header = tensor_bundle_pb2.BundleHeaderProto.FromString(value)
    except DecodeError as error:
        raise _corrupt(path, "", "a header", str(error)) from error
    if header.endianness != tensor_bundle_pb2.BundleHeaderProto.LITTLE:
        raise UnsupportedFormatError(
            f"{path}: tensors in big-endian byte order; only little-endian ones are read. Restore and save it once "
            "with TensorFlow on a little-endian machine, which swaps the bytes."
        )
    if header.num_shards < 0:
        raise _corrupt(path, "", "a number of data files", str(header.num_shards))
    version = header.version
    newer = version.producer > _VERSION or version.min_consumer > _VERSION or _VERSION in version.bad_consumers
    return int(header.num_shards), not newer


def parse_entries(items: Iterable[tuple[bytes, bytes]], path: str) -> dict[str, BundleEntry]:
    """All entries by key, the hidden parts of partitioned tensors among them.

    Raises:
      CheckpointCorruptError: an entry cannot be parsed, or contradicts itself.
    """
    specs: dict[tuple[int, bytes], TensorSpec] = {}
    entries: dict[str, BundleEntry] = {}
    parse = tensor_bundle_pb2.BundleEntryProto.FromString
    for raw_key, value in items:
        key = decode_key(raw_key)
        try:
            proto = parse(value)
        except DecodeError as error:
            raise _corrupt(path, key, "an entry", str(error)) from error
        # Most tensors share a few shapes. To walk through the axes of each took half of the time for 100,000 entries.
        identity = (proto.dtype, proto.shape.SerializeToString())
        spec = specs.get(identity)
        if spec is None:
            if proto.shape.unknown_rank:
                raise _corrupt(path, key, "a shape", "an unknown one")
            spec = specs[identity] = _spec(path, key, proto.dtype, tuple(d.size for d in proto.shape.dim))
        slices = _slices(path, raw_key, spec, proto.slices) if proto.slices else ()
        entries[key] = BundleEntry(key, spec, proto.shard_id, proto.offset, proto.size, proto.crc32c, slices)
    return entries


def check_entries(entries: Mapping[str, BundleEntry], shard_sizes: tuple[int, ...], path: str) -> None:
    """Checks that every entry has the size that its spec says, inside an existing data file.

    Raises:
      CheckpointCorruptError: one does not.
    """
    for entry in entries.values():
        if entry.slices:
            continue
        if not 0 <= entry.shard < len(shard_sizes):
            raise _corrupt(path, entry.key, f"one of {len(shard_sizes)} data files", f"number {entry.shard}")
        _check_size(path, entry)
        limit = shard_sizes[entry.shard]
        if entry.offset < 0 or entry.offset + entry.size > limit:
            raise CheckpointCorruptError(
                f"{path}: tensor {entry.key!r} {entry.spec}: expected bytes {entry.offset} to "
                f"{entry.offset + entry.size} of data file {entry.shard}, which has {limit} bytes. The data file is "
                "truncated or of another save; use another checkpoint.",
                names=(entry.key,),
            )


def join_slices(entries: dict[str, BundleEntry], path: str) -> dict[str, BundleEntry]:
    """Takes the hidden parts of partitioned tensors out of `entries`, and returns them by their keys.

    Raises:
      CheckpointCorruptError: parts are missing, overlap or contradict the whole.
    """
    parts: dict[str, BundleEntry] = {}
    for whole in [e for e in entries.values() if e.slices]:
        for piece in whole.slices:
            part = entries.pop(piece.key, None)
            if part is None or part.slices or part.spec != TensorSpec(piece.box.size, whole.spec.dtype):
                found = "no such part" if part is None else str(part.spec)
                raise _corrupt(path, whole.key, f"a stored part {piece.box} of {whole.spec}", found)
            parts[piece.key] = part
        if not regions.tiles(tuple(p.box for p in whole.slices), whole.spec.shape):
            raise _corrupt(path, whole.key, f"parts that cover {whole.spec} once", "gaps or overlaps between them")
        size = sum(parts[p.key].size for p in whole.slices)
        entries[whole.key] = msgspec.structs.replace(whole, size=size)
    return parts


def _corrupt(path: str, key: str, expected: str, found: str) -> CheckpointCorruptError:
    where = f"{path}: tensor {key!r}" if key else path
    return CheckpointCorruptError(
        f"{where}: expected {expected}, found {found}. The index is damaged; use another checkpoint.",
        names=(key,) if key else (),
    )


def _spec(path: str, key: str, number: int, shape: tuple[int, ...]) -> TensorSpec:
    spec = TensorSpec(shape, dtypes.name_of(number))
    if any(n < 0 for n in shape):
        raise _corrupt(path, key, "sizes of axes", str(list(shape)))
    if len(shape) > _MAX_RANK:
        raise UnsupportedFormatError(
            f"{path}: tensor {key!r} has {len(shape)} axes, and NumPy's arrays at most {_MAX_RANK}", names=(key,)
        )
    # An empty tensor passes every check of sizes, and its other axes may be of any size that numpy cannot hold.
    if math.prod(max(n, 1) for n in shape) > 1 << 58:
        raise _corrupt(path, key, "a shape of less than 2**58 elements", str(list(shape)))
    return spec


def _check_size(path: str, entry: BundleEntry) -> None:
    spec, dtype = entry.spec, dtypes.stored_dtype(entry.spec.dtype)
    if dtype is not None:
        expected = spec.elements * dtype.itemsize
        if entry.size != expected:
            raise _corrupt(path, entry.key, f"{expected} bytes for {spec}", f"{entry.size} bytes")
    elif spec.dtype == dtypes.STRING:
        # One byte at least for the length of each.
        least = spec.elements + string_tensors.LENGTHS_CHECKSUM_SIZE if spec.elements else 0
        if entry.size < least:
            raise _corrupt(path, entry.key, f"at least {least} bytes for {spec}", f"{entry.size} bytes")
    elif spec.elements > 8 * entry.size:  # TensorFlow's reader allocates first and compares sizes afterwards
        raise _corrupt(path, entry.key, f"at least a bit for each element of {spec}", f"{entry.size} bytes")


def _slices(
    path: str, raw_key: bytes, spec: TensorSpec, protos: Iterable[tensor_slice_pb2.TensorSliceProto]
) -> tuple[SliceEntry, ...]:
    return tuple(_slice(path, raw_key, spec, proto) for proto in protos)


def _slice(path: str, raw_key: bytes, spec: TensorSpec, proto: tensor_slice_pb2.TensorSliceProto) -> SliceEntry:
    # An extent without a length means all of the axis; the key of the part encodes that as 0 and -1.
    extents = [(e.start, e.length) if e.HasField("length") else (0, -1) for e in proto.extent]
    if len(extents) != len(spec.shape):
        raise _corrupt(path, decode_key(raw_key), f"a part with {len(spec.shape)} axes", f"{len(extents)} axes")
    begin = tuple(b for b, _ in extents)
    size = tuple(n if length < 0 else length for (_, length), n in zip(extents, spec.shape, strict=True))
    if any(b < 0 or b + n > limit for b, n, limit in zip(begin, size, spec.shape, strict=True)):
        raise _corrupt(path, decode_key(raw_key), f"a part of {spec}", f"begin {begin}, size {size}")
    return SliceEntry(Box(begin, size), decode_key(ordered_code.slice_key(raw_key, extents)))
