"""What a checkpoint stores of objects that are no variables: lookup tables and iterators of datasets.

Under the key that the object graph gives for such an object there is no tensor, but under that key with endings
(TensorFlow 2.16 - 2.21). Read from names, shapes and dtypes alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from dist_restore.checkpoints.tf.bundle_index import BundleEntry
from dist_restore.core.tensors import ITERATOR, TensorSpec, table_dtype

_ATTRIBUTES = "/.ATTRIBUTES/"
_ESCAPED = re.compile(r"\.(.)")


class State(NamedTuple):
    """The stored state of one object.

    Attributes:
      spec: what stands for its shape and dtype.
      keys: of the stored tensors.
      opaque: those of them that NumPy cannot hold; TensorFlow compares their checksums as it reads them.
    """

    spec: TensorSpec
    keys: tuple[str, ...]
    opaque: tuple[str, ...] = ()


def state_at(key: str, entries: Mapping[str, BundleEntry]) -> State | None:
    """The state of the object that the graph says is stored under a key; None where there is none."""
    keys, values, iterator = f"{key}-keys", f"{key}-values", f"{key}_STATE"
    if keys in entries and values in entries:
        key_spec, value_spec = entries[keys].spec, entries[values].spec
        # A dense table stores its buckets, with the keys in rows; the other one a list of keys.
        dtype = table_dtype(key_spec.dtype, value_spec.dtype, dense=len(key_spec.shape) > 1)
        return State(TensorSpec((), dtype), (keys, values))
    if iterator in entries and entries[iterator].spec.dtype == "variant":
        return State(TensorSpec((), ITERATOR), (iterator,), (iterator,))
    return None


def edges_of(key: str) -> tuple[str, ...]:
    """The names of the edges from the root to an object, which its key is made of; empty for the root itself."""
    path, found, _ = key.rpartition(_ATTRIBUTES)
    return tuple(_ESCAPED.sub(_unescape, part) for part in path.split("/")) if found else ()


def _unescape(match: re.Match[str]) -> str:
    return "/" if match[1] == "S" else match[1]
