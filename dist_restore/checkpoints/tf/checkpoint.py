"""TensorFlow's own checkpoints: TF2 object-based ones and TF1 name-based ones.

Names come from the object graph proto, never from key strings: with Keras 3 many of a model's own variables
are stored under `optimizer/_trainable_variables/N`, because the shorter path wins. Bytes come from `bundle`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import msgspec
import numpy as np
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import trackable_object_graph_pb2

from dist_restore.checkpoints.files.files import Seen
from dist_restore.checkpoints.of_file import of_file
from dist_restore.checkpoints.reader import Stored
from dist_restore.checkpoints.tf.bundle import Bundle
from dist_restore.checkpoints.tf.bundle_index import BundleEntry
from dist_restore.checkpoints.tf.object_states import State, edges_of, state_at
from dist_restore.checkpoints.tf.tf1_slots import with_slots
from dist_restore.core.errors import CheckpointCorruptError, UnsupportedFormatError
from dist_restore.core.graph import Leaf, Node, Scene
from dist_restore.core.index import Alias, AliasKind, CheckpointIndex, OptimizerInfo, SourceTensor
from dist_restore.core.tensors import Box
from dist_restore.naming.names import NamedLeaf, name_graph

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
            self._index, self._states = _build_index(prefix, self._bundle)
        except BaseException:
            self._bundle.close()
            raise
        self._keys = {t.name: t.key for t in self._index.tensors}
        self._stored: dict[str, Stored | None] = {}

    @property
    def bundle(self) -> Bundle:
        """What is stored, by key; for who writes a checkpoint of the same keys."""
        return self._bundle

    @property
    def bytes_read(self) -> int:
        """Bytes of the data files read so far."""
        return self._bundle.bytes_read

    def index(self) -> CheckpointIndex:
        """Names, shapes and dtypes; parsed once, when the checkpoint was opened."""
        return self._index

    def forget_scene(self) -> None:
        """See `SceneSource.forget_scene`."""
        self._index = self._index.without_scene()

    def identity(self) -> str:
        """See `Source.identity`."""
        return self._bundle.identity

    def is_proof(self) -> bool:
        """See `Source.is_proof`."""
        return True

    def read(self, name: str, box: Box | None = None) -> np.ndarray:
        """See `Source.read`."""
        if self._keys[name] in self._states:
            raise UnsupportedFormatError(
                f"{name!r} is no tensor but an object's state, which only the object's own restore method reads. "
                "Restore it into such an object.",
                names=(name,),
            )
        with _named(name):
            return self._bundle.read(self._keys[name], box)

    def check(self, name: str) -> int:
        """See `Source.check`."""
        state = self._states.get(self._keys[name])
        with _named(name):
            if state is None:
                return self._bundle.check(self._keys[name])
            return sum(self._bundle.check(key) for key in state.keys if key not in state.opaque)

    def stored(self, name: str) -> Stored | None:
        """See `DirectSource.stored`."""
        # Both passes ask for each tensor; threads may compute one twice, to the same end.
        if name in self._stored:
            return self._stored[name]
        key = self._keys[name]
        found = self._stored[name] = None if key in self._states else self._bundle.stored(key)
        return found

    def read_stored(self, name: str, begin: int, out: np.ndarray) -> None:
        """See `DirectSource.read_stored`."""
        with _named(name):
            self._bundle.read_stored(self._keys[name], begin, out)

    def read_parts(self, name: str, begin: int, parts: Sequence[memoryview], seen: Seen) -> None:
        """See `DirectSource.read_parts`."""
        with _named(name):
            self._bundle.read_parts(self._keys[name], begin, parts, seen)

    def object_place(self, name: str) -> tuple[str, tuple[str, ...]]:
        """See `ObjectSource.object_place`."""
        return self._index.path, edges_of(self._keys[name])

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


def _build_index(prefix: str, bundle: Bundle) -> tuple[CheckpointIndex, Mapping[str, State]]:
    """The index, and by their keys the states of objects that are no variables."""
    if OBJECT_GRAPH_KEY not in bundle.entries:
        tensors, optimizers = with_slots(_by_key(bundle, bundle.entries, AliasKind.SEMANTIC))
        return CheckpointIndex(prefix, "tf1", _sorted(tensors), optimizers), {}
    leaves, optimizers, others, nodes = _read_graph(prefix, bundle)
    tensors = tuple(_tensor(prefix, bundle, leaf, others.states) for leaf in leaves)
    ignored = others.reasons()
    rest = bundle.entries.keys() - {t.key for t in tensors} - {OBJECT_GRAPH_KEY} - {k for k, _ in ignored}
    rest -= {key for state in others.states.values() for key in state.keys}
    tensors += tuple(_by_key(bundle, sorted(rest), AliasKind.POSITIONAL, {t.name for t in tensors}))
    scene = Scene(nodes, {leaf.node: leaf.name for leaf in leaves})
    index = CheckpointIndex(prefix, "tf2", _sorted(tensors), optimizers, tuple(sorted(ignored)), scene=scene)
    return index, others.states


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


def _tensor(prefix: str, bundle: Bundle, leaf: NamedLeaf, states: Mapping[str, State]) -> SourceTensor:
    entry = bundle.entries.get(leaf.leaf.key) or states.get(leaf.leaf.key)
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


class _Others:
    """What objects of the graph have that is no variable's value.

    Attributes:
      states: by their keys, of objects that have methods of their own to restore them.
    """

    def __init__(self, entries: Mapping[str, BundleEntry]) -> None:
        self._entries = entries
        self._attributes: list[tuple[str, str]] = []
        self.states: dict[str, State] = {}

    def leaf(self, attributes: Iterable[tuple[str, str]]) -> Leaf | None:
        """Takes the names and keys of an object's attributes; gives the leaf of the object if it has such a state."""
        found = None
        for name, key in attributes:
            state = None if key in self._entries else state_at(key, self._entries)
            if state is None:
                self._attributes.append((name, key))
            else:
                self.states[key], found = state, Leaf(key, "")
        return found

    def reasons(self) -> list[tuple[str, str]]:
        """Keys of what is stored besides, and why it is left out."""
        reasons = [(key, f"state of an object that is no variable ({name})") for name, key in self._attributes]
        return [(key, reason) for key, reason in reasons if key in self._entries]


def _read_graph(
    prefix: str, bundle: Bundle
) -> tuple[tuple[NamedLeaf, ...], tuple[OptimizerInfo, ...], _Others, tuple[Node, ...]]:
    graph = trackable_object_graph_pb2.TrackableObjectGraph()
    try:
        graph.ParseFromString(bundle.read_bytes_string(OBJECT_GRAPH_KEY))
    except DecodeError as error:
        raise CheckpointCorruptError(
            f"{prefix}: the object graph ({OBJECT_GRAPH_KEY}) cannot be parsed: {error}. Use another checkpoint."
        ) from error
    others = _Others(bundle.entries)
    nodes = _with_parts([_node(proto, others) for proto in graph.nodes] or [Node()], bundle)
    with of_file(prefix):
        leaves, optimizers = name_graph(nodes)
    return leaves, optimizers, others, tuple(nodes)


def _with_parts(nodes: list[Node], bundle: Bundle) -> list[Node]:
    """Says of which variables the file holds parts."""
    shapes = {key: entry.spec.shape for key, entry in bundle.entries.items() if entry.slices}
    if not shapes:
        return nodes
    return [
        msgspec.structs.replace(node, leaf=msgspec.structs.replace(node.leaf, parts_of=shapes[node.leaf.key]))
        if node.leaf is not None and node.leaf.key in shapes
        else node
        for node in nodes
    ]


def _node(proto: trackable_object_graph_pb2.TrackableObjectGraph.TrackableObject, others: _Others) -> Node:
    """One object; what it has that is no variable's value is added to `others`."""
    # Each look at a field of a proto takes as long as making a tuple, so no field is looked at twice or for nothing.
    attributes, children, slots = proto.attributes, proto.children, proto.slot_variables
    if len(attributes) == 1 and (only := attributes[0]).name == _VALUE:  # nearly always: 0.4 us less than the loops
        leaf: Leaf | None = Leaf(only.checkpoint_key, only.full_name)
    else:
        leaf = _leaf(attributes, others) if attributes else None
    if not children and not slots:
        return Node((), leaf)
    edges = tuple([(c.local_name, c.node_id) for c in children])
    kept = [(s.original_variable_node_id, s.slot_name, s.slot_variable_node_id) for s in slots]
    return Node(edges, leaf, slots=tuple(kept))


def _leaf(
    attributes: Iterable[trackable_object_graph_pb2.TrackableObjectGraph.TrackableObject.SerializedTensor],
    others: _Others,
) -> Leaf | None:
    values = [Leaf(a.checkpoint_key, a.full_name) for a in attributes if a.name == _VALUE]
    state = others.leaf((a.name, a.checkpoint_key) for a in attributes if a.name != _VALUE)
    return values[0] if values else state
