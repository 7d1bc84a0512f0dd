"""Objects whose state is no variable: lookup tables that can change, and iterators of datasets.

TensorFlow saves and restores each by methods of its own, so that nothing here looks into their state: it is read, and
put back where that fails, by the public `tf.train.Checkpoint` alone, through a small tree that has the object where
the checkpoint has it. Knows paths in a checkpoint and live objects; knows no plans.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import tensorflow as tf

from dist_restore.core.errors import CheckpointCorruptError, RestoreError
from dist_restore.core.tensors import ITERATOR, TensorSpec, table_dtype

Table: TypeAlias = "tf.lookup.experimental.MutableHashTable | tf.lookup.experimental.DenseHashTable"
_TABLES = (tf.lookup.experimental.MutableHashTable, tf.lookup.experimental.DenseHashTable)
_DAMAGED = (tf.errors.DataLossError, tf.errors.OutOfRangeError)


class Stateful(NamedTuple):
    """A live object, and where a checkpoint has its state.

    Attributes:
      name: of the target, for messages.
      item: the object.
      edges: names of the edges from the checkpoint's root to it.
    """

    name: str
    item: object
    edges: tuple[str, ...]


def is_stateful(item: object) -> bool:
    """Whether an object has state of its own, besides variables, that TensorFlow can restore."""
    return isinstance(item, (*_TABLES, tf.data.Iterator))


def spec_of(item: object) -> TensorSpec:
    """What stands for the shape and dtype of such an object; equal for what fits a checkpoint's."""
    if isinstance(item, _TABLES):
        dense = isinstance(item, tf.lookup.experimental.DenseHashTable)
        return TensorSpec((), table_dtype(item.key_dtype.name, item.value_dtype.name, dense=dense))
    return TensorSpec((), ITERATOR)


@contextlib.contextmanager
def undone_on_failure(parts: Sequence[Stateful]) -> Iterator[None]:
    """Gives objects the state back that they had, where the block fails.

    Raises:
      RestoreError: an object's present state cannot be saved, so that it could not be given back.
    """
    with tempfile.TemporaryDirectory(prefix="dist_restore") as folder:
        saved = [_save(part, os.path.join(folder, str(i))) for i, part in enumerate(parts)]
        try:
            yield
        except BaseException:
            for part, prefix in zip(parts, saved, strict=True):
                _read(part.item, ("item",), prefix)
            raise


def restore(parts: Sequence[Stateful], prefix: str) -> None:
    """Restores objects from a checkpoint, each by its own method.

    Raises:
      RestoreError: an object does not take the state that is there.
      CheckpointCorruptError: the bytes are not what was written.
    """
    for part in parts:
        with _named(part):
            _read(part.item, part.edges, prefix)
            if isinstance(part.item, tf.lookup.experimental.DenseHashTable):
                _refuse_other_empty_key(part.item)


def pack(parts: Sequence[Stateful]) -> bytes:
    """What objects hold now, as bytes for `unpack` on another worker."""
    with tempfile.TemporaryDirectory(prefix="dist_restore") as folder:
        root = {str(i): part.item for i, part in enumerate(parts)}
        prefix = tf.train.Checkpoint(_tree(root)).write(os.path.join(folder, _NAME))
        files = [_contents(f"{prefix}{end}") for end in _ENDS]
    return b"".join((*(len(data).to_bytes(8, "little") for data in files), *files))


def unpack(parts: Sequence[Stateful], data: bytes) -> None:
    """Gives objects what `pack` took from equal ones on another worker.

    Raises:
      RestoreError: as `restore`.
    """
    split = int.from_bytes(data[:8], "little")
    files = data[16 : 16 + split], data[16 + split :]
    with tempfile.TemporaryDirectory(prefix="dist_restore") as folder:
        prefix = os.path.join(folder, _NAME)
        for end, content in zip(_ENDS, files, strict=True):
            with open(f"{prefix}{end}", "wb") as file:
                file.write(content)
        restore([part._replace(edges=(str(i),)) for i, part in enumerate(parts)], prefix)


_NAME = "state"
_ENDS = (".index", ".data-00000-of-00001")  # what `Checkpoint.write` makes on one host


def _contents(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _save(part: Stateful, prefix: str) -> str:
    try:
        return str(tf.train.Checkpoint(_tree({"item": part.item})).write(prefix))
    except tf.errors.OpError as error:
        raise RestoreError(
            f"{part.name!r}: the present state of this {type(part.item).__name__} cannot be saved "
            f"({error.message}), so that it could not be given back if the restore failed. Nothing was changed. Build "
            f'it as it was when the checkpoint was saved, or let it keep its state: keep = "{part.name}".',
            names=(part.name,),
        ) from error


def _read(item: object, edges: Sequence[str], prefix: str) -> None:
    tree = item
    for edge in reversed(edges):
        tree = {edge: tree}
    tf.train.Checkpoint(_tree(tree)).read(prefix).assert_existing_objects_matched()


def _tree(items: object) -> object:
    """A dict as an object that `tf.train.Checkpoint` takes for its root, whatever its keys are."""
    holder = tf.Module()
    holder.tree = items
    return holder.tree


@contextlib.contextmanager
def _named(part: Stateful) -> Iterator[None]:
    """Turns what TensorFlow raises into errors that name the object."""
    try:
        yield
    except _DAMAGED as error:
        raise CheckpointCorruptError(
            f"{part.name!r}: the stored state is damaged: {error.message}. Use another checkpoint.", names=(part.name,)
        ) from error
    except (tf.errors.OpError, AssertionError, ValueError) as error:
        raise RestoreError(
            f"{part.name!r}: this {type(part.item).__name__} does not take the state that the checkpoint has: {error}. "
            "It has the state that it had. Build it as it was when the checkpoint was saved, or let it keep its state: "
            f'keep = "{part.name}".',
            names=(part.name,),
        ) from error


def _refuse_other_empty_key(table: tf.lookup.experimental.DenseHashTable) -> None:
    """A dense table is stored with its empty and deleted buckets, which other keys for these turn into rows.

    Raises:
      ValueError: it was saved with another empty or deleted key.
    """
    keys, values = (part.numpy() for part in table.export())
    is_empty, is_deleted = (_holds(keys, key) for key in (table._empty_key, table._deleted_key))
    rows = ~(is_empty | is_deleted)
    # Some buckets are always empty. What is no row stands where its key does not lead.
    if not is_empty.any() or not _are_found(table, keys[rows], values[rows]):
        raise ValueError("it was saved with another empty_key or deleted_key")


def _holds(keys: np.ndarray, key: object) -> np.ndarray:
    """Which of the keys, one per bucket, are this one."""
    same: np.ndarray = np.equal(keys, tf.convert_to_tensor(key, tf.as_dtype(keys.dtype)).numpy()).astype(bool)
    return same.reshape(len(keys), -1).all(axis=1).astype(bool)


def _are_found(table: tf.lookup.experimental.DenseHashTable, keys: np.ndarray, values: np.ndarray) -> bool:
    """Whether a table has just these rows, each where it is looked up."""
    if int(table.size()) != len(keys):
        return False
    found = table.lookup(tf.constant(keys, table.key_dtype)).numpy() if len(keys) else values
    # Bytes, so that NaN is itself; strings have none.
    return bool((found == values).all()) if found.dtype.hasobject else found.tobytes() == values.tobytes()
