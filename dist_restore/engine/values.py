"""What targets get, made of what was read: by ops, or as it is.

Knows sources, ops and memory; knows no variables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import msgspec
import numpy as np

from dist_restore.checkpoints.reader import Source
from dist_restore.core import crc32c as checksum
from dist_restore.core.arrays import bytes_of
from dist_restore.core.errors import DtypeMismatchError
from dist_restore.core.phases import during
from dist_restore.core.tensors import Box
from dist_restore.engine.units import Unit, parts_of
from dist_restore.ops import Live, apply, apply_boxed, numpy_dtype
from dist_restore.planning.entries import PlanEntry
from dist_restore.tf_internals.host_memory import HostBuffer, new_buffer

# From here on a value has memory of its own, which its variable takes over; below, copying it costs less.
LARGE = 256 << 10


class Value(msgspec.Struct, frozen=True, gc=False):
    """What one target gets.

    Attributes:
      entry: of the plan.
      buffer: holds it.
      crc32c: of the value's bytes, where that is known already.
    """

    entry: PlanEntry
    buffer: HostBuffer
    crc32c: int | None


LiveOf: TypeAlias = Callable[[PlanEntry], Live]
MakeBuffer: TypeAlias = Callable[[Sequence[int], str], HostBuffer | None]
Values: TypeAlias = list[Value]


def is_copy(entry: PlanEntry) -> bool:
    """Whether a target gets a source's bytes as they are."""
    return not entry.ops and entry.source_specs == (entry.spec,)


def keeps(entry: PlanEntry) -> bool:
    """Whether the present value is needed; variables are read by the consumer's thread alone."""
    return any(op.keeps for op in entry.ops)


def buffer_for(entry: PlanEntry, make_buffer: MakeBuffer = new_buffer) -> HostBuffer:
    """Memory for a target's value; where it is large, memory that its variable can take over."""
    made = make_buffer(entry.spec.shape, entry.spec.dtype) if entry.bytes >= LARGE else None
    return made or HostBuffer(np.empty(entry.spec.shape, numpy_dtype(entry.spec.dtype)))


def value_of(
    entry: PlanEntry,
    arrays: Mapping[str, np.ndarray],
    source: Source,
    live: Live | None,
    buffer: HostBuffer | None = None,
) -> Value:
    """What ops make of the arrays that were read, in the buffer where its memory can become the variable's."""
    value = transform(entry, arrays, source, live)
    if buffer is None or buffer.tensor is None:
        return Value(entry, HostBuffer(value), None)
    buffer.array[...] = value
    return Value(entry, buffer, checksum.extend(0, bytes_of(buffer.array)))


def read_whole(unit: Unit, source: Source) -> dict[str, np.ndarray]:
    """The tensors that a unit needs whole."""
    return {r.name: source.read(r.name) for r in unit.reads if r.whole}


def transform(entry: PlanEntry, values: Mapping[str, np.ndarray], source: Source, live: Live | None) -> np.ndarray:
    """One target's value; parts of tensors that were not read whole are read now.

    Raises:
      DtypeMismatchError: a cast or a scale loses a value; the message names the target and its sources.
    """
    with during("transform"):
        try:
            return _transformed(entry, values, source, live)
        except DtypeMismatchError as error:  # the ops know no names
            what = " + ".join(repr(name) for name in entry.sources)
            raise DtypeMismatchError(
                f"{entry.target!r} {entry.spec} from {what}: {error}", names=(entry.target,)
            ) from error


def _transformed(entry: PlanEntry, values: Mapping[str, np.ndarray], source: Source, live: Live | None) -> np.ndarray:
    if all(name in values for name in entry.sources):
        return apply(entry.ops, [values[name] for name in entry.sources], live=live)
    boxes = parts_of(entry)
    arrays = [_part(name, box, values, source) for name, box in zip(entry.sources, boxes, strict=True)]
    return apply_boxed(entry.ops, entry.source_specs, boxes, arrays, live)


def _part(name: str, box: Box | None, values: Mapping[str, np.ndarray], source: Source) -> np.ndarray | None:
    if box is None:
        return None
    if name in values:
        return values[name][box.slices()]
    with during("read"):
        return source.read(name, box)
