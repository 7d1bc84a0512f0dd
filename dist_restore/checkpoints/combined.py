"""Several checkpoints as one: `{"encoder": path, "decoder": path}`. Their tensors are called `encoder:model/...`.

Knows no format: each part is a `Source` of its own, and what only some of them can do is done for those. A name of a
checkpoint has no colon, so that the first colon of a tensor's name ends it, whatever the tensor's own name holds.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import msgspec
import numpy as np

from dist_restore.checkpoints.files.files import Seen
from dist_restore.checkpoints.reader import DirectSource, ObjectSource, SceneSource, Source, Stored
from dist_restore.core.errors import (
    CheckpointCorruptError,
    CheckpointNotFoundError,
    RestoreError,
    RuleError,
    UnsupportedFormatError,
)
from dist_restore.core.index import Alias, CheckpointIndex, OptimizerInfo, Part, SourceTensor, in_part
from dist_restore.core.tensors import Box

FORMAT = "several"
# In front of every tensor's name, in every table.
MAX_NAME = 64
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_OWN = (CheckpointNotFoundError, CheckpointCorruptError, UnsupportedFormatError)

Result = TypeVar("Result")


class SeveralSources:
    """A `DirectSource` over parts, each of which is read as fast as it allows by itself.

    Args:
      parts: the opened checkpoints by name; closed with this one.
    """

    def __init__(self, parts: Mapping[str, Source]) -> None:
        self._parts = dict(parts)
        self._direct = {name: source for name, source in parts.items() if isinstance(source, DirectSource)}
        self._numbers = {name: number for number, name in enumerate(self._parts)}
        self._index = join({name: source.index() for name, source in parts.items()})

    @property
    def bytes_read(self) -> int:
        """Of all parts."""
        return sum(source.bytes_read for source in self._parts.values())

    def index(self) -> CheckpointIndex:
        """See `Source.index`."""
        return self._index

    def forget_scene(self) -> None:
        """See `SceneSource.forget_scene`."""
        self._index = self._index.without_scene()
        for source in self._parts.values():
            if isinstance(source, SceneSource):
                source.forget_scene()

    def identity(self) -> str:
        """See `Source.identity`."""
        lines = sorted(f"{name} {source.identity()}\n" for name, source in self._parts.items())
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def is_proof(self) -> bool:
        """See `Source.is_proof`."""
        return all(source.is_proof() for source in self._parts.values())

    def read(self, name: str, box: Box | None = None) -> np.ndarray:
        """See `Source.read`."""
        part, own = split(name)
        with _told_of(part):
            return self._parts[part].read(own, box)

    def check(self, name: str) -> int:
        """See `Source.check`."""
        part, own = split(name)
        with _told_of(part):
            return self._parts[part].check(own)

    def stored(self, name: str) -> Stored | None:
        """See `DirectSource.stored`; None for parts that are no direct sources."""
        part, own = split(name)
        stored = self._direct[part].stored(own) if part in self._direct else None
        # The parts number their files each for itself.
        return stored and msgspec.structs.replace(stored, file=stored.file * len(self._parts) + self._numbers[part])

    def read_stored(self, name: str, begin: int, out: np.ndarray) -> None:
        """See `DirectSource.read_stored`."""
        part, own = split(name)
        with _told_of(part):
            self._direct[part].read_stored(own, begin, out)

    def read_parts(self, name: str, begin: int, parts: Sequence[memoryview], seen: Seen) -> None:
        """See `DirectSource.read_parts`."""
        part, own = split(name)
        with _told_of(part):
            self._direct[part].read_parts(own, begin, parts, seen)

    def object_place(self, name: str) -> tuple[str, tuple[str, ...]]:
        """See `ObjectSource.object_place`."""
        part, own = split(name)
        source = self._parts[part]
        if not isinstance(source, ObjectSource):
            raise UnsupportedFormatError(f"{name!r}: the format of this checkpoint holds no state of objects.")
        return source.object_place(own)

    def close(self) -> None:
        """Closes all parts, also where one of them cannot be closed."""
        with contextlib.ExitStack() as stack:
            for source in self._parts.values():
                stack.callback(source.close)


def open_each(paths: Mapping[str, str], open_one: Callable[[str], Source]) -> SeveralSources:
    """Opens all checkpoints of a mapping, or none.

    Raises:
      RestoreError: what `open_one` raises; the message says which of the checkpoints it is.
    """
    with contextlib.ExitStack() as stack:
        opened: dict[str, Source] = {}
        for name, source in _each(paths, open_one):
            stack.callback(source.close)
            opened[name] = source
        several = SeveralSources(opened)
        stack.pop_all()
        return several


def resolve_each(paths: Mapping[str, str], resolve: Callable[[str], str]) -> dict[str, str]:
    """What each path of a mapping means.

    Raises:
      CheckpointNotFoundError: one directory under several names, which means one checkpoint each time.
      RestoreError: what `resolve` raises; the message says which of the checkpoints it is.
      RuleError: a name that no rule could say.
    """
    found = dict(_each(paths, resolve))
    named: dict[str, list[str]] = collections.defaultdict(list)
    for name, path in found.items():
        if path != paths[name]:
            named[path].append(name)
    for path, names in named.items():
        if len(names) > 1:
            raise CheckpointNotFoundError(
                f"Checkpoints {', '.join(map(repr, names))}: their directory means its latest checkpoint, {path!r}, "
                f"for each of them. Give each the prefix that is meant, such as {names[0]}={path}.",
            )
    return found


def _each(paths: Mapping[str, str], work: Callable[[str], Result]) -> Iterator[tuple[str, Result]]:
    require_names(paths)
    for name, path in paths.items():
        with _told_of(name):
            yield name, work(path)


def require_names(paths: Mapping[str, str]) -> None:
    """Raises unless there is a checkpoint, and rules can say the names of all.

    Raises:
      CheckpointNotFoundError: the mapping is empty.
      RuleError: a name that no rule could say.
    """
    if not paths:
        raise CheckpointNotFoundError("expected at least one checkpoint in the mapping, found none")
    for name in paths:
        if not isinstance(name, str) or not _NAME.fullmatch(name) or len(name) > MAX_NAME:
            raise RuleError(
                f"A checkpoint of a mapping cannot be called {str(name)[:200]!r}: rules write its name in front of a "
                f"colon, so it has 1 to {MAX_NAME} letters, digits, _ and -. Call it encoder, say."
            )


def split(name: str) -> tuple[str, str]:
    """The checkpoint that a tensor is in, and its name there."""
    part, _, own = name.partition(":")
    return part, own


def join(indexes: Mapping[str, CheckpointIndex]) -> CheckpointIndex:
    """One index of all tensors, under their checkpoints' names."""
    parts = tuple(Part(name, indexes[name]) for name in sorted(indexes))
    tensors = (_tensor(part, tensor) for part in parts for tensor in part.index.tensors)
    return CheckpointIndex(
        path=", ".join(f"{part.name}={part.index.path}" for part in parts),
        format=FORMAT,
        tensors=tuple(sorted(tensors, key=lambda t: t.name)),
        optimizers=tuple(_optimizer(part, o) for part in parts for o in part.index.optimizers),
        ignored=tuple((part.named(name), reason) for part in parts for name, reason in part.index.ignored),
        parts=parts,
    )


def _tensor(part: Part, tensor: SourceTensor) -> SourceTensor:
    slot = tensor.slot
    if slot is not None:
        slot = dataclasses.replace(slot, owner=part.named(slot.owner), optimizer=part.named(slot.optimizer))
    aliases = tuple([Alias(part.named(alias.name), alias.kind) for alias in tensor.aliases])
    name = part.named(tensor.name)
    return msgspec.structs.replace(tensor, name=name, aliases=aliases, slot=slot, part=part.name)


def _optimizer(part: Part, optimizer: OptimizerInfo) -> OptimizerInfo:
    return dataclasses.replace(optimizer, name=part.named(optimizer.name))


@contextlib.contextmanager
def _told_of(part: str) -> Iterator[None]:
    """Adds the checkpoint's name to errors: it knows its path only, and its tensors' own names."""
    try:
        yield
    except _OWN as error:
        names = tuple(in_part(part, name) for name in error.names)
        raise _again(error, f"checkpoint {part!r}: {error}", names) from error


def _again(error: RestoreError, message: str, names: tuple[str, ...]) -> RestoreError:
    return type(error)(message, names=names)
