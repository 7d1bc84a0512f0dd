"""SavedModels: a TensorFlow checkpoint beside `saved_model.pb`, which is neither read nor run.

What `tf.saved_model.save` writes has attribute paths. A Keras 3 export has lists only, each variable in two of them
and stored twice; the variables' own full names are what is left, where each means one value.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterable, Iterator

import msgspec

from dist_restore.checkpoints.tf.checkpoint import TfCheckpoint
from dist_restore.core.index import Alias, AliasKind, CheckpointIndex, SourceTensor
from dist_restore.naming.automatic_names import looks_automatic

# The lists of `keras.export.ExportArchive` (Keras 3.0 - 3.15).
_LISTED = re.compile(r"(all_variables|variables|trainable_variables|non_trainable_variables)/\d+\Z")


class SavedModel(TfCheckpoint):
    """A `Source` over a SavedModel's variables."""

    def __init__(self, prefix: str) -> None:
        """Opens the prefix of the variables; raises what `TfCheckpoint` raises."""
        super().__init__(prefix)
        exported = all(_LISTED.match(t.name) for t in self._index.tensors)
        self._index = self._renamed() if exported else dataclasses.replace(self._index, format="saved_model")
        self._keys = {t.name: t.key for t in self._index.tensors}

    def _renamed(self) -> CheckpointIndex:
        groups: dict[str, list[SourceTensor]] = collections.defaultdict(list)
        for tensor in self._index.tensors:
            groups[_full_name(tensor) if _LISTED.match(tensor.name) else ""].append(tensor)
        named = [t for name, group in groups.items() for t in self._merged(name, group)]
        kept = {t.key for t in named}
        twice = tuple((t.key, "stored twice under one name") for t in self._index.tensors if t.key not in kept)
        tensors = tuple(sorted(named, key=lambda t: t.name))
        return dataclasses.replace(
            self._index, format="saved_model", tensors=tensors, ignored=(*self._index.ignored, *twice)
        )

    def _merged(self, name: str, group: list[SourceTensor]) -> Iterator[SourceTensor]:
        """One tensor, where all of a name are of equal bytes; else each by its place, which says nothing."""
        first = min(group, key=lambda t: t.key)
        taken = any(t.name == name and not _LISTED.match(t.name) for t in self._index.tensors)
        if name and not taken and self._are_equal(group):
            yield _named(first, name, group)
        else:
            yield from (t if not _LISTED.match(t.name) else _nameless(t) for t in group)

    def _are_equal(self, group: Iterable[SourceTensor]) -> bool:
        facts = set()
        for tensor in group:
            stored = self._bundle.stored(tensor.key)
            facts.add((tensor.spec, stored and (stored.size, stored.crc32c), "" if stored else tensor.key))
        return len(facts) == 1


def open_saved_model(prefix: str) -> SavedModel:
    """Opens a SavedModel by the prefix of its variables; raises what `TfCheckpoint` raises."""
    return SavedModel(prefix)


def _full_name(tensor: SourceTensor) -> str:
    """The variable's own name: the one name that is no place in a list."""
    names = [a.name for a in tensor.aliases if a.kind is AliasKind.POSITIONAL and a.name != tensor.key]
    return next((n for n in names if "/" in n and not n.rpartition("/")[2].isdecimal()), "")


def _named(tensor: SourceTensor, name: str, group: Iterable[SourceTensor]) -> SourceTensor:
    automatic = any(looks_automatic(part) for part in name.split("/")[:-1])
    places = dict.fromkeys(n for t in group for n in (t.name, *(a.name for a in t.aliases)) if n != name)
    aliases = tuple(Alias(place, AliasKind.POSITIONAL) for place in places)
    kind = AliasKind.COUNTED if automatic else AliasKind.SEMANTIC
    return msgspec.structs.replace(tensor, name=name, aliases=aliases, name_kind=kind)


def _nameless(tensor: SourceTensor) -> SourceTensor:
    aliases = tuple(Alias(a.name, AliasKind.POSITIONAL) for a in tensor.aliases)
    return msgspec.structs.replace(tensor, name_kind=AliasKind.POSITIONAL, aliases=aliases)
