"""Which hosts hold which variables, and where the bytes for them are read. Pure: devices are text here.

One program may drive devices of many hosts (TPU pods, parameter servers). What is copied as it is can be read on each
host that sees the files; the rest is read by the client, and sent to each host once.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from dist_restore.engine.units import Unit
from dist_restore.planning.entries import PlanEntry

_HOST = re.compile(r"/job:[^/]+/replica:\d+/task:\d+")


def host_of(device: str, default: str) -> str:
    """The host in a device's full name (`/job:worker/replica:0/task:1`); the default where it names none."""
    match = _HOST.match(device)
    return match[0] if match else default


@dataclasses.dataclass(frozen=True, slots=True)
class Holding:
    """Where a variable's components are.

    Attributes:
      hosts: of each component.
      uniform: whether all components get one value (not so where a total is divided over them).
    """

    hosts: tuple[str, ...]
    uniform: bool

    def on(self, host: str) -> tuple[int, ...]:
        """Numbers of the components on a host."""
        return tuple(number for number, place in enumerate(self.hosts) if place == host)


@dataclasses.dataclass(frozen=True, slots=True)
class Division:
    """Who reads what.

    Attributes:
      local: units whose variables are all in the client.
      sent: units that the client reads for others; only the `receivers` get their values.
      receivers: `(target, hosts)` of the entries of `sent`.
      read: `(host, entries)` that each host reads by itself.
    """

    local: tuple[Unit, ...]
    sent: tuple[Unit, ...]
    receivers: tuple[tuple[str, tuple[str, ...]], ...]
    read: tuple[tuple[str, tuple[PlanEntry, ...]], ...]


def remote_units(units: Sequence[Unit], holdings: Mapping[str, Holding], client: str) -> tuple[Unit, ...]:
    """The units of which some target has a component on another host than the client."""
    return tuple(u for u in units if any(set(holdings[e.target].hosts) != {client} for e in u.entries))


def divide(
    units: Sequence[Unit],
    holdings: Mapping[str, Holding],
    client: str,
    seeing: Collection[str],
    readable: Callable[[PlanEntry], bool],
) -> Division:
    """Decides who reads what.

    Args:
      units: all of the plan.
      holdings: of each target.
      client: the host of the program itself.
      seeing: hosts that see the checkpoint's files.
      readable: whether a host can read an entry's value as it is stored.
    """
    remote = remote_units(units, holdings, client)
    taken = {id(unit) for unit in remote}
    receivers: dict[str, tuple[str, ...]] = {}
    read: dict[str, list[PlanEntry]] = {}
    for entry, copied in _entries(remote, holdings, readable):
        hosts = dict.fromkeys(holdings[entry.target].hosts)
        receivers[entry.target] = tuple(host for host in hosts if not copied or host not in seeing)
        for host in hosts:
            if host not in receivers[entry.target]:
                read.setdefault(host, []).append(entry)
    return Division(
        local=tuple(unit for unit in units if id(unit) not in taken),
        sent=tuple(unit for unit in remote if any(receivers[e.target] for e in unit.entries)),
        receivers=tuple(receivers.items()),
        read=tuple((host, tuple(entries)) for host, entries in sorted(read.items())),
    )


def _entries(
    units: Sequence[Unit], holdings: Mapping[str, Holding], readable: Callable[[PlanEntry], bool]
) -> Iterator[tuple[PlanEntry, bool]]:
    """Entries, and whether hosts can read them; of a unit all or none, for its sources are read in one place."""
    for unit in units:
        copied = all(readable(entry) and holdings[entry.target].uniform for entry in unit.entries)
        yield from ((entry, copied) for entry in unit.entries)


def batches(sizes: Sequence[int], counts: Sequence[int], budget: int) -> Iterator[tuple[int, ...]]:
    """Parts of a sequence as tuples of indexes, of few different lengths, each within a budget of bytes.

    A part that is too short is filled up with repetitions of its smallest item, where that costs next to nothing.

    Args:
      sizes: bytes of each item.
      counts: the lengths that a part may have, smallest first; the first one is 1, and may pass the budget alone.
      budget: bytes.
    """
    begin = 0
    while begin < len(sizes):
        end = begin + 1
        while end < min(len(sizes), begin + counts[-1]) and sum(sizes[begin : end + 1]) <= budget:
            end += 1
        longer = next(count for count in counts if count >= end - begin)
        smallest = min(range(begin, end), key=lambda index: sizes[index])
        missing = longer - (end - begin)
        if missing * sizes[smallest] > _FILLING:
            end, missing = begin + max(count for count in counts if count <= end - begin), 0
        yield (*range(begin, end), *(smallest,) * missing)
        begin = end


# Bytes that may be read again for the sake of fewer different calls.
_FILLING = 64 << 10
