"""safetensors: a length, a JSON header, and the tensors' bytes. One file, or several that an index file joins.

The header is read here and not by the `safetensors` package: that reads local files only, gives bfloat16 and the
8-bit floats through torch alone, and reads boxes by way of a memory map that a truncated file turns into a crash.
The format has no checksums.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import TypeGuard

import numpy as np

from dist_restore.checkpoints.files import files
from dist_restore.checkpoints.files.array_reader import (
    DataFile,
    RawTensor,
    ReaderSource,
    is_sampled,
    require_fits,
    sampled_digest,
)
from dist_restore.checkpoints.flat.names import first_repeated, name_tensors
from dist_restore.core.dtypes import stored_dtype
from dist_restore.core.errors import CheckpointCorruptError, CheckpointNotFoundError, UnsupportedFormatError
from dist_restore.core.index import CheckpointIndex
from dist_restore.core.tensors import TensorSpec

INDEX_SUFFIX = ".safetensors.index.json"
# What the format's own reader allows.
_MAX_HEADER = 100_000_000
_SHARD = re.compile(r"[^/\\\0]+\.safetensors\Z")
_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "C64": "complex64",
}
_Spans = dict[str, tuple[TensorSpec, int]]  # name -> spec, offset in the file


def open_safetensors(path: str) -> ReaderSource:
    """Opens a file, or an index file and all files that it names.

    Raises:
      CheckpointNotFoundError: a file is missing.
      CheckpointCorruptError: a header cannot be read, or does not fit its file.
      UnsupportedFormatError: a dtype that TensorFlow does not have.
    """
    weights = _read_index(path) if path.endswith(INDEX_SUFFIX) else {}
    directory = path.rpartition("/")[0]
    names = sorted(set(weights.values()))
    opened: list[DataFile] = []
    try:
        for name in [f"{directory}/{n}" if directory else n for n in names] or [path]:
            opened.append(DataFile(name))
        return _source(path, opened, weights)
    except BaseException:
        for file in opened:
            file.close()
        raise


def _source(path: str, opened: list[DataFile], weights: Mapping[str, str]) -> ReaderSource:
    found: dict[str, RawTensor] = {}
    specs: dict[str, TensorSpec] = {}
    digest = hashlib.sha256()
    for file in opened:
        header, spans = _read_header(file)
        digest.update(sampled_digest(file, header).encode())
        for name, (spec, offset) in spans.items():
            if name in found:
                raise CheckpointCorruptError(f"{file.path}: tensor {name!r} is in another file of {path} too")
            dtype = stored_dtype(spec.dtype)
            assert dtype is not None
            found[name], specs[name] = RawTensor(file, offset, dtype.newbyteorder("<"), spec.shape), spec
    _require_complete(path, found, weights)
    tensors = name_tensors(specs)
    index = CheckpointIndex(path, "safetensors", tensors)
    readers, sampled = {t.name: found[t.key] for t in tensors}, any(map(is_sampled, opened))
    return ReaderSource(index, readers, opened, digest.hexdigest(), sampled=sampled)


def _require_complete(path: str, found: Mapping[str, RawTensor], weights: Mapping[str, str]) -> None:
    for name, file in weights.items():
        held = found.get(name)
        if held is None or held.file.path.rpartition("/")[2] != file:
            raise CheckpointCorruptError(f"{path}: tensor {name!r} is not in {file}. The files are of several saves.")


def _read_index(path: str) -> dict[str, str]:
    """Tensor name -> file name in the same directory."""
    table = _json_object(files.read_all(path, _MAX_HEADER), path).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise CheckpointCorruptError(f"{path}: expected `weight_map`, a table of tensors and their files")
    for name in set(map(str, table.values())):
        if not _SHARD.match(name):
            raise CheckpointCorruptError(
                f"{path}: names the file {name[:200]!r}; expected the plain name of a .safetensors file beside it"
            )
        if files.size_of(f"{path.rpartition('/')[0] or '.'}/{name}") is None:
            raise CheckpointNotFoundError(f"{path}: names {name}, and there is no such file beside it; copy it there.")
    return {str(k): str(v) for k, v in table.items()}


def _read_header(file: DataFile) -> tuple[bytes, _Spans]:
    size = int.from_bytes(file.head(0, 8), "little") if file.size >= 8 else -1
    if not 2 <= size <= min(file.size - 8, _MAX_HEADER):
        raise CheckpointCorruptError(
            f"{file.path}: expected a header of 2 to {min(file.size - 8, _MAX_HEADER)} bytes, found one of {size} in a "
            f"file of {file.size}. It is truncated or no safetensors file."
        )
    header = file.head(8, size)
    table = _json_object(header, file.path)
    table.pop("__metadata__", None)
    spans = {name: _span(file, name, value, 8 + size) for name, value in table.items()}
    _require_apart(file, spans.values(), 8 + size)
    return header, spans


def _span(file: DataFile, name: str, value: object, start: int) -> tuple[TensorSpec, int]:
    where = f"{file.path}: tensor {name[:200]!r}"
    dtype, shape, (begin, end) = _fields(where, value)
    if dtype not in _DTYPES or stored_dtype(_DTYPES[dtype]) is None:
        raise UnsupportedFormatError(f"{where}: dtype {dtype[:40]!r} is none of {', '.join(_DTYPES)}", names=(name,))
    if not 0 <= begin <= end <= file.size - start:
        raise CheckpointCorruptError(
            f"{where}: lies in bytes {begin} to {end}, and there are {file.size - start}. The file is truncated.",
            names=(name,),
        )
    spec = TensorSpec(tuple(shape), _DTYPES[dtype])
    require_fits(where, np.dtype(stored_dtype(spec.dtype)), shape, end - begin)
    return spec, start + begin


def _fields(where: str, value: object) -> tuple[str, list[int], tuple[int, int]]:
    if isinstance(value, dict):
        dtype, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
        if isinstance(dtype, str) and _are_sizes(shape) and _are_sizes(offsets) and len(offsets) == 2:
            return dtype, shape, (offsets[0], offsets[1])
    raise CheckpointCorruptError(f"{where}: expected dtype, shape and data_offsets, found {str(value)[:200]}")


def _are_sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 63 for n in value)


def _require_apart(file: DataFile, spans: Iterable[tuple[TensorSpec, int]], start: int) -> None:
    """Every byte belongs to one tensor, as the format demands."""
    end = start
    for spec, offset in sorted(spans, key=lambda s: (s[1], s[0].nbytes)):
        if offset != end:
            problem = "overlap" if offset < end else "leave a gap"
            raise CheckpointCorruptError(
                f"{file.path}: tensors {problem} at byte {min(offset, end)}; use another file."
            )
        end += spec.nbytes
    if end != file.size:
        raise CheckpointCorruptError(f"{file.path}: expected {end} bytes, found {file.size}; use another file.")


def _json_object(data: bytes, path: str) -> dict[str, object]:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        twice = first_repeated(key for key, _ in pairs)
        if twice is not None:
            raise ValueError(f"{twice[:200]!r} occurs twice")
        return dict(pairs)

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointCorruptError(f"{path}: its JSON cannot be read: {error}. Use another file.") from error
    if not isinstance(value, dict):
        raise CheckpointCorruptError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value
