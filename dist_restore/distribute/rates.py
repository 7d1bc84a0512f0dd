"""What storage and network give right now, by a small sample of each; for `reads="auto"`. Called by all workers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import numpy as np

from dist_restore.checkpoints.reader import DirectSource, Source
from dist_restore.distribute.messaging.exchange import Exchange
from dist_restore.distribute.messaging.liveness import BrokenExchangeError, ticks
from dist_restore.distribute.shared.schedule import IN_FLIGHT, bucket_size
from dist_restore.engine.located import locate
from dist_restore.engine.units import Unit

# Pieces of a sample; the first half is not counted: storage that is limited often lends a little first.
_PIECES = 8
_LEAST, _MOST = 8 * (16 << 10), 16 << 20
# Of all bytes that are read, so much may be read by all workers together to learn the rate.
_SHARE = 0.02
# As many at once as shared reads have under way: one after the other they pass a third of that.
_ROUNDS = IN_FLIGHT
_SAMPLE_BUCKET = 1 << 20


def storage_rate(units: Sequence[Unit], source: Source, rank: int, world_size: int, total: int) -> float:
    """Bytes per second that this worker reads while all others do the same, elsewhere in the file; 0 where unknown.

    Args:
      units: of the plan.
      source: the opened checkpoint.
      rank: this worker.
      world_size: number of workers.
      total: bytes that are to be read in all.
    """
    size = int(min(_MOST, max(_LEAST, total * _SHARE / world_size))) // _PIECES
    found = _find(units, source, rank / world_size, size * _PIECES)
    if found is None or not isinstance(source, DirectSource):
        return 0.0
    name, begin = found
    buffer = np.empty(size, np.uint8)
    seconds = [_timed(source, name, begin + number * size, buffer) for number in range(_PIECES)]
    return size / max(statistics.median(seconds[_PIECES // 2 :]), 1e-9)


def _find(units: Sequence[Unit], source: Source, where: float, size: int) -> tuple[str, int] | None:
    """A tensor that holds so many bytes, and where to begin in it: at about this fraction of the checkpoint."""
    located = (item for item in locate(units, source) if item.places and len(item.places) == 1)
    large = [(item.unit.reads[0].name, item.places[0].size) for item in located if item.places]
    large = [(name, length) for name, length in large if length >= size]
    if not large:
        return None
    position = where * len(large)
    name, length = large[int(position)]
    return name, int((position - int(position)) * (length - size))


def _timed(source: DirectSource, name: str, begin: int, buffer: np.ndarray) -> float:
    start = time.perf_counter()
    source.read_stored(name, begin, buffer)
    return time.perf_counter() - start


def exchange_rate(exchange: Exchange, world_size: int, memory_budget: int, seconds: float) -> float:
    """Bytes per second that each worker receives in an all-gather while it sends as much.

    Raises:
      RestoreError: another worker did not take part in time.
    """
    size = min(_SAMPLE_BUCKET, bucket_size(world_size, memory_budget))
    _rounds(exchange, 1, size, seconds)  # makes connections
    start = time.perf_counter()
    _rounds(exchange, _ROUNDS, size, seconds)
    return _ROUNDS * size * (world_size - 1) / max(time.perf_counter() - start, 1e-9)


def _rounds(exchange: Exchange, count: int, size: int, seconds: float) -> None:
    bucket = np.zeros(size, np.uint8)
    for future in [exchange.start(failed=False, bucket=bucket) for _ in range(count)]:
        for _ in ticks(future, seconds):
            pass
        if not future.done():
            raise BrokenExchangeError(
                f"the other workers did not take part in an exchange of samples in {seconds:.1f} s"
            )
        future.result()
