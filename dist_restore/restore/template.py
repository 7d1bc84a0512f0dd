"""What a new checkpoint looks like: its keys, its object graph, its targets by name, and the values that are kept.

It is always another checkpoint: one that exists, or one that TensorFlow itself writes of live objects for that purpose,
with the values that they have now. So keys and graph are exactly what `tf.train.Checkpoint.save` would make of them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import trackable_object_graph_pb2

from dist_restore.checkpoints.open import open_checkpoint
from dist_restore.checkpoints.tf.bundle import BundleEntry
from dist_restore.checkpoints.tf.checkpoint import OBJECT_GRAPH_KEY, TfCheckpoint
from dist_restore.core.dtypes import OPAQUE
from dist_restore.core.errors import RestoreError, UnmatchedError, UnsupportedFormatError
from dist_restore.core.index import TargetIndex
from dist_restore.planning.sides import as_targets, is_value, only_values
from dist_restore.targets.targets import Restorable, Targets, find_targets
from dist_restore.tf_internals.keras_variables import unwrap

_VALUE = "VARIABLE_VALUE"


class Template:
    """An opened checkpoint whose keys and object graph the new one gets.

    Attributes:
      path: its prefix.
      targets: what can be filled.
      keys: name of a target -> the key under which it is stored; a target that TensorFlow does not save has none.
      kept_is: what a kept value is, in words.
    """

    def __init__(self, source: TfCheckpoint, targets: TargetIndex, keys: Mapping[str, str], kept_is: str) -> None:
        self.path = source.index().path
        self.targets, self.keys, self.kept_is = targets, keys, kept_is
        self._source = source

    @property
    def entries(self) -> Mapping[str, BundleEntry]:
        """All that is stored, by key."""
        return self._source.bundle.entries

    def not_planned(self) -> tuple[str, ...]:
        """Keys of what is no target: the object graph, and state of objects that are no variables."""
        known = set(self.keys.values())
        return tuple(key for key in self.entries if key not in known)

    def copied(self) -> tuple[str, ...]:
        """Keys of state that is no variable's (tables, data iterators): copied as it is."""
        return tuple(key for key in self.not_planned() if key != OBJECT_GRAPH_KEY)

    def read(self, key: str) -> np.ndarray:
        """A value, checked against its checksum."""
        return self._source.bundle.read(key)

    def read_tensor(self, key: str) -> tf.Tensor:
        """A value as a tensor, checked against its checksum where NumPy has such a dtype."""
        dtype = self.entries[key].spec.dtype
        if dtype not in OPAQUE:
            return tf.convert_to_tensor(self.read(key), dtype=dtype)
        name = key.encode("utf-8", "surrogateescape")
        with tf.device("/CPU:0"):
            return tf.raw_ops.RestoreV2(
                prefix=self.path, tensor_names=[name], shape_and_slices=[""], dtypes=[tf.as_dtype(dtype)]
            )[0]

    def crc32c(self, key: str) -> int | None:
        """The checksum of a value's bytes; None for strings, and for what is stored in parts."""
        stored = self._source.bundle.stored(key)
        return stored.crc32c if stored is not None else None


@contextlib.contextmanager
def like(path: str | os.PathLike[str]) -> Iterator[Template]:
    """A template out of an existing checkpoint.

    Raises:
      RestoreError: it cannot be read, or is of another format than TensorFlow's.
    """
    source = open_checkpoint(path)
    with contextlib.closing(source):
        if not isinstance(source, TfCheckpoint):
            raise UnsupportedFormatError(
                f"{os.fspath(path)!r} is not a TensorFlow checkpoint ({source.index().format}), so it has no object "
                "graph that a new one could get. Give a checkpoint prefix, or build the model."
            )
        index = source.index()
        targets, keys = as_targets(index), {t.name: t.key for t in index.tensors}
        yield Template(source, targets, {v.name: keys[v.name] for v in targets.variables}, f"of {index.path}")


@contextlib.contextmanager
def live(root: Restorable, folder: str) -> Iterator[Template]:
    """A template out of live objects, which TensorFlow writes to `folder` as they are now; nothing of them changes.

    Raises:
      RestoreError: they are not built, or hold what is saved and cannot be planned.
    """
    checkpoint = checkpoint_of(root)
    targets = find_targets(checkpoint)
    source = TfCheckpoint(checkpoint.write(os.path.join(folder, "live")))
    with contextlib.closing(source):
        graph = trackable_object_graph_pb2.TrackableObjectGraph.FromString(
            source.bundle.read_bytes_string(OBJECT_GRAPH_KEY)
        )
        keys = _keys(checkpoint, graph, targets)
        _require_planned(source, keys)
        yield Template(source, only_values(targets.index), keys, "that it has now")


def require_saved(template: Template, filled: list[str]) -> None:
    """Raises `UnmatchedError` where a target gets a value that `tf.train.Checkpoint` would not save."""
    lost = [name for name in filled if name not in template.keys]
    if lost:
        raise UnmatchedError(
            f"{len(lost)} variable(s) would be filled, and tf.train.Checkpoint of this target saves none of them: "
            f"{', '.join(map(repr, lost[:10]))}. Keras 3 holds them in a plain list or dict. Add an optimizer that "
            "trains them to the Checkpoint, or the layers themselves: Checkpoint(blocks=list(model.blocks)).",
            names=tuple(lost),
        )


def checkpoint_of(root: Restorable) -> tf.train.Checkpoint:
    """The Checkpoint that saves live objects; what has no names of its own is its root."""
    if isinstance(root, tf.train.Checkpoint):
        return root
    return tf.train.Checkpoint(**root) if isinstance(root, Mapping) else tf.train.Checkpoint(root)


def _keys(
    root: tf.train.Checkpoint, graph: trackable_object_graph_pb2.TrackableObjectGraph, targets: Targets
) -> dict[str, str]:
    """Name of a target -> key, by a walk through the live objects and the graph that was saved of them, in step."""
    names = {id(variable): name for name, variable in targets.handles}
    keys: dict[str, str] = {}
    # `Checkpoint(model)` is saved with the model as the graph's root.
    stack: list[tuple[object, int]] = [(root, 0), (getattr(root, "root", root), 0)]
    seen = {0}
    while stack:
        item, number = stack.pop()
        node = graph.nodes[number]
        name = names.get(id(unwrap(item)))
        key = next((a.checkpoint_key for a in node.attributes if a.name == _VALUE), "")
        if name is not None and key:
            keys.setdefault(name, key)
        children = tf.train.TrackableView.children(item) if node.children else {}
        for child in node.children:
            if child.node_id not in seen and child.local_name in children:
                seen.add(child.node_id)
                stack.append((children[child.local_name], child.node_id))
    return keys


def _require_planned(source: TfCheckpoint, keys: Mapping[str, str]) -> None:
    """What is saved and not among the targets would be written as it is now, and nobody would know."""
    known = set(keys.values())
    unknown = [t.name for t in source.index().tensors if t.key not in known and is_value(t.spec)]
    if unknown:
        raise RestoreError(
            f"{len(unknown)} variable(s) of the target are saved by tf.train.Checkpoint and cannot be planned from "
            f"live objects: {', '.join(map(repr, unknown[:10]))}. Save the target once, and give that "
            "checkpoint as `like`.",
            names=tuple(unknown),
        )
