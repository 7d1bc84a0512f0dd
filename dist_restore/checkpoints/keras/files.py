"""Keras' HDF5 files: `.weights.h5`, the legacy `.h5`, and `.keras` archives of a `.weights.h5` and a config."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Sequence

import numpy as np

from dist_restore.checkpoints.files.array_reader import DataFile, ReaderSource, TensorReader, is_sampled, sampled_digest
from dist_restore.checkpoints.files.zip_archive import Archive, Member
from dist_restore.checkpoints.keras.config import LayerConfig, parse_config
from dist_restore.checkpoints.keras.hdf5 import Dataset, Group, Hdf5
from dist_restore.checkpoints.keras.legacy import is_legacy, name_legacy
from dist_restore.checkpoints.keras.scene import scene_of
from dist_restore.checkpoints.keras.weights import is_weights, name_weights, numbered_optimizers
from dist_restore.checkpoints.of_file import of_file
from dist_restore.core.errors import CheckpointCorruptError, UnsupportedFormatError
from dist_restore.core.index import CheckpointIndex, OptimizerInfo, SourceTensor
from dist_restore.core.tensors import Box

_CONFIG, _WEIGHTS = "config.json", "model.weights.h5"
_MAX_CONFIG = 256 << 20


def open_hdf5(path: str) -> ReaderSource:
    """Opens a `.weights.h5` or a legacy `.h5`.

    Raises:
      CheckpointNotFoundError: there is none.
      CheckpointCorruptError: it cannot be read, or its sizes cannot be true.
      UnsupportedFormatError: it refers to other files, or Keras did not write it.
    """
    file = DataFile(path)
    try:
        return _source(path, [file], Hdf5(file, 0, file.size), None, sampled_digest(file), None)
    except BaseException:
        file.close()
        raise


def open_keras(path: str) -> ReaderSource:
    """Opens a `.keras` archive: the config says how layers are called, and which variables they have.

    Raises:
      CheckpointNotFoundError: there is none.
      CheckpointCorruptError: a member is missing or damaged, or config and weights contradict each other.
      UnsupportedFormatError: as `open_hdf5`.
    """
    opened = [DataFile(path)]
    try:
        archive = Archive(opened[0])
        _require_plain_names(archive)
        config = parse_config(archive.read(_CONFIG, _MAX_CONFIG), path)
        member = archive.members.get(_WEIGHTS)
        if member is None:
            raise CheckpointCorruptError(f"{path}: expected a member {_WEIGHTS!r}, found {sorted(archive.members)[:8]}")
        file, offset = _in_place(archive, member, opened)
        checked = _Once(archive, member) if file is opened[0] else None
        return _source(path, opened, Hdf5(file, offset, member.size), config, archive.identity(), checked)
    except BaseException:
        for file in opened:
            file.close()
        raise


def _require_plain_names(archive: Archive) -> None:
    """Nothing is extracted by name; an archive that would escape its folder elsewhere is refused all the same."""
    for name in archive.members:
        if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/") or ":" in name:
            raise UnsupportedFormatError(
                f"{archive.file.path}: the member {name[:200]!r} would lie outside the folder that it is unpacked to. "
                "Keras writes no such archive; do not use it."
            )


def _in_place(archive: Archive, member: Member, opened: list[DataFile]) -> tuple[DataFile, int]:
    """Where the weights lie: in the archive itself, as Keras writes it; what is compressed is unpacked once."""
    if not member.deflated:
        return archive.file, member.offset
    with tempfile.NamedTemporaryFile(prefix="dist_restore_", suffix=".h5") as target:
        if shutil.disk_usage(tempfile.gettempdir()).free < member.size:
            raise CheckpointCorruptError(f"{archive.file.path}: {member.size} bytes do not fit {tempfile.gettempdir()}")
        for chunk in archive.chunks(member):
            target.write(chunk)
        target.flush()
        opened.append(DataFile(target.name))  # stays readable after its name is gone
    return opened[-1], 0


class _Once:
    """Compares the checksum of the weights when the first tensor is checked, for all of them."""

    def __init__(self, archive: Archive, member: Member) -> None:
        self._archive, self._member = archive, member
        self._lock, self._done = threading.Lock(), False

    def __call__(self) -> None:
        with self._lock:
            if not self._done:
                for _ in self._archive.chunks(self._member):
                    pass
                self._done = True


class _Checked:
    """A dataset in an archive."""

    def __init__(self, dataset: Dataset, once: _Once) -> None:
        self._reader, self._once, self._shape = dataset.reader, once, dataset.spec.shape

    def read(self, box: Box) -> np.ndarray:
        """As the dataset's own reader; what is read whole is checked, for who reads once makes no pass before."""
        if box.covers(self._shape):
            self._once()
        return self._reader.read(box)

    def check(self) -> int:
        """Checks the archive's member, and what HDF5 itself can check."""
        self._once()
        return self._reader.check()


def _source(
    path: str, files: Sequence[DataFile], hdf5: Hdf5, config: LayerConfig | None, identity: str, once: _Once | None
) -> ReaderSource:
    with of_file(path):
        format_name, named, optimizers, ignored = _named(path, hdf5.root, config)
        scene = scene_of(hdf5.root, (t for t, _ in named), config) if format_name != "keras_h5" else None
    if not named:
        raise UnsupportedFormatError(f"{path}: holds no variables")
    index = CheckpointIndex(path, format_name, tuple(t for t, _ in named), optimizers, ignored, scene=scene)
    readers: dict[str, TensorReader] = {t.name: _Checked(d, once) if once is not None else d.reader for t, d in named}
    # An archive has a checksum of everything in it.
    sampled = once is None and any(map(is_sampled, files))
    return ReaderSource(index, readers, files, identity, sampled=sampled)


_Named = tuple[str, tuple[tuple[SourceTensor, Dataset], ...], tuple[OptimizerInfo, ...], tuple[tuple[str, str], ...]]


def _named(path: str, root: Group, config: LayerConfig | None) -> _Named:
    if is_legacy(root):
        named, optimizers, ignored = name_legacy(root)
        return "keras_h5", named, optimizers, ignored
    if is_weights(root):
        kind = "keras_archive" if config is not None else "keras_weights"
        return kind, name_weights(root, config), numbered_optimizers(root, config), ()
    raise UnsupportedFormatError(
        f"{path}: an HDF5 file that Keras did not write: expected groups `vars`, or the attribute `layer_names`, found "
        f"{', '.join(sorted({*root.groups, *root.datasets})[:8]) or 'nothing'}. Save its "
        "arrays as .npz or .safetensors."
    )
