"""How long each read mode would take, from bytes, workers and rates; and which one `auto` takes. Pure.

All rates are bytes per second. Reading, sending and assigning overlap, so that the slowest of them counts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from dist_restore.core.options import Reads
from dist_restore.distribute.shared.schedule import read_bytes
from dist_restore.engine.units import Unit

# Checking, copying and assigning what has arrived: one core's memory, a rather slow one.
_HANDLING = 2e9
# From here on an all-gather over TensorFlow's gRPC is not expected to be faster, so that it need not be measured.
FASTEST_EXCHANGE = 1e9
# Slower is hardly any network of today (1 Gb/s): where sharing wins even so, it need not be measured either.
SLOWEST_EXCHANGE = 1e8
# Agreeing on the plan and on who reads what: a dozen times the chief hears all workers, at 0.3 ms a message.
_MESSAGES_SECONDS, _MESSAGES_SECONDS_PER_WORKER = 0.05, 0.004


@dataclasses.dataclass(frozen=True, slots=True)
class Load:
    """What a plan moves.

    Attributes:
      read: bytes that one reader of everything takes from storage.
      made: bytes of the variables that it fills.
    """

    read: int
    made: int


@dataclasses.dataclass(frozen=True, slots=True)
class Rates:
    """What storage and network give.

    Attributes:
      storage_each: what one worker can read by itself.
      storage_all: what all workers together can read; infinite where each has a disk of its own.
      exchange_each: what one worker can receive from others while it sends as much.
      exchange_all: what all workers together can receive; infinite where no link is shared.
      passes: how often a worker that reads everything reads it: twice where storage is local, to check it first.
    """

    storage_each: float
    storage_all: float = math.inf
    exchange_each: float = FASTEST_EXCHANGE
    exchange_all: float = math.inf
    passes: int = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Forecast:
    """What one mode would take.

    Attributes:
      mode: `every_worker`, `chief` or `sharded`.
      storage: seconds of reading.
      exchange: seconds of sending and receiving.
      seconds: of all, as they overlap.
    """

    mode: Reads
    storage: float
    exchange: float
    seconds: float


def load_of(units: Sequence[Unit]) -> Load:
    """What a plan's units move."""
    return Load(sum(map(read_bytes, units)), sum(e.bytes for unit in units for e in unit.entries))


def forecast(load: Load, world_size: int, rates: Rates) -> tuple[Forecast, ...]:
    """What each mode would take, in the order `every_worker`, `chief`, `sharded`.

    Args:
      load: of the plan.
      world_size: number of workers.
      rates: of the storage and the network that they share.
    """
    alone = load.read / min(rates.storage_each, rates.storage_all)
    crowded = load.read / min(rates.storage_each, rates.storage_all / world_size)
    shared = load.read / min(rates.storage_each * world_size, rates.storage_all)
    # What is read again comes out of the page cache.
    again = (rates.passes - 1) * load.read / _HANDLING
    return (
        _forecast(Reads.EVERY_WORKER, load, world_size, crowded + again, 0.0),
        _forecast(Reads.CHIEF, load, world_size, alone + again, _broadcast_seconds(load, world_size, rates)),
        _forecast(Reads.SHARDED, load, world_size, shared, _gather_seconds(load, world_size, rates)),
    )


def _forecast(mode: Reads, load: Load, world_size: int, storage: float, exchange: float) -> Forecast:
    messages = _MESSAGES_SECONDS + _MESSAGES_SECONDS_PER_WORKER * world_size if world_size > 1 else 0.0
    return Forecast(mode, storage, exchange, messages + max(storage, exchange, load.made / _HANDLING))


def _gather_seconds(load: Load, world_size: int, rates: Rates) -> float:
    """An all-gather: each worker receives what the others have read, and sends as much."""
    others = load.made * (world_size - 1)
    return max(others / world_size / rates.exchange_each, others / rates.exchange_all)


def _broadcast_seconds(load: Load, world_size: int, rates: Rates) -> float:
    """A binary tree (TensorFlow's collective broadcast): whoever has children sends everything to two of them."""
    children = min(world_size - 1, 2)
    return max(load.made * children / rates.exchange_each, load.made * (world_size - 1) / rates.exchange_all)


def is_fast(load: Load, world_size: int, storage_each: float) -> bool:
    """Whether reading everything takes each worker no longer than the fastest exchange would."""
    exchange = load.made * (world_size - 1) / world_size / FASTEST_EXCHANGE
    return load.read / storage_each <= exchange


def best(forecasts: Sequence[Forecast], usual: Reads = Reads.SHARDED) -> Forecast:
    """The mode that takes least; another one than the usual only where it is clearly faster.

    Samples are noisy, and the modes' costs differ: what every worker reads from shared storage, all others wait for.

    Args:
      forecasts: of all modes.
      usual: the one that is right more often: `sharded` for storage behind a network, `every_worker` for local storage.
    """
    fastest = min(forecasts, key=lambda f: f.seconds)
    expected = next(f for f in forecasts if f.mode is usual)
    return fastest if fastest.seconds < _CLEARLY * expected.seconds else expected


_CLEARLY = 0.75
