"""A new checkpoint prefix, written by TensorFlow's own ops in parts of bounded size, and visible only when it is whole.

`SaveV2` writes each part, `MergeV2Checkpoints` makes one index of them and moves their data files; both are public ops.
Everything happens in a directory beside the prefix. Knows keys and tensors; knows no names and no models.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator, Sequence
from types import TracebackType

import tensorflow as tf

from dist_restore.checkpoints.tf.bundle import Bundle
from dist_restore.core.dtypes import OPAQUE
from dist_restore.core.errors import RestoreError, VerificationError
from dist_restore.core.tensors import TensorSpec

_HOST = "/CPU:0"
# A string takes memory that no spec tells; this much is reckoned for each.
_STRING = 64


class BundleWriter:
    """Collects tensors, and writes them group by group. A context: what was not published is removed on the way out.

    Args:
      prefix: of the new checkpoint.
      group: bytes of tensors that are written at a time; one data file each.
      overwrite: whether a checkpoint of this prefix may be replaced.

    Raises:
      RestoreError: there is one already, or the prefix is no name for files.
    """

    def __init__(self, prefix: str, group: int, *, overwrite: bool = False) -> None:
        self._prefix, self._group, self._overwrite = prefix, group, overwrite
        self._folder, self._base = os.path.split(prefix)
        if not self._base or tf.io.gfile.isdir(prefix):
            raise RestoreError(f"{prefix!r} is a directory. Name a prefix in it, such as {prefix.rstrip('/')}/ckpt-1.")
        self._refuse_existing()
        self._pending: list[tuple[str, tf.Tensor]] = []
        self._pending_bytes = 0
        self._parts: list[str] = []
        self._sums: dict[str, tuple[TensorSpec, int | None]] = {}
        self._temporary = ""
        self._made_folder = False

    def __enter__(self) -> BundleWriter:
        self._made_folder = bool(self._folder) and not tf.io.gfile.isdir(self._folder)
        self._temporary = os.path.join(self._folder, f".{self._base}.{secrets.token_hex(4)}.tmp")
        tf.io.gfile.makedirs(self._temporary)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pending.clear()
        if tf.io.gfile.exists(self._temporary):
            tf.io.gfile.rmtree(self._temporary)
        if kind is not None and self._made_folder and not tf.io.gfile.listdir(self._folder):
            tf.io.gfile.rmtree(self._folder)

    def add(self, key: str, tensor: tf.Tensor, spec: TensorSpec, crc32c: int | None = None) -> None:
        """Adds a tensor; it may be written at once.

        Args:
          key: under which it is stored.
          tensor: of this spec.
          spec: shape and dtype.
          crc32c: checksum of the tensor's bytes where it is known; what was written is compared with it.
        """
        if key in self._sums:
            raise RestoreError(f"internal: two values for the key {key!r}")
        if tuple(tensor.shape) != spec.shape or tensor.dtype.name != spec.dtype:
            raise RestoreError(f"internal: {key!r}: expected {spec}, found {tensor.dtype.name}{tensor.shape}")
        size = spec.nbytes or _STRING * spec.elements
        if self._pending and self._pending_bytes + size > self._group:
            self._flush()
        self._pending.append((key, tensor))
        self._pending_bytes += size
        self._sums[key] = spec, crc32c

    @property
    def folder(self) -> str:
        """A directory for what else is needed until the checkpoint is published."""
        return self._temporary

    def publish(self) -> int:
        """Writes what is left, compares what the files hold with what was added, and makes the checkpoint visible.

        Returns:
          Bytes of the files.

        Raises:
          VerificationError: the files hold something else.
        """
        self._flush()
        whole = os.path.join(self._temporary, "whole")
        with tf.device(_HOST):
            tf.raw_ops.MergeV2Checkpoints(
                checkpoint_prefixes=self._parts, destination_prefix=whole, delete_old_dirs=False
            )
        self._verify(whole)
        files = _files_of(whole)
        size = sum(int(tf.io.gfile.stat(file).length) for file in files)
        self._refuse_existing()  # somebody may have been quicker
        self._move(files, whole)
        return size

    def _flush(self) -> None:
        if not self._pending:
            return
        part = os.path.join(self._temporary, f"part-{len(self._parts)}")
        with tf.device(_HOST):
            tf.raw_ops.SaveV2(
                prefix=part,
                tensor_names=[key.encode("utf-8", "surrogateescape") for key, _ in self._pending],
                shape_and_slices=[""] * len(self._pending),
                tensors=[tensor for _, tensor in self._pending],
            )
        self._parts.append(part)
        self._pending.clear()
        self._pending_bytes = 0

    def _verify(self, whole: str) -> None:
        """Reads everything back: it comes from the page cache, and what is wrong was never visible."""
        with contextlib.closing(Bundle.open(whole)) as bundle:
            if bundle.entries.keys() != self._sums.keys():
                raise VerificationError(f"{self._prefix}: the file's keys are not those that were written.")
            for key, (spec, crc) in self._sums.items():
                if spec.dtype not in OPAQUE:
                    bundle.check(key)
                stored = bundle.stored(key)
                if bundle.entries[key].spec != spec:
                    raise VerificationError(f"{self._prefix}: {key!r}: expected {spec}", names=(key,))
                if crc is not None and stored is not None and stored.crc32c != crc:
                    raise VerificationError(
                        f"{self._prefix}: {key!r}: expected the checksum {crc:08x}, found {stored.crc32c:08x}. The "
                        "memory may be faulty; convert again.",
                        names=(key,),
                    )

    def _refuse_existing(self) -> None:
        found = _files_of(self._prefix)
        if found and not self._overwrite:
            raise RestoreError(f"{found[0]!r} exists. Choose another prefix, or allow overwriting.")

    def _move(self, files: Sequence[str], whole: str) -> None:
        """A checkpoint is there when its index is: that goes first where one is replaced, and comes last."""
        old, undo = _files_of(self._prefix), list[tuple[str, str]]()
        pairs = [(name, os.path.join(self._temporary, f"old-{i}")) for i, name in enumerate(_index_first(old))]
        pairs += [(name, self._prefix + name[len(whole) :]) for name in reversed(_index_first(files))]
        try:
            for source, target in pairs:
                undo.append((source, target))
                tf.io.gfile.rename(source, target)
        except BaseException:
            for source, target in reversed(undo):
                if tf.io.gfile.exists(target) and not tf.io.gfile.exists(source):
                    tf.io.gfile.rename(target, source)
            raise


def update_latest(prefix: str) -> None:
    """Names a checkpoint as its directory's latest one, as `tf.train.Checkpoint.save` does."""
    folder, base = os.path.split(prefix)
    known = tf.train.get_checkpoint_state(folder or ".")
    paths = [path for path in (known.all_model_checkpoint_paths if known else ()) if os.path.basename(path) != base]
    tf.compat.v1.train.update_checkpoint_state(folder or ".", prefix, all_model_checkpoint_paths=[*paths, prefix])


def _files_of(prefix: str) -> list[str]:
    """The index and the data files of a prefix."""
    folder, base = os.path.split(prefix)
    return [os.path.join(folder, name) for name in sorted(_listed(folder or ".")) if _is_of(name, base)]


def _listed(folder: str) -> Iterator[str]:
    if tf.io.gfile.isdir(folder):
        yield from tf.io.gfile.listdir(folder)


def _is_of(name: str, base: str) -> bool:
    return name == f"{base}.index" or name.startswith(f"{base}.data-")


def _index_first(files: Sequence[str]) -> list[str]:
    return sorted(files, key=lambda name: (not name.endswith(".index"), name))
