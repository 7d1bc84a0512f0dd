"""Reads one stored tensor, or a box of it, out of the data files into memory that is given."""

from __future__ import annotations

import numpy as np

from dist_restore.checkpoints.files.boxes import read_box
from dist_restore.checkpoints.tf import string_tensors
from dist_restore.checkpoints.tf.bundle_index import BundleEntry
from dist_restore.checkpoints.tf.shards import Shards
from dist_restore.core import crc32c as checksum
from dist_restore.core import dtypes
from dist_restore.core.arrays import bytes_of
from dist_restore.core.tensors import Box

# What is read before its checksum is computed: small enough to be in the cache still.
_CHUNK = 1 << 20


def read_into(shards: Shards, entry: BundleEntry, box: Box, out: np.ndarray) -> None:
    """Reads what is inside `box` into an array, or a view, of the box's size and the entry's dtype.

    Raises:
      CheckpointCorruptError: the file ends too early, or `box` is everything and the checksum differs.
    """
    if entry.spec.dtype == dtypes.STRING:
        out[...] = _read_strings(shards, entry)[box.slices()]
    elif not out.flags.c_contiguous:
        dense = np.empty(out.shape, out.dtype)
        read_into(shards, entry, box, dense)
        out[...] = dense
    elif box.covers(entry.spec.shape):
        _read_whole(shards, entry, bytes_of(out))
    elif out.size:
        _read_box(shards, entry, box, out)


def check(shards: Shards, entry: BundleEntry) -> None:
    """Reads everything in bounded memory and compares the checksum; of strings, the lengths are held.

    Raises:
      CheckpointCorruptError: the file ends too early, or the checksum differs.
    """
    crc, begin = 0, 0
    if entry.spec.dtype == dtypes.STRING:
        lengths, begin = _read_lengths(shards, entry)
        crc = string_tensors.lengths_checksum(lengths)
    buffer = np.empty(min(entry.size, _CHUNK), np.uint8)
    for position in range(begin, entry.size, _CHUNK):
        chunk = buffer[: min(_CHUNK, entry.size - position)]
        shards.read(entry, position, chunk)
        crc = checksum.extend(crc, chunk)
    shards.compare(entry, crc)


def _read_whole(shards: Shards, entry: BundleEntry, out: np.ndarray) -> None:
    crc = 0
    for begin in range(0, entry.size, _CHUNK):
        chunk = out[begin : begin + _CHUNK]
        shards.read(entry, begin, chunk)
        crc = checksum.extend(crc, chunk)
    shards.compare(entry, crc)


def _read_box(shards: Shards, entry: BundleEntry, box: Box, out: np.ndarray) -> None:
    def fill(begin: int, part: np.ndarray) -> None:
        shards.read(entry, begin, part)

    read_box(fill, entry.spec.shape, box, shards.gap(entry.shard), out)


def _read_strings(shards: Shards, entry: BundleEntry) -> np.ndarray:
    data = np.empty(entry.size, np.uint8)
    shards.read(entry, 0, data)
    lengths, begin = _decode_lengths(shards, entry, data)
    shards.compare(entry, checksum.extend(string_tensors.lengths_checksum(lengths), data[begin:]))
    strings = data.data[begin + string_tensors.LENGTHS_CHECKSUM_SIZE :]
    return string_tensors.split(strings, lengths, entry.spec.shape)


def _read_lengths(shards: Shards, entry: BundleEntry) -> tuple[np.ndarray, int]:
    data = np.empty(min(entry.size, string_tensors.MAX_VARINT_SIZE * entry.spec.elements), np.uint8)
    shards.read(entry, 0, data)
    return _decode_lengths(shards, entry, data)


def _decode_lengths(shards: Shards, entry: BundleEntry, data: np.ndarray) -> tuple[np.ndarray, int]:
    try:
        lengths, begin = string_tensors.decode_lengths(data, entry.spec.elements)
    except ValueError as error:
        raise shards.corrupt(entry, "lengths of strings", str(error)) from error
    total = begin + string_tensors.LENGTHS_CHECKSUM_SIZE + sum(lengths.tolist())
    if total != entry.size and entry.size + entry.spec.elements > 0:
        raise shards.corrupt(entry, f"strings of {entry.size} bytes in all", f"lengths that say {total}")
    return lengths, begin
