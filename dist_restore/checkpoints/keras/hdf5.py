"""HDF5 files of others: only what lies in the file itself is followed, and only plain numbers are read.

HDF5 can refer to other files (external and soft links, external storage, virtual datasets) and load code (filters);
all of that is refused. Where a dataset lies in one piece its bytes are read without the library, from any thread.
Knows no Keras.
"""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Iterator, Mapping

import h5py
import ml_dtypes  # noqa: F401 (registers bfloat16 with NumPy)
import numpy as np

from dist_restore.checkpoints.files.array_reader import DataFile, RawTensor, TensorReader, native, require_fits, spec_of
from dist_restore.checkpoints.files.zip_archive import MAX_EXPANSION, Window
from dist_restore.core.errors import CheckpointCorruptError, RestoreError, UnsupportedFormatError
from dist_restore.core.tensors import Box, TensorSpec

# What Keras and h5py write: deflate, shuffle, Fletcher's checksum and LZF (32000); all built in, none loaded.
_FILTERS = frozenset({h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, 32000})
_LAYOUTS = frozenset({h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT, h5py.h5d.CHUNKED})
_MAX_DEPTH, _MAX_OBJECTS = 100, 1 << 20
# Names of a large model's layers in one attribute; Keras splits what is above 64 KB.
_MAX_ATTRIBUTE = 16 << 20
_STEP = 4 << 20
# The library unpacks chunks whole, however little of one is asked for; those that h5py chooses have at most 1 MB.
_MAX_CHUNK, _SMALL_CHUNK = 64 << 20, 4 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class Dataset:
    """A stored array, and how it is read."""

    spec: TensorSpec
    reader: TensorReader


@dataclasses.dataclass(frozen=True, slots=True)
class Group:
    """A group: its attributes that are text, and its children, in the order of their names."""

    path: str
    attributes: Mapping[str, tuple[str, ...]]
    groups: Mapping[str, Group]
    datasets: Mapping[str, Dataset]

    def walk(self) -> Iterator[Group]:
        """This group and all below it."""
        yield self
        for group in self.groups.values():
            yield from group.walk()


class Hdf5:
    """An opened file."""

    def __init__(self, file: DataFile, offset: int, size: int) -> None:
        """Reads all names, shapes and dtypes.

        Args:
          file: holds the HDF5 file.
          offset: where it begins in there.
          size: how long it is.

        Raises:
          CheckpointCorruptError: the library cannot read it, or its sizes cannot be true.
          UnsupportedFormatError: it refers to other files, or holds what is no array of numbers.
        """
        self._data, self._offset, self._size = file, offset, size
        self._lock = threading.Lock()
        self._seen: set[int] = set()
        try:
            self._file = h5py.File(Window(file, offset, size), "r")
            self.root = self._group(self._file, "", 0)
        except RestoreError:
            raise
        except Exception as error:  # h5py raises nearly every kind
            raise CheckpointCorruptError(
                f"{file.path}: the HDF5 library cannot read it: {str(error)[:300]}. Use another file."
            ) from error

    def _where(self, path: str) -> str:
        return f"{self._data.path}: {path[:200] or '/'!r}"

    def _group(self, group: h5py.Group, path: str, depth: int) -> Group:
        self._require_new(group, path, depth)
        groups: dict[str, Group] = {}
        datasets: dict[str, Dataset] = {}
        for name in group:
            below = f"{path}/{name}" if path else str(name)
            child = self._child(group, name, below)
            if isinstance(child, h5py.Group):
                groups[name] = self._group(child, below, depth + 1)
            else:
                self._require_new(child, below, depth)
                datasets[name] = self._dataset(child, below)
        return Group(path, self._attributes(group, path), groups, datasets)

    def _require_new(self, item: h5py.Group | h5py.Dataset, path: str, depth: int) -> None:
        address = int(h5py.h5o.get_info(item.id).addr)
        if address in self._seen or depth > _MAX_DEPTH or len(self._seen) >= _MAX_OBJECTS:
            raise CheckpointCorruptError(
                f"{self._where(path)}: is linked twice, or lies deeper than {_MAX_DEPTH} groups, or is one "
                f"of more than {_MAX_OBJECTS} objects; Keras writes no such file."
            )
        self._seen.add(address)

    def _child(self, group: h5py.Group, name: str, path: str) -> h5py.Group | h5py.Dataset:
        kind = group.id.links.get_info(name.encode("utf-8", "surrogateescape")).type
        if kind != h5py.h5l.TYPE_HARD:
            raise UnsupportedFormatError(
                f"{self._where(path)}: is a soft or external link, which may lead to another file and is never "
                "followed. Copy what it leads to into this file."
            )
        child = group[name]
        if not isinstance(child, (h5py.Group, h5py.Dataset)):
            raise UnsupportedFormatError(f"{self._where(path)}: is neither a group nor a dataset")
        return child

    def _attributes(self, group: h5py.Group, path: str) -> dict[str, tuple[str, ...]]:
        return {name: texts for name in group.attrs if (texts := self._texts(group, name, path)) is not None}

    def _texts(self, group: h5py.Group, name: str, path: str) -> tuple[str, ...] | None:
        attribute = group.attrs.get_id(name)
        count = math.prod(attribute.shape)
        if count * attribute.dtype.itemsize > _MAX_ATTRIBUTE:
            raise CheckpointCorruptError(f"{self._where(path)}: attribute {name[:100]!r} is too large to be names")
        if not count or attribute.get_space().get_simple_extent_type() == h5py.h5s.NULL:
            return ()
        if attribute.dtype.kind not in "SO":
            return None
        items = np.ravel(np.asarray(group.attrs[name], object)).tolist()
        return tuple(i.decode("utf-8", "replace") if isinstance(i, bytes) else str(i) for i in items)

    def _dataset(self, item: h5py.Dataset, path: str) -> Dataset:
        where = self._where(path)
        creation = item.id.get_create_plist()
        filters = {creation.get_filter(i)[0] for i in range(creation.get_nfilters())}
        if creation.get_layout() not in _LAYOUTS or creation.get_external_count() or not filters <= _FILTERS:
            raise UnsupportedFormatError(
                f"{where}: its bytes lie in other files, or behind a filter that is no part of HDF5 itself; neither is "
                "read. Copy it into a plain dataset."
            )
        if item.shape is None:
            raise UnsupportedFormatError(f"{where}: is empty")
        dtype = _stored_dtype(item, where)
        return Dataset(spec_of(where, dtype, item.shape), self._reader(where, item, dtype, creation.get_layout()))

    def _reader(self, where: str, item: h5py.Dataset, dtype: np.dtype, layout: int) -> TensorReader:
        shape, stored = tuple(map(int, item.shape)), int(item.id.get_storage_size())
        size = math.prod(shape) * dtype.itemsize
        if layout == h5py.h5d.CHUNKED:
            if size > stored * MAX_EXPANSION:
                raise CheckpointCorruptError(f"{where}: says that {stored} bytes unpack to {size}; that cannot be.")
            _require_small_chunks(where, tuple(map(int, item.chunks)), dtype, size)
            return _Chunked(self._data, self._lock, item, dtype, shape)
        require_fits(where, dtype, shape, stored)
        offset = item.id.get_offset()
        if offset is None:  # a compact dataset of at most 64 KB lies inside its header
            return _Chunked(self._data, self._lock, item, dtype, shape)
        if not 0 <= offset <= self._size - size:
            raise CheckpointCorruptError(f"{where}: lies at byte {offset} of {self._size}. The file is truncated.")
        return RawTensor(self._data, self._offset + int(offset), dtype, shape)

    def close(self) -> None:
        """Closes the library's handle."""
        self._file.close()


def _require_small_chunks(where: str, chunk: tuple[int, ...], dtype: np.dtype, size: int) -> None:
    """Refuses chunks that would take much more memory than the dataset or than a piece of it."""
    nbytes, limit = math.prod(chunk) * dtype.itemsize, min(_MAX_CHUNK, max(_SMALL_CHUNK, 2 * size))
    if nbytes > limit:
        raise UnsupportedFormatError(
            f"{where}: its chunks {list(chunk)} take {nbytes} bytes each, of which nothing less can be read, and the "
            f"dataset has {size}; at most {limit} are read. Copy it with smaller chunks, or in one piece "
            "(h5repack -l CONTI)."
        )


def _stored_dtype(item: h5py.Dataset, where: str) -> np.dtype:
    """The dtype of the elements; bfloat16, which HDF5 does not have, is two opaque bytes and an attribute."""
    dtype = item.dtype
    named = item.attrs.get("dtype") if "dtype" in item.attrs else None
    if dtype.kind == "V" and dtype.names is None and dtype.itemsize == 2 and named in ("bfloat16", b"bfloat16"):
        return np.dtype("bfloat16")  # which ml_dtypes has registered
    if dtype.kind not in "biufc":
        raise UnsupportedFormatError(f"{where}: dtype {dtype} is none of a variable's; only numbers are read")
    name: str = "bool" if dtype.kind == "b" else dtype.str
    return np.dtype(name)


@dataclasses.dataclass(frozen=True, slots=True)
class _Chunked:
    """A dataset in chunks, or a tiny one, which only the library can read; one at a time."""

    file: DataFile
    lock: threading.Lock
    item: h5py.Dataset
    dtype: np.dtype
    shape: tuple[int, ...]

    def read(self, box: Box) -> np.ndarray:
        """Reads and unpacks the chunks that the box touches."""
        try:
            with self.lock:
                found = np.asarray(self.item[box.slices()] if self.shape else self.item[()])
        except Exception as error:
            raise CheckpointCorruptError(f"{self.file.path}: the HDF5 library says: {str(error)[:300]}") from error
        self.file.count(found.nbytes)
        return native(found.view(self.dtype) if found.dtype.kind == "V" else found.astype(self.dtype, copy=False))

    def check(self) -> int:
        """Unpacks everything in bounded memory: damage shows there, and in Fletcher's checksum where there is one."""
        if not self.shape or 0 in self.shape:
            return self.read(Box.whole(self.shape)).nbytes
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        step = max(1, _STEP // max(1, row))
        starts = range(0, self.shape[0], step)
        rest = (0,) * (len(self.shape) - 1), self.shape[1:]
        boxes = (Box((s, *rest[0]), (min(step, self.shape[0] - s), *rest[1])) for s in starts)
        return sum(self.read(box).nbytes for box in boxes)
