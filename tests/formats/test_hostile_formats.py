"""Files that were made to do harm, or were damaged: refused by name, before anything is allocated, read or run."""

from __future__ import annotations

import contextlib
import json
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import save_file

import dist_restore as dr
from format_files import WRITERS, write_keras, write_npz, write_safetensors, write_weights
from live import refuse, restore, scramble, seq

Change = Callable[[bytes], bytes]
FILES = ["safetensors", "npz", "packed_npz", "weights", "keras", "legacy"]


@pytest.fixture
def model() -> keras.Model:
    model = seq("ab")
    scramble(model)
    return model


def checkpoint(model: keras.Model) -> tf.train.Checkpoint:
    return tf.train.Checkpoint(model=model)


class Marker:
    """An object whose pickle writes a file when it is loaded."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return pathlib.Path.touch, (self.path,)


@pytest.fixture
def trap(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A file that must not come to be."""
    path = tmp_path / "pickle_was_loaded"
    yield path
    assert not path.exists()


# ---- Every format --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.7, 0.999])
def test_a_truncated_file_is_refused(name: str, share: float, model: keras.Model, tmp_path: pathlib.Path) -> None:
    path = WRITERS[name](model, tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises((dr.CheckpointCorruptError, dr.UnsupportedFormatError)) as caught:
        dr.open_checkpoint(path)
    assert path.name in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_shrinks_after_it_was_opened_is_an_error(
    name: str, model: keras.Model, tmp_path: pathlib.Path
) -> None:
    path = WRITERS[name](model, tmp_path)
    with contextlib.closing(dr.open_checkpoint(path)) as source:
        with path.open("r+b") as file:
            file.truncate(64)
        with pytest.raises(dr.RestoreError, match="kernel"):
            for tensor in source.index().tensors:
                source.read(tensor.name)


@pytest.mark.parametrize("name", ["npz", "packed_npz", "keras"])
def test_a_flipped_bit_is_found_before_any_variable_changes(
    name: str, model: keras.Model, tmp_path: pathlib.Path
) -> None:
    path = WRITERS[name](model, tmp_path)
    data, value = bytearray(path.read_bytes()), model.variables[1].numpy().tobytes()[:16]
    place = bytes(data).find(value) if name != "packed_npz" else len(data) // 4
    assert place > 0
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(dr.CheckpointCorruptError):
        restore(checkpoint(seq("ab")), path)
    refuse(dr.CheckpointCorruptError, checkpoint(seq("ab")), path)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".pkl", ".ckpt", ".npz", ".h5", ".keras", ".safetensors"])
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_no_pickle_is_ever_loaded(
    suffix: str, protocol: int, model: keras.Model, trap: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(pickle.dumps(Marker(trap), protocol))
    error = refuse(dr.UnsupportedFormatError, checkpoint(model), path)
    assert protocol == 0 or "safetensors" in str(error)


def test_a_torch_archive_is_refused_whatever_it_is_called(
    model: keras.Model, trap: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    for name in ("model.pt", "model.ckpt", "model"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(Marker(trap)))
        refuse(dr.UnsupportedFormatError, checkpoint(model), tmp_path / name, "export it to safetensors")


# ---- safetensors -----------------------------------------------------------------------------------------------


def tensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def f32(*shape: int, at: tuple[int, int]) -> dict[str, object]:
    return {"dtype": "F32", "shape": list(shape), "data_offsets": list(at)}


HEADERS: dict[str, tuple[bytes, str]] = {
    "header longer than the file": (tensors({}, length=1 << 40), "header"),
    "header of negative length": (tensors({}, length=(1 << 64) - 1), "header"),
    "no JSON": (tensors(b"{nothing"), "JSON"),
    "no UTF-8": (tensors(b"{\xff\xfe}"), "JSON"),
    "no object": (tensors({"a": 5}), "dtype, shape"),
    "deep": (tensors(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "JSON"),
    "a number of many digits": (tensors(b'{"a":' + b"9" * 5_000 + b"}"), "JSON"),
    "a name twice": (tensors(b'{"a":{"dtype":"U8","shape":[],"data_offsets":[0,1]},"a":5}', b"x"), "twice"),
    "past the end": (tensors({"a": f32(4, at=(0, 16))}, b"1234"), "truncated"),
    "before the start": (tensors({"a": f32(1, at=(-4, 0))}, b"1234"), "data_offsets"),
    "backwards": (tensors({"a": f32(0, at=(4, 0))}, b"1234"), "bytes 4 to 0"),
    "sizes that overflow": (tensors({"a": f32(1 << 62, 8, at=(0, 4))}, b"1234"), "expected"),
    "a shape of more": (tensors({"a": f32(2, at=(0, 4))}, b"1234"), "expected 8"),
    "a shape of too many axes": (tensors({"a": f32(*[1] * 300, at=(0, 4))}, b"1234"), "axes"),
    "fractions": (tensors({"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}, b"1234"), "data_offsets"),
    "truth values": (tensors({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, b"1234"), "shape"),
    "overlaps": (tensors({"a": f32(2, at=(0, 8)), "b": f32(2, at=(4, 12))}, b"123412341234"), "overlap"),
    "one place twice": (tensors({"a": f32(1, at=(0, 4)), "b": f32(1, at=(0, 4))}, b"1234"), "overlap"),
    "a gap": (tensors({"a": f32(1, at=(0, 4)), "b": f32(1, at=(8, 12))}, b"123412341234"), "gap"),
    "bytes behind": (tensors({"a": f32(1, at=(0, 4))}, b"12345678"), "expected"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_safetensors_header_that_lies_is_refused(case: str, tmp_path: pathlib.Path) -> None:
    data, word = HEADERS[case]
    (tmp_path / "a.safetensors").write_bytes(data)
    with pytest.raises(dr.CheckpointCorruptError, match=word):
        dr.open_checkpoint(tmp_path / "a.safetensors")


def test_a_boolean_that_is_neither_0_nor_1_is_refused_before_anything_changes(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "flags.safetensors"
    save_file({"a": np.ones(3, np.float32), "flags": np.array([True, False, True])}, path)
    path.write_bytes(path.read_bytes()[:-1] + b"\2")
    root = {"a": tf.Variable(tf.zeros(3)), "flags": tf.Variable([False] * 3)}
    refuse(dr.CheckpointCorruptError, root, path, "flags", "neither 0 nor 1")


def test_a_dtype_that_nobody_knows_is_refused(tmp_path: pathlib.Path) -> None:
    header = {"a": {"dtype": "F4", "shape": [1], "data_offsets": [0, 4]}}
    (tmp_path / "a.safetensors").write_bytes(tensors(header, b"1234"))
    with pytest.raises(dr.UnsupportedFormatError, match="'F4'"):
        dr.open_checkpoint(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "file", ["../a.safetensors", "/etc/passwd", "x/../../a.safetensors", "a\\b.safetensors", "a.bin"]
)
def test_an_index_may_name_files_beside_it_only(file: str, model: keras.Model, tmp_path: pathlib.Path) -> None:
    (tmp_path / "d").mkdir()
    write_safetensors(model, tmp_path)
    index = tmp_path / "d" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a.kernel": file}}))
    with pytest.raises(dr.CheckpointCorruptError, match="beside it"):
        dr.open_checkpoint(index)


def test_an_index_must_agree_with_its_files(model: keras.Model, tmp_path: pathlib.Path) -> None:
    folder = WRITERS["sharded"](model, tmp_path)
    index = folder / "model.safetensors.index.json"
    good = json.loads(index.read_text())
    table = good["weight_map"]
    index.write_text(json.dumps({"weight_map": dict(zip(table, reversed(table.values()), strict=True))}))
    with pytest.raises(dr.CheckpointCorruptError, match="several saves"):
        dr.open_checkpoint(folder)
    index.write_text(json.dumps({"weight_map": {**table, "more": next(iter(table.values()))}}))
    with pytest.raises(dr.CheckpointCorruptError, match="'more'"):
        dr.open_checkpoint(folder)
    index.write_text(json.dumps(good))
    (folder / next(iter(table.values()))).unlink()
    with pytest.raises(dr.CheckpointNotFoundError, match="no such file beside it"):
        dr.open_checkpoint(folder)


# ---- NumPy archives ----------------------------------------------------------------------------------------------


def npy(shape: tuple[int, ...], data: bytes, dtype: str = "<f4") -> bytes:
    header = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def zipped(path: pathlib.Path, *members: tuple[str, bytes], how: int = zipfile.ZIP_STORED) -> pathlib.Path:
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def test_an_array_of_objects_is_refused(trap: pathlib.Path, tmp_path: pathlib.Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.array([Marker(trap)], object))
    with pytest.raises((dr.UnsupportedFormatError, dr.CheckpointCorruptError)):
        dr.open_checkpoint(tmp_path / "a.npz")


@pytest.mark.parametrize("dtype", ["<U4", "|S4", "<M8[s]", "|V4"])
def test_arrays_that_are_no_numbers_are_refused(dtype: str, tmp_path: pathlib.Path) -> None:
    path = zipped(tmp_path / "a.npz", ("a.npy", npy((1,), bytes(np.dtype(dtype).itemsize), dtype)))
    with pytest.raises(dr.UnsupportedFormatError, match=r"a\.npy"):
        dr.open_checkpoint(path)


@pytest.mark.parametrize("shape", [(1 << 60,), (2,), (-1,), (1 << 40, 1 << 40), (1,) * 300])
def test_a_shape_that_the_bytes_do_not_fill_is_refused(shape: tuple[int, ...], tmp_path: pathlib.Path) -> None:
    path = zipped(tmp_path / "a.npz", ("a.npy", npy(shape, b"1234" * (len(shape) < 300))))
    with pytest.raises(dr.CheckpointCorruptError):
        dr.open_checkpoint(path)


def test_a_header_is_data_and_not_code(trap: pathlib.Path, tmp_path: pathlib.Path) -> None:
    code = f"__import__('pathlib').Path({str(trap)!r}).touch()".encode()
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(code)) + code
    with pytest.raises(dr.CheckpointCorruptError):
        dr.open_checkpoint(zipped(tmp_path / "a.npz", ("a.npy", data)))


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("names", [("a.npy", "a.npy"), ("a.npy", "a")])
def test_two_arrays_of_one_name_are_refused(names: tuple[str, str], tmp_path: pathlib.Path) -> None:
    path = zipped(tmp_path / "a.npz", *((name, npy((1,), b"1234")) for name in names))
    with pytest.raises(dr.CheckpointCorruptError, match=r"name|called"):
        dr.open_checkpoint(path)


def test_a_member_that_says_it_unpacks_to_more_than_deflate_can_is_refused(tmp_path: pathlib.Path) -> None:
    path = zipped(tmp_path / "a.npz", ("a.npy", npy((1,), b"1234")), how=zipfile.ZIP_DEFLATED)
    data = bytearray(path.read_bytes())
    place = data.rfind(b"PK\x01\x02")
    data[place + 24 : place + 28] = struct.pack("<I", 0xFFFFFF00)
    path.write_bytes(data)
    with pytest.raises(dr.CheckpointCorruptError, match="unpack"):
        dr.open_checkpoint(path)


def test_a_member_that_unpacks_to_more_than_it_says_is_refused(tmp_path: pathlib.Path) -> None:
    array = np.zeros(100_000, np.float32)
    np.savez_compressed(tmp_path / "a.npz", a=array)
    data = bytearray((tmp_path / "a.npz").read_bytes())
    place = data.rfind(b"PK\x01\x02")
    small = npy((1,), b"1234")
    data[place + 24 : place + 28] = struct.pack("<I", len(small))
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(dr.CheckpointCorruptError):
        restore({"a": tf.Variable(tf.zeros(1))}, tmp_path / "a.npz")


def test_names_that_would_meet_stay_apart(tmp_path: pathlib.Path) -> None:
    np.savez(tmp_path / "a.npz", **{"x.y": np.zeros(1), "x/y": np.ones(1), "..": np.ones(1), "a.b.c": np.ones(1)})
    with contextlib.closing(dr.open_checkpoint(tmp_path / "a.npz")) as source:
        assert [t.name for t in source.index().tensors] == ["..", "a/b/c", "x.y", "x/y"]
        assert source.read("x.y")[0] == 0 and source.read("x/y")[0] == 1


# ---- HDF5 --------------------------------------------------------------------------------------------------------


def soft_link(file: h5py.File, _: pathlib.Path) -> None:
    del file["layers/dense/vars/0"]
    file["layers/dense/vars/0"] = h5py.SoftLink("/layers/dense_1/vars/0")


def external_link(file: h5py.File, other: pathlib.Path) -> None:
    del file["layers/dense/vars/0"]
    file["layers/dense/vars/0"] = h5py.ExternalLink(str(other), "/secret")


def external_group(file: h5py.File, other: pathlib.Path) -> None:
    file["layers/more"] = h5py.ExternalLink(str(other), "/")


def external_storage(file: h5py.File, other: pathlib.Path) -> None:
    del file["layers/dense/vars/0"]
    file["layers/dense/vars"].create_dataset("0", (4, 4), np.float32, external=[(str(other), 0, 64)])


def virtual(file: h5py.File, other: pathlib.Path) -> None:
    del file["layers/dense/vars/0"]
    layout = h5py.VirtualLayout((4, 4), np.float32)
    layout[:] = h5py.VirtualSource(str(other), "secret", (4, 4))
    file["layers/dense/vars"].create_virtual_dataset("0", layout)


def text(file: h5py.File, _: pathlib.Path) -> None:
    file["layers/dense/vars/1"] = "text"


def reference(file: h5py.File, _: pathlib.Path) -> None:
    file["layers/dense/vars/1"] = np.array([file["layers"].ref], h5py.ref_dtype)


def record(file: h5py.File, _: pathlib.Path) -> None:
    file["layers/dense/vars/1"] = np.zeros(2, [("a", "f4"), ("b", "i4")])


def empty(file: h5py.File, _: pathlib.Path) -> None:
    file["layers/dense/vars/1"] = h5py.Empty("f4")


@pytest.mark.parametrize(
    "change", [soft_link, external_link, external_group, external_storage, virtual, text, reference, record, empty]
)
def test_what_leads_out_of_an_hdf5_file_or_is_no_number_is_refused(
    change: Callable[[h5py.File, pathlib.Path], None], model: keras.Model, tmp_path: pathlib.Path
) -> None:
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["secret"] = np.ones((4, 4), np.float32)
    path = write_weights(model, tmp_path)
    with h5py.File(path, "a") as file:
        change(file, other)
    refuse(dr.UnsupportedFormatError, checkpoint(model), path, "layers/")


def loop(file: h5py.File) -> None:
    file["layers/again"] = file["/"]


def twice(file: h5py.File) -> None:
    file["layers/dense/vars/1"] = file["layers/dense_1/vars/0"]


def deep(file: h5py.File) -> None:
    file.create_group("/".join(["x"] * 200))


def huge_unwritten(file: h5py.File) -> None:
    file["layers/dense/vars"].create_dataset("1", (1 << 30, 1 << 20), np.float32)


def huge_chunked(file: h5py.File) -> None:
    file["layers/dense/vars"].create_dataset("1", (1 << 30, 1 << 20), np.float32, chunks=(64, 64), compression="gzip")


@pytest.mark.parametrize("change", [loop, twice, deep, huge_unwritten, huge_chunked])
def test_groups_and_sizes_that_keras_never_writes_are_refused(
    change: Callable[[h5py.File], None], model: keras.Model, tmp_path: pathlib.Path
) -> None:
    path = write_weights(model, tmp_path)
    with h5py.File(path, "a") as file:
        change(file)
    refuse(dr.CheckpointCorruptError, checkpoint(model), path)


def test_chunks_that_would_take_a_gigabyte_are_refused(model: keras.Model, tmp_path: pathlib.Path) -> None:
    path = write_weights(model, tmp_path)
    options = {"maxshape": (None, 4), "chunks": (1 << 26, 4), "compression": "gzip"}
    with h5py.File(path, "a") as file:
        dataset = file["layers/dense/vars"].create_dataset("1", (8, 4), np.float32, **options)
        dataset.id.write_direct_chunk((0, 0), bytes(1000))
    assert path.stat().st_size < 1 << 20
    refuse(dr.UnsupportedFormatError, checkpoint(model), path, "layers/dense/vars/1", "chunks", "1073741824")


def test_compressed_and_big_endian_datasets_are_read(tmp_path: pathlib.Path, strategy: tf.distribute.Strategy) -> None:
    old = seq("ab")
    scramble(old)
    path = write_weights(old, tmp_path)
    with h5py.File(path, "a") as file:
        for name in ("dense", "dense_1"):
            group = file[f"layers/{name}/vars"]
            data = group["0"][()]
            del group["0"]
            options = {"chunks": (2, 2), "compression": "gzip", "shuffle": True, "fletcher32": True}
            group.create_dataset("0", data=data.astype(">f4"), **(options if name == "dense" else {}))
    with strategy.scope():
        new = seq("ab")
    restore(checkpoint(new), path)
    for a, b in zip(old.variables, new.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_a_damaged_chunk_is_found_before_any_variable_changes(model: keras.Model, tmp_path: pathlib.Path) -> None:
    path = write_weights(model, tmp_path)
    with h5py.File(path, "a") as file:
        group = file["layers/dense_1/vars"]
        data = group["0"][()]
        del group["0"]
        chunked = group.create_dataset("0", data=data, chunks=(4, 4), fletcher32=True)
        place = chunked.id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    refuse(dr.CheckpointCorruptError, checkpoint(seq("ab")), path, "b/kernel")


def test_an_hdf5_file_of_somebody_else_is_refused(model: keras.Model, tmp_path: pathlib.Path) -> None:
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["images"] = np.zeros(4)
    refuse(dr.UnsupportedFormatError, checkpoint(model), tmp_path / "data.h5", "images")


def test_a_legacy_file_that_lists_what_it_does_not_hold_is_refused(model: keras.Model, tmp_path: pathlib.Path) -> None:
    path = WRITERS["legacy"](model, tmp_path)
    with h5py.File(path, "a") as file:
        file["model_weights/a"].attrs["weight_names"] = [b"../b/b/kernel"]
    refuse(dr.CheckpointCorruptError, checkpoint(model), path, "../b/b/kernel")


# ---- .keras ------------------------------------------------------------------------------------------------------


def repacked(path: pathlib.Path, how: int = zipfile.ZIP_STORED, **changes: bytes | None) -> pathlib.Path:
    """The same archive with other members; None leaves one out."""
    with zipfile.ZipFile(path) as old:
        members: dict[str, bytes | None] = {name: old.read(name) for name in old.namelist()}
    members.update(changes)
    new = path.with_name(f"new_{path.name}")
    return zipped(new, *((n, d) for n, d in members.items() if d is not None), how=how)


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "..\\evil", "C:\\evil"])
def test_an_archive_that_would_escape_its_folder_is_refused(
    name: str, model: keras.Model, tmp_path: pathlib.Path
) -> None:
    path = repacked(write_keras(model, tmp_path), **{name: b"x"})
    refuse(dr.UnsupportedFormatError, checkpoint(model), path, "outside the folder")
    assert not (tmp_path.parent / "evil").exists()


def test_a_compressed_archive_is_read(model: keras.Model, tmp_path: pathlib.Path) -> None:
    path = repacked(write_keras(model, tmp_path), zipfile.ZIP_DEFLATED)
    new = seq("ab")
    restore(checkpoint(new), path)
    np.testing.assert_array_equal(new.variables[1].numpy(), model.variables[1].numpy())


@pytest.mark.parametrize("how", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_other_compressions_are_refused(how: int, model: keras.Model, tmp_path: pathlib.Path) -> None:
    path = repacked(write_keras(model, tmp_path), how)
    refuse(dr.UnsupportedFormatError, checkpoint(model), path, "deflate")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"config.json": None}, "config.json"),
        ({"model.weights.h5": None}, "model.weights.h5"),
        ({"config.json": b"{"}, "config.json"),
        ({"config.json": b"[]"}, "config.json"),
        ({"config.json": b'{"config":' * 5_000 + b"1" + b"}" * 5_000}, "config.json"),
        ({"model.weights.h5": b"\x89HDF nothing"}, "HDF5"),
    ],
)
def test_an_archive_without_its_parts_is_refused(
    changes: dict[str, bytes | None], word: str, model: keras.Model, tmp_path: pathlib.Path
) -> None:
    path = repacked(write_keras(model, tmp_path), **changes)
    refuse(dr.CheckpointCorruptError, checkpoint(model), path, word)


def test_a_config_is_data_and_not_code(model: keras.Model, trap: pathlib.Path, tmp_path: pathlib.Path) -> None:
    path = write_keras(model, tmp_path)
    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("config.json"))
    code = f"__import__('pathlib').Path({str(trap)!r}).touch()"
    config["config"]["layers"].append({"module": "os", "class_name": code, "config": {"name": code}})
    path = repacked(path, **{"config.json": json.dumps(config).encode()})
    restore(checkpoint(seq("ab")), path)


def test_a_file_that_was_refused_is_closed(model: keras.Model, tmp_path: pathlib.Path) -> None:
    path = write_npz(model, tmp_path)
    path.write_bytes(path.read_bytes()[:-30])
    before = len(list(pathlib.Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        with pytest.raises(dr.CheckpointCorruptError):
            dr.open_checkpoint(path)
    assert len(list(pathlib.Path("/proc/self/fd").iterdir())) <= before
