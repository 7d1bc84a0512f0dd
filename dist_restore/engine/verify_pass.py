"""The last pass: what every local replica holds, against what was assigned.

Variables are read by the consumer's thread and hashed by any, large ones in pieces. Knows handles and checksums;
knows neither sources nor plans.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Hashable, Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf

from dist_restore.core import crc32c as checksum
from dist_restore.core.arrays import bytes_of
from dist_restore.core.errors import VerificationError
from dist_restore.engine.chunks import PIECE, joined_pieces, pieces_of
from dist_restore.engine.pipeline import Started, Work, stream, thread_count
from dist_restore.targets.assigner import Assigned, Assigner, Place, Replicas, place_of
from dist_restore.tf_internals.batched import together

# What is in flight is views of the variables where they are in host memory, else copies. 1.3 GB in tensors of up to
# 131 MB took 0.091 s when each was one task, and 0.070 in pieces (0.068 with twice as much in flight); bare threads
# that hash the same bytes take 0.055.
_AHEAD = 2 * PIECE * thread_count()
_GROUP = 1 << 20
# Below this size a variable is copied when it is verified, together with others.
_SMALL = 64 << 10


def verify_replicas(assigned: Sequence[Assigned], handles: Mapping[str, tf.Variable], assigner: Assigner) -> None:
    """Hashes what every local replica holds and compares it with what was assigned. Called by all workers.

    Raises:
      VerificationError: a replica holds something else.
    """
    works = (_verification(group, handles, assigner) for group in _groups(assigned, handles))
    with contextlib.closing(stream(works, _AHEAD, helps=True)) as results:
        wrong = [text for found in results for text in found]
    if wrong:
        raise VerificationError(
            f"{len(wrong)} variable(s) do not hold what was assigned: {', '.join(wrong[:10])}. Something else wrote "
            "them during the restore, or a device lost data. Restore again with nothing else running.",
            names=tuple(wrong),
        )


def require_equal(mine: Sequence[tuple[str, int]], chiefs: Sequence[int]) -> None:
    """Every worker must have assigned the same values.

    Args:
      mine: names and checksums of what this worker assigned, by name.
      chiefs: the chief's checksums, in the same order.

    Raises:
      VerificationError: they differ.
    """
    if len(mine) != len(chiefs):
        raise VerificationError(f"this worker assigned {len(mine)} variables, and the chief {len(chiefs)}")
    wrong = tuple(name for (name, crc), other in zip(mine, chiefs, strict=True) if crc != other)
    if wrong:
        names = ", ".join(repr(name) for name in wrong[:10])
        raise VerificationError(
            f"{len(wrong)} variable(s) got other values here than on the chief: {names}. The workers read different "
            "bytes, or a memory is faulty. Restore again with reads='chief'.",
            names=wrong,
        )


def _groups(assigned: Sequence[Assigned], handles: Mapping[str, tf.Variable]) -> Iterator[list[list[Assigned]]]:
    """Many small variables together, so that threads are not handed crumbs; each list of them is read in one call."""
    group: list[list[Assigned]] = []
    size = 0
    for items in together(list(assigned), lambda item: _alike(item, handles[item.name])):
        if items[0].nbytes > PIECE:
            yield [items]  # threads share it
            continue
        group.append(items)
        size += sum(item.nbytes for item in items)
        if size >= _GROUP:
            yield group
            group, size = [], 0
    if group:
        yield group


def _alike(item: Assigned, variable: tf.Variable) -> Hashable | None:
    """What small variables have in common that can be read together; nearly: `[4, 8]` and `[8, 4]` cannot."""
    return (item.nbytes, variable.shape.rank, variable.dtype) if item.nbytes < _SMALL else None


def _verification(
    group: Sequence[Sequence[Assigned]], handles: Mapping[str, tf.Variable], assigner: Assigner
) -> Work[list[str]]:
    flat = [item for items in group for item in items]

    def start() -> Started[list[str]]:
        held = [r for items in group for r in assigner.replicas_of([handles[item.name] for item in items])]
        if flat[0].nbytes > PIECE:  # strings count as none, whose size only the file knows
            return _started_large(flat[0], held[0])
        wrong: list[str] = []
        return Started((functools.partial(_compare, flat, held, wrong),), lambda: wrong, brief=True)

    return Work(sum(item.nbytes for item in flat), start)


def _started_large(item: Assigned, held: Replicas) -> Started[list[str]]:
    arrays = {place: bytes_of(np.ascontiguousarray(array)) for place, array in held.distinct().items()}
    found = {place: [0] * len(pieces_of(array.nbytes)) for place, array in arrays.items()}

    def read(place: Place, number: int, begin: int, size: int) -> None:
        found[place][number] = checksum.extend(0, arrays[place][begin : begin + size])

    def finish() -> list[str]:
        whole = {place: joined_pieces(found[place], array.nbytes) for place, array in arrays.items()}
        return _wrong(item, tuple([whole[place_of(array)] for array in held.arrays]))

    pieces = [(place, i, *piece) for place, array in arrays.items() for i, piece in enumerate(pieces_of(array.nbytes))]
    return Started(tuple([functools.partial(read, *piece) for piece in pieces]), finish, brief=True)


def _compare(group: Sequence[Assigned], held: Sequence[Replicas], wrong: list[str]) -> None:
    for item, replicas in zip(group, held, strict=True):
        wrong += _wrong(item, replicas.checksums())


def _wrong(item: Assigned, found: tuple[int, ...]) -> list[str]:
    if found == item.checksums:
        return []
    numbers = [i for i, (a, b) in enumerate(zip(found, item.checksums, strict=True)) if a != b]
    return [f"{item.name!r} on replica(s) {numbers}"]
