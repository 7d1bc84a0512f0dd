"""The entries of tables and iterators, carried out: refused by name, checked, restored, sent, undone where one fails.

Before the variables, whose old values nobody could give back: where an object does not take its state, nothing has
changed. Called by all workers. The chief alone reads, and sends what its tables hold then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from dist_restore.checkpoints.reader import ObjectSource, Source
from dist_restore.core.errors import RestoreError, UnsupportedFormatError
from dist_restore.core.tensors import ITERATOR
from dist_restore.distribute.communicator import Communicator
from dist_restore.planning.entries import PlanEntry
from dist_restore.targets.objects import Stateful, pack, restore, undone_on_failure, unpack


def filled_objects(entries: Sequence[PlanEntry]) -> tuple[PlanEntry, ...]:
    """The entries of objects that get their state from the checkpoint."""
    return tuple(e for e in entries if e.spec.is_object and e.filled)


def refuse_shared_iterators(entries: Sequence[PlanEntry], world_size: int) -> None:
    """Refuses iterators where there are several workers, each with its own part of the data.

    Raises:
      RestoreError: an entry is an iterator's, and the checkpoint has the place of the chief's alone.
    """
    names = [e.target for e in filled_objects(entries) if e.spec.dtype == ITERATOR]
    if names and world_size > 1:
        rules = "\n".join(f'[[rule]]\nkeep = "{name}"' for name in names)
        raise RestoreError(
            f"Nothing was changed. The checkpoint has the state of one worker's iterator, and here are {world_size} "
            f"workers, of which each reads its own part of the data: {', '.join(map(repr, names))}. Skip what was "
            f"read already with dataset.skip(step), and let the iterators keep their state:\n{rules}",
            names=tuple(names),
        )


def restore_objects(
    entries: Sequence[PlanEntry], objects: Mapping[str, object], source: Source | None, communicator: Communicator
) -> None:
    """Restores objects from the entries that say from where.

    Args:
      entries: of objects that are filled.
      objects: the live objects by the names of the targets.
      source: the checkpoint; the chief's is used.
      communicator: to the other workers.

    Raises:
      RestoreError: an object does not take its state; all have the state that they had.
      CheckpointCorruptError: the stored state is not what was written; likewise.
    """
    if not entries:
        return
    live = [Stateful(e.target, objects[e.target], ()) for e in entries]
    data = b""
    with ExitStack() as stack:
        # TensorFlow's ways of saving are taken here, so that what cannot be undone is not begun.
        with communicator.phase("check"):
            stack.enter_context(undone_on_failure(live))
        with communicator.phase("assign"):
            if communicator.rank == 0:
                data = _restore_own(entries, live, source, sends=communicator.world_size > 1)
        if communicator.world_size > 1:
            data = communicator.broadcast(data, "assign", len(data))
            with communicator.phase("assign", len(data)):
                if communicator.rank:
                    unpack(live, data)


def _restore_own(
    entries: Sequence[PlanEntry], live: Sequence[Stateful], source: Source | None, *, sends: bool
) -> bytes:
    """The chief's objects; gives what they hold then, where somebody else needs it."""
    if not isinstance(source, ObjectSource):
        raise UnsupportedFormatError(f"{entries[0].target!r}: this format holds no state of tables and iterators.")
    for entry, part in zip(entries, live, strict=True):
        (name,) = entry.sources
        source.check(name)
        prefix, edges = source.object_place(name)
        restore([part._replace(edges=edges)], prefix)
    return pack(live) if sends else b""
