"""Where what units read lies, and in which order. Knows sources; knows neither ops nor variables."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from dist_restore.checkpoints.reader import DirectSource, Source, Stored
from dist_restore.engine.units import Unit


class Located(msgspec.Struct, frozen=True, gc=False):
    """A unit, and where what it reads lies; None where some of it can only be read by `Source.read`."""

    unit: Unit
    places: tuple[Stored, ...] | None


def stored_size(item: Located) -> int:
    """Bytes of a unit's tensor; of one that is no single tensor with a place, all that it reads and makes."""
    places = item.places
    return places[0].size if places is not None and len(places) == 1 else item.unit.nbytes


def locate(units: Iterable[Unit], source: Source) -> list[Located]:
    """Finds where units lie, and puts them in file order: reading is sequential, and neighbours come together."""
    if not isinstance(source, DirectSource):
        return [Located(unit, None) for unit in units]
    located = [Located(unit, _places(unit, source)) for unit in units]
    # Largest first was tried: the peak of memory is the same.
    return sorted(located, key=lambda item: (item.places[0].file, item.places[0].offset) if item.places else (-1, 0))


def _places(unit: Unit, source: DirectSource) -> tuple[Stored, ...] | None:
    found: list[Stored] = []
    for read in unit.reads:
        stored = source.stored(read.name) if read.whole else None
        if stored is None:
            return None
        found.append(stored)
    return tuple(found)
