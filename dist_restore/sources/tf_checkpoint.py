"""TensorFlow's own checkpoints: TF2 object-based ones and TF1 name-based ones.

Names come from the object graph proto, never from key strings: with Keras 3 many of a model's own variables
are stored under `optimizer/_trainable_variables/N`, because the shorter path wins. Bytes come from `bundle`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator

import numpy as np
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import trackable_object_graph_pb2

from dist_restore.errors import CheckpointCorruptError
from dist_restore.naming import Leaf, NamedLeaf, Node, name_graph
from dist_restore.sources.base import Stored
from dist_restore.sources.bundle import Bundle
from dist_restore.sources.tf1_slots import with_slots
from dist_restore.specs import Alias, AliasKind, Box, CheckpointIndex, OptimizerInfo, SourceTensor

OBJECT_GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
ATTRIBUTE_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
_VALUE = "VARIABLE_VALUE"
_TRACKER_NAMES = frozenset({"save_counter"})


class TfCheckpoint:
    """A `Source` over one checkpoint prefix."""

    def __init__(self, prefix: str) -> None:
        """Opens a prefix.

        Raises:
          CheckpointNotFoundError: the index or a data file is missing.
          CheckpointCorruptError: the index or the object graph cannot be read.
        """
        self._bundle = Bundle.open(prefix)
        try:
            self._index = _build_index(prefix, self._bundle)
        except BaseException:
            self._bundle.close()
            raise
        self._keys = {t.name: t.key for t in self._index.tensors}
        self._stored: dict[str, Stored | None] = {}

    @property
    def bytes_read(self) -> int:
        """Bytes of the data files read so far."""
        return self._bundle.bytes_read

    def index(self) -> CheckpointIndex:
        """Names, shapes and dtypes; parsed once, when the checkpoint was opened."""
        return self._index

    def identity(self) -> str:
        """See `Source.identity`."""
        return self._bundle.identity

    def is_proof(self) -> bool:
        """See `Source.is_proof`."""
        return True

    def read(self, name: str, box: Box | None = None) -> np.ndarray:
        """See `Source.read`."""
        with _named(name):
            return self._bundle.read(self._keys[name], box)

    def check(self, name: str) -> int:
        """See `Source.check`."""
        with _named(name):
            return self._bundle.check(self._keys[name])

    def stored(self, name: str) -> Stored | None:
        """See `DirectSource.stored`."""
        # Both passes ask for each tensor; threads may compute one twice, to the same end.
        if name not in self._stored:
            self._stored[name] = self._bundle.stored(self._keys[name])
        return self._stored[name]

    def read_stored(self, name: str, begin: int, out: np.ndarray) -> None:
        """See `DirectSource.read_stored`."""
        with _named(name):
            self._bundle.read_stored(self._keys[name], begin, out)

    @property
    def bundle_prefix(self) -> str:
        """See `BundleSource.bundle_prefix`."""
        return self._index.path

    def bundle_key(self, name: str) -> bytes | None:
        """See `BundleSource.bundle_key`."""
        if self.stored(name) is None:
            return None
        return self._keys[name].encode("utf-8", "surrogateescape")

    def close(self) -> None:
        """Closes the data files."""
        self._bundle.close()


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Adds a tensor's canonical name to errors, for the bundle knows keys only."""
    try:
        yield
    except CheckpointCorruptError as error:
        raise CheckpointCorruptError(f"{name!r}: {error}", names=(name, *error.names)) from error


def _build_index(prefix: str, bundle: Bundle) -> CheckpointIndex:
    if OBJECT_GRAPH_KEY not in bundle.entries:
        tensors, optimizers = with_slots(_by_key(bundle, bundle.entries, AliasKind.SEMANTIC))
        return CheckpointIndex(prefix, "tf1", _sorted(tensors), optimizers)
    leaves, optimizers, ignored = _read_graph(prefix, bundle)
    tensors = tuple(_tensor(prefix, bundle, leaf) for leaf in leaves)
    rest = bundle.entries.keys() - {t.key for t in tensors} - {OBJECT_GRAPH_KEY} - {k for k, _ in ignored}
    tensors += tuple(_by_key(bundle, sorted(rest), AliasKind.POSITIONAL, {t.name for t in tensors}))
    return CheckpointIndex(prefix, "tf2", _sorted(tensors), optimizers, tuple(sorted(ignored)))


def _sorted(tensors: Iterable[SourceTensor]) -> tuple[SourceTensor, ...]:
    return tuple(sorted(tensors, key=lambda t: t.name))


def _by_key(
    bundle: Bundle, keys: Iterable[str], kind: AliasKind, taken: Collection[str] = ()
) -> Iterator[SourceTensor]:
    """Tensors that no object graph names: by their keys, which are unique, without the suffix where it stays so."""
    for key in keys:
        name = key.removesuffix(ATTRIBUTE_SUFFIX)
        if name != key and (name in bundle.entries or name in taken):
            name = key
        yield SourceTensor(name, bundle.entries[key].spec, name_kind=kind, key=key)


def _tensor(prefix: str, bundle: Bundle, leaf: NamedLeaf) -> SourceTensor:
    entry = bundle.entries.get(leaf.leaf.key)
    if entry is None:
        raise CheckpointCorruptError(
            f"{prefix}: the object graph says that {leaf.name!r} is stored under the key {leaf.leaf.key!r}, and "
            "the index has no such key. The index and the graph are of different saves; use another checkpoint.",
            names=(leaf.name,),
        )
    key, tracker = leaf.leaf.key, leaf.name in _TRACKER_NAMES
    known = [alias.name for alias in leaf.aliases]
    aliases = leaf.aliases if key in known else (*leaf.aliases, Alias(key, AliasKind.POSITIONAL))
    return SourceTensor(leaf.name, entry.spec, aliases, leaf.kind, leaf.slot, key, tracker)


def _read_graph(
    prefix: str, bundle: Bundle
) -> tuple[tuple[NamedLeaf, ...], tuple[OptimizerInfo, ...], list[tuple[str, str]]]:
    graph = trackable_object_graph_pb2.TrackableObjectGraph()
    try:
        graph.ParseFromString(bundle.read_bytes_string(OBJECT_GRAPH_KEY))
    except DecodeError as error:
        raise CheckpointCorruptError(
            f"{prefix}: the object graph ({OBJECT_GRAPH_KEY}) cannot be parsed: {error}. Use another checkpoint."
        ) from error
    others: list[tuple[str, str]] = []
    nodes = [_node(proto, others) for proto in graph.nodes] or [Node()]
    leaves, optimizers = name_graph(nodes)
    reasons = [(key, f"state of an object that is no variable ({name})") for name, key in others]
    return leaves, optimizers, [(key, reason) for key, reason in reasons if key in bundle.entries]


def _node(
    proto: trackable_object_graph_pb2.TrackableObjectGraph.TrackableObject, others: list[tuple[str, str]]
) -> Node:
    """One object; the names and keys of its attributes that are no variable's value are added to `others`."""
    # Lists, not generators: half of the time where most objects have one attribute, or children, and nothing else.
    leaves = [Leaf(a.checkpoint_key, a.full_name) for a in proto.attributes if a.name == _VALUE]
    if len(leaves) < len(proto.attributes):
        others += [(a.name, a.checkpoint_key) for a in proto.attributes if a.name != _VALUE]
    edges = tuple([(c.local_name, c.node_id) for c in proto.children])
    slots = [(s.original_variable_node_id, s.slot_name, s.slot_variable_node_id) for s in proto.slot_variables]
    return Node(edges, leaves[0] if leaves else None, slots=tuple(slots))
