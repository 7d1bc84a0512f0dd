"""Who reads what, and in which order: a plan becomes units of work. Pure.

A unit is the smallest piece that reads each of its source tensors once: entries that share a source (q, k and v
split out of one tensor) are one unit.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from dist_restore.core.tensors import Box, TensorSpec
from dist_restore.ops import source_boxes
from dist_restore.planning.entries import PlanEntry


class Read(msgspec.Struct, frozen=True, gc=False):
    """One source tensor of a unit.

    Attributes:
      name: canonical source name.
      spec: as stored.
      whole: whether all of it is read (and checked), or each entry its own part.
    """

    name: str
    spec: TensorSpec
    whole: bool


class Unit(msgspec.Struct, frozen=True, gc=False):
    """Entries that are carried out together.

    Attributes:
      reads: the source tensors.
      entries: the plan entries.
    """

    reads: tuple[Read, ...]
    entries: tuple[PlanEntry, ...]

    @property
    def nbytes(self) -> int:
        """Bytes that the unit holds while it is worked on: what it reads, and what it assigns."""
        return sum(r.spec.nbytes for r in self.reads) + sum(e.bytes for e in self.entries)


def make_units(entries: Sequence[PlanEntry]) -> tuple[Unit, ...]:
    """Groups the entries of variables that are filled into units, in the order of their first entry."""
    filled = [e for e in entries if e.filled and not e.spec.is_object]
    groups = _connected(filled)
    return tuple(Unit(_reads(group), tuple(group)) for group in groups)


def _connected(entries: Sequence[PlanEntry]) -> list[list[PlanEntry]]:
    """Entries that share a source, directly or through others, in one group each."""
    leader: dict[str, str] = {}

    def find(name: str) -> str:
        while leader.setdefault(name, name) != name:
            leader[name] = leader[leader[name]]
            name = leader[name]
        return name

    for entry in entries:
        for name in entry.sources[1:]:
            leader[find(name)] = find(entry.sources[0])
    groups: dict[str, list[PlanEntry]] = {}
    for entry in entries:
        first = entry.sources[0]
        groups.setdefault(find(first) if first in leader else first, []).append(entry)
    return list(groups.values())


def _reads(entries: Sequence[PlanEntry]) -> tuple[Read, ...]:
    if len(entries) == len(entries[0].sources) == 1:  # nearly always
        (entry,) = entries
        return (Read(entry.sources[0], entry.source_specs[0], entry.sources[0] not in entry.unchecked),)
    found: dict[str, Read] = {}
    for entry in entries:
        for name, spec in zip(entry.sources, entry.source_specs, strict=True):
            found[name] = Read(name, spec, whole=name not in entry.unchecked)
    return tuple(found.values())


def parts_of(entry: PlanEntry) -> tuple[Box | None, ...]:
    """The part of each source that one entry needs."""
    return source_boxes(entry.ops, entry.source_specs)
